//! A worker whose handler is a struct of its own, as a program to start several
//! of: it writes what it does into a ledger, a directory of plain files.
//!
//! ```sh
//! keylane init --partitions 8
//! cargo run --example ledger_worker -- /tmp/ledger &
//! cargo run --example ledger_worker -- /tmp/ledger &
//! keylane publish --help
//! cat /tmp/ledger/*.log
//! ```
//!
//! `KEYLANE_AMQP_URL` and `KEYLANE_NAMESPACE` say where to work, and `KEYLANE_WORKER`
//! under which name. SIGTERM or Ctrl-C lets running tasks finish.
//!
//! Every worker appends to a log of its own, one line per event:
//!
//! ```text
//! 1763769600000000000 start account-7 42
//! 1763769600003100000 end account-7 42
//! ```
//!
//! with the time in nanoseconds since 1970, the resource, and the payload. The
//! point of the exercise: around its work the handler takes the lock of a file
//! per resource, *without waiting*. keylane promises that nobody ever holds it;
//! should it be taken all the same, the line says `overlap` instead of `start`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use keylane::{Attempt, Connect, Failure, Handler, Namespace, WorkerId, WorkerOptions, work};
use tokio_util::sync::CancellationToken;

/// Writes down what it executes.
struct Ledger {
    directory: PathBuf,
    /// Only appended to: what one call writes is never torn, and survives the
    /// worker.
    log: File,
}

impl Ledger {
    fn open(directory: &Path, worker: &WorkerId) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join(format!("{worker}.log"));
        let log = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { directory: directory.to_owned(), log })
    }

    fn write(&self, event: &str, attempt: &Attempt) -> Result<(), Failure> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (resource, payload) = (&attempt.task.resource, &attempt.task.payload);
        let payload = String::from_utf8_lossy(payload);
        let line = format!("{} {event} {resource} {payload}\n", now.as_nanos());
        // A full disk is no fault of the task: it is tried again.
        (&self.log).write_all(line.as_bytes()).map_err(|error| Failure::failed(error.to_string()))
    }
}

impl Handler for Ledger {
    async fn handle(&self, attempt: Attempt) -> Result<(), Failure> {
        let name = attempt.task.resource.as_str();
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
            return Err(Failure::dead("the resource is no file name"));
        }
        let path = self.directory.join(format!("{name}.lock"));
        let lock = File::create(path).map_err(|error| Failure::failed(error.to_string()))?;
        // The lock ends with its file: at the end of the task, when this future
        // is dropped, and when the process is killed.
        match lock.try_lock() {
            Ok(()) => self.write("start", &attempt)?,
            Err(TryLockError::WouldBlock) => {
                self.write("overlap", &attempt)?;
                return Err(Failure::failed("somebody else works on this resource"));
            }
            Err(TryLockError::Error(error)) => return Err(Failure::failed(error.to_string())),
        }
        tokio::time::sleep(pretended_work(&attempt)).await;
        self.write("end", &attempt)
    }
}

/// Up to 6 ms, so that tasks differ, but the same for each try of one.
fn pretended_work(attempt: &Attempt) -> Duration {
    let sum: u64 = attempt.id.as_str().bytes().map(u64::from).sum();
    Duration::from_millis(sum % 7)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).ok_or("usage: ledger_worker DIRECTORY")?;
    let variable = |name: &str| std::env::var(name).ok();
    let url = variable("KEYLANE_AMQP_URL").unwrap_or_else(|| "amqp://localhost".to_owned());
    let mut connect = Connect::new(url)?;
    if let Some(namespace) = variable("KEYLANE_NAMESPACE") {
        connect = connect.with_namespace(Namespace::new(namespace)?);
    }
    let mut options = WorkerOptions::default();
    if let Some(name) = variable("KEYLANE_WORKER") {
        options.id = WorkerId::new(name)?;
    }
    let ledger = Ledger::open(Path::new(&directory), &options.id)?;

    let shutdown = CancellationToken::new();
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            // If signals cannot be watched there is still SIGKILL, which keylane survives.
            if asked_to_stop().await.is_ok() {
                shutdown.cancel();
            }
        }
    });
    let summary = work(&connect, options, ledger, shutdown).await?;
    println!("{summary:?}");
    Ok(())
}

async fn asked_to_stop() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted,
    }
}
