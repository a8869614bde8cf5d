//! The log of what operators order: the stream `{ns}.steering`.
//!
//! Whoever orders appends; whoever reads begins with the last order and is handed
//! every later one by the broker. The broker puts orders that come at the same
//! time in a row, and [`Ledger`] makes the same of it for all readers.

mod log;

use std::time::{Duration, SystemTime};

use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, LongString};
use lapin::{BasicProperties, Connection};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use uuid::Uuid;

pub(crate) use self::log::OrderLog;

use super::connection::{Connect, arguments, close, close_connection, confirm_channel};
use super::consumer::counts;
use super::error::{Doing, Error};
use super::topology::refused;
use crate::protocol::names::Namespace;
use crate::protocol::ownership::WorkerId;
use crate::protocol::steering::{Change, Ledger, Order, Signature, Steering};

/// What is in force: what is paused, and what is cancelled.
///
/// # Errors
/// [`Error::SteeringMissing`] and the errors of connecting.
///
/// # Cancel safety
/// It changes nothing.
pub async fn steering(connect: &Connect) -> Result<Steering, Error> {
    let connection = connect.open("steering").await?;
    let log = OrderLog::open(&connection, connect.namespace()).await?;
    let steering = log.ledger().steering().clone();
    log.close().await;
    close_connection(connection).await;
    Ok(steering)
}

/// How long after an order no worker starts anything against it that has not
/// heard of it: see `worker/steered.rs`.
pub(crate) const LEASE: Duration = Duration::from_secs(5);

/// A worker follows all orders up to a position of their log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heeded {
    /// Which.
    pub(crate) worker: WorkerId,
    /// Of the last order that it follows.
    pub(crate) position: u64,
}

/// What a worker says that was asked to leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Leaving {
    /// It gives its partitions up.
    Leaves {
        /// Which.
        worker: WorkerId,
        /// Tasks that run, which it waits for.
        running: u32,
    },
    /// It has given them up, and ends.
    Left {
        /// Which.
        worker: WorkerId,
        /// Tasks that it has aborted because they took too long.
        aborted: u64,
    },
}

/// An order that stands in the log.
pub(crate) struct Ordered {
    /// Where; if it changed nothing, where the log ended.
    pub(crate) position: Option<u64>,
    /// Whether it changed anything.
    pub(crate) changed: bool,
    /// What is in force with it.
    pub(crate) steering: Steering,
}

/// An order is confirmed, and read again, within milliseconds.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);

/// Gives an order, unless what it wants is so already. Comes back when the broker
/// has stored it.
///
/// # Errors
/// [`Error::Steering`] when there is too much in force, [`Error::SteeringMissing`],
/// [`Error::NotPermitted`].
///
/// # Cancel safety
/// It may be given or not.
pub(crate) async fn order(
    connection: &Connection,
    namespace: &Namespace,
    change: Change,
    by: &str,
) -> Result<Ordered, Error> {
    let mut log = OrderLog::open(connection, namespace).await?;
    let ordered = Signature { by: by.chars().take(MAX_BY_CHARS).collect(), at_ms: now_ms() };
    let happens = matches!(change, Change::Drain { .. });
    let changed = happens || log.ledger().steering().would_change(&change, &ordered)?;
    if changed {
        let id = Uuid::now_v7().simple().to_string();
        let order = log.ledger().order(id.clone(), change, ordered);
        append(connection, namespace, &order).await?;
        let read = async {
            while log.next(connection).await?.id != id {}
            Ok(())
        };
        timeout(ORDER_TIMEOUT, read).await.unwrap_or_else(|_| {
            let source = "it was confirmed, and cannot be read".into();
            Err(Error::Broker { doing: format!("order in {}", namespace.steering()), source })
        })?;
    }
    let ledger = log.ledger();
    let ordered =
        Ordered { position: ledger.position(), changed, steering: ledger.steering().clone() };
    log.close().await;
    Ok(ordered)
}

/// It stands in every later order.
const MAX_BY_CHARS: usize = 200;

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// How much is kept of the log: hundreds of thousands of orders. Only the last one
/// is needed.
const KEPT_BYTES: i64 = 50_000_000;
const SEGMENT_BYTES: i64 = 5_000_000;

/// Declares the log, with a first order that changes nothing, unless it is there.
pub(super) async fn declare(connection: &Connection, namespace: &Namespace) -> Result<(), Error> {
    let name = namespace.steering();
    let channel = connection.create_channel().await.doing("open a channel")?;
    let exists = counts(&channel, &name).await?.exists();
    // The look at one that is missing has closed its channel.
    let channel = connection.create_channel().await.doing("open a channel")?;
    let arguments = arguments([
        ("x-queue-type", AMQPValue::LongString(LongString::from("stream"))),
        ("x-max-length-bytes", AMQPValue::LongLongInt(KEPT_BYTES)),
        ("x-stream-max-segment-size-bytes", AMQPValue::LongLongInt(SEGMENT_BYTES)),
    ]);
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    let declared = channel.queue_declare(name.as_str().into(), durable, arguments).await;
    declared.map_err(|error| refused(&name, error))?;
    close(&channel).await;
    // One that was left without its first order by an `init` that died gets it now.
    if !exists || OrderLog::open(connection, namespace).await?.ledger().position().is_none() {
        let ordered = Signature { by: "init".to_owned(), at_ms: now_ms() };
        let id = Uuid::now_v7().simple().to_string();
        let first = Ledger::default().order(id, Change::Nothing, ordered);
        append(connection, namespace, &first).await?;
    }
    Ok(())
}

async fn append(
    connection: &Connection,
    namespace: &Namespace,
    order: &Order,
) -> Result<(), Error> {
    let name = namespace.steering();
    let doing = || format!("order in {name}");
    let record = serde_json::to_vec(order)
        .map_err(|error| Error::Broker { doing: doing(), source: Box::new(error) })?;
    let channel = confirm_channel(connection).await?;
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let properties = BasicProperties::default();
    let publish =
        channel.basic_publish("".into(), name.as_str().into(), options, &record, properties);
    let confirmed =
        timeout(ORDER_TIMEOUT, async { publish.await.doing(doing())?.await.doing(doing()) });
    match confirmed.await {
        Ok(Ok(lapin::Confirmation::Ack(None))) => {}
        Ok(Ok(unstored)) => {
            let source = format!("the broker answered {unstored:?}").into();
            return Err(Error::Broker { doing: doing(), source });
        }
        Ok(Err(error)) => return Err(error),
        Err(_) if connection.status().blocked() => {
            return Err(Error::Blocked { doing: doing() });
        }
        Err(_) => {
            let source = "the broker does not confirm it: has the stream a leader?".into();
            return Err(Error::Broker { doing: doing(), source });
        }
    }
    close(&channel).await;
    Ok(())
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use crate::protocol::steering::{Ledger, Order, Taken};

    /// A record of the log.
    pub fn order(bytes: &[u8]) {
        let Ok(order) = Order::read(bytes) else { return };
        let stored = serde_json::to_vec(&order).unwrap_or_default();
        assert_eq!(Order::read(&stored).ok().as_ref(), Some(&order));
        let mut ledger = Ledger::default();
        let position = order.base.map_or(0, |base| base.saturating_add(1));
        let taken = ledger.take(position, &order);
        let absurd = order.base == Some(u64::MAX);
        assert!(absurd || taken == Taken::Applied && ledger.position() == Some(position));
        let twice = ledger.clone();
        assert!(absurd || ledger.take(position, &order) == Taken::Known && ledger == twice);
    }
}
