//! A channel that consumes one queue: the scope of ownership.
//!
//! The library's consumer cancels itself when it is dropped, and a cancel with
//! unsettled deliveries hands the partition on while our handlers still run.
//! So a [`QueueChannel`] is ended by [`QueueChannel::close`], which closes the
//! channel first: unsettled deliveries go back in order.

use std::num::NonZeroU16;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_lite::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, Consumer};
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::connection::{arguments, close};
use super::envelope;
use super::epoch::{self, Minted};
use super::error::{Doing, Error, reply};
use crate::protocol::envelope::{EnvelopeError, Forbidden};
use crate::protocol::ownership::WorkerId;
use crate::protocol::settlement::{Ack, DeliveryTag};
use crate::protocol::task::Task;
use crate::spill::{Kept, Spill};

/// One hand-off by the broker.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    /// Its tag on its channel.
    pub(crate) tag: DeliveryTag,
    /// How many channels that held it were closed or lost: a worker may have died of it that
    /// often.
    pub(crate) losses: u32,
    /// Whether any channel held it before: it may have been executed.
    pub(crate) redelivered: bool,
    /// How often it was held before.
    pub(crate) times_held: u32,
    /// The properties as they came, for the dead letters.
    pub(crate) properties: BasicProperties,
    /// The body; empty while it waits on disk.
    pub(crate) payload: Bytes,
    /// Where that is, if it is accounted for.
    pub(crate) kept: Option<Kept>,
    /// Of a message of the inbox.
    pub(crate) forwarding: Arc<Forwarding>,
}

/// What a router knows of its earlier tries to send a message on.
#[derive(Debug, Default)]
pub(crate) struct Forwarding {
    /// For one that has none of its publisher.
    pub(crate) id: OnceLock<Uuid>,
    /// One that was not answered: a copy may be there.
    pub(crate) unsure: AtomicBool,
}

impl Delivery {
    fn from_lapin(delivery: lapin::message::Delivery) -> Self {
        Self {
            tag: DeliveryTag(delivery.delivery_tag),
            losses: envelope::losses(&delivery.properties, delivery.redelivered),
            redelivered: delivery.redelivered,
            times_held: envelope::times_held(&delivery.properties, delivery.redelivered),
            properties: delivery.properties,
            payload: Bytes::from(delivery.data),
            kept: None,
            forwarding: Arc::default(),
        }
    }

    /// Moves the body to disk if too much is held in memory.
    async fn spilled(mut self, spill: &Arc<Spill>) -> Self {
        match spill.keep(self.payload.clone()).await {
            Ok(kept) => {
                if kept.spilled().is_some() {
                    self.payload = Bytes::new();
                }
                self.kept = Some(kept);
            }
            Err(error) => {
                tracing::warn!(%error, "a payload stays in memory, since the disk takes none");
            }
        }
        self
    }

    /// A property that no task may have.
    pub(crate) fn forbidden(&self) -> Option<Forbidden> {
        envelope::envelope(&self.properties).forbidden()
    }

    /// The task in it.
    pub(crate) fn task(&self) -> Result<Task, EnvelopeError> {
        envelope::envelope(&self.properties).into_task(self.payload.clone())
    }
}

/// Takes deliveries from the client library as they come: it holds any number of them, and their
/// payloads, while nobody does. Goes on until the channel is closed, since the library cancels a
/// consumer that is dropped.
async fn take_in(
    mut consumer: Consumer,
    spill: Arc<Spill>,
    taken: mpsc::UnboundedSender<Result<Delivery, lapin::Error>>,
) {
    while let Some(delivery) = consumer.next().await {
        let delivery = match delivery {
            Ok(delivery) => Ok(Delivery::from_lapin(delivery).spilled(&spill).await),
            Err(error) => Err(error),
        };
        // Nobody listens any more once the channel is being closed.
        taken.send(delivery).ok();
    }
}

/// A channel with one consumer on it.
pub(crate) struct QueueChannel {
    channel: Channel,
    /// What has come, from the task that has the consumer.
    deliveries: mpsc::UnboundedReceiver<Result<Delivery, lapin::Error>>,
    /// It was closed, so that it need not be when it is dropped.
    closed: bool,
    queue: String,
    /// A mint has begun and not ended: the counter may be unsettled here.
    minting: bool,
}

impl QueueChannel {
    /// Consumes `queue` on a channel of its own: stands at the end of its line, or is active at
    /// once if nobody does. `Ok(None)` if there is no such queue.
    ///
    /// There is no priority. With one, RabbitMQ 4.3 replaces the active consumer, and never
    /// forgets one that is lost meanwhile (`tests/line.rs`).
    ///
    /// `timeout` is how long a delivery may be held. Since RabbitMQ 4.3 what the consumer says
    /// wins over a policy, and over the queue's own; before, nobody is asked.
    pub(crate) async fn open(
        connection: &Connection,
        queue: &str,
        worker: &WorkerId,
        prefetch: NonZeroU16,
        timeout: Duration,
        spill: &Arc<Spill>,
    ) -> Result<Option<Self>, Error> {
        let channel = connection.create_channel().await.doing("open a channel")?;
        channel
            .basic_qos(prefetch.get(), BasicQosOptions::default())
            .await
            .doing("set the prefetch")?;
        let timeout_ms = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
        let timeout = arguments([("x-consumer-timeout", AMQPValue::LongLongInt(timeout_ms))]);
        let (tag, options) = (worker.as_str().into(), BasicConsumeOptions::default());
        match channel.basic_consume(queue.into(), tag, options, timeout).await {
            Ok(consumer) => {
                let (taken, deliveries) = mpsc::unbounded_channel();
                tokio::spawn(take_in(consumer, Arc::clone(spill), taken));
                let queue = queue.to_owned();
                Ok(Some(Self { channel, deliveries, closed: false, queue, minting: false }))
            }
            Err(error) if reply(&error).is_some_and(|(code, _)| code == 404) => Ok(None),
            Err(error) => Err(Error::from_lapin(format!("consume {queue}"), error)),
        }
    }

    /// The next delivery; an error when the channel is gone.
    ///
    /// # Cancel safety
    /// No delivery is lost.
    pub(crate) async fn next(&mut self) -> Result<Delivery, Error> {
        if self.minting {
            return Err(Error::Broker {
                doing: format!("consume {}", self.queue),
                source: "the minting of an epoch was cut short".into(),
            });
        }
        match self.deliveries.recv().await {
            Some(Ok(delivery)) => Ok(delivery),
            Some(Err(error)) => Err(Error::from_lapin(format!("consume {}", self.queue), error)),
            None => Err(Error::Broker {
                doing: format!("consume {}", self.queue),
                source:
                    "the broker cancelled the consumer: was the queue deleted, or its node stopped?"
                        .into(),
            }),
        }
    }

    /// Settles deliveries. Returns when the ack is written: one that is still
    /// queued when the channel is closed is lost.
    pub(crate) async fn ack(&self, ack: Ack) -> Result<(), Error> {
        let options = BasicAckOptions { multiple: ack.multiple };
        self.channel.basic_ack(ack.tag.0, options).await.doing(format!("ack on {}", self.queue))
    }

    /// Takes and gives back the counter of epochs in the queue `counter`. While
    /// this channel holds a delivery, what is minted is below what any later
    /// owner mints. A counter that is missing costs the channel.
    ///
    /// No ack can be sent in between, which might settle the counter: this has
    /// the channel to itself. And no ack ever covers it: all deliveries that were
    /// read before it have lower tags, and none is read before it is given back.
    ///
    /// # Cancel safety
    /// Dropped half-way it leaves the counter on this channel, which from then on
    /// delivers nothing, and gives it back when it is closed.
    pub(crate) async fn mint(&mut self, counter: &str) -> Result<Minted, Error> {
        self.minting = true;
        let minted = epoch::mint(&self.channel, counter).await?;
        self.minting = false;
        Ok(minted)
    }

    /// Gives the queue up: unsettled deliveries go back in order.
    pub(crate) async fn close(mut self) {
        close(&self.channel).await;
        self.closed = true;
    }
}

impl Drop for QueueChannel {
    /// A channel that is dropped unclosed (a panic, a dropped future) is closed
    /// in the background; without a runtime the process is about to end, and
    /// its connections with it.
    fn drop(&mut self) {
        if let (false, Ok(runtime)) = (self.closed, tokio::runtime::Handle::try_current()) {
            let channel = self.channel.clone();
            runtime.spawn(async move { close(&channel).await });
        }
    }
}

/// The broker asks the leader of a replicated queue, and says "no messages, no consumers" when
/// that has not answered within 250 ms. An answer that took less is the leader's own, so an
/// empty queue is not asked twice.
const LEADER_TIMEOUT: Duration = Duration::from_millis(200);

/// A leader that is so slow three times in a row does not answer.
const LOOKS: u32 = 3;

/// What the broker tells of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// There is no such queue.
    Missing,
    /// There is, and its leader does not answer the broker.
    Silent,
    Known {
        /// Messages that nobody holds.
        ready: u32,
        consumers: u32,
    },
}

impl Counted {
    /// Whether there is such a queue.
    pub(crate) fn exists(self) -> bool {
        self != Self::Missing
    }

    /// How many messages are ready, and how many consumers there are.
    ///
    /// # Errors
    /// [`Error::QueueMissing`] and [`Error::QueueSilent`].
    pub(crate) fn known(self, queue: &str) -> Result<(u32, u32), Error> {
        match self {
            Self::Known { ready, consumers } => Ok((ready, consumers)),
            Self::Missing => Err(Error::QueueMissing { queue: queue.to_owned() }),
            Self::Silent => Err(Error::QueueSilent { queue: queue.to_owned() }),
        }
    }
}

/// Counts what is in a queue. Closes the channel if there is none.
pub(crate) async fn counts(channel: &Channel, queue: &str) -> Result<Counted, Error> {
    for _ in 0..LOOKS {
        let asked = Instant::now();
        let found = look(channel, queue).await?;
        let empty = Counted::Known { ready: 0, consumers: 0 };
        if found != empty || asked.elapsed() < LEADER_TIMEOUT {
            return Ok(found);
        }
    }
    Ok(Counted::Silent)
}

async fn look(channel: &Channel, queue: &str) -> Result<Counted, Error> {
    let options = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
    match channel.queue_declare(queue.into(), options, FieldTable::default()).await {
        Ok(found) => {
            let (ready, consumers) = (found.message_count(), found.consumer_count());
            Ok(Counted::Known { ready, consumers })
        }
        Err(error) if reply(&error).is_some_and(|(code, _)| code == 404) => Ok(Counted::Missing),
        Err(error) => Err(Error::from_lapin(format!("look at {queue}"), error)),
    }
}
