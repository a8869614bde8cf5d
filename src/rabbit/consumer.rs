//! A channel that consumes one queue: the scope of ownership.
//!
//! The library's consumer cancels itself when it is dropped, and a cancel with
//! unsettled deliveries hands the partition on while our handlers still run.
//! So a [`QueueChannel`] is ended by [`QueueChannel::close`], which closes the
//! channel first: unsettled deliveries go back in order.

use bytes::Bytes;
use futures_lite::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, Consumer};

use super::connection::{arguments, close};
use super::envelope;
use super::error::{Doing, Error, reply};
use crate::protocol::ownership::{Priority, WorkerId};
use crate::protocol::settlement::{Ack, DeliveryTag};
use crate::protocol::task::{EnvelopeError, Task};

/// One hand-off by the broker.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// Its tag on its channel.
    pub(crate) tag: DeliveryTag,
    /// How often a channel that held it was lost.
    pub(crate) losses: u32,
    /// The properties as they came, for the dead letters.
    pub(crate) properties: BasicProperties,
    /// The body.
    pub(crate) payload: Bytes,
}

impl Delivery {
    fn from_lapin(delivery: lapin::message::Delivery) -> Self {
        Self {
            tag: DeliveryTag(delivery.delivery_tag),
            losses: envelope::losses(&delivery.properties),
            properties: delivery.properties,
            payload: Bytes::from(delivery.data),
        }
    }

    /// The task in it.
    pub(crate) fn task(&self) -> Result<Task, EnvelopeError> {
        envelope::envelope(&self.properties).into_task(self.payload.clone())
    }
}

/// A channel with one consumer on it.
pub(crate) struct QueueChannel {
    channel: Channel,
    /// Taken when the channel is closed, never before.
    consumer: Option<Consumer>,
    queue: String,
}

impl QueueChannel {
    /// Consumes `queue` on a channel of its own. `Ok(None)` if there is no
    /// such queue.
    pub(crate) async fn open(
        connection: &Connection,
        queue: &str,
        worker: &WorkerId,
        priority: Option<Priority>,
        prefetch: u16,
    ) -> Result<Option<Self>, Error> {
        let channel = connection.create_channel().await.doing("open a channel")?;
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.doing("set the prefetch")?;
        let arguments = match priority {
            Some(p) => arguments([("x-priority", AMQPValue::LongInt(p.get()))]),
            None => FieldTable::default(),
        };
        let consumer = channel
            .basic_consume(
                queue.into(),
                worker.as_str().into(),
                BasicConsumeOptions::default(),
                arguments,
            )
            .await;
        match consumer {
            Ok(consumer) => {
                Ok(Some(Self { channel, consumer: Some(consumer), queue: queue.to_owned() }))
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
        let next = match &mut self.consumer {
            Some(consumer) => consumer.next().await,
            None => None,
        };
        match next {
            Some(Ok(delivery)) => Ok(Delivery::from_lapin(delivery)),
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

    /// Gives the queue up: unsettled deliveries go back in order.
    pub(crate) async fn close(mut self) {
        close(&self.channel).await;
        self.consumer = None;
    }
}

impl Drop for QueueChannel {
    /// A channel that is dropped unclosed (a panic, a dropped future) is closed
    /// in the background; without a runtime the process is about to end, and
    /// its connections with it.
    fn drop(&mut self) {
        if let (Some(consumer), Ok(runtime)) =
            (self.consumer.take(), tokio::runtime::Handle::try_current())
        {
            let channel = self.channel.clone();
            runtime.spawn(async move {
                close(&channel).await;
                drop(consumer);
            });
        }
    }
}

/// How many messages of a queue are ready, and how many consumers it has;
/// `None` if there is no such queue. Closes the channel in that case.
pub(crate) async fn counts(channel: &Channel, queue: &str) -> Result<Option<(u32, u32)>, Error> {
    let options = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
    match channel.queue_declare(queue.into(), options, FieldTable::default()).await {
        Ok(found) => Ok(Some((found.message_count(), found.consumer_count()))),
        Err(error) if reply(&error).is_some_and(|(code, _)| code == 404) => Ok(None),
        Err(error) => Err(Error::from_lapin(format!("look at {queue}"), error)),
    }
}
