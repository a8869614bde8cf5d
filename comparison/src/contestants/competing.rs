//! The neutral transport: one durable quorum queue, publisher confirms, consumers that
//! compete for it. What it lacks is what the patterns add.

use std::collections::VecDeque;

use anyhow::Context;
use futures_lite::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::sync::mpsc;

use crate::clock::now_us;
use crate::plan::Plan;
use crate::work::Job;
use crate::worker::Worker;

/// Messages that are sent and not confirmed, at the most: keylane's default.
const IN_FLIGHT: usize = 1_000;

/// AMQP's number for a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// Long enough that the broker does not give up on a worker that is paused for a measurement:
/// the lock is to decide, not the transport.
const HEARTBEAT_S: u32 = 120;

const REFUSED: &str = "the broker refused a message";

fn queue(plan: &Plan) -> String {
    format!("comparison.{}", plan.run)
}

async fn connect(plan: &Plan) -> anyhow::Result<Connection> {
    let url = format!("{}?heartbeat={HEARTBEAT_S}", plan.endpoints.amqp);
    let connected = Connection::connect(&url, ConnectionProperties::default()).await;
    connected.context("cannot connect to the broker")
}

pub(super) async fn prepare(plan: &Plan) -> anyhow::Result<()> {
    let connection = connect(plan).await?;
    let channel = connection.create_channel().await?;
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("quorum")));
    quorum.insert("x-delivery-limit".into(), AMQPValue::LongInt(-1));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue(plan).as_str().into(), durable, quorum).await?;
    connection.close(200, "done".into()).await?;
    Ok(())
}

pub(super) async fn clean(plan: &Plan) -> anyhow::Result<()> {
    let connection = connect(plan).await?;
    let channel = connection.create_channel().await?;
    channel.queue_delete(queue(plan).as_str().into(), QueueDeleteOptions::default()).await?;
    connection.close(200, "done".into()).await?;
    Ok(())
}

pub(super) async fn publish(plan: &Plan, jobs: &mut [Job]) -> anyhow::Result<()> {
    let connection = connect(plan).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let (queue, mut unconfirmed) = (queue(plan), VecDeque::new());
    for job in jobs {
        job.published_us = now_us();
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
        let options = BasicPublishOptions::default();
        let payload = job.to_payload();
        let (exchange, key) = ("".into(), queue.as_str().into());
        let sent = channel.basic_publish(exchange, key, options, &payload, properties);
        unconfirmed.push_back(sent.await?);
        if unconfirmed.len() >= IN_FLIGHT {
            let Some(oldest) = unconfirmed.pop_front() else { continue };
            anyhow::ensure!(oldest.await?.is_ack(), REFUSED);
        }
    }
    for confirm in unconfirmed {
        anyhow::ensure!(confirm.await?.is_ack(), REFUSED);
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

/// Deliveries of the queue, handed to the slots of a worker.
pub(super) struct Deliveries {
    connection: Connection,
    channel: Channel,
    receiver: tokio::sync::Mutex<mpsc::UnboundedReceiver<Delivery>>,
}

/// One task in the hands of a slot.
pub(super) struct Taken {
    pub(super) job: Job,
    delivery: Delivery,
}

impl Deliveries {
    /// Consumes, with `prefetch` unsettled deliveries at the most, until the worker stops.
    pub(super) async fn consume(worker: &Worker, prefetch: u32) -> anyhow::Result<Self> {
        let connection = connect(&worker.plan).await?;
        let channel = connection.create_channel().await?;
        let prefetch = u16::try_from(prefetch).context("too many slots")?;
        channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let queue = queue(&worker.plan);
        let consumed =
            channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
        let mut consumer = consumed.await?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let stop = worker.stop.clone();
        tokio::spawn(async move {
            loop {
                let delivery = tokio::select! {
                    delivery = consumer.next() => delivery,
                    () = stop.cancelled() => break,
                };
                // An error or the end: the connection is gone, and with it all deliveries.
                let Some(Ok(delivery)) = delivery else { break };
                if sender.send(delivery).is_err() {
                    break;
                }
            }
        });
        let receiver = tokio::sync::Mutex::new(receiver);
        Ok(Self { connection, channel, receiver })
    }

    /// The next task; `None` at the end.
    pub(super) async fn next(&self) -> anyhow::Result<Option<Taken>> {
        let Some(delivery) = self.receiver.lock().await.recv().await else { return Ok(None) };
        let job = Job::from_payload(&delivery.data).context("not one of our messages")?;
        Ok(Some(Taken { job, delivery }))
    }

    /// Marks a task as executed.
    pub(super) async fn ack(&self, taken: Taken) -> anyhow::Result<()> {
        let tag = taken.delivery.delivery_tag;
        Ok(self.channel.basic_ack(tag, BasicAckOptions::default()).await?)
    }

    pub(super) async fn close(self) -> anyhow::Result<()> {
        Ok(self.connection.close(200, "done".into()).await?)
    }
}
