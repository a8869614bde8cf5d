//! Publishing with confirms, over a connection of its own that is opened again
//! when it is lost.
//!
//! A connection that publishes is blocked by the broker while memory or disk
//! run low. Consumers therefore never share one with a [`Publisher`], except
//! where the two must die together.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_lite::{Stream, StreamExt};
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Connection, Event};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use uuid::Uuid;

use super::answers::{Answer, Answers, Label};
use super::connection::{CLOSE_TIMEOUT, Connect, confirm_channel, say_goodbye};
use super::consumer::{Delivery, Forwarding};
use super::envelope;
use super::error::{Error, reply};
use super::header_size::frame_bytes;
use super::topology;
use crate::backoff::Backoff;
use crate::protocol::names::Namespace;
use crate::protocol::partition::Topology;
use crate::protocol::task::{Origin, Task, TaskId};
use crate::protocol::trace_context::TraceContext;

/// A publish was not confirmed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The message cannot be sent as it is.
    #[error("{reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The payload is over the limit. Nothing was sent.
    #[error(
        "the payload has {bytes} bytes, the broker takes {limit}: store it elsewhere and publish a reference, or raise max_message_size on the broker"
    )]
    TooLarge {
        /// Size of the payload.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The headers do not fit into a frame of the connection. Nothing was sent.
    #[error(
        "its headers have {bytes} bytes, and the broker takes {limit} beside what it adds: put them into the payload, or raise frame_max on the broker"
    )]
    HeadersTooLarge {
        /// Size of all properties on the wire.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The broker had no queue for it and gave it back. It was not published.
    #[error("the broker has no queue for {to} ({reply}): run `keylane init` again")]
    Unroutable {
        /// Where it should have gone.
        to: String,
        /// What the broker said.
        reply: String,
    },
    /// The broker refused it. It was not published.
    #[error("the broker refused a message for {to}: is the queue full, or its node down?")]
    Nacked {
        /// Where it should have gone.
        to: String,
    },
    /// The connection was lost before the broker's answer came: it may have
    /// been published, or not. Publishing it again with the same task id is
    /// safe if the handler is idempotent.
    #[error(
        "the connection was lost before the broker confirmed: the message may have been published ({reason})"
    )]
    Indeterminate {
        /// How the connection was lost.
        reason: String,
    },
    /// It was not sent, because there is no connection.
    #[error("not published: {0}")]
    NotSent(#[from] Error),
}

impl PublishError {
    /// Whether the message may have been published all the same.
    #[must_use]
    pub fn is_indeterminate(&self) -> bool {
        match self {
            Self::Indeterminate { .. } => true,
            Self::Invalid { .. }
            | Self::TooLarge { .. }
            | Self::HeadersTooLarge { .. }
            | Self::Unroutable { .. }
            | Self::Nacked { .. }
            | Self::NotSent(_) => false,
        }
    }
}

/// Where a message goes.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    exchange: ShortString,
    key: ShortString,
}

impl Route {
    /// To the queues that `exchange` has bound under `key`.
    pub(crate) fn new(exchange: &str, key: &str) -> Self {
        Self { exchange: exchange.into(), key: key.into() }
    }

    /// To one queue, by its name.
    pub(crate) fn queue(name: &str) -> Self {
        Self::new("", name)
    }

    /// To the partitions of a topology, by their numbers.
    pub(crate) fn partitions(namespace: &Namespace, topology: &Topology) -> Vec<Self> {
        let exchange = namespace.exchange(topology);
        let route = |partition| Self::new(&exchange, &namespace.routing_key(partition));
        topology.partitions().map(route).collect()
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exchange.as_str() {
            "" => write!(f, "queue {}", self.key),
            exchange => write!(f, "key {} of exchange {exchange}", self.key),
        }
    }
}

/// A message that was sent and not answered yet.
#[derive(Debug)]
pub(crate) struct Sent {
    session: SessionId,
    answer: oneshot::Receiver<Answer>,
    route: Route,
    bytes: usize,
}

impl Sent {
    /// Over which connection.
    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    /// Waits for the broker's answer.
    ///
    /// # Cancel safety
    /// The message stays sent; its outcome is forgotten.
    pub(crate) async fn confirmed(self) -> Result<(), PublishError> {
        match self.answer.await.unwrap_or(Answer::Lost(None)) {
            Answer::Confirmed => Ok(()),
            Answer::Returned { reply } => {
                Err(PublishError::Unroutable { to: self.route.to_string(), reply })
            }
            Answer::Nacked => Err(PublishError::Nacked { to: self.route.to_string() }),
            Answer::Lost(Some(error)) => Err(lost(&error, &self.route, self.bytes)),
            Answer::Lost(None) => {
                Err(PublishError::Indeterminate { reason: "nobody waited for it".to_owned() })
            }
        }
    }
}

/// The channel died under a message. What the broker closes it for takes the
/// messages beside it along: they are indeterminate.
fn lost(error: &lapin::Error, route: &Route, bytes: usize) -> PublishError {
    match reply(error) {
        Some((403, reply)) => PublishError::NotSent(Error::NotPermitted {
            doing: format!("publish to {route}"),
            reply,
        }),
        Some((404, reply)) => PublishError::Unroutable { to: route.to_string(), reply },
        Some((406, reply)) if reply.contains("max size") => {
            let limit = reply.split_whitespace().rev().find_map(|word| word.parse().ok());
            match limit {
                Some(limit) if bytes > limit => PublishError::TooLarge { bytes, limit },
                _ => PublishError::Indeterminate { reason: reply },
            }
        }
        _ => PublishError::Indeterminate { reason: error.to_string() },
    }
}

/// One of the connections that a publisher has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionId(u64);

/// Publishes; connects when first used and whenever the connection is lost.
#[derive(Debug)]
pub(crate) struct Publisher {
    connect: std::sync::Mutex<Connect>,
    role: &'static str,
    /// What must still hold after a reconnect.
    topology: Topology,
    patience: Option<Duration>,
    session: Mutex<Option<Session>>,
    blocked: watch::Sender<Option<String>>,
    sessions: AtomicU64,
}

#[derive(Debug)]
struct Session {
    id: SessionId,
    channel: Arc<Channel>,
    answers: Answers,
    connection: Connection,
    listener: AbortHandle,
}

/// What the broker adds to the headers of a message that it delivers again, and some more: the
/// client library gives up a connection on which it receives a larger frame than was agreed.
const HEADROOM_BYTES: usize = 1024;

impl Session {
    /// Bytes of the largest header frame that may be sent.
    fn header_limit(&self) -> usize {
        let frame_max = self.connection.configuration().frame_max() as usize;
        frame_max.saturating_sub(HEADROOM_BYTES)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Publisher {
    /// Not connected yet. `patience` is how long a lost connection is tried
    /// again; `None` is for ever.
    pub(crate) fn new(
        connect: Connect,
        role: &'static str,
        topology: Topology,
        patience: Option<Duration>,
    ) -> Self {
        let (blocked, _) = watch::channel(None);
        Self {
            connect: std::sync::Mutex::new(connect),
            role,
            topology,
            patience,
            session: Mutex::new(None),
            blocked,
            sessions: AtomicU64::new(0),
        }
    }

    /// Uses this connection until it is lost.
    pub(crate) async fn with_connection(self, connection: Connection) -> Result<Self, Error> {
        let session = self.session_on(connection).await?;
        *self.session.lock().await = Some(session);
        Ok(self)
    }

    /// Why the broker blocks the connection, while it does.
    pub(crate) fn blocked(&self) -> watch::Receiver<Option<String>> {
        self.blocked.subscribe()
    }

    /// Sends a message. Those sent one after another over one connection arrive
    /// in that order. With `only_on` it is not sent over any other: it must not
    /// overtake what a lost connection left open.
    ///
    /// # Cancel safety
    /// The message may or may not be sent.
    pub(crate) async fn send(
        &self,
        route: &Route,
        properties: BasicProperties,
        payload: Bytes,
        only_on: Option<SessionId>,
    ) -> Result<Sent, PublishError> {
        // The lock is what keeps the order: fair, and held until it is written.
        let mut slot = self.session.lock().await;
        let alive = slot.as_ref().filter(|session| session.channel.status().connected());
        if only_on.is_some_and(|id| alive.is_none_or(|session| session.id != id)) {
            let reason = "a message before it is unanswered on a lost connection".to_owned();
            return Err(PublishError::Indeterminate { reason });
        }
        if alive.is_none() {
            *slot = None;
            *slot = Some(Box::pin(self.reconnect()).await?);
        }
        let Some(session) = slot.as_ref() else {
            return Err(PublishError::Indeterminate { reason: "no session".to_owned() });
        };
        let (bytes, limit) = (frame_bytes(&properties), session.header_limit());
        if bytes > limit {
            return Err(PublishError::HeadersTooLarge { bytes, limit });
        }
        let (channel, to, bytes) = (Arc::clone(&session.channel), route.clone(), payload.len());
        let Route { exchange, key } = route.clone();
        let label = Label { exchange, key, id: properties.message_id().clone() };
        let publishing = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let Route { exchange, key } = to;
            channel.basic_publish(exchange, key, options, &payload, properties).await?.await
        });
        let answer = session.answers.publish(publishing, label).await;
        Ok(Sent { session: session.id, answer, route: route.clone(), bytes })
    }

    /// Sends a task, by that id and from that origin.
    ///
    /// # Cancel safety
    /// The task may or may not be sent.
    pub(crate) async fn send_task(
        &self,
        route: &Route,
        task: &Task,
        id: &TaskId,
        origin: Option<&Origin>,
        only_on: Option<SessionId>,
    ) -> Result<Sent, PublishError> {
        let properties =
            envelope::properties(task, id, origin).ok_or_else(|| PublishError::Invalid {
                reason: format!(
                    "task {id}: its kind, content type or origin has more than 255 bytes"
                ),
            })?;
        self.send(route, properties, task.payload.clone(), only_on).await
    }

    /// Sends on a message as it came, with what a task must have and it lacks, and with
    /// the span that does it, if there is one. It has one id however often it is sent, and
    /// says so if an earlier copy may be there.
    ///
    /// # Cancel safety
    /// The message may or may not be sent.
    pub(crate) async fn forward(
        &self,
        route: &Route,
        delivery: &Delivery,
        context: Option<&TraceContext>,
    ) -> Result<Sent, PublishError> {
        let Forwarding { id, unsure } = &*delivery.forwarding;
        let id = id.get_or_init(Uuid::now_v7);
        let again = delivery.redelivered || unsure.load(Ordering::Relaxed);
        let properties = envelope::forwarded(&delivery.properties, id, again, context);
        self.send(route, properties, delivery.payload.clone(), None).await
    }

    async fn reconnect(&self) -> Result<Session, Error> {
        let mut backoff = Backoff::new(self.patience);
        loop {
            let error = match self.session().await {
                Ok(session) => return Ok(session),
                // Whoever publishes has been connected before, here or beside it.
                Err(error) if error.passes() => error,
                Err(error) => return Err(error),
            };
            let Some(delay) = backoff.next() else { return Err(error) };
            tracing::warn!(%error, retry_in = ?delay, "cannot publish");
            tokio::time::sleep(delay).await;
        }
    }

    async fn session(&self) -> Result<Session, Error> {
        let connect = self.connect.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let connection = connect.open(self.role).await?;
        let stored = topology::read(&connection, connect.namespace()).await?;
        if stored != self.topology {
            return Err(Error::TopologyDiffers {
                namespace: connect.namespace().to_string(),
                stored,
                wanted: self.topology,
            });
        }
        self.session_on(connection).await
    }

    async fn session_on(&self, connection: Connection) -> Result<Session, Error> {
        let events = connection.events_listener();
        let channel = Arc::new(confirm_channel(&connection).await?);
        self.blocked.send_replace(None);
        let listener = tokio::spawn(tell_blocked(events, self.blocked.clone())).abort_handle();
        let id = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        let answers = Answers::of(Arc::clone(&channel));
        Ok(Session { id, channel, answers, connection, listener })
    }

    /// Gives a session up, and connects to the next node. What it left open is
    /// indeterminate.
    pub(crate) async fn leave(&self, session: SessionId) {
        let mut slot = self.session.lock().await;
        if slot.as_ref().is_some_and(|left| left.id == session) {
            *slot = None;
            let mut connect = self.connect.lock().unwrap_or_else(PoisonError::into_inner);
            *connect = connect.clone().with_next_node_first();
        }
    }

    /// Says goodbye. What is not confirmed by then is indeterminate. A broker that is gone,
    /// or that takes nothing, is not waited for.
    pub(crate) async fn close(&self) {
        // Whoever connects has it, for as long as there is nobody to connect to.
        let Ok(mut session) = timeout(CLOSE_TIMEOUT, self.session.lock()).await else { return };
        if let Some(session) = session.take() {
            say_goodbye(&session.connection).await;
        }
    }
}

async fn tell_blocked(
    mut events: impl Stream<Item = Event> + Unpin,
    blocked: watch::Sender<Option<String>>,
) {
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                tracing::warn!(%reason, "the broker blocks publishing: waiting until it recovers");
                blocked.send_replace(Some(reason));
            }
            Event::ConnectionUnblocked => {
                tracing::info!("the broker takes messages again");
                blocked.send_replace(None);
            }
            _ => {}
        }
    }
}
