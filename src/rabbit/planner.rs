//! The queue `{ns}.planner`: members report to it, and its active consumer is the planner. So the
//! broker elects the planner, and the next one when it is lost.
//!
//! Only what came over the exchange of the fleet is believed: whoever may publish to any queue, a
//! router say, is no member.
//!
//! A report that nobody reads is worth nothing after some seconds, so reports expire, and the
//! planner acks none.

use futures_lite::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection, Consumer};
use serde::{Deserialize, Serialize};

use super::connection::arguments;
use super::consumer::{Counted, counts};
use super::control::{Said, TO_MEMBERS, TO_PLANNER};
use super::error::{Doing, Error, reply};
use super::topology::{bind, refused};
use crate::protocol::fleet::SILENT_MS;
use crate::protocol::names::Namespace;
use crate::protocol::ownership::{Weight, WorkerId};

/// A message of a member to the planner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MemberMessage {
    /// It is there, as a greeting and then every two seconds.
    Report {
        /// Its name.
        worker: WorkerId,
        /// Its share of the partitions.
        weight: Weight,
        /// The number of the plan that it follows.
        plan: Option<u64>,
        /// Number of each partition that it owns, and how many of its handlers ran at once, in
        /// the mean since the last report.
        loads: Vec<(u32, f64)>,
    },
    /// It gives everything up and ends.
    Goodbye {
        /// Its name.
        worker: WorkerId,
    },
}

/// A place to report to the planner, and to be it.
pub(crate) struct PlannerQueue {
    channel: Channel,
    consumer: Consumer,
    /// Counts consumers; a queue that is missing closes it.
    counting: Option<Channel>,
    queue: String,
    fleet: String,
}

/// Reports of a fleet of a thousand for ten seconds, and more than any fleet has in the meantime.
const MOST_REPORTS: i64 = 10_000;

/// Declares the queue.
pub(super) async fn declare(channel: &Channel, namespace: &Namespace) -> Result<(), Error> {
    let text = |text| AMQPValue::LongString(LongString::from(text));
    let number = AMQPValue::LongLongInt;
    let arguments = arguments([
        ("x-queue-type", text("quorum")),
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-max-length", number(MOST_REPORTS)),
        ("x-message-ttl", number(i64::try_from(SILENT_MS).unwrap_or(i64::MAX))),
    ]);
    let queue = namespace.planner();
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let declared = channel.queue_declare(queue.as_str().into(), options, arguments).await;
    declared.map_err(|error| refused(&queue, error))?;
    bind(channel, &queue, &namespace.fleet(), TO_PLANNER).await
}

impl PlannerQueue {
    /// Stands in the line of planners.
    ///
    /// # Errors
    /// [`Error::PlannerMissing`], [`Error::NotPermitted`], and when the connection is lost.
    pub(crate) async fn open(
        connection: &Connection,
        namespace: &Namespace,
    ) -> Result<Self, Error> {
        let channel = connection.create_channel().await.doing("open a channel")?;
        let queue = namespace.planner();
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consumer = channel
            .basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default())
            .await;
        match consumer {
            Ok(consumer) => {
                Ok(Self { channel, consumer, counting: None, queue, fleet: namespace.fleet() })
            }
            Err(error) if reply(&error).is_some_and(|(code, _)| code == 404) => {
                Err(Error::PlannerMissing { namespace: namespace.to_string() })
            }
            Err(error) => Err(Error::from_lapin(format!("consume {queue}"), error)),
        }
    }

    /// The next message of a member. The first one makes its reader the planner.
    ///
    /// # Errors
    /// When the channel is lost.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<MemberMessage, Error> {
        loop {
            let Some(delivery) = self.consumer.next().await else {
                let source = "the broker cancelled the consumer".into();
                return Err(Error::Broker { doing: format!("consume {}", self.queue), source });
            };
            let delivery = delivery.doing(format!("consume {}", self.queue))?;
            if delivery.exchange.as_str() != self.fleet {
                tracing::debug!("the planner was told something by nobody of the fleet");
                continue;
            }
            match serde_json::from_slice(&delivery.data) {
                Ok(message) => return Ok(message),
                Err(error) => tracing::debug!(%error, "not understood by the planner"),
            }
        }
    }

    /// Talks to all members.
    pub(crate) async fn say(&self, said: &Said) -> Result<(), Error> {
        let doing = || format!("speak on {}", self.fleet);
        let body = serde_json::to_vec(said)
            .map_err(|error| Error::Broker { doing: doing(), source: Box::new(error) })?;
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let (exchange, key) = (self.fleet.as_str().into(), TO_MEMBERS.into());
        let sent = self.channel.basic_publish(exchange, key, options, &body, properties);
        sent.await.doing(doing()).map(drop)
    }

    /// Whether nobody stands in the line of a queue that exists.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) async fn is_unattended(
        &mut self,
        connection: &Connection,
        queue: &str,
    ) -> Result<bool, Error> {
        let channel = match self.counting.take() {
            Some(channel) => channel,
            None => connection.create_channel().await.doing("open a channel")?,
        };
        let counted = counts(&channel, queue).await?;
        // Nobody could attach to one that is missing, and the look has closed its channel.
        if counted == Counted::Missing {
            return Ok(false);
        }
        self.counting = Some(channel);
        // Of a leader that does not answer nothing is known.
        Ok(matches!(counted, Counted::Known { consumers: 0, .. }))
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use super::MemberMessage;

    /// A message to the planner.
    pub(crate) fn member(bytes: &[u8]) {
        let Ok(message) = serde_json::from_slice::<MemberMessage>(bytes) else { return };
        let stored = serde_json::to_vec(&message).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<MemberMessage>(&stored).ok(), Some(message));
    }
}
