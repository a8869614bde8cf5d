//! `keylane soak-worker`: the workers and routers of a soak.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::payload::Payload;
use super::truth::{Truth, TruthError};
use crate::cli::Broker;
use crate::{Attempt, Failure, RouterOptions, WorkerId, WorkerOptions, WorkerSummary, handler_fn};

/// Before the lock of a resource is tried again that may be free in a moment.
const AGAIN: Duration = Duration::from_millis(20);

/// A worker that keeps the ground truth (used by `keylane soak`)
///
/// It drains when its standard input ends.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct SoakWorker {
    #[arg(long)]
    id: WorkerId,
    /// Where the ground truth is
    #[arg(long)]
    directory: PathBuf,
    /// How long each task takes; up to 6 ms if it is not given
    #[arg(long)]
    task_ms: Option<u64>,
    /// After how long a freeze the lock of another process may be taken over
    #[arg(long, default_value_t = 10_000)]
    excused_ms: u64,
    /// Route from the inbox, instead of executing
    #[arg(long)]
    route: bool,
}

/// What a worker tells, one line of JSON each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// It starts to execute a task.
    Start {
        /// Microseconds since 1970: all processes are on this machine.
        at_us: u64,
        partition: u32,
        /// It came through the inbox.
        inbox: bool,
        redelivered: bool,
        /// It was executed before.
        repeat: bool,
    },
    /// It ends.
    End { redelivered: u64, suppressed: u64, aborted: u64, reconnects: u64, dead_lettered: u64 },
}

impl Said {
    fn tell(self) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(&self)?;
        line.push(b'\n');
        // One write, so that the lines of two tasks do not mix.
        std::io::stdout().lock().write_all(&line)
    }
}

pub(super) fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

impl SoakWorker {
    pub(in crate::cli) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let connect = broker.connect()?;
        let shutdown = CancellationToken::new();
        std::thread::spawn({
            let shutdown = shutdown.clone();
            move || {
                // Nothing comes; the end comes also when whoever started us is gone.
                std::io::stdin().read_to_end(&mut Vec::new()).ok();
                shutdown.cancel();
            }
        });
        let summary = if self.route {
            let options = RouterOptions { id: self.id, ..RouterOptions::default() };
            crate::route(&connect, options, shutdown).await?
        } else {
            let excused_after = Duration::from_millis(self.excused_ms);
            let truth = Arc::new(Truth::new(&self.directory, excused_after));
            let options = WorkerOptions { id: self.id, ..WorkerOptions::default() };
            let task_ms = self.task_ms;
            let handler = handler_fn(move |attempt| execute(Arc::clone(&truth), attempt, task_ms));
            crate::work(&connect, options, handler, shutdown).await?
        };
        let WorkerSummary { redelivered, suppressed, aborted, reconnects, dead_lettered, .. } =
            summary;
        Said::End { redelivered, suppressed, aborted, reconnects, dead_lettered }.tell()?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn execute(truth: Arc<Truth>, attempt: Attempt, task_ms: Option<u64>) -> Result<(), Failure> {
    let (sequence, inbox) = match Payload::read(&attempt.task.payload) {
        Some(Payload::Number { sequence, inbox }) => (sequence, inbox),
        Some(Payload::Poison(_)) => return die().await,
        None => return Err(Failure::dead("no payload of a soak")),
    };
    // A violation is a failure too: the task is tried again, and not lost.
    let failed = |error: TruthError| Failure::failed(error.to_string());
    let resource = attempt.task.resource.as_str();
    let (arrived, mut waited) = (Instant::now(), None);
    let begun = loop {
        match truth.begin(resource, sequence, now_us(), waited) {
            Err(TruthError::Closing) => {}
            begun => break begun.map_err(failed)?,
        }
        tokio::time::sleep(AGAIN).await;
        waited = Some(arrived.elapsed());
    };
    let said = Said::Start {
        at_us: now_us(),
        partition: attempt.partition.number(),
        inbox,
        redelivered: attempt.redelivered,
        repeat: begun.is_repeat(),
    };
    said.tell().map_err(|error| failed(error.into()))?;
    // Tasks differ.
    tokio::time::sleep(Duration::from_millis(task_ms.unwrap_or(sequence % 7))).await;
    begun.end().map_err(|error| failed(error.into()))
}

/// Ends the process as a crash of the handler's own code does: nothing is closed,
/// nobody is told.
async fn die() -> Result<(), Failure> {
    let killed = kill_process(getpid(), Signal::KILL);
    Err(Failure::failed(format!("this process should not live any more: {killed:?}")))
}
