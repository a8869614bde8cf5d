//! What operators have ordered, as a worker follows it.
//!
//! The broker hands every order to every worker as it comes. Whether it still does
//! is asked every second: a worker that has not heard for [`LEASE`] was asleep, and
//! starts nothing before it has read what it missed. So an order is followed
//! by all workers [`LEASE`] after it was given, whoever answers or not. A log that
//! cannot be *read* stops nobody: what is known of it stays in force. Since a worker
//! that slept finds its question unanswered too, it opens the log anew before it
//! believes that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::holding::Held;
use super::session::Session;
use crate::backoff::Backoff;
use crate::protocol::names::Namespace;
use crate::protocol::ownership::WorkerId;
use crate::protocol::steering::{Change, Steering};
use crate::rabbit::connection::Connection;
use crate::rabbit::control::Control;
use crate::rabbit::error::Error;
use crate::rabbit::steering::{LEASE, Leaving, OrderLog};

/// What is in force.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    pub(super) steering: Arc<Steering>,
    /// Of the last order that was read.
    pub(super) position: Option<u64>,
}

/// When all orders were last known to have been read.
#[derive(Debug, Clone, Copy)]
enum Checked {
    At(Instant),
    /// There is nothing to read, or it cannot be read.
    Unreadable,
}

/// The orders that one session follows.
pub(super) struct Steered {
    view: watch::Sender<View>,
    checked: watch::Sender<Checked>,
    /// Somebody has told of an order that did not come.
    behind: Notify,
    /// The queues of those who want this worker to leave.
    asked: mpsc::UnboundedSender<String>,
}

/// How often the broker is asked whether it still hands us what comes.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// It answers within milliseconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// A log that has not ceased to be readable is open within milliseconds.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// A timer of a worker that runs at all is not so late.
const OVERSLEPT: Duration = Duration::from_secs(1);
/// An order that somebody has read comes to everybody at about the same time.
const HEED_TIMEOUT: Duration = Duration::from_secs(1);

impl Steered {
    /// Follows what was read; without a log, nothing.
    /// Gives where the operators wait who ask this worker to leave, too.
    pub(super) fn new(log: Option<&OrderLog>) -> (Self, mpsc::UnboundedReceiver<String>) {
        let (asked, askers) = mpsc::unbounded_channel();
        let steered = Self {
            view: watch::Sender::default(),
            checked: watch::Sender::new(Checked::Unreadable),
            behind: Notify::new(),
            asked,
        };
        if let Some(log) = log {
            steered.show(log);
            steered.checked.send_replace(Checked::At(Instant::now()));
        }
        (steered, askers)
    }

    /// What is in force, now and later. The present counts as news.
    pub(super) fn subscribe(&self) -> watch::Receiver<View> {
        let mut view = self.view.subscribe();
        view.mark_changed();
        view
    }

    /// Whether no order of more than [`LEASE`] ago can be unknown here.
    pub(super) fn is_current(&self) -> bool {
        is_current(&self.checked.borrow())
    }

    /// Waits until that is so.
    ///
    /// # Cancel safety
    /// Nothing is missed.
    pub(super) async fn current(&self) {
        // The sender is our own.
        self.checked.subscribe().wait_for(is_current).await.ok();
    }

    /// Whether the broker has said since then that it hands us what comes.
    fn was_checked(&self, since: Instant) -> bool {
        matches!(*self.checked.borrow(), Checked::At(at) if at >= since)
    }

    /// Waits a little until the orders up to a position are followed, and says how
    /// far they are.
    pub(super) async fn heed(&self, position: u64) -> Option<u64> {
        let mut view = self.view.subscribe();
        let reached = view.wait_for(|view| view.position >= Some(position));
        if timeout(HEED_TIMEOUT, reached).await.is_err() {
            self.behind.notify_one();
        }
        self.view.borrow().position
    }

    /// Does what an order asks of this worker beyond what is in force.
    fn obey(&self, us: &WorkerId, change: &Change) {
        if let Change::Drain { worker, reply_to } = change
            && worker == us
            && self.asked.send(reply_to.clone()).is_err()
        {
            tracing::debug!("asked to leave, and about to");
        }
    }

    fn show(&self, log: &OrderLog) {
        let (steering, position) = (log.ledger().steering(), log.ledger().position());
        self.view.send_if_modified(|view| {
            let modified = *view.steering != *steering;
            if modified {
                view.steering = Arc::new(steering.clone());
            }
            let moved = view.position != position;
            view.position = position;
            modified || moved
        });
    }

    /// Follows the orders until the session ends.
    pub(super) async fn follow<E>(session: Arc<Session<E>>, mut log: Option<OrderLog>) {
        let (steered, namespace) = (&session.steered, session.shared.connect.namespace());
        let mut backoff = Backoff::new(None);
        while session.connections.first().status().connected() {
            let error = match log.take() {
                Some(mut opened) => {
                    backoff = Backoff::new(None);
                    let since = Instant::now();
                    steered.show(&opened);
                    let Err(error) = steered.read(&session, &mut opened).await;
                    if steered.was_checked(since) {
                        tracing::debug!(%error, "reads the orders anew");
                        log = open_anew(session.connections.first(), namespace).await;
                        if log.is_some() {
                            continue;
                        }
                    }
                    error
                }
                None => match OrderLog::open(session.connections.first(), namespace).await {
                    Ok(opened) => {
                        log = Some(opened);
                        continue;
                    }
                    Err(error) => error,
                },
            };
            // The session ends with its connection, and starts nothing on the way.
            if !session.connections.first().status().connected() {
                return;
            }
            steered.checked.send_replace(Checked::Unreadable);
            let missing = matches!(error, Error::SteeringMissing { .. });
            session.shared.figures.worker.health.set_deaf(!missing);
            let retry_in = backoff.next().unwrap_or_default();
            if missing {
                tracing::debug!(%error, "nobody can pause this worker");
            } else {
                tracing::warn!(%error, ?retry_in, "cannot read orders: what is known of them stays in force");
            }
            tokio::select! {
                () = sleep(retry_in) => {}
                () = steered.behind.notified() => {}
            }
        }
    }

    async fn read<E>(
        &self,
        session: &Session<E>,
        log: &mut OrderLog,
    ) -> Result<std::convert::Infallible, Error> {
        let worker = &session.shared.options.id;
        let mut probes = interval(PROBE_INTERVAL);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = log.next(session.connections.first()) => {
                    let order = order?;
                    self.show(log);
                    self.obey(worker, &order.change);
                }
                _ = probes.tick() => {
                    let asked = Instant::now();
                    let silent = || Error::Silent { seconds: PROBE_TIMEOUT.as_secs() };
                    timeout(PROBE_TIMEOUT, log.probe()).await.unwrap_or_else(|_| Err(silent()))?;
                    // What came before the answer is followed first.
                    let mut orders = Vec::new();
                    log.arrived(&mut orders).await?;
                    self.show(log);
                    orders.iter().for_each(|order| self.obey(worker, &order.change));
                    self.checked.send_replace(Checked::At(asked));
                    session.shared.figures.worker.health.set_deaf(false);
                }
                () = self.behind.notified() => {
                    let source = "an order that others have read did not come".into();
                    return Err(Error::Broker { doing: "follow orders".to_owned(), source });
                }
            }
        }
    }
}

/// `None` if it cannot be read, or not in time; what this worker slept through does not count.
async fn open_anew(connection: &Connection, namespace: &Namespace) -> Option<OrderLog> {
    loop {
        let began = Instant::now();
        match timeout(REOPEN_TIMEOUT, OrderLog::open(connection, namespace)).await {
            Ok(opened) => return opened.ok(),
            Err(_) if began.elapsed() > REOPEN_TIMEOUT + OVERSLEPT => {}
            Err(_) => return None,
        }
    }
}

fn is_current(checked: &Checked) -> bool {
    match checked {
        Checked::At(at) => at.elapsed() < LEASE,
        Checked::Unreadable => true,
    }
}

impl<E> Session<E> {
    /// Leaves when an operator wants it to, and tells him so.
    pub(super) async fn leave_when_asked(&self, mut asked: mpsc::UnboundedReceiver<String>) {
        while let Some(reply_to) = asked.recv().await {
            tracing::info!("asked to leave: finishing the tasks that run");
            self.shared.told_to_leave().push(reply_to.clone());
            let running = self.held.iter().map(Held::running).sum();
            let worker = self.shared.options.id.clone();
            self.tell(&[reply_to], &Leaving::Leaves { worker, running }).await;
            self.shared.leave.cancel();
        }
    }

    /// Tells those who have asked this worker to leave that it has.
    pub(super) async fn say_goodbye(&self) {
        let asked = std::mem::take(&mut *self.shared.told_to_leave());
        let worker = self.shared.options.id.clone();
        let aborted = self.shared.figures.worker.aborted.load(Ordering::Relaxed);
        self.tell(&asked, &Leaving::Left { worker, aborted }).await;
    }

    async fn tell(&self, asked: &[String], leaving: &Leaving) {
        if asked.is_empty() {
            return;
        }
        let telling = async {
            let namespace = self.shared.connect.namespace();
            let control = Control::open(&self.side, namespace, false).await?;
            for reply_to in asked {
                control.answer(reply_to, leaving).await?;
            }
            control.close().await;
            Ok::<_, Error>(())
        };
        match timeout(PROBE_TIMEOUT, telling).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "could not tell who asked"),
            Err(_) => tracing::debug!("could not tell who asked in time"),
        }
    }
}
