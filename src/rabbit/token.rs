//! A message that goes round through a majority of the cluster: given back to a
//! replicated queue, it comes again when more than half of the queue's nodes have
//! written down that it came back.
//!
//! It needs no publishing, which a broker that is low on memory would not allow, and
//! no call that ends the connection when it takes long.

use futures_lite::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection, Consumer};

use super::connection::{arguments, close, confirm_channel};
use super::error::{Doing, Error};

/// The broker removes a queue that was left behind, after so many milliseconds
/// without a consumer.
const EXPIRES_MS: i32 = 15_000;

/// On all nodes: on fewer, its majority might not be one of the cluster.
const ALL_NODES: i32 = 15;

/// See the [module](self).
pub(super) struct Token {
    channel: Channel,
    consumer: Consumer,
    queue: String,
    /// Of its last delivery.
    tag: u64,
}

impl Token {
    /// Makes the queue, led by the node of `connection`, and puts the token in over
    /// `side`.
    pub(super) async fn place(
        connection: &Connection,
        side: &Connection,
        queue: &str,
    ) -> Result<Self, Error> {
        let channel = connection.create_channel().await.doing("open a channel")?;
        let text = |text| AMQPValue::LongString(LongString::from(text));
        let arguments = arguments([
            ("x-queue-type", text("quorum")),
            ("x-queue-leader-locator", text("client-local")),
            ("x-quorum-initial-group-size", AMQPValue::LongInt(ALL_NODES)),
            ("x-delivery-limit", AMQPValue::LongInt(-1)),
            ("x-expires", AMQPValue::LongInt(EXPIRES_MS)),
        ]);
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        let declared = channel.queue_declare(queue.into(), durable, arguments).await;
        let empty = declared.doing(format!("declare {queue}"))?.message_count() == 0;
        channel.basic_qos(1, BasicQosOptions::default()).await.doing("set the prefetch")?;
        let consumer = channel
            .basic_consume(
                queue.into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .doing(format!("consume {queue}"))?;
        if empty {
            publish(side, queue).await?;
        }
        let mut token = Self { channel, consumer, queue: queue.to_owned(), tag: 0 };
        token.comes().await?;
        Ok(token)
    }

    /// Gives the token back, and waits until it comes again.
    pub(super) async fn go_round(&mut self) -> Result<(), Error> {
        let back = BasicNackOptions { multiple: false, requeue: true };
        let returned = self.channel.basic_nack(self.tag, back).await;
        returned.doing(format!("give back the token of {}", self.queue))?;
        self.comes().await
    }

    async fn comes(&mut self) -> Result<(), Error> {
        match self.consumer.next().await {
            Some(delivery) => {
                self.tag = delivery.doing(format!("consume {}", self.queue))?.delivery_tag;
                Ok(())
            }
            None => Err(Error::Broker {
                doing: format!("consume {}", self.queue),
                source: "the broker cancelled the consumer".into(),
            }),
        }
    }
}

async fn publish(side: &Connection, queue: &str) -> Result<(), Error> {
    let doing = || format!("store the token in {queue}");
    let channel = confirm_channel(side).await?;
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let about = b"A keylane worker sends this round, to see whether its node is cut off.";
    let properties = BasicProperties::default().with_delivery_mode(2);
    let sent = channel.basic_publish("".into(), queue.into(), options, about, properties).await;
    sent.doing(doing())?.await.doing(doing())?;
    close(&channel).await;
    Ok(())
}

/// Removes the token and its queue.
pub(crate) async fn remove(side: &Connection, queue: &str) -> Result<(), Error> {
    let channel = side.create_channel().await.doing("open a channel")?;
    let deleted = channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
    deleted.doing(format!("delete {queue}"))?;
    close(&channel).await;
    Ok(())
}
