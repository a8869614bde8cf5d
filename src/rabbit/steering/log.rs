//! Reads the log of orders: to its end, and on and on.

use std::time::Duration;

use futures_lite::StreamExt;
use futures_lite::future::poll_once;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, LongString};
use lapin::{Channel, Connection, Consumer};
use tokio::time::{Instant, sleep, timeout};

use crate::protocol::names::Namespace;
use crate::protocol::steering::{Ledger, Order, Taken};
use crate::rabbit::connection::{arguments, close};
use crate::rabbit::envelope;
use crate::rabbit::error::{Doing, Error, reply};
use crate::rabbit::topology::{NoReplica, REPLICA_PAUSE, REPLICA_TIMEOUT};

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
    /// [`Error::SteeringMissing`].
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
        // A broker that is slow is waited for: what there is comes before its answer.
        self.probe().await?;
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
    /// When the channel is gone.
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
            // Also one of a newer keylane: nobody may stop a fleet by it.
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
