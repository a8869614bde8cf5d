//! Executes tasks: consumes all partitions, and runs those that it owns.

mod attempt;
mod backlog;
mod counting;
mod gate;
mod held;
mod holding;
mod line;
mod member;
mod mint;
mod partition_consumer;
mod planner;
mod recording;
mod session;
mod steered;
mod stints;
mod tenure;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::gate::Gate;
use self::holding::Held;
use self::stints::Stints;
use crate::backoff::Backoff;
use crate::handler::{Attempt, Failure, Handler};
use crate::metrics::{Figures, Metrics};
use crate::protocol::copies::Copies;
use crate::protocol::crashes::MaxCrashes;
use crate::protocol::ownership::{Weight, WorkerId};
use crate::protocol::partition::{PartitionId, Topology};
use crate::protocol::plan::Plan;
use crate::protocol::retry::RetryPolicy;
use crate::rabbit::connection::Connect;
use crate::rabbit::consumer::Delivery;
use crate::rabbit::control::{Crowded, HandlerOutage, HotResource, RecentLoad, WorkerReport};
use crate::rabbit::error::Error;
use crate::rabbit::journal::Journal;
use crate::rabbit::topology::CONSUMER_TIMEOUT;
use crate::spans::Tracer;
use crate::spill::Spill;

/// How a worker works.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Its name; part of who owns what, so a stable one keeps its partitions
    /// over a restart. Default: a random one.
    pub id: WorkerId,
    /// Tasks that run at once, at the most. Default 16.
    pub slots: u32,
    /// Time for one attempt; then it is aborted and counts as failed. Default
    /// five minutes; `None` is unlimited.
    pub task_timeout: Option<Duration>,
    /// Its share of the partitions, relative to the other workers'. Default 1.
    pub weight: Weight,
    /// How often and when a failed task is tried again.
    pub retry: RetryPolicy,
    /// After how many lost executions a task is dead-lettered. Default 5.
    pub max_crashes: MaxCrashes,
    /// When shut down: time for running tasks to finish; then they are aborted
    /// and another worker executes them again. Default 30 s.
    pub drain_timeout: Duration,
    /// At the start: how long to wait for a broker that is out of reach or not ready. Default
    /// `None`: without end, as it is waited for later. A namespace that was never set up, wrong
    /// credentials and missing rights are not waited for.
    pub wait_for_broker: Option<Duration>,
    /// Bytes of payloads that wait for their turn in memory. What is over it waits in files without
    /// a name, and is read when its attempt begins. Those of the tasks that run come on top, and
    /// what the broker has just sent. Default 64 MiB.
    pub window_bytes: u64,
    /// The folder of these files. Default: that of the system for temporary files.
    pub spill_directory: PathBuf,
    /// How long an ack may wait for others, to settle them as one, and as long
    /// again for tasks that still run between them. Longer is fewer acks, and
    /// more executed again after a crash if there is no journal. Default 100 ms.
    pub ack_delay: Duration,
    /// Whether a record of every attempt goes into the journal before its ack.
    /// Without it, `verify`, `task` and `history` know nothing of what this worker
    /// does, [`Receipt::executed`](crate::Receipt::executed) waits for ever, and a
    /// task whose ack was lost is executed again. Default true.
    pub journal: bool,
    /// Whether attempts have [fencing tokens](crate::Attempt::fencing_token).
    /// Default true; it costs nothing until a handler asks for one.
    pub fencing: bool,
    /// Where it counts what it does, for others to read. Default `None`. With one, the
    /// broker is asked for the partitions' backlogs: those that are owned every 5 s, the
    /// others every minute.
    pub metrics: Option<Metrics>,
    /// How long RabbitMQ, since 4.3, lets this worker hold a delivery. Default a week, as
    /// `init` sets it: only tests have less.
    #[doc(hidden)]
    pub consumer_timeout: Duration,
}

impl WorkerId {
    /// A name that no other worker has.
    #[must_use]
    pub fn random() -> Self {
        let name = format!("worker-{}", &Uuid::new_v4().simple().to_string()[..12]);
        // Letters, digits and a hyphen, well below the limit.
        Self::new(name).unwrap_or_else(|error| unreachable!("{error}"))
    }
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            id: WorkerId::random(),
            slots: 16,
            task_timeout: Some(Duration::from_secs(300)),
            weight: Weight::ONE,
            retry: RetryPolicy::default(),
            max_crashes: MaxCrashes::default(),
            drain_timeout: Duration::from_secs(30),
            wait_for_broker: None,
            window_bytes: 64 << 20,
            spill_directory: std::env::temp_dir(),
            ack_delay: Duration::from_millis(100),
            journal: true,
            fencing: true,
            metrics: None,
            consumer_timeout: CONSUMER_TIMEOUT,
        }
    }
}

/// What a worker did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct WorkerSummary {
    /// Tasks executed.
    pub executed: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Tasks dead-lettered.
    pub dead_lettered: u64,
    /// Deliveries that another owner, or this one before, had held already.
    pub redelivered: u64,
    /// Of these, tasks that had been settled, by the journal: they were acked.
    pub suppressed: u64,
    /// Deliveries that were acked because another copy of the task had been executed here.
    pub superseded: u64,
    /// Running attempts that were aborted, because the drain took too long or
    /// the broker was lost. They are executed again.
    pub aborted: u64,
    /// How often the broker was lost and found again.
    pub reconnects: u64,
}

/// Executes tasks until `shutdown`, then lets running tasks finish and gives
/// all partitions up.
///
/// A lost broker is waited for, for ever; the handlers that run then are
/// aborted at once, since another worker may own their partitions by then.
///
/// # Errors
/// At the start, what waiting does not mend: the namespace was never set up, credentials or
/// permissions are wrong, and a broker that is out of reach for longer than
/// [`WorkerOptions::wait_for_broker`]. Once it has worked, nothing but another layout of the
/// namespace: a slow or restarting broker refuses things that it grants a moment later.
///
/// # Cancel safety
/// Dropping the future aborts the running handlers and closes the connection
/// in the background: like a crash, but quicker.
pub async fn work(
    connect: &Connect,
    options: WorkerOptions,
    handler: impl Handler,
    shutdown: CancellationToken,
) -> Result<WorkerSummary, Error> {
    run(connect, options, Source::Partitions, Handled(handler), shutdown).await
}

/// Where deliveries come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// All partitions of the namespace.
    Partitions,
    /// The inbox, as a router.
    Inbox,
}

/// What is done with a task: the caller's handler, or forwarding.
pub(crate) trait Execute: Send + Sync + 'static {
    /// Executes one task; see [`Handler::handle`].
    fn execute(
        &self,
        attempt: Attempt,
        delivery: Arc<Delivery>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

struct Handled<H>(H);

impl<H: Handler> Execute for Handled<H> {
    fn execute(
        &self,
        attempt: Attempt,
        _: Arc<Delivery>,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        self.0.handle(attempt)
    }
}

/// Executes what comes from `source`; see [`work`].
pub(crate) async fn run(
    connect: &Connect,
    options: WorkerOptions,
    source: Source,
    executor: impl Execute,
    shutdown: CancellationToken,
) -> Result<WorkerSummary, Error> {
    let leave = shutdown.child_token();
    let shared = Arc::new(Shared::new(connect.clone(), options, source, executor, leave.clone()));
    let _dropped = shared.dropped.clone().drop_guard();
    let result = run_sessions(&shared, leave).await;
    if let Some(journal) = shared.journal() {
        journal.close().await;
    }
    result.map(|()| shared.summary())
}

async fn run_sessions<E: Execute>(
    shared: &Arc<Shared<E>>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let mut topology = None;
    let mut backoff = Backoff::new(None);
    let mut connect = shared.connect.clone();
    loop {
        let started = Instant::now();
        // A task of its own: it ends what it began even if our caller forgets us.
        let session = session::run(Arc::clone(shared), connect.clone(), topology, shutdown.clone());
        let (known, result) = tokio::spawn(session).await.unwrap_or_else(|panic| {
            let doing = "run a session".to_owned();
            (topology, Err(Error::Broker { doing, source: Box::new(panic) }))
        });
        topology = known;
        match result {
            Ok(()) => return Ok(()),
            Err(error) if shared.waits(&error, topology.is_some()) => {
                if shutdown.is_cancelled() {
                    return Ok(());
                }
                // A session that lasted was no failure to connect.
                if started.elapsed() > Duration::from_secs(10) {
                    backoff = Backoff::new(None);
                }
                let delay = backoff.next().unwrap_or_default();
                if topology.is_some() {
                    tracing::warn!(%error, retry_in = ?delay, "lost the broker");
                    shared.figures.worker.reconnects.fetch_add(1, Ordering::Relaxed);
                } else {
                    tracing::warn!(%error, retry_in = ?delay, "waiting for the broker");
                }
                // That one may still accept connections, frozen or cut off as it is.
                connect = connect.with_next_node_first();
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = shutdown.cancelled() => return Ok(()),
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// What the owners of all partitions share.
struct Shared<E> {
    connect: Connect,
    options: WorkerOptions,
    source: Source,
    executor: E,
    slots: Arc<Semaphore>,
    stints: Stints,
    spill: Arc<Spill>,
    /// Closed while the handler is out of reach.
    handler: Arc<Gate>,
    copies: Mutex<Copies>,
    /// Made by the first session, kept by the others. `None` if there is to be none.
    journal: OnceLock<Option<Arc<Journal>>>,
    figures: Arc<Figures>,
    tracer: Tracer,
    started: Instant,
    /// The worker is to end: its caller wants it, or an operator.
    leave: CancellationToken,
    /// Where the operators wait who asked it to.
    told_to_leave: Mutex<Vec<String>>,
    worked: AtomicBool,
    /// Partitions where a handler that cannot be aborted still runs, after their loss.
    left_behind: Mutex<BTreeMap<usize, CancellationToken>>,
    /// Queues that are consumed over a connection of their own, since they may end it.
    set_apart: Mutex<BTreeSet<usize>>,
    /// The plan that the last session followed.
    plan: Mutex<Option<Arc<Plan>>>,
    /// Cancelled when the future of [`work`] is dropped.
    dropped: CancellationToken,
}

/// The hottest resources of a worker that a report names.
const HOT_RESOURCES: usize = 10;

/// The longest-running tasks that it names.
const LONGEST_RUNNING: usize = 10;

impl<E> Shared<E> {
    fn journal(&self) -> Option<&Arc<Journal>> {
        self.journal.get().and_then(Option::as_ref)
    }

    fn new(
        connect: Connect,
        options: WorkerOptions,
        source: Source,
        executor: E,
        leave: CancellationToken,
    ) -> Self {
        let metrics = options.metrics.clone().unwrap_or_default();
        metrics.figures.namespace.get_or_init(|| connect.namespace().to_string());
        metrics.figures.worker.works(&options.id, connect.namespace(), options.slots);
        Self {
            connect: connect.with_name(format!("keylane {}", options.id)),
            slots: Arc::new(Semaphore::new(options.slots.max(1) as usize)),
            spill: Spill::new(options.window_bytes, options.spill_directory.clone()),
            options,
            source,
            executor,
            stints: Stints::new(Arc::clone(&metrics.figures)),
            handler: Gate::new("the handler"),
            copies: Mutex::default(),
            journal: OnceLock::new(),
            figures: metrics.figures,
            tracer: Tracer::global(),
            started: Instant::now(),
            leave,
            told_to_leave: Mutex::default(),
            worked: AtomicBool::new(false),
            left_behind: Mutex::default(),
            set_apart: Mutex::default(),
            plan: Mutex::default(),
            dropped: CancellationToken::new(),
        }
    }

    /// Whether it has stood in a line, so that everything was there once.
    fn has_worked(&self) -> bool {
        self.worked.load(Ordering::Relaxed)
    }

    /// Whether to try again after this error. `connected`: it has read the topology once.
    fn waits(&self, error: &Error, connected: bool) -> bool {
        if self.has_worked() {
            return error.passes();
        }
        let patience = self.options.wait_for_broker;
        error.is_retryable()
            && (connected || patience.is_none_or(|patience| self.started.elapsed() < patience))
    }

    /// Waits beside everything else for handlers that do not yield.
    fn leave_behind(this: &Arc<Self>, partition: usize, mut running: JoinSet<attempt::Ended>)
    where
        E: Execute,
    {
        let over = CancellationToken::new();
        this.left_behind().insert(partition, over.clone());
        let this = Arc::clone(this);
        tokio::spawn(async move {
            running.shutdown().await;
            this.left_behind().remove(&partition);
            over.cancel();
        });
    }

    fn left_behind(&self) -> MutexGuard<'_, BTreeMap<usize, CancellationToken>> {
        self.left_behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_apart(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.set_apart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copies(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_plan(&self) -> Option<Arc<Plan>> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep_plan(&self, plan: &Arc<Plan>) {
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(plan));
    }

    fn told_to_leave(&self) -> MutexGuard<'_, Vec<String>> {
        self.told_to_leave.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn summary(&self) -> WorkerSummary {
        let figures = &self.figures.worker;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WorkerSummary {
            executed: read(&figures.executed),
            failed: read(&figures.failed),
            dead_lettered: read(&figures.dead_lettered),
            redelivered: read(&figures.redelivered),
            suppressed: read(&figures.suppressed),
            superseded: read(&figures.superseded),
            aborted: read(&figures.aborted),
            reconnects: read(&figures.reconnects),
        }
    }

    fn report(&self, topology: &Topology, held: &[Held]) -> WorkerReport {
        let summary = self.summary();
        let partitions = topology.partitions().zip(held);
        let partitions = partitions.filter_map(|(p, held)| held.report(p, self.started.elapsed()));
        let free = u32::try_from(self.slots.available_permits()).unwrap_or(u32::MAX);
        let load = self.figures.worker.load(HOT_RESOURCES);
        let ms = |us: f64| (us / 1_000.0) as u64;
        let hot = load.resources.into_iter().map(|load| HotResource {
            resource: load.resource,
            partition: PartitionId::new(load.partition as u32),
            attempts: load.attempts as u64,
            handler_ms: ms(load.handler_us),
        });
        let crowded = topology
            .partitions()
            .zip(held)
            .filter_map(|(partition, held)| Some(Crowded::new(partition, held.crowded_by()?)));
        WorkerReport {
            worker: self.options.id.clone(),
            weight: self.options.weight,
            slots: self.options.slots,
            busy: self.options.slots.max(1).saturating_sub(free),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            executed: summary.executed,
            failed: summary.failed,
            dead_lettered: summary.dead_lettered,
            unavailable: self.handler.closed().map(HandlerOutage::from),
            partitions: partitions.collect(),
            plan: None,
            line: Vec::new(),
            recent: RecentLoad {
                window_ms: ms(load.window_us),
                attempts: load.attempts as u64,
                handler_ms: ms(load.handler_us),
            },
            hot: hot.collect(),
            longest: self.stints.longest(LONGEST_RUNNING),
            crowded: crowded.collect(),
        }
    }
}
