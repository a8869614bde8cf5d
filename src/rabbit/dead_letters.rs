//! The dead letters: what a worker or a router gave up, whole, with its reason.
//!
//! A dead letter is the message as it came, plus headers that say what
//! happened. Properties that would make the broker do something else with it
//! (expire it, copy it, check its user) are kept as headers too.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_lite::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection, Consumer};
use serde::Serialize;
use tokio::time::sleep;

use super::connection::{Connect, close, close_connection};
use super::consumer::counts;
use super::envelope::{self, BROKERS_OWN, envelope, number, text};
use super::error::{Doing, Error};
use super::publisher::{PublishError, Publisher, Route};
use super::steering::order;
use super::topology;
use crate::protocol::envelope::{EnvelopeError, RESOURCE_HEADER};
use crate::protocol::names::Namespace;
use crate::protocol::partition::Topology;
use crate::protocol::steering::{CANCELLED_BY, Change};
use crate::protocol::task::{Task, TaskId};

const REASON: &str = "x-keylane-reason";
const ATTEMPTS: &str = "x-keylane-attempts";
const BY: &str = "x-keylane-by";
const AT: &str = "x-keylane-at-ms";
const FROM: &str = "x-keylane-from";

/// Why and by whom a message was given up.
#[derive(Debug, Clone)]
pub(crate) struct Obituary {
    /// Why.
    pub(crate) reason: String,
    /// How often it was tried.
    pub(crate) attempts: u32,
    /// The worker or router.
    pub(crate) by: String,
    /// The queue that it was in.
    pub(crate) from: String,
}

/// Publishes a message to the dead letters and waits for the confirm.
pub(crate) async fn bury(
    publisher: &Publisher,
    dead: &Route,
    properties: &BasicProperties,
    payload: &Bytes,
    obituary: &Obituary,
) -> Result<(), PublishError> {
    let long = |value: &str| AMQPValue::LongString(LongString::from(value));
    let mut headers = FieldTable::default();
    if let Some(original) = properties.headers() {
        for (key, value) in original.inner() {
            if BROKERS_OWN.contains(&key.as_str()) {
                let kept = format!("x-keylane-was-{}", key.as_str().to_lowercase());
                headers.insert(kept.as_str().into(), value.clone());
            } else {
                headers.insert(key.clone(), value.clone());
            }
        }
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    headers.insert(REASON.into(), long(&obituary.reason));
    headers.insert(ATTEMPTS.into(), AMQPValue::LongLongInt(i64::from(obituary.attempts)));
    headers.insert(BY.into(), long(&obituary.by));
    headers.insert(FROM.into(), long(&obituary.from));
    let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    headers.insert(AT.into(), AMQPValue::LongLongInt(now_ms));
    for (name, value) in
        [("expiration", properties.expiration()), ("user-id", properties.user_id())]
    {
        if let Some(value) = value {
            headers.insert(format!("x-keylane-was-{name}").as_str().into(), long(value.as_str()));
        }
    }
    let letter = envelope::kept(properties).with_delivery_mode(2).with_headers(headers);
    publisher.send(dead, letter, payload.clone(), None).await?.confirmed().await
}

/// A message that was given up.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The task's id, if the message had one.
    pub id: Option<String>,
    /// The resource, if the message had one that can be read as text.
    pub resource: Option<String>,
    /// The kind, if any.
    pub kind: Option<String>,
    /// MIME type of the payload, if any.
    pub content_type: Option<String>,
    /// Why it was given up.
    pub reason: String,
    /// How often it was tried, with earlier owners as well where that is known.
    pub attempts: i64,
    /// The worker or router that gave it up.
    pub by: Option<String>,
    /// The queue that it was in.
    pub from: Option<String>,
    /// When it was published, in seconds since 1970.
    pub published_at_s: Option<u64>,
    /// When it was given up, in milliseconds since 1970.
    pub dead_at_ms: Option<i64>,
    /// Size of the payload.
    pub payload_bytes: usize,
    /// The payload as it came.
    #[serde(skip)]
    pub payload: Bytes,
    #[serde(skip)]
    properties: BasicProperties,
    #[serde(skip)]
    tag: u64,
}

impl DeadLetter {
    fn from_lapin(delivery: lapin::message::Delivery) -> Self {
        let properties = &delivery.properties;
        let read = envelope(properties);
        let owned = |value: Option<&str>| value.map(str::to_owned);
        Self {
            id: owned(read.message_id),
            resource: owned(text(properties, RESOURCE_HEADER)),
            kind: owned(read.kind),
            content_type: owned(read.content_type),
            reason: text(properties, REASON).unwrap_or("no reason is given").to_owned(),
            attempts: number(properties, ATTEMPTS).unwrap_or(0),
            by: owned(text(properties, BY)),
            from: owned(text(properties, FROM)),
            published_at_s: read.timestamp,
            dead_at_ms: number(properties, AT),
            payload_bytes: delivery.data.len(),
            payload: Bytes::from(delivery.data),
            properties: delivery.properties,
            tag: delivery.delivery_tag,
        }
    }

    /// The task in it.
    ///
    /// # Errors
    /// [`EnvelopeError`] when it was given up because it is none.
    pub fn task(&self) -> Result<Task, EnvelopeError> {
        envelope::envelope(&self.properties).into_task(self.payload.clone())
    }
}

/// A dead letter could not be replayed. It stays where it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// It is no task.
    #[error(
        "dead letter cannot be replayed: {0}; publish it anew with a resource, then discard it"
    )]
    NoTask(#[from] EnvelopeError),
    /// It was not published.
    #[error("dead letter was not replayed: {0}")]
    Publish(#[from] PublishError),
    /// It was cancelled, and that could not be withdrawn.
    #[error("dead letter was not replayed, since it is cancelled still: {0}")]
    Cancelled(#[source] Error),
    /// It was published, but stays in the dead letters as well.
    #[error("dead letter was replayed, but is still in the dead letters: {0}")]
    Settle(#[from] Error),
}

/// How many letters are held at once, at the most: they are in memory, here and
/// on the broker.
const WINDOW: u32 = 10_000;

/// A letter that is there comes at once. One that does not was taken by
/// somebody else.
const NEXT_LETTER_TIMEOUT: Duration = Duration::from_secs(5);

/// Letters that were given back just now, or whose queue gets another leader, are
/// not counted for a moment.
const LOOKS: u32 = 3;
const LOOK_PACE: Duration = Duration::from_millis(100);

/// The dead letters, oldest first.
///
/// Each letter that is taken is hidden from others until [`DeadLetters::close`]
/// (or the end of the process) gives back what was neither replayed nor
/// discarded, in its old place. At the most 10,000 are taken and kept; the ones
/// behind them are not seen until some of those are replayed or discarded.
#[derive(Debug)]
pub struct DeadLetters {
    connection: Connection,
    namespace: Namespace,
    channel: Channel,
    /// One consumer, since letters that were taken with separate gets would
    /// come back in any order.
    consumer: Consumer,
    queue: String,
    kept: u32,
    topology: Topology,
    routes: Vec<Route>,
    publisher: Publisher,
    left: u32,
}

impl DeadLetters {
    /// Connects. What comes into the dead letters from now on is not looked at,
    /// so that replaying ends.
    ///
    /// # Errors
    /// [`Error::TopologyMissing`] and the errors of connecting.
    pub async fn open(connect: &Connect) -> Result<Self, Error> {
        Self::open_first(connect, WINDOW).await
    }

    /// Connects, and takes the oldest `most` of them only, at most 10,000: no more
    /// than that are hidden from others and in memory.
    ///
    /// # Errors
    /// As [`DeadLetters::open`].
    pub async fn open_first(connect: &Connect, most: u32) -> Result<Self, Error> {
        let connection = connect.open("dead letters").await?;
        let namespace: &Namespace = connect.namespace();
        let topology = topology::read(&connection, namespace).await?;
        let channel = connection.create_channel().await.doing("open a channel")?;
        let queue = namespace.dead();
        let missing = || Error::TopologyMissing { namespace: namespace.to_string() };
        let mut left = 0;
        for look in 0..LOOKS {
            if look > 0 {
                sleep(LOOK_PACE).await;
            }
            let counted = counts(&channel, &queue).await?;
            (left, _) =
                if counted.exists() { counted.known(&queue)? } else { return Err(missing()) };
            if left > 0 {
                break;
            }
        }
        // All of them count as left, where no more than a window's are wanted.
        let left = if most < WINDOW { left.min(most) } else { left };
        let window = left.clamp(1, WINDOW) as u16;
        channel.basic_qos(window, BasicQosOptions::default()).await.doing("set the prefetch")?;
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
        let consumer = consumer.await.doing(format!("read {queue}"))?;
        let patience = Some(Duration::from_secs(30));
        let publisher = Publisher::new(connect.clone(), "dead letters", topology, patience);
        let routes = Route::partitions(namespace, &topology);
        Ok(Self {
            connection,
            namespace: namespace.clone(),
            channel,
            consumer,
            queue,
            kept: 0,
            topology,
            routes,
            publisher,
            left,
        })
    }

    /// How many there were when it was opened, less those that were taken.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.left
    }

    /// Takes the next one.
    ///
    /// # Errors
    /// When the connection is lost.
    ///
    /// # Cancel safety
    /// A letter may be hidden until it is closed; none is lost.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, Error> {
        if self.left == 0 || self.kept == WINDOW {
            return Ok(None);
        }
        let next = tokio::time::timeout(NEXT_LETTER_TIMEOUT, self.consumer.next()).await;
        let Ok(delivery) = next else { return Ok(None) };
        let delivery = delivery.ok_or_else(|| Error::Broker {
            doing: format!("read {}", self.queue),
            source: "the broker ended the reading".into(),
        })?;
        let delivery = delivery.doing(format!("read {}", self.queue))?;
        self.left -= 1;
        self.kept += 1;
        Ok(Some(DeadLetter::from_lapin(delivery)))
    }

    /// Publishes the task again, at the end of its resource's queue, and takes
    /// it out of the dead letters. One that was cancelled may start again.
    ///
    /// # Errors
    /// [`ReplayError`]; the letter stays unless it says otherwise.
    ///
    /// # Cancel safety
    /// It may be published and stay in the dead letters as well.
    pub async fn replay(&mut self, letter: DeadLetter) -> Result<(), ReplayError> {
        let task = Task { replayed: true, ..letter.task()? };
        let id = task.id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().into());
        if letter.reason.starts_with(CANCELLED_BY) {
            // The id by which workers know it.
            let known = task.id.clone().unwrap_or_else(|| TaskId::of_content(&task));
            let change = Change::Reinstate { tasks: vec![known] };
            let withdrawn = order(&self.connection, &self.namespace, change, "a replay").await;
            withdrawn.map_err(ReplayError::Cancelled)?;
        }
        let route = &self.routes[self.topology.partition_of(&task.resource).number() as usize];
        self.publisher
            .send_task(route, &task, &id, task.origin.as_ref(), None)
            .await?
            .confirmed()
            .await?;
        Ok(self.discard(letter).await?)
    }

    /// Removes a letter for good.
    ///
    /// # Errors
    /// When the connection is lost: then it stays.
    pub async fn discard(&mut self, letter: DeadLetter) -> Result<(), Error> {
        let ack = self.channel.basic_ack(letter.tag, BasicAckOptions::default());
        ack.await.doing("remove a dead letter")?;
        self.kept -= 1;
        Ok(())
    }

    /// Gives back what was taken and neither replayed nor discarded.
    pub async fn close(self) {
        self.publisher.close().await;
        close(&self.channel).await;
        close_connection(self.connection).await;
    }
}
