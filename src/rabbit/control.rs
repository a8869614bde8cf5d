//! What workers are told: on the control exchange, a fanout, operators ask them; on the exchange of
//! the fleet, the planner and the members talk to all. Every worker has bound a queue of its own to
//! both, which ends with its connection. What only a member may say is heard on the latter only, so
//! the broker's rights decide who is one.
//!
//! Nothing that is said here matters for safety. A lost plan or announcement leaves the fleet
//! out of balance until the next one, a lost report makes a table shorter.

mod load;
mod outage;

use std::sync::Arc;
use std::time::Duration;

use futures_lite::StreamExt;
#[cfg(feature = "dashboard")]
use lapin::options::BasicQosOptions;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, Consumer};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::load::{HotResource, RecentLoad};
pub use self::outage::HandlerOutage;
use super::connection::close;
use super::error::{Doing, Error, reply};
use super::planner::MemberMessage;
use super::running::LongRunning;
use super::topology::bind;
use crate::protocol::lanes::Crowd;
use crate::protocol::names::Namespace;
use crate::protocol::ownership::{Weight, WorkerId};
use crate::protocol::partition::PartitionId;
use crate::protocol::plan::{Plan, Role};
use crate::protocol::task::TaskId;

/// Keys of the exchange of the fleet.
pub(super) const TO_MEMBERS: &str = "members";
pub(super) const TO_PLANNER: &str = "planner";

/// What is said to all workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Said {
    /// A new planner calls the roll: every member reports to it at once.
    Call,
    /// The planner tells who should stand where.
    Plan(Arc<Plan>),
    /// A planned owner or first standby stands in the line of these partitions.
    Attached {
        /// Its name.
        worker: WorkerId,
        /// Where it stands.
        places: Vec<AnnouncedPlace>,
    },
    /// The planner has found nobody in the line of these partitions.
    Unattended {
        /// Which.
        partitions: Vec<PartitionId>,
    },
    /// How are you? Answers go to the queue in `reply_to`.
    Report,
    /// Who executes this task? Whoever does answers to the queue in `reply_to`.
    Find {
        /// The task.
        task: TaskId,
    },
    /// What runs, and since when? Answers go to the queue in `reply_to`.
    Running,
    /// Who heeds the orders up to this position of their log? Whoever does answers
    /// to the queue in `reply_to`.
    Heed {
        /// Of the last order.
        position: u64,
    },
}

impl Said {
    /// Whether only a member of the fleet may say it.
    fn is_of_the_fleet(&self) -> bool {
        match self {
            Self::Call | Self::Plan(_) | Self::Attached { .. } | Self::Unattended { .. } => true,
            Self::Report | Self::Find { .. } | Self::Running | Self::Heed { .. } => false,
        }
    }
}

/// A place in a line, as its holder announces it: `[partition, age, id]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u64, u32)", into = "(u32, u64, u32)")]
pub(crate) struct AnnouncedPlace {
    /// Number of the partition.
    pub(crate) partition: u32,
    /// For how many milliseconds its holder has been attached. Clocks of two machines are not
    /// compared.
    pub(crate) age_ms: u64,
    /// Any number that tells this attachment from others of the same worker.
    pub(crate) id: u32,
}

impl From<(u32, u64, u32)> for AnnouncedPlace {
    fn from((partition, age_ms, id): (u32, u64, u32)) -> Self {
        Self { partition, age_ms, id }
    }
}

impl From<AnnouncedPlace> for (u32, u64, u32) {
    fn from(AnnouncedPlace { partition, age_ms, id }: AnnouncedPlace) -> Self {
        (partition, age_ms, id)
    }
}

/// A partition whose window is full of one resource. If more of it waits on the broker, that
/// waits for this resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Crowded {
    /// The partition.
    pub partition: PartitionId,
    /// The resource.
    #[serde(flatten)]
    pub by: Crowd,
}

impl Crowded {
    /// A partition that is full of this.
    pub(crate) fn new(partition: PartitionId, by: Crowd) -> Self {
        Self { partition, by }
    }
}

/// How a worker is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerReport {
    /// Its name.
    pub worker: WorkerId,
    /// Its share of the partitions, relative to the others.
    pub weight: Weight,
    /// How many tasks it runs at once, at the most.
    pub slots: u32,
    /// How many it runs now.
    #[serde(default)]
    pub busy: u32,
    /// How long it has been running, in milliseconds.
    pub uptime_ms: u64,
    /// Tasks executed since it started.
    pub executed: u64,
    /// Attempts that failed since it started.
    pub failed: u64,
    /// Tasks dead-lettered since it started.
    pub dead_lettered: u64,
    /// Since when its handler is out of reach, and why; then it starts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<HandlerOutage>,
    /// The partitions that it owns: those that it was handed anything of since it attached.
    pub partitions: Vec<HeldPartition>,
    /// The number of the plan that it follows. None of an older keylane, or before it knows one.
    #[serde(default)]
    pub plan: Option<u64>,
    /// Its place in the lines of partitions: those that it is planned for, and those in which it
    /// stands.
    #[serde(default)]
    pub line: Vec<LinePlace>,
    /// Its load of the last one to two minutes. None of an older keylane.
    #[serde(default)]
    pub recent: RecentLoad,
    /// The resources with the largest shares in that, the largest first; ten at the most.
    #[serde(default)]
    pub hot: Vec<HotResource>,
    /// The tasks that have been running for longest, the longest first; ten at the most.
    #[serde(default)]
    pub longest: Vec<LongRunning>,
    /// Its partitions whose window is full of one resource.
    #[serde(default)]
    pub crowded: Vec<Crowded>,
}

/// The place of a worker in the line of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(PartitionId, Role, Option<u64>)", into = "(PartitionId, Role, Option<u64>)")]
#[non_exhaustive]
pub struct LinePlace {
    /// The partition.
    pub partition: PartitionId,
    /// The role that the plan gives the worker.
    pub role: Role,
    /// For how many milliseconds it has been attached; `None` if it does not stand in the line.
    pub attached_ms: Option<u64>,
}

impl From<(PartitionId, Role, Option<u64>)> for LinePlace {
    fn from((partition, role, attached_ms): (PartitionId, Role, Option<u64>)) -> Self {
        Self { partition, role, attached_ms }
    }
}

impl From<LinePlace> for (PartitionId, Role, Option<u64>) {
    fn from(place: LinePlace) -> Self {
        (place.partition, place.role, place.attached_ms)
    }
}

/// A partition that a worker owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HeldPartition {
    /// Its number.
    pub partition: u32,
    /// Deliveries that are not settled.
    pub unsettled: u32,
    /// Tasks that run now.
    pub running: u32,
    /// Deliveries that wait because their resource or all is paused.
    #[serde(default)]
    pub paused: u32,
    /// Tasks that wait for their next attempt.
    #[serde(default)]
    pub retrying: u32,
    /// When the first of these is due, in milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_in_ms: Option<u64>,
    /// Tasks that could start, if the worker had a slot.
    #[serde(default)]
    pub startable: u32,
    /// Deliveries that were settled since the worker connected.
    #[serde(default)]
    pub settled: u64,
    /// There is no fencing token for it, so that nothing of it starts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lacks_token: bool,
}

impl HeldPartition {
    /// A partition with these counts.
    pub(crate) fn new(partition: u32, unsettled: u32, running: u32) -> Self {
        Self { partition, unsettled, running, ..Self::default() }
    }
}

/// A place to hear and speak.
pub(crate) struct Control {
    channel: Channel,
    consumer: Consumer,
    namespace: Namespace,
    exchange: String,
    fleet: String,
    own_queue: String,
}

impl Control {
    /// Listens. With `to_all`, what is said to all workers; else only replies.
    pub(crate) async fn open(
        connection: &Connection,
        namespace: &Namespace,
        to_all: bool,
    ) -> Result<Self, Error> {
        let channel = connection.create_channel().await.doing("open a channel")?;
        let exchange = namespace.control();
        let queue = namespace.hearing(&Uuid::now_v7());
        let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let declared = channel.queue_declare(queue.as_str().into(), own, FieldTable::default());
        declared.await.doing(format!("declare {queue}"))?;
        let fleet = namespace.fleet();
        if to_all {
            bind(&channel, &queue, &exchange, "").await?;
            bind(&channel, &queue, &fleet, TO_MEMBERS).await?;
        }
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consumer = channel
            .basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default())
            .await
            .doing(format!("listen to {exchange}"))?;
        let namespace = namespace.clone();
        Ok(Self { channel, consumer, namespace, exchange, fleet, own_queue: queue })
    }

    /// What is said next, and where an answer goes. `None` when the channel is
    /// gone.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn hear(&mut self) -> Option<(Said, Option<String>)> {
        loop {
            let delivery = match self.consumer.next().await? {
                Ok(delivery) => delivery,
                Err(error) => {
                    let error = self.refused(error);
                    if !error.is_retryable() {
                        tracing::warn!(%error, "the control exchange is out of reach");
                    }
                    return None;
                }
            };
            match serde_json::from_slice::<Said>(&delivery.data) {
                Ok(said) if said.is_of_the_fleet() && delivery.exchange.as_str() != self.fleet => {
                    tracing::debug!(?said, "said by nobody of the fleet");
                }
                Ok(said) => {
                    let reply_to = delivery.properties.reply_to().as_ref().map(ToString::to_string);
                    return Some((said, reply_to));
                }
                // A newer keylane may say more.
                Err(error) => tracing::debug!(%error, "not understood on the control exchange"),
            }
        }
    }

    /// Says something to all workers.
    pub(crate) async fn say(&self, said: &Said) -> Result<(), Error> {
        match said.is_of_the_fleet() {
            true => self.publish(&self.fleet, TO_MEMBERS, said).await,
            false => self.publish(&self.exchange, "", said).await,
        }
    }

    /// Waits until the broker has taken what was said.
    ///
    /// # Errors
    /// When it may not be said, or the channel is lost.
    #[cfg(feature = "dashboard")]
    pub(crate) async fn taken(&self) -> Result<(), Error> {
        // A question that changes nothing; its answer comes after what was said.
        let answer = self.channel.basic_qos(1, BasicQosOptions::default());
        answer.await.map_err(|error| self.refused(error))
    }

    /// Binds its queue again, since the exchange may have been made anew. If there is none, the
    /// channel ends.
    pub(crate) async fn hear_all(&self) -> Result<(), Error> {
        bind(&self.channel, &self.own_queue, &self.exchange, "").await?;
        bind(&self.channel, &self.own_queue, &self.namespace.fleet(), TO_MEMBERS).await
    }

    /// Answers one who asked.
    pub(crate) async fn answer(&self, to: &str, answer: &impl Serialize) -> Result<(), Error> {
        if !self.namespace.is_hearing(to) {
            let shown: String = to.chars().take(100).collect();
            tracing::debug!(reply_to = ?shown, "asked to answer to a queue that is none for answers");
            return Ok(());
        }
        self.publish("", to, answer).await
    }

    /// Tells the planner, whoever that is.
    pub(crate) async fn tell_planner(&self, message: &MemberMessage) -> Result<(), Error> {
        self.publish(&self.fleet, TO_PLANNER, message).await
    }

    /// Where answers come to.
    pub(crate) fn own_queue(&self) -> &str {
        &self.own_queue
    }

    /// The next answer; `None` if there is none in this time.
    ///
    /// # Errors
    /// When the channel is lost.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn answer_within<T: DeserializeOwned>(
        &mut self,
        wait: Duration,
    ) -> Result<Option<T>, Error> {
        let next = async {
            while let Some(delivery) = self.consumer.next().await {
                let delivery = delivery.map_err(|error| self.refused(error))?;
                match serde_json::from_slice(&delivery.data) {
                    Ok(answer) => return Ok(Some(answer)),
                    Err(error) => tracing::debug!(%error, "an answer was not understood"),
                }
            }
            Ok(None)
        };
        tokio::time::timeout(wait, next).await.unwrap_or(Ok(None))
    }

    /// Gathers answers until none has come for a while: `patience` for the
    /// first one, `quiet` after each. How many there will be nobody knows, since
    /// the broker does not count consumers that stand by.
    ///
    /// # Errors
    /// When the channel is lost, which is how a missing permission to ask shows.
    pub(crate) async fn answers<T: DeserializeOwned>(
        &mut self,
        patience: Duration,
        quiet: Duration,
    ) -> Result<Vec<T>, Error> {
        let mut answers = Vec::new();
        let mut wait = patience;
        while let Ok(Some(answer)) = tokio::time::timeout(wait, self.next_answer()).await {
            answers.push(answer?);
            wait = quiet;
        }
        Ok(answers)
    }

    /// Waits for the next answer to whatever was asked. `None` when the channel
    /// is gone; errors as in [`Control::answers`].
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn next_answer<T: DeserializeOwned>(&mut self) -> Option<Result<T, Error>> {
        loop {
            let delivery = match self.consumer.next().await? {
                Ok(delivery) => delivery,
                Err(error) => return Some(Err(self.refused(error))),
            };
            match serde_json::from_slice(&delivery.data) {
                Ok(answer) => return Some(Ok(answer)),
                Err(error) => tracing::debug!(%error, "an answer was not understood"),
            }
        }
    }

    /// Ends it. What was said is on its way.
    pub(crate) async fn close(self) {
        close(&self.channel).await;
    }

    /// Nothing says so at once when the broker refuses what was said.
    fn refused(&self, error: lapin::Error) -> Error {
        match reply(&error) {
            // The exchange is as old as the namespace.
            Some((404, _)) => Error::TopologyMissing { namespace: self.namespace.to_string() },
            _ => Error::from_lapin(format!("speak on {} or {}", self.exchange, self.fleet), error),
        }
    }

    async fn publish(&self, exchange: &str, key: &str, body: &impl Serialize) -> Result<(), Error> {
        let doing = || format!("speak on {}", self.exchange);
        if key.len() > usize::from(u8::MAX) {
            return Err(Error::Broker { doing: doing(), source: "an address is too long".into() });
        }
        let body = serde_json::to_vec(body)
            .map_err(|error| Error::Broker { doing: doing(), source: Box::new(error) })?;
        let properties = BasicProperties::default().with_reply_to(self.own_queue.as_str().into());
        let options = BasicPublishOptions::default();
        self.channel
            .basic_publish(exchange.into(), key.into(), options, &body, properties)
            .await
            .doing(doing())?;
        Ok(())
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use super::{Said, WorkerReport};

    /// A message on the control exchange, or the answer to one.
    pub fn control(bytes: &[u8]) {
        crate::rabbit::planner::fuzz::member(bytes);
        if let Ok(said) = serde_json::from_slice::<Said>(bytes) {
            let stored = serde_json::to_vec(&said).unwrap_or_default();
            let again = serde_json::from_slice::<Said>(&stored).ok();
            assert_eq!(again, Some(said));
        }
        if let Ok(report) = serde_json::from_slice::<WorkerReport>(bytes) {
            let stored = serde_json::to_vec(&report).unwrap_or_default();
            let again = serde_json::from_slice::<WorkerReport>(&stored).ok();
            assert_eq!(again.as_ref(), Some(&report));
            crate::rabbit::status::fuzz::reports(&[report.clone(), report]);
        }
    }
}
