//! The dead letters: what a worker or a router gave up, whole, with its reason.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, Consumer};
use serde::Serialize;
use tokio::time::sleep;

use super::connection::{Connect, close, close_connection};
use super::consumer::counts;
use super::death::Death;
use super::envelope::{self, envelope, number, text};
use super::error::{Doing, Error};
use super::obituary::{AT, ATTEMPTS, BY, FROM, REASON};
use super::publisher::{PublishError, Publisher, Route, Sent};
use super::sieve::parts;
use super::steering::order;
use super::topology;
use crate::backoff::Backoff;
use crate::protocol::envelope::{EnvelopeError, RESOURCE_HEADER};
use crate::protocol::names::Namespace;
use crate::protocol::partition::Topology;
use crate::protocol::steering::{CANCELLED_BY, Change};
use crate::protocol::task::{Task, TaskId};

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
    /// The worker or router that gave it up, or `the broker`, which a policy had drop it.
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
    /// The properties as they came, as bytes of AMQP 0-9-1, if they cannot be read.
    #[serde(skip)]
    pub unreadable: Option<Bytes>,
    #[serde(skip)]
    properties: BasicProperties,
    #[serde(skip)]
    tag: u64,
}

impl DeadLetter {
    fn from_lapin(delivery: lapin::message::Delivery) -> Self {
        let properties = &delivery.properties;
        let payload = Bytes::from(delivery.data);
        let (unreadable, payload) = match parts(properties, &payload) {
            Some((unreadable, payload)) => (Some(unreadable), payload),
            None => (None, payload),
        };
        let read = envelope(properties);
        let owned = |value: Option<&str>| value.map(str::to_owned);
        let mut letter = Self {
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
            payload_bytes: payload.len(),
            payload,
            unreadable,
            properties: delivery.properties,
            tag: delivery.delivery_tag,
        };
        // A publisher may have written headers like ours: those of the broker come first.
        if let Some(Death { reason, queue, at_ms }) = Death::of(&letter.properties) {
            (letter.reason, letter.attempts, letter.from) = (reason, 0, queue);
            (letter.by, letter.dead_at_ms) = (Some("the broker".to_owned()), at_ms);
        }
        letter
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

/// How many letters are held at once, at the most: a prefetch has 16 bits.
const WINDOW: u32 = u16::MAX as u32;

/// How many letters are published again before the oldest of them is confirmed.
const MAX_REPLAYS: usize = 500;

/// A letter that is there comes at once. One that does not was taken by
/// somebody else.
const NEXT_LETTER_TIMEOUT: Duration = Duration::from_secs(5);

/// Letters that were given back just now, or whose queue gets another leader, are
/// not counted for a moment.
const LOOKS: u32 = 3;
const LOOK_PACE: Duration = Duration::from_millis(100);

/// A list takes less, also one on a page that asks for it again and again.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(10);

/// The dead letters, oldest first.
///
/// Each letter that is taken is hidden from others until [`DeadLetters::close`]
/// (or the end of the process) gives back what was neither replayed nor
/// discarded, in its old place. At most 65,535 are held; the ones behind them are not
/// seen until some of those are replayed or discarded, and [`DeadLetters::left`] counts them.
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
    /// Other readers when it was opened.
    others: u32,
    /// Published again, and not confirmed; all over one session, in order.
    replaying: VecDeque<(u64, Sent)>,
    replayed: u32,
    /// Letters that were acked.
    removed: u32,
}

/// The broker's channel keeps acks that come faster than the queue takes them to itself, and
/// forgets them when it is closed (`unsent_commands` in `rabbit_fifo_client.erl`): the letters
/// would be there again. Nothing over AMQP tells when it has passed them on, so there is time to do it:
/// some for all, some for each, and so much at the most.
const ACKS_TAKEN: Duration = Duration::from_millis(100);
const ACK_TAKEN: Duration = Duration::from_micros(300);
const ALL_ACKS_TAKEN: Duration = Duration::from_secs(5);

impl DeadLetters {
    /// Connects, and waits up to 10 s for other readers to end: what they hold is hidden.
    /// What comes into the dead letters from now on is not looked at, so that replaying ends.
    ///
    /// # Errors
    /// [`Error::DeadLettersHeld`], [`Error::TopologyMissing`] and the errors of connecting.
    pub async fn open(connect: &Connect) -> Result<Self, Error> {
        let mut backoff = Backoff::new(Some(OTHERS_TIMEOUT));
        loop {
            let mut opened = Self::take(connect, WINDOW, true).await?;
            // The broker counts us, too, and whoever has come meanwhile does the same.
            let (_, consumers) =
                counts(&opened.channel, &opened.queue).await?.known(&opened.queue)?;
            let others = consumers.saturating_sub(1);
            if opened.others == 0 && others == 0 {
                return Ok(opened);
            }
            let queue = std::mem::take(&mut opened.queue);
            opened.close().await;
            let Some(delay) = backoff.next() else {
                return Err(Error::DeadLettersHeld { queue, readers: others.max(1) });
            };
            sleep(delay).await;
        }
    }

    /// Connects, and takes the oldest `most` of those that nobody else holds only, at most
    /// 65,535: no more than that are hidden from others and in memory.
    ///
    /// # Errors
    /// [`Error::TopologyMissing`] and the errors of connecting.
    pub async fn open_first(connect: &Connect, most: u32) -> Result<Self, Error> {
        Self::take(connect, most, false).await
    }

    async fn take(connect: &Connect, most: u32, alone: bool) -> Result<Self, Error> {
        let connection = connect.open("dead letters").await?;
        let namespace: &Namespace = connect.namespace();
        let topology = topology::read(&connection, namespace).await?;
        let channel = connection.create_channel().await.doing("open a channel")?;
        let queue = namespace.dead();
        let missing = || Error::TopologyMissing { namespace: namespace.to_string() };
        let (mut left, mut others) = (0, 0);
        for look in 0..LOOKS {
            if look > 0 {
                sleep(LOOK_PACE).await;
            }
            let counted = counts(&channel, &queue).await?;
            (left, others) =
                if counted.exists() { counted.known(&queue)? } else { return Err(missing()) };
            if left > 0 && !(alone && others > 0) {
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
            others,
            replaying: VecDeque::new(),
            replayed: 0,
            removed: 0,
        })
    }

    /// How many there were when it was opened, less those that were taken. If any are left when
    /// [`DeadLetters::next`] has no more, they lie behind as many as can be held, or somebody
    /// else has taken them.
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
        self.begin_replay(letter).await?;
        self.finish_replays().await
    }

    /// The same without waiting for the broker's confirm, for many letters one after another:
    /// they are published in this order. [`DeadLetters::finish_replays`] ends it.
    ///
    /// # Errors
    /// [`ReplayError::NoTask`] is about this letter, which stays, and others may follow. Anything
    /// else may be about one before it: begin no more of them, since they would overtake it.
    ///
    /// # Cancel safety
    /// As [`DeadLetters::replay`].
    pub async fn begin_replay(&mut self, letter: DeadLetter) -> Result<(), ReplayError> {
        let task = Task { replayed: true, ..letter.task()? };
        while self.replaying.len() >= MAX_REPLAYS {
            self.finish_oldest_replay().await?;
        }
        let id = task.id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().into());
        if letter.reason.starts_with(CANCELLED_BY) {
            // The id by which workers know it.
            let known = task.id.clone().unwrap_or_else(|| TaskId::of_content(&task));
            let change = Change::Reinstate { tasks: vec![known] };
            let withdrawn = order(&self.connection, &self.namespace, change, "a replay").await;
            withdrawn.map_err(ReplayError::Cancelled)?;
        }
        let route = &self.routes[self.topology.partition_of(&task.resource).number() as usize];
        // None is sent over a new connection while it is not known what became of those before.
        let session = self.replaying.back().map(|(_, sent)| sent.session());
        let sending = self.publisher.send_task(route, &task, &id, task.origin.as_ref(), session);
        self.replaying.push_back((letter.tag, sending.await?));
        Ok(())
    }

    /// Waits until all replays that have begun are confirmed, and takes their letters out.
    ///
    /// # Errors
    /// [`ReplayError`] of the first one that failed; the others are seen through.
    ///
    /// # Cancel safety
    /// As [`DeadLetters::replay`].
    pub async fn finish_replays(&mut self) -> Result<(), ReplayError> {
        let mut finished = Ok(());
        while !self.replaying.is_empty() {
            let oldest = self.finish_oldest_replay().await;
            finished = finished.and(oldest);
        }
        finished
    }

    /// How many letters were replayed and taken out.
    #[must_use]
    pub fn replayed(&self) -> u32 {
        self.replayed
    }

    async fn finish_oldest_replay(&mut self) -> Result<(), ReplayError> {
        let Some((tag, sent)) = self.replaying.pop_front() else { return Ok(()) };
        sent.confirmed().await?;
        self.remove(tag).await?;
        self.replayed += 1;
        Ok(())
    }

    /// Removes a letter for good.
    ///
    /// # Errors
    /// When the connection is lost: then it stays.
    pub async fn discard(&mut self, letter: DeadLetter) -> Result<(), Error> {
        self.remove(letter.tag).await
    }

    async fn remove(&mut self, tag: u64) -> Result<(), Error> {
        let ack = self.channel.basic_ack(tag, BasicAckOptions::default());
        ack.await.doing("remove a dead letter")?;
        self.kept -= 1;
        self.removed += 1;
        Ok(())
    }

    /// Gives back what was taken and neither replayed nor discarded.
    pub async fn close(self) {
        self.publisher.close().await;
        if self.removed > 0 {
            sleep((ACKS_TAKEN + ACK_TAKEN * self.removed).min(ALL_ACKS_TAKEN)).await;
        }
        close(&self.channel).await;
        close_connection(self.connection).await;
    }
}
