//! The command line: `replay`, `connections`, `fanout`; `--help` of each explains itself.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use loadtest::client::Endpoint;
use loadtest::measure::connections::{self, ConnectionsOptions};
use loadtest::measure::fanout::{self, FanoutOptions};
use loadtest::measure::server::Server;
use loadtest::replay::conversation::Shape;
use loadtest::replay::{Replay, ReplayOptions, conversation_from};

/// Many clients, several replicas, one report.
#[derive(Debug, Parser)]
#[command(name = "wyd-loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Replays a conversation and checks every member's view and the archive; exit code 1 when
    /// anything was lost, doubled or out of order.
    Replay(ReplayArgs),
    /// Opens idle connections and prints the server's memory for each.
    Connections(ConnectionsArgs),
    /// Publishes to channels with many subscribers and prints deliveries per second of server CPU.
    Fanout(FanoutArgs),
}

#[derive(Debug, Args)]
struct ReplayArgs {
    /// Gateways, such as ws://a:8000/connection/websocket, separated by commas.
    #[arg(long, required = true, value_delimiter = ',')]
    urls: Vec<Endpoint>,
    /// Conversation: a JSON object a line with room, at_ms, user, text. Where there is none, one
    /// is made up.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Seed of a made-up conversation.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rooms of a made-up conversation.
    #[arg(long, default_value_t = 4)]
    rooms: usize,
    /// People of a made-up conversation.
    #[arg(long, default_value_t = 634)]
    people: usize,
    /// Messages of a made-up conversation.
    #[arg(long, default_value_t = 6_248)]
    messages: usize,
    /// Multiple of the conversation's own speed, such as 100x.
    #[arg(long, default_value = "100x", value_parser = speed)]
    speed: f64,
    /// Takes only so many messages, the earliest of all rooms.
    #[arg(long)]
    limit: Option<usize>,
    /// Environment variable with the server's token secret.
    #[arg(long, default_value = "JWT_SECRET")]
    secret_env: String,
    /// Namespace of the rooms' channels.
    #[arg(long, default_value = "chat")]
    namespace: String,
    /// Appended to the rooms' names, so that a run has channels of its own.
    #[arg(long, default_value = "")]
    suffix: String,
    /// Gateways that are asked for the archive; default: all of --urls.
    #[arg(long, conflicts_with = "no_archive")]
    archive_url: Vec<Endpoint>,
    /// Does not check the archive.
    #[arg(long)]
    no_archive: bool,
    /// How long everything may take.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How long members and archive may take to have everything after the last message.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    quiesce: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct OutputArgs {
    /// Writes the report as JSON to this file.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ServerArgs {
    /// Starts this `wyd` binary for the measurement: one gateway on the memory broker.
    #[arg(long, conflicts_with_all = ["url", "pid"])]
    spawn: Option<PathBuf>,
    /// A server that runs.
    #[arg(long, requires = "pid")]
    url: Option<Endpoint>,
    /// The process of the server that runs.
    #[arg(long, requires = "url")]
    pid: Option<u32>,
    /// Environment variable with the running server's token secret.
    #[arg(long, default_value = "JWT_SECRET")]
    secret_env: String,
    /// Environment variable with a key of the running server's API.
    #[arg(long, default_value = "WYD_API_KEY")]
    api_key_env: String,
    /// Namespace of the running server that anybody may subscribe in.
    #[arg(long, default_value = "live")]
    namespace: String,
}

#[derive(Debug, Args)]
struct ConnectionsArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Connections to open.
    #[arg(long, default_value_t = 10_000)]
    n: usize,
    /// Channels that each subscribes to.
    #[arg(long, default_value_t = 0)]
    channels: usize,
    /// Connections that open at a time.
    #[arg(long, default_value_t = 64)]
    connects: usize,
    /// How long they are held before memory is read.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    hold: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct FanoutArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Connections to open.
    #[arg(long, default_value_t = 5_000)]
    n: usize,
    /// Subscribers of one channel.
    #[arg(long, default_value_t = 1_000)]
    subscribers: usize,
    /// Publications a second over all channels; 0: each when the one before has arrived.
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Bytes of filling in each publication.
    #[arg(long, default_value_t = 40)]
    payload_bytes: usize,
    /// How long is measured.
    #[arg(long, default_value = "15s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Connections that open at a time.
    #[arg(long, default_value_t = 64)]
    connects: usize,
    #[command(flatten)]
    output: OutputArgs,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        Command::Replay(args) => replay(args).await,
        Command::Connections(args) => {
            let server = server(&args.server, false).await?;
            let options = ConnectionsOptions {
                connections: args.n,
                channels: args.channels,
                connects_max: args.connects.max(1),
                hold: args.hold,
            };
            let report = connections::run(&server, &options).await?;
            print(&report, report.lost == 0, &args.output)
        }
        Command::Fanout(args) => {
            let server = server(&args.server, true).await?;
            let options = FanoutOptions {
                connections: args.n,
                subscribers: args.subscribers,
                rate: args.rate,
                payload_bytes: args.payload_bytes,
                duration: args.duration,
                connects_max: args.connects.max(1),
            };
            let report = fanout::run(&server, &options).await?;
            let is_right = report.lost == 0 && report.missing == 0;
            print(&report, is_right, &args.output)
        }
    }
}

async fn replay(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    let shape = Shape {
        seed: args.seed,
        rooms: args.rooms,
        people: args.people,
        messages: args.messages,
    };
    let conversation = conversation_from(args.file.as_deref(), &shape, args.limit)?;
    let endpoints: Vec<Endpoint> = args.urls.iter().map(Endpoint::websocket).collect();
    let archive_endpoints = match &args.archive_url[..] {
        _ if args.no_archive => Vec::new(),
        [] => endpoints.clone(),
        named => named.iter().map(Endpoint::websocket).collect(),
    };
    let secret = variable(&args.secret_env)?;
    let options = ReplayOptions {
        archive_endpoints,
        suffix: args.suffix,
        speed: args.speed,
        quiesce: args.quiesce,
        timeout: args.timeout,
        ..ReplayOptions::new(endpoints, &secret, &args.namespace)
    };
    let report = Replay::new(options, conversation).run().await?;
    print(&report, report.is_clean(), &args.output)
}

async fn server(args: &ServerArgs, wants_api: bool) -> anyhow::Result<Server> {
    if let Some(wyd) = &args.spawn {
        return Server::start(wyd).await;
    }
    let (Some(url), Some(pid)) = (&args.url, args.pid) else {
        bail!("which server? give --spawn path/to/wyd, or --url and --pid of one that runs");
    };
    let secret = variable(&args.secret_env)?;
    let api_key = if wants_api {
        variable(&args.api_key_env)?
    } else {
        String::new()
    };
    Server::running(url.clone(), pid, secret, api_key, args.namespace.clone())
}

fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("environment variable {name} is not set"))
}

#[allow(clippy::print_stdout, reason = "the report is what the program is for")]
fn print<R: Display + Serialize>(
    report: &R,
    is_right: bool,
    output: &OutputArgs,
) -> anyhow::Result<ExitCode> {
    if output.json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        println!("{report}");
    }
    if let Some(path) = &output.report {
        write_json(path, report)?;
    }
    Ok(if is_right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn write_json(path: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(report)?;
    std::fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn speed(text: &str) -> Result<f64, String> {
    let speed: f64 = text
        .trim_end_matches(['x', 'X'])
        .parse()
        .map_err(|_| format!("{text:?} is not a speed such as 100x"))?;
    if speed.is_finite() && speed > 0.0 {
        Ok(speed)
    } else {
        Err(format!("{text:?} is not above 0"))
    }
}
