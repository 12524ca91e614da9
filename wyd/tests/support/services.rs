//! The shared services, and what of them belongs to one test.

use std::fs::File;
use std::path::Path;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

/// Where the services are.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    pub(crate) redis_url: String,
    pub(crate) kafka_brokers: String,
    database_url: String,
    mongo_url: String,
}

impl Services {
    /// Reads the environment.
    pub(crate) fn from_env() -> Self {
        Self {
            redis_url: variable("WYD_TEST_REDIS_URL"),
            kafka_brokers: variable("WYD_TEST_KAFKA_BROKERS"),
            database_url: variable("WYD_TEST_DATABASE_URL"),
            mongo_url: variable("WYD_TEST_MONGO_URL"),
        }
    }

    /// Waits until no other test works for the workers' consumer group on this Kafka.
    ///
    /// The group's name is fixed: a worker of another test would take partitions, and archive
    /// this test's messages in its own database.
    pub(crate) async fn lock_consumer_group(&self) -> File {
        let name: String = self
            .kafka_brokers
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let path = std::env::temp_dir().join(format!("wyd-test-group-{name}.lock"));
        tokio::task::spawn_blocking(move || lock(&path))
            .await
            .unwrap()
    }
}

/// Held until the file is closed, also by a crash of the test.
fn lock(path: &Path) -> File {
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    file.lock().unwrap();
    file
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: this test needs real services, run ./test main")
    })
}

/// A database of the test's own in PostgreSQL, and a name for one in MongoDB.
#[derive(Debug)]
pub(crate) struct TestDatabase {
    services: Services,
    name: String,
}

impl TestDatabase {
    /// Creates it.
    pub(crate) async fn create(services: &Services) -> Self {
        let database = Self {
            services: services.clone(),
            name: format!("wyd_test_{}", Uuid::new_v4().simple()),
        };
        database
            .administer(&format!("CREATE DATABASE {}", database.name))
            .await;
        database
    }

    /// Its address in PostgreSQL.
    pub(crate) fn postgres_url(&self) -> String {
        with_database(&self.services.database_url, &self.name)
    }

    /// Its address in MongoDB, which makes databases when they are first written to.
    pub(crate) fn mongo_url(&self) -> String {
        with_database(&self.services.mongo_url, &self.name)
    }

    /// Removes it in both.
    pub(crate) async fn remove(self) {
        self.administer(&format!("DROP DATABASE {} WITH (FORCE)", self.name))
            .await;
        let mongo = mongodb::Client::with_uri_str(self.mongo_url())
            .await
            .unwrap();
        mongo.database(&self.name).drop().await.unwrap();
    }

    async fn administer(&self, statement: &str) {
        let mut connection = PgConnection::connect(&self.services.database_url)
            .await
            .expect("PostgreSQL answers");
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
            .execute(&mut connection)
            .await
            .unwrap();
    }
}

/// Replaces the last part of `scheme://host/database`, and keeps options after it.
fn with_database(url: &str, name: &str) -> String {
    let (base, options) = url.split_once('?').unwrap_or((url, ""));
    let (server, _) = base.rsplit_once('/').unwrap();
    let mark = if options.is_empty() { "" } else { "?" };
    format!("{server}/{name}{mark}{options}")
}
