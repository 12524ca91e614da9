//! What can be asked of the binary.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The realtime gateway: chat and live updates for phones, over any number of nodes.
///
/// Without a command it starts `wyd dev`. Settings come from defaults, `--config`, then the
/// environment; `wyd config --default` lists them all. Exit code 78: a setting is wrong; 69: a
/// service cannot be used.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub(crate) struct Cli {
    /// Configuration file (TOML, or YAML by its ending); the environment wins over it.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Everything in one process on embedded parts: for trying out. Needs no service.
    Dev(DevArgs),
    /// A gateway replica: clients connect to it.
    Gateway,
    /// A worker replica: brings what is published to the archive.
    Worker(WorkerArgs),
    /// Brings databases and Kafka topics to this version, then exits.
    Migrate,
    /// Checks the configuration and asks every dependency; lists all that is wrong.
    Check(CheckArgs),
    /// Prints the effective configuration, secrets masked.
    Config(ConfigArgs),
    /// Makes a connection token, for trying out.
    Token(TokenArgs),
    /// Dead letters: jobs that a worker could not do. Lists them, shows one, sends them back.
    Dlq(DlqArgs),
    /// What is kept about one user: hands it out, or erases it.
    User(UserArgs),
}

#[derive(Debug, Default, Args)]
pub(crate) struct DevArgs {
    /// Where secrets, archive and job log are kept.
    #[arg(long, value_name = "FOLDER", default_value = "wyd-data")]
    pub(crate) data: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// What it does, separated by commas; all roles by default: `persist`, `push`.
    #[arg(long, value_delimiter = ',')]
    pub(crate) roles: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Prints a documented file with every default instead.
    #[arg(long)]
    pub(crate) default: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// The user (`sub`).
    #[arg(long, required_unless_present = "anonymous")]
    pub(crate) user: Option<String>,
    /// A token without a user.
    #[arg(long, conflicts_with = "user")]
    pub(crate) anonymous: bool,
    /// How long the token is good: `90s`, `1h`, `7d`.
    #[arg(long, default_value = "1h", value_parser = lifetime)]
    pub(crate) ttl: std::time::Duration,
    /// Channels the server subscribes the user to.
    #[arg(long, value_delimiter = ',')]
    pub(crate) channels: Vec<String>,
    /// What others see of the user: one JSON value.
    #[arg(long, value_name = "JSON", value_parser = json)]
    pub(crate) info: Option<serde_json::Value>,
}

#[derive(Debug, Args)]
pub(crate) struct UserArgs {
    #[command(subcommand)]
    pub(crate) command: UserCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Writes the user's messages and records, one JSON object a line.
    Export(UserExportArgs),
    /// Empties the user's messages, keeping their places, and removes the user's records. What is
    /// still in Redis and Kafka leaves them by their own retention: erase again after it.
    Erase(UserEraseArgs),
}

#[derive(Debug, Args)]
pub(crate) struct UserExportArgs {
    /// The user, as tokens name them (`sub`).
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) user: String,
    /// Where to; stdout when absent.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct UserEraseArgs {
    /// The user, as tokens name them (`sub`).
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) user: String,
    /// It is meant.
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DlqArgs {
    /// Works on the data folder of a stopped `wyd dev` instead of on Kafka.
    #[arg(long, global = true, value_name = "FOLDER")]
    pub(crate) data: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: DlqCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// Lists dead letters, oldest first, one a line.
    List {
        #[command(flatten)]
        filter: DlqFilter,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Prints one dead letter with its headers and its bytes.
    Show {
        /// Whose jobs.
        topic: DlqTopic,
        /// PARTITION:OFFSET, as `list` prints it.
        position: LetterPosition,
    },
    /// Sends dead letters back to where they came from, each once: repeating it is harmless.
    Redrive {
        #[command(flatten)]
        filter: DlqFilter,
        /// Only says which would be sent back.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which dead letters are meant.
#[derive(Debug, Args)]
pub(crate) struct DlqFilter {
    /// Whose jobs; all when absent.
    #[arg(long)]
    pub(crate) topic: Option<DlqTopic>,
    /// Only jobs with this key: a channel, a user or a media id.
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Only those whose error contains this text.
    #[arg(long, value_name = "TEXT")]
    pub(crate) error: Option<String>,
    /// Only `poison` (could never succeed) or `exhausted` (tried for too long).
    #[arg(long, value_parser = ["poison", "exhausted"])]
    pub(crate) class: Option<String>,
    /// Only those that failed in the last while: `30m`, `24h`.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) since: Option<std::time::Duration>,
    /// Also those that were sent back already.
    #[arg(long)]
    pub(crate) redriven: bool,
    /// At most so many.
    #[arg(long, default_value = "1000")]
    pub(crate) limit: usize,
}

/// The topics that have dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DlqTopic {
    Messages,
    Uploads,
    Pushes,
}

impl DlqTopic {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Messages => shared::events::TOPIC_MESSAGES,
            Self::Uploads => shared::events::TOPIC_UPLOADS,
            Self::Pushes => shared::events::TOPIC_PUSHES,
        }
    }

    /// Returns the chosen one, else all.
    pub(crate) fn chosen(topic: Option<Self>) -> Vec<Self> {
        topic.map_or_else(|| Self::value_variants().to_vec(), |topic| vec![topic])
    }
}

/// Where a dead letter is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LetterPosition(pub(crate) store::job_log::JobPosition);

impl std::str::FromStr for LetterPosition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(partition, offset)| {
            Some(store::job_log::JobPosition {
                partition: partition.parse().ok()?,
                offset: offset.parse().ok()?,
            })
        });
        parsed
            .map(Self)
            .ok_or_else(|| "write PARTITION:OFFSET, as `wyd dlq list` prints it".to_owned())
    }
}

impl std::fmt::Display for LetterPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.0.partition, self.0.offset)
    }
}

/// What `wyd check` checks for.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The command that will run with this configuration.
    #[arg(long, value_enum, default_value = "gateway")]
    pub(crate) role: CheckRole,
}

/// Whose needs are checked.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum CheckRole {
    Gateway,
    Worker,
    Migrate,
}

fn json(text: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))
}

/// Longest lifetime of a token: servers believe no longer one.
const LIFETIME_MAX: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

fn lifetime(text: &str) -> Result<std::time::Duration, String> {
    let lifetime = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if lifetime > LIFETIME_MAX {
        return Err("a token is good for 365 days at most".to_owned());
    }
    Ok(lifetime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["wyd"]).unwrap().command.is_none());
    }
}
