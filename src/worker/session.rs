//! One connection of a worker: all its owners, and what they hear of others.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::line::Line;
use super::partition_consumer::PartitionConsumer;
use super::steered::Steered;
use super::{Execute, Held, Shared, Source, backlog, member, planner};
use crate::protocol::partition::{PartitionId, Topology};
use crate::protocol::plan::Plan;
use crate::protocol::task::{Resource, TaskId};
use crate::rabbit::connection::{Connect, Connection, close_connection};
use crate::rabbit::control::{Control, WorkerReport};
use crate::rabbit::epoch;
use crate::rabbit::error::Error;
use crate::rabbit::journal::{self, Journal, Lately, Recent, Window};
use crate::rabbit::planner::{MemberMessage, PlannerQueue};
use crate::rabbit::pool::ConsumerPool;
use crate::rabbit::publisher::{Publisher, Route};
use crate::rabbit::pulse;
use crate::rabbit::seat;
use crate::rabbit::steering::OrderLog;
use crate::rabbit::token;
use crate::rabbit::topology;

/// What the owners of one session share.
pub(super) struct Session<E> {
    pub(super) shared: Arc<Shared<E>>,
    pub(super) topology: Topology,
    /// Consume, and nothing else: the broker blocks connections that publish.
    pub(super) connections: ConsumerPool,
    /// How many channels may be opened at once: a fleet that reconnects together leaves the
    /// broker some air.
    pub(super) opening: Semaphore,
    /// Reports, announces and claims.
    pub(super) side: Connection,
    /// Publishes dead letters; connects when there is one.
    pub(super) publisher: Publisher,
    pub(super) dead: Route,
    pub(super) held: Vec<Held>,
    /// Where it stands in the lines of the partitions.
    pub(super) line: Line,
    working: Once,
    /// Queue of the token that shows whether our node is cut off.
    pulse: String,
    /// What operators have ordered.
    pub(super) steered: Steered,
    /// The worker is to end.
    pub(super) drain: CancellationToken,
    /// For each queue: start nothing any more, and give up when nothing runs.
    pub(super) drains: Vec<CancellationToken>,
    /// Give up now.
    pub(super) abort: CancellationToken,
    /// Nothing can be given back any more: the broker was lost.
    pub(super) lost: CancellationToken,
    /// What the journal says of the last second, and of longer times.
    lately: [Recent; 3],
}

/// Works until `shutdown` (`Ok`), or until the connection is lost. Gives the
/// topology back, if it could be read, and refuses to go on with another one.
pub(super) async fn run<E: Execute>(
    shared: Arc<Shared<E>>,
    connect: Connect,
    known: Option<Topology>,
    shutdown: CancellationToken,
) -> (Option<Topology>, Result<(), Error>) {
    let mut topology = known;
    let result = run_on(&shared, &connect, &mut topology, &shutdown).await;
    (topology, result)
}

async fn run_on<E: Execute>(
    shared: &Arc<Shared<E>>,
    connect: &Connect,
    known: &mut Option<Topology>,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let connection = connect.open("worker").await?;
    let namespace = connect.namespace();
    let topology = topology::read(&connection, namespace).await?;
    if let Some(wanted) = known.replace(topology).filter(|known| *known != topology) {
        let namespace = namespace.to_string();
        return Err(Error::TopologyDiffers { namespace, stored: topology, wanted });
    }
    let queues: Vec<_> = match shared.source {
        Source::Partitions => {
            topology.partitions().map(|p| namespace.partition(&topology, p)).collect()
        }
        Source::Inbox => vec![namespace.inbox()],
    };
    let side = connect.open("worker, side").await?;
    let fleet = match shared.source {
        Source::Partitions => {
            let control = Control::open(&side, namespace, true).await?;
            let planner_queue = PlannerQueue::open(&side, namespace).await?;
            Some((control, planner_queue))
        }
        Source::Inbox => None,
    };
    let journal = shared.journal.get_or_init(|| {
        let wanted = shared.options.journal && shared.source == Source::Partitions;
        let publisher = || Publisher::new(connect.clone(), "worker, journal", topology, None);
        let id = || shared.options.id.clone();
        wanted.then(|| Journal::start(publisher(), &namespace.journal(), id()))
    });
    if let Some(journal) = journal {
        shared.figures.journal.get_or_init(|| Arc::clone(journal.figures()));
        journal::check(&side, namespace).await?;
    }
    let names: Vec<_> = match shared.source {
        Source::Partitions => topology.partitions().map(|p| p.to_string()).collect(),
        Source::Inbox => vec!["inbox".to_owned()],
    };
    shared.figures.worker.partitions(names, shared.stints.now_us());
    let worker = &shared.options.id;
    let seat = seat::take(&side, namespace, worker).await?;
    if let Some((control, _)) = &fleet {
        // The plan is made while we get ready for it. Nothing that has to be answered follows on
        // this connection: a broker in an alarm reads no more of one that has published.
        let greeted = timeout(GREETING_TIMEOUT, member::greet(shared, control));
        if let Ok(Err(error)) = greeted.await {
            return Err(error);
        }
    }
    // Nothing is consumed before it is known what is paused.
    let orders = match shared.source {
        Source::Partitions => match OrderLog::open(&connection, namespace).await {
            Ok(orders) => Some(orders),
            // Then nobody could pause anything.
            Err(error @ Error::SteeringMissing { .. }) => {
                tracing::info!(%error, "nobody can pause this worker");
                None
            }
            Err(error) => return Err(error),
        },
        Source::Inbox => None,
    };
    let (steered, askers) = Steered::new(orders.as_ref());
    let line = match shared.source {
        Source::Partitions => Line::new(worker.clone(), queues.len(), shared.last_plan()),
        Source::Inbox => Line::planless(worker.clone(), queues.len()),
    };
    let (connections, mut later_lost) = ConsumerPool::new(connect, connection, queues.len());
    let session = Arc::new(Session {
        shared: Arc::clone(shared),
        topology,
        connections,
        opening: Semaphore::new(OPENING),
        side,
        publisher: Publisher::new(connect.clone(), "worker, dead letters", topology, None),
        dead: Route::queue(&namespace.dead()),
        held: queues.iter().map(|_| Held::default()).collect(),
        line,
        working: Once::new(),
        pulse: namespace.pulse(seat),
        steered,
        drain: shutdown.child_token(),
        drains: queues.iter().map(|_| CancellationToken::new()).collect(),
        abort: shared.dropped.child_token(),
        lost: CancellationToken::new(),
        lately: [Window::Shortest, Window::Short, Window::Long].map(Recent::new),
    });

    // They end with the session, which nothing of theirs holds up.
    let mut beside = JoinSet::new();
    if shared.options.metrics.is_some() {
        beside.spawn(backlog::watch(Arc::clone(&session), queues.clone()));
    }
    let mut consumers = JoinSet::new();
    for (index, queue) in queues.iter().cloned().enumerate() {
        consumers.spawn(PartitionConsumer::new(Arc::clone(&session), index, queue).run());
    }
    if shared.options.fencing {
        // Beside them, since a worker that joins is waited for.
        let session = Arc::clone(&session);
        consumers.spawn(async move {
            let namespace = session.shared.connect.namespace();
            match epoch::check(&session.side, namespace, &session.topology).await {
                // Only tasks of that partition that ask for a token have to wait.
                Err(error @ Error::QueueMissing { .. }) if session.shared.has_worked() => {
                    tracing::warn!(%error, "a partition has no fencing tokens");
                    Ok(())
                }
                checked => checked,
            }
        });
    }
    let mut losses = JoinSet::new();
    if let Some((control, planner_queue)) = fleet {
        losses.spawn(member::take_part(Arc::clone(&session), control));
        beside.spawn(planner::stand_by(Arc::clone(&session), planner_queue));
    }
    let watched = Arc::clone(&session);
    losses.spawn(async move { pulse::silent(&watched.side).await });
    losses.spawn(async move {
        match later_lost.recv().await {
            Some(error) => error,
            // The pool has the sender, and lives as long as the session.
            None => std::future::pending().await,
        }
    });
    if shared.source == Source::Partitions {
        beside.spawn(Steered::follow(Arc::clone(&session), orders));
        let session = Arc::clone(&session);
        beside.spawn(async move { session.leave_when_asked(askers).await });
    }
    let health = &shared.figures.worker.health;
    health.set_connected(true);
    let result = supervise(&session, consumers, &mut losses).await;
    health.set_connected(false);
    if let Err(error) = &result {
        let blamed = queues.iter().enumerate().filter(|(_, queue)| error.blames(queue));
        shared.set_apart().extend(blamed.map(|(index, _)| index));
    }
    beside.shutdown().await;
    losses.shutdown().await;
    if result.is_ok() {
        session.say_goodbye().await;
    }
    session.publisher.close().await;
    if result.is_ok() {
        let removed = timeout(GOODBYE_TIMEOUT, token::remove(&session.side, &session.pulse));
        if !matches!(removed.await, Ok(Ok(()))) {
            tracing::debug!(queue = session.pulse, "the broker removes it later");
        }
    }
    if let Some(session) = Arc::into_inner(session) {
        let goodbye = async move {
            close_connection(session.side).await;
            session.connections.close().await;
        };
        match result {
            // Whoever is silent does not say goodbye either.
            Err(Error::Silent { .. } | Error::Minority { .. }) => drop(tokio::spawn(goodbye)),
            Ok(()) | Err(_) => goodbye.await,
        }
    }
    result
}

/// A broker that takes nothing at the moment does not hold up a worker that leaves.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// A greeting that takes longer is not waited for.
const GREETING_TIMEOUT: Duration = Duration::from_millis(200);

/// Channels that one worker opens at once.
const OPENING: usize = 16;

/// So much earlier do owners drain than those who stand by: the broker has enough to do with
/// what is waited for.
const HEAD_START: Duration = Duration::from_millis(300);

impl<E> Session<E> {
    /// Has the others take over, by plan. The broker hands on what it has been given anyway.
    async fn say_goodbye_to_planner(&self) {
        if self.shared.source == Source::Inbox {
            return;
        }
        let worker = self.shared.options.id.clone();
        let telling = async {
            let namespace = self.shared.connect.namespace();
            let control = Control::open(&self.side, namespace, false).await?;
            control.tell_planner(&MemberMessage::Goodbye { worker }).await?;
            control.close().await;
            Ok::<_, Error>(())
        };
        if !matches!(timeout(GOODBYE_TIMEOUT, telling).await, Ok(Ok(()))) {
            tracing::debug!("the planner misses it later");
        }
    }

    /// The tasks that had been settled by the time `owned_since` in a partition and may not
    /// have been acked. `None` without a journal, or if it cannot be read back far enough.
    pub(super) async fn settled_before(
        &self,
        owned_since: Instant,
        partition: PartitionId,
    ) -> Option<Lately> {
        let journal = self.shared.journal()?;
        let namespace = self.shared.connect.namespace();
        for recent in &self.lately {
            // What cannot be read now is not waited for once more.
            let found = recent.look(&self.side, namespace, journal, owned_since).await?;
            if found.covers(partition) {
                return Some(found);
            }
            // Its acks came late, or it was not heard of just before and may have been lost
            // long ago.
        }
        None
    }

    /// How often a task has failed with the owners of its partition before that time, as far
    /// as the journal knows: 90 s back.
    pub(super) async fn failed_before(
        &self,
        owned_since: Instant,
        task: &TaskId,
        resource: &Resource,
    ) -> u32 {
        let Some(journal) = self.shared.journal() else { return 0 };
        let (namespace, [.., long]) = (self.shared.connect.namespace(), &self.lately);
        let found = long.look(&self.side, namespace, journal, owned_since).await;
        found.map_or(0, |lately| lately.failed(task, resource))
    }

    /// Tells once that the worker has got a partition, or a place in a line.
    pub(super) fn say_working(&self) {
        self.working.call_once(|| {
            self.shared.worked.store(true, Ordering::Relaxed);
            tracing::info!(worker = %self.shared.options.id, topology = %self.topology, "working");
        });
    }

    /// Follows a plan, in this session and at the beginning of the next one.
    pub(super) fn follow(&self, plan: Arc<Plan>) {
        // One for another number of partitions is of another namespace.
        if plan.lines.len() != self.held.len() || self.drain.is_cancelled() {
            return;
        }
        self.shared.keep_plan(&plan);
        self.line.follow(plan);
    }

    /// How this worker is.
    pub(super) fn report(&self) -> WorkerReport {
        let mut report = self.shared.report(&self.topology, &self.held);
        report.plan = self.line.plan().map(|plan| plan.number);
        report.line = self.line.places();
        report
    }

    /// Drains all queues, once it is asked for.
    async fn drain(&self) {
        self.drain.cancelled().await;
        // One that holds nothing just now may be the owner as well.
        let owners = self.held.iter().zip(&self.drains).filter(|(held, _)| held.served());
        let mut head_start = Duration::ZERO;
        for (_, drain) in owners {
            drain.cancel();
            head_start = HEAD_START;
        }
        // The partitions do not wait for the planner to be told, which takes four answers of the
        // broker; the session ends no sooner than that, since the standbys are still there.
        tokio::join!(self.say_goodbye_to_planner(), tokio::time::sleep(head_start));
        self.drains.iter().for_each(CancellationToken::cancel);
    }
}

/// Waits for all consumers; the first error ends the others.
async fn supervise<E: Execute>(
    session: &Session<E>,
    mut consumers: JoinSet<Result<(), Error>>,
    losses: &mut JoinSet<Error>,
) -> Result<(), Error> {
    let mut result = Ok(());
    let silence = pulse::lost(session.connections.first(), &session.side, &session.pulse);
    tokio::pin!(silence);
    let mut silent = false;
    let deadline = async {
        session.drain().await;
        tokio::time::sleep(session.shared.options.drain_timeout).await;
        session.abort.cancel();
        std::future::pending::<()>().await;
    };
    tokio::pin!(deadline);
    loop {
        let ended = tokio::select! {
            ended = consumers.join_next() => ended,
            Some(lost) = losses.join_next() => Some(lost.map(Err)),
            () = &mut deadline => None,
            error = &mut silence, if !silent => {
                silent = true;
                Some(Ok(Err(error)))
            }
        };
        let error = match ended {
            None => return result,
            Some(Ok(Ok(()))) => continue,
            Some(Ok(Err(error))) => error,
            Some(Err(panic)) => {
                Error::Broker { doing: "run a worker".to_owned(), source: Box::new(panic) }
            }
        };
        session.lost.cancel();
        session.abort.cancel();
        if result.is_ok() {
            result = Err(error);
        }
    }
}
