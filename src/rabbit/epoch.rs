//! The counter of a partition's epochs: a quorum queue that holds one message
//! for ever.
//!
//! To take the message and give it back raises a count that the broker keeps in
//! it, replicated and over restarts, and so does a channel that is lost while it
//! has the message: `x-acquired-count` since RabbitMQ 4.3, `x-delivery-count`
//! before (4.3 raises that one, too, when a channel is lost). Neither ever falls,
//! so their sum rises every time, over an upgrade as well.
//!
//! The message also says where to count from: the time at which it was made. So
//! whoever loses the queue, or the whole broker, and sets the namespace up anew
//! gets epochs above those that stores have seen.

use std::time::{Duration, SystemTime};

use lapin::options::{BasicGetOptions, BasicNackOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection};
use tokio::time::{Instant, sleep};

use super::connection::{arguments, close};
use super::consumer::counts;
use super::envelope;
use super::error::{Doing, Error, reply};
use crate::protocol::fence::Epoch;
use crate::protocol::names::Namespace;
use crate::protocol::partition::Topology;

/// Header of the counter: where to count from.
const BASE: &str = "base";

/// What a look at a counter found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Minted {
    /// A new epoch.
    Epoch(Epoch),
    /// Somebody else has the counter at this moment, or it is gone.
    Away,
    /// There are this many others, which must not be.
    Several {
        /// Besides the first.
        others: u32,
    },
}

/// Takes the counter and gives it back. Tags of the channel's deliveries and
/// the counter's rise together, and an ack of several in between would settle
/// the counter, which deletes it: see
/// [`QueueChannel::mint`](super::consumer::QueueChannel::mint).
pub(super) async fn mint(channel: &Channel, queue: &str) -> Result<Minted, Error> {
    let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: false });
    let got = got.await.map_err(|error| match reply(&error) {
        Some((404, _)) => Error::QueueMissing { queue: queue.to_owned() },
        _ => Error::from_lapin(format!("read {queue}"), error),
    })?;
    let Some(message) = got else { return Ok(Minted::Away) };
    let back = BasicNackOptions { multiple: false, requeue: true };
    let returned = channel.basic_nack(message.delivery.delivery_tag, back).await;
    returned.doing(format!("give back the counter in {queue}"))?;
    Ok(match message.message_count {
        0 => Minted::Epoch(epoch(&message.delivery.properties)),
        others => Minted::Several { others },
    })
}

fn epoch(properties: &BasicProperties) -> Epoch {
    let count = |name| {
        let count = envelope::number(properties, name).unwrap_or(0);
        u64::try_from(count).unwrap_or(0)
    };
    let parts = [BASE, envelope::DELIVERY_COUNT, envelope::ACQUIRED_COUNT].map(count);
    Epoch::new(parts.into_iter().fold(1, u64::saturating_add))
}

/// Counters whose queue exists, or does not, in the order of the partitions.
///
/// # Errors
/// [`Error::NotPermitted`] and those of the connection.
async fn existing(
    connection: &Connection,
    namespace: &Namespace,
    topology: &Topology,
) -> Result<Vec<bool>, Error> {
    let mut existing = Vec::with_capacity(topology.partitions().len());
    let mut channel = connection.create_channel().await.doing("open a channel")?;
    for partition in topology.partitions() {
        let queue = Namespace::epoch(&namespace.partition(topology, partition));
        let found = counts(&channel, &queue).await?.exists();
        if !found {
            channel = connection.create_channel().await.doing("open a channel")?;
        }
        existing.push(found);
    }
    close(&channel).await;
    Ok(existing)
}

/// Refuses a namespace that was set up before there were epochs: a mint from a
/// queue that is not there costs the channel, with all that runs on it.
///
/// # Errors
/// [`Error::QueueMissing`].
pub(crate) async fn check(
    connection: &Connection,
    namespace: &Namespace,
    topology: &Topology,
) -> Result<(), Error> {
    let started = Instant::now();
    let existing = existing(connection, namespace, topology).await?;
    tracing::debug!(took = ?started.elapsed(), "looked for the counters of epochs");
    match topology.partitions().zip(existing).find(|(_, existing)| !existing) {
        None => Ok(()),
        Some((partition, _)) => {
            let queue = Namespace::epoch(&namespace.partition(topology, partition));
            Err(Error::QueueMissing { queue })
        }
    }
}

/// Who else could have the counters of a namespace at this moment.
pub(super) enum Others {
    /// Nobody: nothing of it is there.
    None,
    /// No worker, since it has no record yet. But an `init` that died may have left counters.
    Init,
    /// Workers. `existing` says which of the counters' queues exist.
    Workers {
        /// By partition.
        existing: Vec<bool>,
    },
}

impl Others {
    /// Those who may use a namespace whose record is stored.
    pub(super) async fn of(
        connection: &Connection,
        namespace: &Namespace,
        topology: &Topology,
    ) -> Result<Self, Error> {
        Ok(Self::Workers { existing: existing(connection, namespace, topology).await? })
    }

    /// Those who were here before there was a record.
    pub(super) async fn before(
        connection: &Connection,
        namespace: &Namespace,
    ) -> Result<Self, Error> {
        let channel = connection.create_channel().await.doing("open a channel")?;
        // It is declared before all counters.
        let left = counts(&channel, &namespace.dead()).await?.exists();
        close(&channel).await;
        Ok(if left { Self::Init } else { Self::None })
    }

    /// For how long the counter of this partition may not be seen although it is there.
    pub(super) fn patience(&self, partition: u32) -> Duration {
        match self {
            Self::Workers { existing } if existing.get(partition as usize) == Some(&true) => AWAY,
            // It has just been made.
            Self::None | Self::Workers { .. } => Duration::ZERO,
            Self::Init => UNSEEN,
        }
    }
}

/// A worker has the counter for a millisecond. One that dies in it, or is
/// paused, has it until the broker notices: after two heartbeats, 20 s.
const AWAY: Duration = Duration::from_secs(30);

/// The broker says of a queue whose leader does not answer, or is being elected, that it is
/// empty. That takes a second or two.
const UNSEEN: Duration = Duration::from_secs(3);

const AWAY_PACE: Duration = Duration::from_millis(100);

/// Declares the queue of a counter and puts the counter in, unless it is there.
/// Two counters would be none, so only one caller at a time does this, with
/// [`lock`]; on a channel with confirms. `patience`: as [`Others::patience`] has it.
pub(super) async fn establish(
    channel: &Channel,
    queue: &str,
    patience: Duration,
) -> Result<(), Error> {
    let arguments = arguments([
        ("x-queue-type", AMQPValue::LongString(LongString::from("quorum"))),
        // Before 4.3 every mint counts, and 20 would be the end.
        ("x-delivery-limit", AMQPValue::LongInt(-1)),
    ]);
    let deadline = Instant::now() + patience;
    loop {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        let declared = channel.queue_declare(queue.into(), durable, arguments.clone()).await;
        let declared = declared.map_err(|error| super::topology::refused(queue, error))?;
        if declared.message_count() > 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            break;
        }
        sleep(AWAY_PACE).await;
    }
    let mut base = FieldTable::default();
    base.insert(BASE.into(), AMQPValue::LongLongInt(centiseconds()));
    let properties = BasicProperties::default().with_delivery_mode(2).with_headers(base);
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let about = b"The epoch of a keylane partition is counted with this message. Leave it here.";
    let doing = || format!("store the counter in {queue}");
    let sent = channel.basic_publish("".into(), queue.into(), options, about, properties).await;
    match sent.doing(doing())?.await.doing(doing())? {
        lapin::Confirmation::Ack(None) => Ok(()),
        unstored => Err(Error::Broker {
            doing: doing(),
            source: format!("the broker answered {unstored:?}").into(),
        }),
    }
}

/// Since 1970. A counter that is made anew begins above its predecessor as long
/// as that rose by less than 100 a second, over its whole life: hundreds of
/// times more often than partitions change hands.
fn centiseconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis() / 10).unwrap_or(0)
}

/// Another `init` takes seconds. One that is paused loses its connection before
/// this.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
const LOCK_PACE: Duration = Duration::from_millis(100);

/// Waits until no other `init` sets this namespace up. The lock is a queue that
/// belongs to this connection, and ends with it.
pub(super) async fn lock(connection: &Connection, namespace: &Namespace) -> Result<(), Error> {
    let queue = namespace.init();
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        let channel = connection.create_channel().await.doing("open a channel")?;
        let ours = QueueDeclareOptions { exclusive: true, ..Default::default() };
        let declared = channel.queue_declare(queue.as_str().into(), ours, FieldTable::default());
        match declared.await {
            Ok(_) => {
                close(&channel).await;
                return Ok(());
            }
            Err(error) if reply(&error).is_some_and(|(code, _)| code == 405) => {}
            Err(error) => return Err(Error::from_lapin(format!("declare {queue}"), error)),
        }
        if Instant::now() > deadline {
            return Err(Error::Broker {
                doing: format!("set up namespace {:?}", namespace.as_str()),
                source: "another `keylane init` has been at it for a minute".into(),
            });
        }
        sleep(LOCK_PACE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_the_base_and_both_counts() {
        let epoch = |headers: &[(&str, i64)]| {
            let mut table = FieldTable::default();
            for (name, count) in headers {
                table.insert((*name).into(), AMQPValue::LongLongInt(*count));
            }
            super::epoch(&BasicProperties::default().with_headers(table)).get()
        };
        let (old, new) = ("x-delivery-count", "x-acquired-count");
        assert_eq!(super::epoch(&BasicProperties::default()).get(), 1);
        assert_eq!(epoch(&[("base", 100)]), 101);
        assert_eq!(epoch(&[("base", 100), (old, 7)]), 108, "before 4.3");
        assert_eq!(epoch(&[("base", 100), (old, 7), (new, 1)]), 109, "after an upgrade");
        assert_eq!(epoch(&[("base", 100), (old, 8), (new, 2)]), 111, "a lost channel");
        assert_eq!(epoch(&[("base", -1), (old, i64::MIN)]), 1);
    }
}
