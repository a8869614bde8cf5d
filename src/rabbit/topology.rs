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

use super::connection::{Connect, arguments, close, close_connection, confirm_channel};
use super::error::{Doing, Error, reply};
use crate::protocol::names::Namespace;
use crate::protocol::partition::{PartitionId, Topology};

/// A delivery may stay unsettled for as long as its lane is retried, and the
/// worker's own task timeout is what aborts a handler. The broker's (30
/// minutes by default) only guards against a consumer that is stuck for good.
const CONSUMER_TIMEOUT_MS: i64 = 7 * 24 * 3600 * 1000;

/// Declares the layout of the namespace, or finds that it is declared so. A
/// [`PartitionCount`](crate::PartitionCount) alone leaves the rest at its
/// defaults.
///
/// # Errors
/// [`Error::TopologyDiffers`] when another one is stored; nothing is changed
/// then. [`Error::BrokerTooOld`], [`Error::NotPermitted`] and the errors of
/// connecting.
///
/// # Cancel safety
/// What was declared stays; calling it again completes it.
pub async fn init(connect: &Connect, wanted: impl Into<Topology>) -> Result<Topology, Error> {
    let connection = connect.open("init").await?;
    connect.check_version().await?;
    let result = declare(&connection, connect.namespace(), wanted.into()).await;
    close_connection(connection).await;
    result
}

/// Reads the layout that is in force.
///
/// # Errors
/// [`Error::TopologyMissing`] when there is none, [`Error::TopologyUnreadable`]
/// when it cannot be understood, and the errors of connecting.
pub async fn topology(connect: &Connect) -> Result<Topology, Error> {
    let connection = connect.open("topology").await?;
    let result = read(&connection, connect.namespace()).await;
    close_connection(connection).await;
    result
}

/// A stream that has a record shows it within milliseconds. One that has none
/// was left by an `init` that died half-way, or is being written now.
const FIRST_RECORD_TIMEOUT: Duration = Duration::from_secs(2);

async fn declare(
    connection: &Connection,
    namespace: &Namespace,
    wanted: Topology,
) -> Result<Topology, Error> {
    match read(connection, namespace).await {
        Ok(stored) => check(namespace, stored, wanted)?,
        Err(Error::TopologyMissing { .. }) => {}
        Err(error) => return Err(error),
    }
    declare_queues(connection, namespace, &wanted).await?;
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
) -> Result<(), Error> {
    let channel = connection.create_channel().await.doing("open a channel")?;
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let exchange = namespace.exchange(topology);
    let declared = channel
        .exchange_declare(
            exchange.as_str().into(),
            ExchangeKind::Direct,
            durable,
            FieldTable::default(),
        )
        .await;
    declared.map_err(|error| refused(&exchange, error))?;
    let control = namespace.control();
    let declared = channel
        .exchange_declare(
            control.as_str().into(),
            ExchangeKind::Fanout,
            durable,
            FieldTable::default(),
        )
        .await;
    declared.map_err(|error| refused(&control, error))?;
    queue(&channel, &namespace.dead(), quorum(false)).await?;
    queue(&channel, &namespace.inbox(), quorum(true)).await?;
    close(&channel).await;
    let mut declaring = JoinSet::new();
    for chunk in (0..topology.partitions.get()).collect::<Vec<_>>().chunks(CHUNK) {
        let channel = connection.create_channel().await.doing("open a channel")?;
        let (namespace, topology, chunk) = (namespace.clone(), *topology, chunk.to_vec());
        declaring.spawn(async move {
            for number in chunk {
                declare_partition(&channel, &namespace, &topology, PartitionId::new(number))
                    .await?;
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

async fn declare_partition(
    channel: &Channel,
    namespace: &Namespace,
    topology: &Topology,
    partition: PartitionId,
) -> Result<(), Error> {
    let name = namespace.partition(topology, partition);
    queue(channel, &name, quorum(true)).await?;
    channel
        .queue_bind(
            name.as_str().into(),
            namespace.exchange(topology).as_str().into(),
            namespace.routing_key(partition).as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .doing(format!("bind queue {name}"))
}

/// A replicated queue without a delivery limit: the worker decides what is
/// poison, since the broker cannot tell a killer from its neighbours.
fn quorum(single_active_consumer: bool) -> FieldTable {
    let text = |value: &str| AMQPValue::LongString(LongString::from(value));
    arguments([
        ("x-queue-type", text("quorum")),
        ("x-single-active-consumer", AMQPValue::Boolean(single_active_consumer)),
        ("x-delivery-limit", AMQPValue::LongInt(-1)),
        ("x-consumer-timeout", AMQPValue::LongLongInt(CONSUMER_TIMEOUT_MS)),
    ])
}

fn stream() -> FieldTable {
    arguments([("x-queue-type", AMQPValue::LongString(LongString::from("stream")))])
}

async fn queue(channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), Error> {
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let declared = channel.queue_declare(name.into(), options, arguments).await;
    declared.map(|_| ()).map_err(|error| refused(name, error))
}

/// The broker refused a declaration.
fn refused(name: &str, error: lapin::Error) -> Error {
    match reply(&error) {
        Some((406, reply)) => Error::Conflict { thing: name.to_owned(), reply },
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

/// Reads the record that is in force.
pub(crate) async fn read(
    connection: &Connection,
    namespace: &Namespace,
) -> Result<Topology, Error> {
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
    let from_start =
        arguments([("x-stream-offset", AMQPValue::LongString(LongString::from("first")))]);
    let mut consumer = channel
        .basic_consume(name.as_str().into(), "".into(), BasicConsumeOptions::default(), from_start)
        .await
        .doing(format!("read {name}"))?;
    let first = tokio::time::timeout(FIRST_RECORD_TIMEOUT, consumer.next()).await;
    let Ok(Some(first)) = first else { return Err(missing()) };
    let record = first.doing(format!("read {name}"))?.data;
    close(&channel).await;
    self::record(&record, namespace)
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
