//! One connection of a worker: all its owners, and what they hear of others.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::owner::{Outbid, Owner};
use super::steered::Steered;
use super::{Execute, Held, Shared, Source, backlog};
use crate::backoff::Backoff;
use crate::protocol::ownership::{Weight, WorkerId, priority};
use crate::protocol::partition::{PartitionId, Topology};
use crate::rabbit::connection::{Connect, Connection, close_connection};
use crate::rabbit::control::{Control, Found, Heeded, Said};
use crate::rabbit::epoch;
use crate::rabbit::error::Error;
use crate::rabbit::journal::{self, Journal, Lately, Recent, Window};
use crate::rabbit::publisher::{Publisher, Route};
use crate::rabbit::pulse;
use crate::rabbit::steering::OrderLog;
use crate::rabbit::token;
use crate::rabbit::topology;

/// What the owners of one session share.
pub(super) struct Session<E> {
    pub(super) shared: Arc<Shared<E>>,
    pub(super) topology: Topology,
    /// Whether an owner that is being replaced may give back what it holds.
    pub(super) hands_back: bool,
    /// Consumes, and nothing else: the broker blocks connections that publish.
    pub(super) connection: Connection,
    /// Greets, reports and claims.
    pub(super) side: Connection,
    /// Publishes dead letters; connects when there is one.
    pub(super) publisher: Publisher,
    pub(super) dead: Route,
    pub(super) held: Vec<Held>,
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
    let control = match shared.source {
        Source::Partitions => Some(Control::open(&side, namespace, true).await?),
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
    let session = Arc::new(Session {
        shared: Arc::clone(shared),
        topology,
        hands_back: connect.requeues_in_order().await,
        connection,
        side,
        publisher: Publisher::new(connect.clone(), "worker, dead letters", topology, None),
        dead: Route::queue(&namespace.dead()),
        held: queues.iter().map(|_| Held::default()).collect(),
        pulse: namespace.pulse(&Uuid::now_v7().simple().to_string()),
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
    let mut owners = JoinSet::new();
    // All of them, and the check of the counters, say it once: nobody is held up.
    let (opened_sender, opened) = mpsc::channel(queues.len() + 1);
    let mut outbids = Vec::new();
    for (index, queue) in queues.into_iter().enumerate() {
        let (sender, receiver) = mpsc::unbounded_channel();
        outbids.push(sender);
        let owner = Owner::new(Arc::clone(&session), index, queue, receiver);
        owners.spawn(owner.run(opened_sender.clone()));
    }
    if shared.options.fencing {
        // Beside them, since a worker that joins is waited for.
        let (session, checked) = (Arc::clone(&session), opened_sender.clone());
        owners.spawn(async move {
            let namespace = session.shared.connect.namespace();
            epoch::check(&session.side, namespace, &session.topology).await?;
            // The listener may have ended; then nobody waits.
            checked.send(()).await.ok();
            Ok(())
        });
    }
    drop(opened_sender);

    if let Some(control) = control {
        beside.spawn(listen(Arc::clone(&session), control, opened, outbids));
    }
    if shared.source == Source::Partitions {
        beside.spawn(Steered::follow(Arc::clone(&session), orders));
        let session = Arc::clone(&session);
        beside.spawn(async move { session.leave_when_asked(askers).await });
    }
    let result = supervise(&session, owners).await;
    beside.shutdown().await;
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
        close_connection(session.side).await;
        close_connection(session.connection).await;
    }
    result
}

/// A broker that takes nothing at the moment does not hold up a worker that leaves.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// So much earlier do owners drain than those who stand by: the broker has enough to do with
/// what is waited for.
const HEAD_START: Duration = Duration::from_millis(300);

impl<E> Session<E> {
    /// The tasks that had been executed by the time `owned_since` in a partition, as
    /// far as the journal knows. `None` without a journal.
    pub(super) async fn executed_before(
        &self,
        owned_since: Instant,
        partition: PartitionId,
    ) -> Option<Lately> {
        let journal = self.shared.journal()?;
        let namespace = self.shared.connect.namespace();
        let mut lately = Lately::default();
        for recent in &self.lately {
            let found = recent.look(&self.side, namespace, journal, owned_since).await;
            // What cannot be read now is not waited for once more.
            let Some(found) = found else { break };
            lately = found;
            if lately.covers(partition) {
                break;
            }
            // Its acks came late, or it was not heard of just before and may have been lost
            // long ago.
        }
        Some(lately)
    }

    /// Drains all queues, once it is asked for.
    async fn drain(&self) {
        self.drain.cancelled().await;
        // One that holds nothing just now may be the owner as well.
        let owners = self.held.iter().zip(&self.drains).filter(|(held, _)| held.served());
        let mut nobody = true;
        for (_, drain) in owners {
            drain.cancel();
            nobody = false;
        }
        if !nobody {
            tokio::time::sleep(HEAD_START).await;
        }
        self.drains.iter().for_each(CancellationToken::cancel);
    }
}

/// Waits for all owners; the first error ends the others.
async fn supervise<E: Execute>(
    session: &Session<E>,
    mut owners: JoinSet<Result<(), Error>>,
) -> Result<(), Error> {
    let mut result = Ok(());
    let silence = pulse::lost(&session.connection, &session.side, &session.pulse);
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
            ended = owners.join_next() => ended,
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
                Error::Broker { doing: "run an owner".to_owned(), source: Box::new(panic) }
            }
        };
        session.lost.cancel();
        session.abort.cancel();
        if result.is_ok() {
            result = Err(error);
        }
    }
}

/// Greets the others once everything is consumed, hears of newcomers, and
/// answers who asks.
async fn listen<E: Execute>(
    session: Arc<Session<E>>,
    mut control: Control,
    mut opened: mpsc::Receiver<()>,
    outbids: Vec<mpsc::UnboundedSender<Outbid>>,
) {
    let Session { shared, topology, held, .. } = &*session;
    let options = &shared.options;
    let (heeding, mut heeded) = mpsc::unbounded_channel::<(String, Heeded)>();
    let mut heeders = JoinSet::new();
    // With fencing, the counters are looked for, too.
    let mut to_open = topology.partitions().len() + usize::from(options.fencing);
    loop {
        while heeders.try_join_next().is_some() {}
        tokio::select! {
            Some((to, heeded)) = heeded.recv() => {
                if let Err(error) = control.answer(&to, &heeded).await {
                    tracing::debug!(%error, "could not answer");
                }
            }
            Some(()) = opened.recv(), if to_open > 0 => {
                to_open -= 1;
                if to_open == 0 {
                    tracing::info!(worker = %options.id, %topology, "working");
                    let hello = Said::Hello { worker: options.id.clone(), weight: options.weight };
                    if let Err(error) = control.say(&hello).await {
                        tracing::warn!(%error, "could not greet the fleet: hand-overs are slower");
                    }
                }
            }
            heard = control.hear() => match heard {
                Some((Said::Hello { worker, weight }, _)) => {
                    outbid(session.as_ref(), &worker, weight, &outbids);
                }
                Some((Said::Report, Some(to))) => {
                    if let Err(error) = control.answer(&to, &shared.report(topology, held)).await {
                        tracing::debug!(%error, "could not report");
                    }
                }
                Some((Said::Find { task }, Some(to))) => {
                    let Some(running) = shared.stints.find(&task) else { continue };
                    let found = Found::new(options.id.clone(), running);
                    if let Err(error) = control.answer(&to, &found).await {
                        tracing::debug!(%error, "could not answer");
                    }
                }
                Some((Said::Heed { position }, Some(to))) => {
                    let (session, heeding) = (Arc::clone(&session), heeding.clone());
                    heeders.spawn(async move {
                        let Some(position) = session.steered.heed(position).await else { return };
                        let worker = session.shared.options.id.clone();
                        // The listener may have ended; then nobody waits.
                        heeding.send((to, Heeded { worker, position })).ok();
                    });
                }
                Some((Said::Report | Said::Find { .. } | Said::Heed { .. }, None)) => {}
                None => {
                    tracing::warn!("cannot hear the fleet: hand-overs are slower until it can");
                    control.close().await;
                    control = hear_again(&session).await;
                    tracing::info!("hears the fleet again");
                }
            },
        }
    }
}

/// Opens what was lost, while the connection was not.
async fn hear_again<E>(session: &Session<E>) -> Control {
    let mut backoff = Backoff::new(None);
    loop {
        tokio::time::sleep(backoff.next().unwrap_or_default()).await;
        match Control::open(&session.side, session.shared.connect.namespace(), true).await {
            Ok(control) => return control,
            Err(error) => tracing::debug!(%error, "cannot hear the fleet yet"),
        }
    }
}

/// Tells the owners of the partitions that a newcomer wins. The broker hands
/// them on by itself, but only when all that an owner holds is settled.
fn outbid<E>(
    session: &Session<E>,
    newcomer: &WorkerId,
    weight: Weight,
    outbids: &[mpsc::UnboundedSender<Outbid>],
) {
    let own = &session.shared.options;
    if *newcomer == own.id {
        return;
    }
    for (partition, outbid) in session.topology.partitions().zip(outbids) {
        let loses =
            priority(newcomer, weight, partition) > priority(&own.id, own.weight, partition);
        if loses && outbid.send(Outbid).is_err() {
            tracing::debug!(%partition, "its owner has ended");
        }
    }
}
