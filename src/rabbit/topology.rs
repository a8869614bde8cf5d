//! The layout of a namespace on the broker: declaring it, and reading what is
//! in force.
//!
//! The record lives in a stream, and *its first record* is the truth. Two
//! `init`s at the same time both append theirs; the broker puts them in an
//! order, and both read who came first.

use std::time::Duration;

use futures_lite::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection, ExchangeKind};

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connection::{Connect, arguments, close, close_connection, confirm_channel};
use super::consumer::counts;
use super::epoch::{self, Others};
use super::error::{Doing, Error, is_limit, reply};
use super::planner;
use super::steering;
use crate::protocol::names::Namespace;
use crate::protocol::partition::{PartitionId, Topology};

/// A delivery may stay unsettled for as long as its lane is retried, and the
/// worker's own task timeout is what aborts a handler. The broker's (30
/// minutes by default) only guards against a consumer that is stuck for good.
pub(crate) const CONSUMER_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a queue keeps what a consumer held whose node is lost. The worker stops what it runs
/// after one heartbeat, 10 s; with less than that, two might run a task at once. RabbitMQ before
/// 4.3 has no such time, and passes over the argument.
const CONSUMER_DISCONNECTED_MS: i64 = 12_000;

/// Declares the layout of the namespace, or finds that it is declared so. A
/// [`PartitionCount`](crate::PartitionCount) alone leaves the rest at its
/// defaults. Whatever is missing is made: the counters of epochs, too, in a
/// namespace of an earlier version.
///
/// Waits for another one that is under way, up to a minute, and for 30 s where a
/// counter is missing that a worker might have.
///
/// # Errors
/// [`Error::TopologyDiffers`] when another one is stored; nothing is changed
/// then. [`Error::BrokerTooOld`], [`Error::NotPermitted`] and the errors of
/// connecting.
///
/// # Cancel safety
/// What was declared stays; calling it again completes it.
pub async fn init(connect: &Connect, wanted: impl Into<Topology>) -> Result<Topology, Error> {
    init_with(connect, wanted, None).await
}

/// [`init`], with limits for the journal. `None` takes those that are in force, or
/// the default ones.
///
/// # Errors
/// Those of [`init`]; [`Error::Conflict`] when the journal has other limits:
/// its own are changed by a policy of the broker, or by deleting it.
///
/// # Cancel safety
/// As [`init`].
pub async fn init_with(
    connect: &Connect,
    wanted: impl Into<Topology>,
    retention: Option<Retention>,
) -> Result<Topology, Error> {
    let connection = connect.open("init").await?;
    connect.check_version().await?;
    let result = declare(&connection, connect.namespace(), wanted.into(), retention).await;
    close_connection(connection).await;
    result
}

/// Reads the layout that is in force.
///
/// # Errors
/// [`Error::TopologyMissing`] when there is none, [`Error::TopologyPending`] when it does not come
/// in time, [`Error::TopologyUnreadable`] when it cannot be understood, and the errors of
/// connecting.
pub async fn topology(connect: &Connect) -> Result<Topology, Error> {
    let connection = connect.open("topology").await?;
    let result = read(&connection, connect.namespace()).await;
    close_connection(connection).await;
    result
}

/// A stream that has a record shows it within milliseconds; under load, after a
/// restart of the broker, within seconds, and whoever gives up then ends for good.
/// One that has none was left by an `init` that died half-way, or is being written now.
const FIRST_RECORD_TIMEOUT: Duration = Duration::from_secs(10);

async fn declare(
    connection: &Connection,
    namespace: &Namespace,
    wanted: Topology,
    retention: Option<Retention>,
) -> Result<Topology, Error> {
    // Until the record is stored: with it, workers begin to use the counters.
    epoch::lock(connection, namespace).await?;
    let others = match read(connection, namespace).await {
        Ok(stored) => {
            check(namespace, stored, wanted)?;
            Others::of(connection, namespace, &stored).await?
        }
        // The second is what an earlier one has left that died half-way.
        Err(Error::TopologyMissing { .. } | Error::TopologyPending { .. }) => {
            Others::before(connection, namespace).await?
        }
        Err(error) => return Err(error),
    };
    declare_queues(connection, namespace, &wanted, retention, &others).await?;
    // The record comes last: whoever reads it finds everything that it promises.
    append(connection, namespace, &wanted).await?;
    let stored = read(connection, namespace).await?;
    check(namespace, stored, wanted)?;
    Ok(stored)
}

fn check(namespace: &Namespace, stored: Topology, wanted: Topology) -> Result<(), Error> {
    if (Topology { generation: stored.generation, ..wanted }) == stored {
        return Ok(());
    }
    Err(Error::TopologyDiffers { namespace: namespace.to_string(), stored, wanted })
}

async fn declare_queues(
    connection: &Connection,
    namespace: &Namespace,
    topology: &Topology,
    retention: Option<Retention>,
    others: &Others,
) -> Result<(), Error> {
    let channel = connection.create_channel().await.doing("open a channel")?;
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    for (exchange, kind) in [
        (namespace.exchange(topology), ExchangeKind::Direct),
        (namespace.control(), ExchangeKind::Fanout),
        (namespace.fleet(), ExchangeKind::Direct),
        (namespace.submit(), ExchangeKind::Fanout),
    ] {
        let none = FieldTable::default();
        let declared = channel.exchange_declare(exchange.as_str().into(), kind, durable, none);
        declared.await.map_err(|error| refused(&exchange, error))?;
    }
    queue(&channel, &namespace.dead(), dead_letters()).await?;
    declare_inbox(&channel, namespace).await?;
    planner::declare(&channel, namespace).await?;
    close(&channel).await;
    declare_journal(connection, namespace, retention).await?;
    steering::declare(connection, namespace).await?;
    let mut declaring = JoinSet::new();
    let numbers: Vec<_> = (0..topology.partitions.get()).collect();
    for chunk in numbers.chunks(numbers.len().div_ceil(CHUNKS).max(CHUNK)) {
        let channel = confirm_channel(connection).await?;
        let (namespace, topology) = (namespace.clone(), *topology);
        let chunk: Vec<_> = chunk.iter().map(|n| (*n, others.patience(*n))).collect();
        declaring.spawn(async move {
            for (number, patience) in chunk {
                let partition = PartitionId::new(number);
                declare_partition(&channel, &namespace, &topology, partition).await?;
                let counter = Namespace::epoch(&namespace.partition(&topology, partition));
                epoch::establish(&channel, &counter, patience).await?;
            }
            close(&channel).await;
            Ok(())
        });
    }
    while let Some(declared) = declaring.join_next().await {
        declared.unwrap_or_else(|panic| {
            let doing = "declare a partition".to_owned();
            Err(Error::Broker { doing, source: Box::new(panic) })
        })?;
    }
    Ok(())
}

/// Partitions that are declared one after another; the chunks run side by side,
/// since the broker spends most of the time waiting for its disk.
const CHUNK: usize = 8;

/// Chunks that run side by side: each has a channel, of which a connection has 2,047.
const CHUNKS: usize = 128;

async fn declare_partition(
    channel: &Channel,
    namespace: &Namespace,
    topology: &Topology,
    partition: PartitionId,
) -> Result<(), Error> {
    let name = namespace.partition(topology, partition);
    queue(channel, &name, tasks(namespace)).await?;
    let key = namespace.routing_key(partition);
    bind(channel, &name, &namespace.exchange(topology), &key).await
}

async fn declare_inbox(channel: &Channel, namespace: &Namespace) -> Result<(), Error> {
    let inbox = namespace.inbox();
    queue(channel, &inbox, tasks(namespace)).await?;
    bind(channel, &inbox, &namespace.submit(), "").await
}

pub(super) async fn bind(
    channel: &Channel,
    queue: &str,
    exchange: &str,
    key: &str,
) -> Result<(), Error> {
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    let bound = channel.queue_bind(queue.into(), exchange.into(), key.into(), options, none);
    bound.await.doing(format!("bind queue {queue}"))
}

/// A replicated queue without a delivery limit: the worker decides what is poison, since the
/// broker cannot tell a killer from its neighbours.
///
/// A policy of the broker wins over some of that: the shorter time, the lower limit. So what it
/// has the broker drop goes to the dead letters, each confirmed before it leaves, and a publish
/// that finds the queue full is refused.
fn tasks(namespace: &Namespace) -> FieldTable {
    let mut queue = quorum();
    for (name, value) in [
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&namespace.dead())),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-consumer-disconnected-timeout", AMQPValue::LongLongInt(CONSUMER_DISCONNECTED_MS)),
    ] {
        queue.insert(name.into(), value);
    }
    queue
}

/// The same for letters; there is no further queue for those that a policy drops.
fn dead_letters() -> FieldTable {
    let mut queue = quorum();
    queue.insert("x-single-active-consumer".into(), AMQPValue::Boolean(false));
    queue
}

fn quorum() -> FieldTable {
    arguments([
        ("x-queue-type", text("quorum")),
        ("x-queue-leader-locator", text("balanced")),
        ("x-overflow", text("reject-publish")),
        ("x-delivery-limit", AMQPValue::LongInt(-1)),
        ("x-consumer-timeout", AMQPValue::LongLongInt(CONSUMER_TIMEOUT.as_millis() as i64)),
    ])
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

/// How much of the journal is kept: what is over either limit is removed, from
/// the oldest on and in large pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Bytes on the disk of each node that has a copy. Default 2 GiB: some ten
    /// million records.
    pub bytes: u64,
    /// Age. Default seven days.
    pub age: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { bytes: 2 << 30, age: Duration::from_secs(7 * 24 * 3600) }
    }
}

/// What is removed at once, as a share of what is kept: the stream is removed by
/// segments, of at most the broker's default.
const SEGMENTS: u64 = 20;
const MAX_SEGMENT_BYTES: u64 = 500_000_000;

async fn declare_journal(
    connection: &Connection,
    namespace: &Namespace,
    retention: Option<Retention>,
) -> Result<(), Error> {
    let name = namespace.journal();
    let channel = connection.create_channel().await.doing("open a channel")?;
    if retention.is_none() && counts(&channel, &name).await?.exists() {
        close(&channel).await;
        return Ok(());
    }
    let Retention { bytes, age } = retention.unwrap_or_default();
    let segment = (bytes / SEGMENTS).clamp(1_000_000, MAX_SEGMENT_BYTES);
    let number = |n: u64| AMQPValue::LongLongInt(i64::try_from(n).unwrap_or(i64::MAX));
    let arguments = arguments([
        ("x-queue-type", text("stream")),
        ("x-max-length-bytes", number(bytes)),
        ("x-max-age", text(&format!("{}s", age.as_secs().max(1)))),
        ("x-stream-max-segment-size-bytes", number(segment)),
    ]);
    // The look at one that is missing has closed its channel.
    let channel = connection.create_channel().await.doing("open a channel")?;
    queue(&channel, &name, arguments).await?;
    close(&channel).await;
    Ok(())
}

fn stream() -> FieldTable {
    arguments([("x-queue-type", text("stream"))])
}

async fn queue(channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), Error> {
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let declared = channel.queue_declare(name.into(), options, arguments).await;
    declared.map(|_| ()).map_err(|error| refused(name, error))
}

/// The broker refused a declaration.
pub(super) fn refused(name: &str, error: lapin::Error) -> Error {
    match reply(&error) {
        Some((406, reply)) if !is_limit(&reply) => {
            Error::Conflict { thing: name.to_owned(), reply }
        }
        _ => Error::from_lapin(format!("declare {name}"), error),
    }
}

async fn append(
    connection: &Connection,
    namespace: &Namespace,
    topology: &Topology,
) -> Result<(), Error> {
    let channel = confirm_channel(connection).await?;
    let name = namespace.topology();
    queue(&channel, &name, stream()).await?;
    let record = serde_json::to_vec(topology).map_err(|error| Error::Broker {
        doing: "write the topology record".to_owned(),
        source: Box::new(error),
    })?;
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    channel
        .basic_publish(
            "".into(),
            name.as_str().into(),
            options,
            &record,
            BasicProperties::default(),
        )
        .await
        .doing("store the topology")?
        .await
        .doing("store the topology")?;
    close(&channel).await;
    Ok(())
}

/// A node of a cluster that has just started, or has just heard of the stream,
/// starts its copy within seconds.
pub(super) const REPLICA_TIMEOUT: Duration = Duration::from_secs(15);

/// Pause between two tries of that.
pub(super) const REPLICA_PAUSE: Duration = Duration::from_millis(200);

/// Reads the record that is in force.
pub(crate) async fn read(
    connection: &Connection,
    namespace: &Namespace,
) -> Result<Topology, Error> {
    let deadline = Instant::now() + REPLICA_TIMEOUT;
    loop {
        match try_read(connection, namespace).await? {
            Ok(topology) => return Ok(topology),
            Err(NoReplica(error)) if Instant::now() >= deadline => return Err(error),
            Err(NoReplica(_)) => tokio::time::sleep(REPLICA_PAUSE).await,
        }
    }
}

/// The node has a copy of the stream that does not run yet.
pub(super) struct NoReplica(Error);

impl NoReplica {
    pub(super) fn is_told_by(error: &lapin::Error) -> bool {
        // The code stands for many things, so the words decide.
        reply(error).is_some_and(|(code, reply)| code == 406 && reply.contains("running replica"))
    }
}

async fn try_read(
    connection: &Connection,
    namespace: &Namespace,
) -> Result<Result<Topology, NoReplica>, Error> {
    let missing = || Error::TopologyMissing { namespace: namespace.to_string() };
    let name = namespace.topology();
    let channel = connection.create_channel().await.doing("open a channel")?;
    let options = QueueDeclareOptions { durable: true, passive: true, ..Default::default() };
    let found = channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await;
    match found {
        Ok(_) => {}
        Err(error) if reply(&error).is_some_and(|(code, _)| code == 404) => return Err(missing()),
        Err(error) => return Err(Error::from_lapin(format!("look for {name}"), error)),
    }
    // A stream is read with credit. Its message count lags by seconds, so the
    // first record is waited for instead.
    channel.basic_qos(1, BasicQosOptions::default()).await.doing("set the prefetch")?;
    let from_start = arguments([("x-stream-offset", text("first"))]);
    let consumed = channel
        .basic_consume(name.as_str().into(), "".into(), BasicConsumeOptions::default(), from_start)
        .await;
    let no_replica = consumed.as_ref().is_err_and(NoReplica::is_told_by);
    let mut consumer = match consumed.doing(format!("read {name}")) {
        Err(error) if no_replica => return Ok(Err(NoReplica(error))),
        consumer => consumer?,
    };
    let first = tokio::time::timeout(FIRST_RECORD_TIMEOUT, consumer.next()).await;
    let Ok(Some(first)) = first else {
        return Err(Error::TopologyPending { namespace: namespace.to_string() });
    };
    let record = first.doing(format!("read {name}"))?.data;
    close(&channel).await;
    self::record(&record, namespace).map(Ok)
}

fn record(bytes: &[u8], namespace: &Namespace) -> Result<Topology, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::TopologyUnreadable {
        namespace: namespace.to_string(),
        stored: String::from_utf8_lossy(bytes).chars().take(200).collect(),
        reason: error.to_string(),
    })
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use crate::protocol::names::Namespace;
    use crate::protocol::task::Resource;

    /// The record of a layout.
    pub fn topology(bytes: &[u8]) {
        match super::record(bytes, &Namespace::default()) {
            Ok(topology) => {
                let stored = serde_json::to_vec(&topology).unwrap_or_default();
                let again = super::record(&stored, &Namespace::default());
                assert_eq!(again.ok(), Some(topology));
                if let Ok(resource) = Resource::new("r") {
                    let partition = topology.partition_of(&resource).number();
                    assert!(partition < topology.partitions.get());
                }
            }
            Err(error) => assert!(error.to_string().contains("cannot be read")),
        }
    }
}
