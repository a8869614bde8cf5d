//! `keylane work`

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Broker;
use super::init::parse_size;
use super::metrics::MetricsArgs;
use super::progress::counted;
use super::signals::until_signalled;
use crate::handler::exec::Exec;
use crate::handler::http::Http;
use crate::handler::pipe::Pipe;
use crate::{MaxCrashes, RetryPolicy, Weight, WorkerId, WorkerOptions, WorkerSummary};

/// Execute tasks, until Ctrl-C or SIGTERM
///
/// Running tasks finish when the worker is stopped, and the others go back in
/// order. A second Ctrl-C leaves at once; what ran then is executed again.
#[derive(Debug, clap::Args)]
pub(super) struct Work {
    #[command(flatten)]
    handler: HandlerArgs,
    /// Take no partition before the URL of --http accepts a connection (it is sent a HEAD)
    #[arg(long, requires = "http")]
    wait_for_handler: bool,
    /// Name of this worker; a stable one keeps its partitions over a restart
    /// [default: host and process number]
    #[arg(long)]
    id: Option<WorkerId>,
    /// Tasks that run at once, at the most
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    slots: u32,
    /// Time for one attempt; 0 is unlimited
    #[arg(long, default_value = "5m", value_parser = parse_duration, value_name = "TIME")]
    task_timeout: Duration,
    /// Share of the partitions, relative to the other workers
    #[arg(long, default_value_t = Weight::ONE)]
    weight: Weight,
    /// Attempts until a task goes to the dead letters; 0 is unlimited
    #[arg(long, default_value_t = 5, value_name = "N")]
    attempts: u32,
    /// Longest wait before the second attempt; doubles with every further one
    #[arg(long, default_value = "500ms", value_parser = parse_duration, value_name = "TIME")]
    retry_delay: Duration,
    /// Longest wait before any attempt
    #[arg(long, default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    max_retry_delay: Duration,
    /// Lost executions (the worker died or was cut off) until a task goes to
    /// the dead letters; 0 is unlimited, the least is 2
    #[arg(long, default_value_t = 5, value_name = "N")]
    max_crashes: u32,
    /// When stopped: time for running tasks to finish
    #[arg(long, default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    drain_timeout: Duration,
    /// At the start: how long to wait for a broker that is out of reach [default: without end]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    wait_for_broker: Option<Duration>,
    /// Payloads that wait for their turn in memory; the rest waits in files without a name
    #[arg(long, default_value = "64MiB", value_parser = parse_size, value_name = "SIZE")]
    window_bytes: u64,
    /// The folder of these files [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    spill_directory: Option<PathBuf>,
    /// How long an ack may wait for others; longer is fewer acks, and without a
    /// journal more executed again after a crash; with one, and more than 400ms,
    /// whoever takes over reads more of it
    #[arg(long, default_value = "100ms", value_parser = parse_duration, value_name = "TIME")]
    ack_delay: Duration,
    /// Keep no record of what is executed: no verify, task or history, and a task
    /// whose ack was lost is executed again
    #[arg(long)]
    no_journal: bool,
    /// Hand no fencing token to handlers (KEYLANE_FENCING_TOKEN, the field
    /// fencing_token, the header keylane-fencing-token): a round trip to the
    /// broker less for each period of ownership
    #[arg(long)]
    no_fencing: bool,
    #[command(flatten)]
    metrics: MetricsArgs,
    /// Print what was done as one JSON object, at the end
    #[arg(long)]
    json: bool,
}

/// What executes a task.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct HandlerArgs {
    /// Run a shell command per task: payload on standard input, facts in
    /// KEYLANE_* variables; exit 0 is executed, 75 is retry, 126 and 127 (no such
    /// command) have the worker wait, else failed
    #[arg(long, value_name = "CMD")]
    exec: Option<OsString>,
    /// Keep a shell command running per slot: one JSON line in per task, one out
    #[arg(long, value_name = "CMD")]
    pipe: Option<OsString>,
    /// Post every task to a URL: 2xx is executed; 409, 429 and 5xx are retry;
    /// other 4xx go to the dead letters; while no connection comes about the
    /// worker waits
    #[arg(long, value_name = "URL")]
    http: Option<String>,
}

/// How often a handler that is waited for is asked for.
const HANDLER_PACE: Duration = Duration::from_millis(500);

/// Waits until a connection to the URL comes about, or until the shutdown.
async fn until_reachable(handler: &Http, shutdown: &CancellationToken) {
    let mut told = None;
    while let Err(reason) = handler.reachable().await {
        if told.as_ref() != Some(&reason) {
            tracing::warn!(reason, "waiting for the handler");
            told = Some(reason);
        }
        tokio::select! {
            () = tokio::time::sleep(HANDLER_PACE) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

impl Work {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let connect = broker.connect()?;
        let options = WorkerOptions {
            id: self.id.unwrap_or_else(default_worker_id),
            slots: self.slots,
            task_timeout: (!self.task_timeout.is_zero()).then_some(self.task_timeout),
            weight: self.weight,
            retry: RetryPolicy {
                attempts: self.attempts,
                first_delay: self.retry_delay,
                max_delay: self.max_retry_delay,
            },
            max_crashes: MaxCrashes::new(self.max_crashes),
            drain_timeout: self.drain_timeout,
            wait_for_broker: self.wait_for_broker,
            window_bytes: self.window_bytes,
            spill_directory: self.spill_directory.unwrap_or_else(std::env::temp_dir),
            ack_delay: self.ack_delay,
            journal: !self.no_journal,
            fencing: !self.no_fencing,
            metrics: self.metrics.serve().await?,
            ..WorkerOptions::default()
        };
        let (slots, json) = (self.slots as usize, self.json);
        until_signalled("finishing the tasks that run", async |shutdown| {
            let summary = match self.handler {
                HandlerArgs { exec: Some(command), .. } => {
                    crate::work(&connect, options, Exec::new(command), shutdown).await
                }
                HandlerArgs { pipe: Some(command), .. } => {
                    crate::work(&connect, options, Pipe::new(command, slots), shutdown).await
                }
                HandlerArgs { http, .. } => {
                    let handler = Http::new(http.unwrap_or_default())?;
                    if self.wait_for_handler {
                        until_reachable(&handler, &shutdown).await;
                    }
                    crate::work(&connect, options, handler, shutdown).await
                }
            }?;
            print_summary(&summary, json)?;
            Ok(ExitCode::SUCCESS)
        })
        .await
    }
}

fn print_summary(summary: &WorkerSummary, json: bool) -> anyhow::Result<()> {
    if json {
        out!("{}", serde_json::to_string(summary)?);
    } else {
        let WorkerSummary { executed, failed, dead_lettered, .. } = summary;
        let WorkerSummary { redelivered, suppressed, aborted, .. } = summary;
        eprintln!(
            "keylane: executed {}; {} failed, {} dead-lettered, {redelivered} redelivered \
             ({suppressed} of them executed already), {aborted} aborted",
            counted(*executed, "task"),
            counted(*failed, "attempt"),
            counted(*dead_lettered, "task"),
        );
    }
    Ok(())
}

/// A name that says where to look: host and process number.
pub(super) fn default_worker_id() -> WorkerId {
    let host = rustix::system::uname();
    let host: String = host.nodename().to_string_lossy().chars().take(64).collect();
    WorkerId::new(format!("{host}-{}", std::process::id())).unwrap_or_else(|_| WorkerId::random())
}

/// Times as people write them: `250ms`, `5m`, `1h 30m`; a bare 0 too.
pub(super) fn parse_duration(text: &str) -> Result<Duration, humantime::DurationError> {
    if text == "0" { Ok(Duration::ZERO) } else { humantime::parse_duration(text) }
}
