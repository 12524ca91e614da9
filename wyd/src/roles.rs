//! The workers of this process: each role is a task, and when one ends, all do.

use std::sync::Arc;

use shared::config::{Config, WorkerRole, WorkerRoles};
use store::archive::MessageArchive;
use store::job_log::{JobLog, JobLogError};
use store::media::MediaStore;
use store::records::Records;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use workers::push::PushParts;
use workers::push::metrics::PushMetrics;
use workers::push::online::Online;
use workers::push::provider::PushProvider;
use workers::upload::{ChannelPublisher, UploadParts};

use crate::process::{Failure, Signals};

/// What workers are made of.
pub(crate) struct WorkerParts {
    pub(crate) config: Arc<Config>,
    pub(crate) job_log: Arc<dyn JobLog>,
    /// Where messages are kept.
    pub(crate) archive: Option<Arc<dyn MessageArchive>>,
    /// The chat records.
    pub(crate) records: Option<Records>,
    /// Where media are kept; without it nothing is uploaded.
    pub(crate) media: Option<Arc<dyn MediaStore>>,
    /// How channels learn of their media.
    pub(crate) announcer: Option<Arc<dyn ChannelPublisher>>,
    pub(crate) metrics: workers::Metrics,
    /// What the push worker needs besides.
    pub(crate) push: Option<PushNeeds>,
}

/// What only the push worker needs.
pub(crate) struct PushNeeds {
    pub(crate) online: Arc<dyn Online>,
    pub(crate) provider: Arc<dyn PushProvider>,
    pub(crate) metrics: PushMetrics,
}

/// The workers that run.
pub(crate) struct Workers {
    /// Each returns the name of its role.
    running: JoinSet<&'static str>,
    cancel: CancellationToken,
}

impl Workers {
    /// Starts a worker for each role.
    pub(crate) async fn start(roles: WorkerRoles, parts: &WorkerParts) -> Result<Self, Failure> {
        let mut workers = Self {
            running: JoinSet::new(),
            cancel: CancellationToken::new(),
        };
        for role in roles.iter() {
            match role {
                WorkerRole::Persist => workers.start_persist(parts).await?,
                WorkerRole::Upload => workers.start_upload(parts).await?,
                WorkerRole::Push => workers.start_push(parts).await?,
            }
        }
        Ok(workers)
    }

    async fn start_persist(&mut self, parts: &WorkerParts) -> Result<(), Failure> {
        let archive = needed(parts.archive.as_ref(), "database.url")?;
        let persist = workers::persist::start(
            &parts.config.worker,
            Arc::clone(&parts.job_log),
            Arc::clone(&archive),
            parts.metrics.clone(),
            self.cancel.clone(),
        );
        let persist = persist.await.map_err(|error| cannot_join(&error))?;
        self.spawn(WorkerRole::Persist, persist);
        let config = Arc::clone(&parts.config);
        let retention = workers::persist::retention::run(config, archive, self.cancel.clone());
        self.spawn(WorkerRole::Persist, retention);
        Ok(())
    }

    async fn start_upload(&mut self, parts: &WorkerParts) -> Result<(), Failure> {
        let Some(store) = &parts.media else {
            tracing::info!("no media are configured (media.bucket): nothing is uploaded");
            return Ok(());
        };
        let missing = |key: &str| Failure::Configuration(vec![format!("{key} is not configured")]);
        let upload = UploadParts {
            job_log: Arc::clone(&parts.job_log),
            store: Arc::clone(store),
            records: parts
                .records
                .clone()
                .ok_or_else(|| missing("database.url"))?,
            publisher: needed(parts.announcer.as_ref(), "broker.redis_url")?,
            metrics: parts.metrics.clone(),
        };
        let upload = workers::upload::start(&parts.config.media, upload, self.cancel.clone());
        let upload = upload.await.map_err(|error| cannot_join(&error))?;
        self.spawn(WorkerRole::Upload, upload);
        Ok(())
    }

    async fn start_push(&mut self, parts: &WorkerParts) -> Result<(), Failure> {
        let missing = |key: &str| Failure::Configuration(vec![format!("{key} is not configured")]);
        let needs = parts.push.as_ref();
        let needs = needs.ok_or_else(|| missing("broker.redis_url"))?;
        let records = parts.records.clone();
        let push = PushParts {
            config: Arc::clone(&parts.config),
            job_log: Arc::clone(&parts.job_log),
            records: records.ok_or_else(|| missing("database.url"))?,
            archive: parts.archive.clone(),
            online: Arc::clone(&needs.online),
            provider: Arc::clone(&needs.provider),
            metrics: parts.metrics.clone(),
            push_metrics: needs.metrics.clone(),
        };
        let push = workers::push::start(push, self.cancel.clone()).await;
        self.spawn(WorkerRole::Push, push.map_err(|error| cannot_join(&error))?);
        Ok(())
    }

    fn spawn(&mut self, role: WorkerRole, worker: impl Future<Output = ()> + Send + 'static) {
        self.running.spawn(async move {
            worker.await;
            role.name()
        });
    }

    /// Waits for the signal to stop.
    ///
    /// # Errors
    /// When a worker ends before: a process that only looks alive would never be replaced.
    pub(crate) async fn until_stopped(&mut self, signals: &Signals) -> Result<(), Failure> {
        let ended = tokio::select! {
            () = signals.stop.cancelled() => return Ok(()),
            Some(ended) = self.running.join_next() => ended,
        };
        let why = match ended {
            Ok(role) => format!("the {role} worker ended by itself"),
            Err(error) => format!("a worker failed: {error}"),
        };
        Err(Failure::Other(why))
    }

    /// Lets every worker finish its batch.
    pub(crate) async fn finish(mut self) -> Result<(), Failure> {
        self.cancel.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended.map_err(|error| Failure::Other(format!("a worker failed: {error}")))?;
        }
        Ok(())
    }
}

/// Returns a part that the configuration names, as `check` made sure for this role.
fn needed<T: ?Sized>(part: Option<&Arc<T>>, key: &str) -> Result<Arc<T>, Failure> {
    let missing = || Failure::Configuration(vec![format!("{key} is not configured")]);
    part.cloned().ok_or_else(missing)
}

fn cannot_join(error: &JobLogError) -> Failure {
    Failure::Dependency(vec![error.to_string()])
}
