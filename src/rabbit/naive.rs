//! What keylane is compared with: one queue, and consumers that compete for it.
//!
//! Every message is confirmed, acked after its handler and never lost. What it
//! lacks is just what keylane adds: nothing keeps two tasks of one resource
//! apart, or in order.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_lite::{Stream, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{Connect, arguments, close, close_connection, confirm_channel};
use super::consumer::counts;
use super::error::{Doing, Error};

/// Messages that were sent and not confirmed, at the most: as a
/// [`Producer`](crate::Producer) has it.
const MAX_IN_FLIGHT: usize = 1_000;

/// AMQP's number for a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// The queue, over a connection of its own.
pub(crate) struct NaiveQueue {
    connection: Connection,
    channel: Channel,
    name: String,
}

impl NaiveQueue {
    /// Connects, and declares the queue if it is not there.
    pub(crate) async fn open(connect: &Connect, role: &str) -> Result<Self, Error> {
        let connection = connect.open(role).await?;
        let channel = confirm_channel(&connection).await?;
        let name = format!("{}.naive", connect.namespace());
        let quorum =
            arguments([("x-queue-type", AMQPValue::LongString(LongString::from("quorum")))]);
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        let declared = channel.queue_declare(name.as_str().into(), durable, quorum).await;
        declared.doing(format!("declare {name}"))?;
        Ok(Self { connection, channel, name })
    }

    /// Publishes all payloads in their order, and calls `confirmed` for each that
    /// the broker has.
    pub(crate) async fn publish_all(
        &self,
        payloads: impl Stream<Item = Bytes>,
        mut confirmed: impl FnMut(),
    ) -> Result<(), Error> {
        let doing = || format!("publish to {}", self.name);
        let mut payloads = std::pin::pin!(payloads);
        let mut window = VecDeque::new();
        loop {
            let next = payloads.next().await;
            let (ended, limit) = (next.is_none(), if next.is_none() { 0 } else { MAX_IN_FLIGHT });
            if let Some(payload) = next {
                let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
                let options = BasicPublishOptions::default();
                let sent = self.channel.basic_publish(
                    "".into(),
                    self.name.as_str().into(),
                    options,
                    &payload,
                    properties,
                );
                window.push_back(sent.await.doing(doing())?);
            }
            while window.len() > limit {
                let Some(oldest) = window.pop_front() else { break };
                oldest.await.doing(doing())?;
                confirmed();
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// How many messages wait and how many consumers compete for them.
    pub(crate) async fn counts(&self) -> Result<(u32, u32), Error> {
        counts(&self.channel, &self.name).await?.known(&self.name)
    }

    /// Hands up to `prefetch` messages at once to `handler`, with whether they
    /// were delivered before, and acks each for which it returns true. After
    /// `shutdown` the running ones finish.
    pub(crate) async fn consume<F>(
        self,
        prefetch: u16,
        handler: impl Fn(Bytes, bool) -> F,
        shutdown: CancellationToken,
    ) -> Result<(), Error>
    where
        F: Future<Output = bool> + Send + 'static,
    {
        let doing = || format!("consume {}", self.name);
        self.channel.basic_qos(prefetch, BasicQosOptions::default()).await.doing(doing())?;
        let options = BasicConsumeOptions::default();
        let consumer = self.channel.basic_consume(
            self.name.as_str().into(),
            "".into(),
            options,
            FieldTable::default(),
        );
        let mut consumer = consumer.await.doing(doing())?;
        let mut running = JoinSet::new();
        loop {
            let delivery = tokio::select! {
                () = shutdown.cancelled() => break,
                // Reaped as they end, so that the set does not grow.
                Some(_) = running.join_next() => continue,
                next = consumer.next() => match next {
                    Some(delivery) => delivery.doing(doing())?,
                    None => return Err(Error::QueueMissing { queue: self.name.clone() }),
                },
            };
            let handled = handler(Bytes::from(delivery.data), delivery.redelivered);
            let (channel, tag) = (self.channel.clone(), delivery.delivery_tag);
            running.spawn(async move {
                if handled.await
                    && let Err(error) = channel.basic_ack(tag, BasicAckOptions::default()).await
                {
                    tracing::warn!(%error, "cannot ack");
                }
            });
        }
        while running.join_next().await.is_some() {}
        // Closing the channel, not the consumer, sends back in order what came
        // meanwhile.
        close(&self.channel).await;
        close_connection(self.connection).await;
        Ok(())
    }

    /// Closes the connection.
    pub(crate) async fn close(self) {
        close_connection(self.connection).await;
    }

    /// Removes the queue with all that is in it.
    pub(crate) async fn delete(self) -> Result<(), Error> {
        let deleted =
            self.channel.queue_delete(self.name.as_str().into(), QueueDeleteOptions::default());
        deleted.await.doing(format!("delete {}", self.name))?;
        close_connection(self.connection).await;
        Ok(())
    }
}
