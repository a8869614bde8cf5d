//! What somebody writes who needs no guarantees: bare loops over the client
//! library, on keylane's own queues. The benchmark compares with them.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_lite::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, PublisherConfirm};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{Connect, close, close_connection, confirm_channel};
use super::error::{Doing, Error};
use super::topology;
use crate::protocol::partition::{PartitionId, Topology};

/// Called with the payload of every delivery.
pub(crate) type OnDelivery = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// A bare publisher and bare consumers, on a connection each.
pub(crate) struct Raw {
    connect: Connect,
    topology: Topology,
    publishing: Connection,
    channel: Channel,
    unconfirmed: VecDeque<PublisherConfirm>,
}

impl Raw {
    pub(crate) async fn open(connect: &Connect) -> Result<Self, Error> {
        let publishing = connect.open("raw publisher").await?;
        let topology = topology::read(&publishing, connect.namespace()).await?;
        let channel = confirm_channel(&publishing).await?;
        Ok(Self {
            connect: connect.clone(),
            topology,
            publishing,
            channel,
            unconfirmed: VecDeque::new(),
        })
    }

    /// Publishes one durable message; waits while `in_flight` are unconfirmed.
    pub(crate) async fn publish(
        &mut self,
        partition: PartitionId,
        payload: &[u8],
        in_flight: usize,
    ) -> Result<(), Error> {
        while self.unconfirmed.len() >= in_flight {
            self.confirm_oldest().await?;
        }
        let exchange = self.connect.namespace().exchange(&self.topology);
        let key = self.connect.namespace().routing_key(partition);
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties = BasicProperties::default().with_delivery_mode(2);
        let sent = self.channel.basic_publish(
            exchange.as_str().into(),
            key.as_str().into(),
            options,
            payload,
            properties,
        );
        self.unconfirmed.push_back(sent.await.doing("publish")?);
        Ok(())
    }

    /// Waits until everything is confirmed.
    pub(crate) async fn flush(&mut self) -> Result<(), Error> {
        while !self.unconfirmed.is_empty() {
            self.confirm_oldest().await?;
        }
        Ok(())
    }

    async fn confirm_oldest(&mut self) -> Result<(), Error> {
        if let Some(confirm) = self.unconfirmed.pop_front() {
            confirm.await.doing("publish")?;
        }
        Ok(())
    }

    /// Consumes all partitions, a channel each, and acks every `ack_every`
    /// deliveries of a channel as one.
    pub(crate) async fn consume(
        &self,
        prefetch: u16,
        ack_every: u64,
        on_delivery: &OnDelivery,
    ) -> Result<RawConsumers, Error> {
        let connection = self.connect.open("raw consumer").await?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for partition in self.topology.partitions() {
            let channel = connection.create_channel().await.doing("open a channel")?;
            channel.basic_qos(prefetch, BasicQosOptions::default()).await.doing("set prefetch")?;
            let queue = self.connect.namespace().partition(&self.topology, partition);
            let consumer = channel
                .basic_consume(
                    queue.as_str().into(),
                    "".into(),
                    BasicConsumeOptions::default(),
                    FieldTable::default(),
                )
                .await
                .doing("consume")?;
            let (on_delivery, stop) = (Arc::clone(on_delivery), stop.clone());
            tasks.spawn(consume(channel, consumer, ack_every, on_delivery, stop));
        }
        Ok(RawConsumers { connection, stop, tasks })
    }

    pub(crate) async fn close(self) {
        close_connection(self.publishing).await;
    }
}

/// Consumers that run until they are stopped.
pub(crate) struct RawConsumers {
    connection: Connection,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), Error>>,
}

impl RawConsumers {
    /// Acks what is left, and ends.
    pub(crate) async fn stop(self) -> Result<(), Error> {
        self.stop.cancel();
        for ended in self.tasks.join_all().await {
            ended?;
        }
        close_connection(self.connection).await;
        Ok(())
    }
}

async fn consume(
    channel: Channel,
    mut consumer: lapin::Consumer,
    ack_every: u64,
    on_delivery: OnDelivery,
    stop: CancellationToken,
) -> Result<(), Error> {
    let (mut last, mut unacked) = (0, 0);
    loop {
        let delivery = tokio::select! {
            biased;
            delivery = consumer.next() => delivery,
            () = stop.cancelled() => break,
        };
        let Some(delivery) = delivery else { break };
        let delivery = delivery.doing("consume")?;
        on_delivery(&delivery.data);
        (last, unacked) = (delivery.delivery_tag, unacked + 1);
        if unacked >= ack_every {
            channel
                .basic_ack(last, BasicAckOptions { multiple: unacked > 1 })
                .await
                .doing("ack")?;
            unacked = 0;
        }
    }
    if unacked > 0 {
        channel.basic_ack(last, BasicAckOptions { multiple: true }).await.doing("ack")?;
    }
    close(&channel).await;
    Ok(())
}
