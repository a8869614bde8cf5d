//! `keylane demo-worker`: one process of the demo's fleet.
//!
//! It tells its coordinator about every task that it executed by one byte on
//! standard output: such a byte survives its death in the pipe. When the
//! coordinator is gone, standard input ends, and the worker with it.

use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::cli::Broker;
use crate::demo::{Applied, ApplyError, Blobs, Edit, Oid, Repository, Store};
use crate::rabbit::naive::NaiveQueue;
use crate::{Attempt, Connect, Failure, WorkerId, WorkerOptions, handler_fn};

/// Two fill the cores of a small machine; a blob takes well under a millisecond.
const BLOB_READERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

/// Tasks that a worker runs at once, with keylane and without: enough to wait for
/// some while others run, few enough for several workers on one machine.
const SLOTS: u16 = 8;

/// Work of an edit takes up to this long, as if the handler had something to
/// compute. Short: the demo is to show many tasks.
const LONGEST_PAUSE: Duration = Duration::from_millis(3);

/// Longer, so that competing consumers overtake each other as real ones do,
/// whose tasks take tens of milliseconds.
const LONGEST_NAIVE_PAUSE: Duration = Duration::from_millis(20);

/// Execute the demo's tasks
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DemoWorker {
    /// Where git keeps the repository
    #[arg(long)]
    repo: PathBuf,
    /// The commit to rebuild
    #[arg(long, value_parser = Oid::new)]
    head: Oid,
    /// The store that all workers share
    #[arg(long)]
    store: PathBuf,
    /// Name of this worker
    #[arg(long)]
    id: WorkerId,
    /// Compete for one queue
    #[arg(long)]
    naive: bool,
}

/// What every execution needs.
struct Bench {
    store: Store,
    blobs: Blobs,
}

impl DemoWorker {
    pub(in crate::cli) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        end_with_coordinator();
        let connect = broker.connect()?.with_name(format!("keylane demo {}", self.id));
        let bench = spawn_blocking(move || {
            let repository = Repository::open(&self.repo)?.at(self.head);
            let blobs = Blobs::new(&repository, BLOB_READERS);
            anyhow::Ok(Arc::new(Bench { store: Store::open(self.store)?, blobs }))
        });
        let bench = bench.await.context("cannot begin")??;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let shutdown = CancellationToken::new();
        let told = shutdown.clone();
        tokio::spawn(async move {
            terminate.recv().await;
            told.cancel();
        });
        if self.naive {
            compete(&connect, bench, shutdown).await?;
        } else {
            distribute(&connect, self.id, bench, shutdown).await?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The real thing.
async fn distribute(
    connect: &Connect,
    id: WorkerId,
    bench: Arc<Bench>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let options = WorkerOptions { id, slots: u32::from(SLOTS), ..Default::default() };
    let handler = handler_fn(move |attempt: Attempt| {
        let bench = Arc::clone(&bench);
        async move {
            let edit = Edit::from_payload(&attempt.task.payload);
            let edit = edit.map_err(|error| Failure::dead(error.to_string()))?;
            let executed = bench.execute(edit, attempt.redelivered).await;
            executed.map_err(|error| match error.downcast_ref() {
                // What keylane promises was broken: no second attempt hides it.
                Some(ApplyError::Corruption(corruption)) => Failure::dead(corruption.to_string()),
                _ => Failure::failed(format!("{error:#}")),
            })
        }
    });
    crate::work(connect, options, handler, shutdown).await?;
    Ok(())
}

/// The same with plain competing consumers.
async fn compete(
    connect: &Connect,
    bench: Arc<Bench>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let queue = NaiveQueue::open(connect, "worker").await?;
    let handler = move |payload: Bytes, redelivered| {
        let bench = Arc::clone(&bench);
        async move {
            let executed = match Edit::from_payload(&payload) {
                Ok(edit) => bench.execute_naively(edit, redelivered).await,
                Err(error) => Err(error.into()),
            };
            executed.inspect_err(|error| eprintln!("{error:#}")).is_ok()
        }
    };
    queue.consume(SLOTS, handler, shutdown).await?;
    Ok(())
}

impl Bench {
    async fn execute(self: Arc<Self>, edit: Edit, redelivered: bool) -> anyhow::Result<()> {
        let bench = Arc::clone(&self);
        let held = spawn_blocking(move || bench.store.begin(&edit, redelivered)).await??;
        pause(LONGEST_PAUSE).await;
        spawn_blocking(move || match held.finish(&self.blobs)? {
            Applied::Written => told(),
            // Counted when it was written, by this worker or by one that is gone.
            Applied::Already => Ok(()),
        })
        .await?
    }

    async fn execute_naively(self: Arc<Self>, edit: Edit, redelivered: bool) -> anyhow::Result<()> {
        let bench = Arc::clone(&self);
        let held = spawn_blocking(move || bench.store.begin_naive(&edit, redelivered)).await??;
        pause(LONGEST_NAIVE_PAUSE).await;
        spawn_blocking(move || {
            held.finish_naive(&self.blobs)?;
            told()
        })
        .await?
    }
}

/// Tells the coordinator that a task was executed.
fn told() -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(b".").and_then(|()| stdout.flush()).context("the coordinator is gone")
}

async fn pause(longest: Duration) {
    let random = uuid::Uuid::new_v4().as_u64_pair().0;
    let longest_us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
    tokio::time::sleep(Duration::from_micros(random % (longest_us + 1))).await;
}

/// At once, like a kill: nobody is left who would tell it to drain.
fn end_with_coordinator() {
    std::thread::spawn(|| {
        let mut byte = [0];
        while matches!(io::stdin().read(&mut byte), Ok(1..)) {}
        std::process::exit(1);
    });
}
