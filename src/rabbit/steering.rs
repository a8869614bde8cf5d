//! The log of what operators order: the stream `{ns}.steering`.
//!
//! Whoever orders appends; whoever reads begins with the last order and is handed
//! every later one by the broker. The broker puts orders that come at the same
//! time in a row, and [`Ledger`] makes the same of it for all readers.

use std::time::{Duration, SystemTime};

use futures_lite::StreamExt;
use futures_lite::future::poll_once;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, LongString};
use lapin::{BasicProperties, Channel, Connection, Consumer};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::connection::{Connect, arguments, close, close_connection, confirm_channel};
use super::consumer::counts;
use super::envelope;
use super::error::{Doing, Error, reply};
use super::topology::{NoReplica, REPLICA_PAUSE, REPLICA_TIMEOUT, refused};
use crate::protocol::names::Namespace;
use crate::protocol::steering::{Change, Ledger, Order, OrderError, Signature, Steering, Taken};

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
            Err(Error::Broker { doing: format!("order in {}", log.stream), source })
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
    let exists = counts(&channel, &name).await?.is_some();
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
        Err(_) => {
            let source = "the broker does not confirm it: has the stream a leader?".into();
            return Err(Error::Broker { doing: doing(), source });
        }
    }
    close(&channel).await;
    Ok(())
}

/// The last order of a log comes at once. A log without any was left by an `init`
/// that died half-way.
const FIRST_ORDER_TIMEOUT: Duration = Duration::from_secs(2);

/// It takes milliseconds, or as long as the node's copy of the stream takes to start.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// The header that says which message of its stream one is.
const STREAM_OFFSET: &str = "x-stream-offset";

/// Orders on their way, at the most.
const CREDIT: u16 = 64;

/// Reads the log: to its end when it is opened, and what comes after that.
pub(crate) struct OrderLog {
    channel: Channel,
    consumer: Consumer,
    namespace: Namespace,
    stream: String,
    ledger: Ledger,
    /// Of the last delivery, until it is acked.
    unacked: Option<u64>,
    /// Where to read on, after something that was not seen yet.
    go_back_to: Option<u64>,
    /// Where reading began, if it was for that.
    went_back_to: Option<u64>,
    /// The last position that was seen at all.
    seen: Option<u64>,
}

impl OrderLog {
    /// Opens the log, and reads what stands in it.
    ///
    /// # Errors
    /// [`Error::SteeringMissing`], [`Error::SteeringUnreadable`].
    pub(crate) async fn open(
        connection: &Connection,
        namespace: &Namespace,
    ) -> Result<Self, Error> {
        let opened = timeout(OPEN_TIMEOUT, Self::open_unbounded(connection, namespace)).await;
        opened.unwrap_or_else(|_| {
            let source = format!("not read to its end within {OPEN_TIMEOUT:?}").into();
            Err(Error::Broker { doing: format!("read {}", namespace.steering()), source })
        })
    }

    async fn open_unbounded(connection: &Connection, namespace: &Namespace) -> Result<Self, Error> {
        let last = AMQPValue::LongString(LongString::from("last"));
        let mut log = Self::consume(connection, namespace, last, Ledger::default()).await?;
        if !log.first().await? {
            return Ok(log);
        }
        log.catch_up(connection).await?;
        if log.ledger.position().is_none() {
            // The last record is no order. The one before it is somewhere.
            let first = AMQPValue::LongString(LongString::from("first"));
            log.reopen(connection, first).await?;
            log.first().await?;
            log.catch_up(connection).await?;
        }
        Ok(log)
    }

    /// What was read so far.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    async fn consume(
        connection: &Connection,
        namespace: &Namespace,
        offset: AMQPValue,
        ledger: Ledger,
    ) -> Result<Self, Error> {
        let stream = namespace.steering();
        let deadline = Instant::now() + REPLICA_TIMEOUT;
        loop {
            let channel = connection.create_channel().await.doing("open a channel")?;
            channel
                .basic_qos(CREDIT, BasicQosOptions::default())
                .await
                .doing("set the prefetch")?;
            let from = arguments([("x-stream-offset", offset.clone())]);
            let options = BasicConsumeOptions::default();
            let consumed =
                channel.basic_consume(stream.as_str().into(), "".into(), options, from).await;
            match consumed {
                Ok(consumer) => {
                    return Ok(Self {
                        channel,
                        consumer,
                        namespace: namespace.clone(),
                        stream,
                        ledger,
                        unacked: None,
                        go_back_to: None,
                        went_back_to: None,
                        seen: None,
                    });
                }
                Err(error) if reply(&error).is_some_and(|(code, _)| code == 404) => {
                    return Err(Error::SteeringMissing { namespace: namespace.to_string() });
                }
                Err(error) if NoReplica::is_told_by(&error) && Instant::now() < deadline => {
                    sleep(REPLICA_PAUSE).await;
                }
                Err(error) => return Err(Error::from_lapin(format!("read {stream}"), error)),
            }
        }
    }

    async fn reopen(&mut self, connection: &Connection, offset: AMQPValue) -> Result<(), Error> {
        let ledger = self.ledger.clone();
        let next = Self::consume(connection, &self.namespace, offset, ledger).await?;
        let before = std::mem::replace(self, next);
        (self.seen, self.went_back_to) = (before.seen, before.go_back_to);
        before.close().await;
        Ok(())
    }

    /// Reads what was written at the same time as what was read last.
    async fn go_back(&mut self, connection: &Connection, from: u64) -> Result<(), Error> {
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        self.reopen(connection, AMQPValue::LongLongInt(from)).await
    }

    /// Waits for the first record; false if there is none.
    async fn first(&mut self) -> Result<bool, Error> {
        let record = timeout(FIRST_ORDER_TIMEOUT, self.read()).await;
        record.map_or(Ok(false), |record| record.map(|_| true))
    }

    /// Reads what is there by now.
    ///
    /// # Errors
    /// As those of [`OrderLog::open`].
    pub(crate) async fn catch_up(&mut self, connection: &Connection) -> Result<(), Error> {
        loop {
            if let Some(from) = self.go_back_to {
                self.go_back(connection, from).await?;
                self.first().await?;
                continue;
            }
            self.probe().await?;
            let any = self.arrived(&mut Vec::new()).await?;
            if any || self.go_back_to.is_some() {
                continue;
            }
            let nothing_begins = self.ledger.position().is_none();
            if nothing_begins || self.ledger.position() >= self.seen {
                return Ok(());
            }
            // What was seen is on its way once more.
            if !self.first().await? {
                let source = "orders that were there do not come again".into();
                return Err(Error::Broker { doing: format!("read {}", self.stream), source });
            }
        }
    }

    /// The next order; waits until there is one.
    ///
    /// # Errors
    /// When the channel is gone, or a newer keylane has written.
    ///
    /// # Cancel safety
    /// No order is lost.
    pub(crate) async fn next(&mut self, connection: &Connection) -> Result<Order, Error> {
        loop {
            if let Some(from) = self.go_back_to {
                self.go_back(connection, from).await?;
            }
            if let Some(order) = self.read().await? {
                return Ok(order);
            }
        }
    }

    /// Whether the broker still hands us what comes. All that it has sent before its
    /// answer has arrived then.
    pub(crate) async fn probe(&self) -> Result<(), Error> {
        let answer = self.channel.basic_qos(CREDIT, BasicQosOptions::default());
        answer.await.doing(format!("read {}", self.stream))
    }

    /// Reads what has arrived, and waits for nothing more. False if that is nothing.
    ///
    /// # Errors
    /// As those of [`OrderLog::next`].
    pub(crate) async fn arrived(&mut self, orders: &mut Vec<Order>) -> Result<bool, Error> {
        let mut any = false;
        while self.go_back_to.is_none() {
            self.ack().await?;
            let Some(record) = poll_once(self.receive()).await else { break };
            orders.extend(record?);
            any = true;
        }
        Ok(any)
    }

    /// Of the last record.
    async fn ack(&mut self) -> Result<(), Error> {
        // Taken before, since an ack that nobody waits for is sent all the same, and the
        // broker objects to a second one.
        if let Some(tag) = self.unacked.take() {
            let ack = self.channel.basic_ack(tag, BasicAckOptions::default());
            ack.await.doing(format!("read {}", self.stream))?;
        }
        Ok(())
    }

    /// One record; `None` if it is no order, or was known.
    async fn read(&mut self) -> Result<Option<Order>, Error> {
        // First, since whatever is received has to be kept.
        self.ack().await?;
        self.receive().await
    }

    async fn receive(&mut self) -> Result<Option<Order>, Error> {
        let doing = || format!("read {}", self.stream);
        let delivery = self.consumer.next().await.ok_or_else(|| {
            let source = "the broker ended the reading".into();
            Error::Broker { doing: doing(), source }
        })?;
        let delivery = delivery.doing(doing())?;
        self.unacked = Some(delivery.delivery_tag);
        let position = envelope::number(&delivery.properties, STREAM_OFFSET);
        let Some(position) = position.and_then(|position| u64::try_from(position).ok()) else {
            return Ok(None);
        };
        self.seen = self.seen.max(Some(position));
        let order = match Order::read(&delivery.data) {
            Ok(order) => order,
            Err(error @ OrderError::Version { .. }) => {
                let (namespace, reason) = (self.namespace.to_string(), error.to_string());
                return Err(Error::SteeringUnreadable { namespace, reason });
            }
            Err(error) => {
                tracing::warn!(stream = self.stream, position, %error, "passed over");
                self.ledger.skip(position);
                return Ok(None);
            }
        };
        let (taken, went_back_to) = (self.ledger.take(position, &order), self.went_back_to.take());
        match taken {
            Taken::Applied => Ok(Some(order)),
            Taken::Known => Ok(None),
            // We have been there, and it is gone: the log keeps its end only.
            Taken::ReadFrom(from) if went_back_to == Some(from) => {
                self.ledger.take_anyway(position, &order);
                Ok(Some(order))
            }
            Taken::ReadFrom(from) => {
                self.go_back_to = Some(from);
                Ok(None)
            }
        }
    }

    pub(crate) async fn close(self) {
        close(&self.channel).await;
    }
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
