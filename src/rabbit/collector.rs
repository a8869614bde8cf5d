//! Looks at a namespace over one connection, once or again and again: what the
//! broker counts, and what the workers say of themselves.

use std::sync::Arc;

use lapin::{Channel, Connection};
use tokio::task::JoinSet;

use super::connection::{Connect, close_connection};
use super::consumer::{Counted, counts};
use super::control::Control;
use super::error::{Doing, Error};
use super::steering::OrderLog;
use super::topology;
use crate::protocol::names::Namespace;
use crate::protocol::partition::Topology;

/// Channels that count side by side: the broker answers a channel one question
/// after another, and most of an answer is the way there and back. More do not
/// make it faster, fewer do make it slower.
const CHANNELS: usize = 8;

/// A connection for looking, with channels that are kept.
pub(crate) struct Collector {
    connection: Connection,
    namespace: Namespace,
    topology: Topology,
    /// Each counts its share of the queues.
    shares: Vec<(Channel, Arc<[String]>)>,
}

/// What the broker counts in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Count {
    /// Messages that nobody holds.
    pub(crate) ready: u32,
    /// Consumers, standbys included or not: the broker decides.
    pub(crate) consumers: u32,
    /// Whether the queue's leader answered: otherwise nothing is known of it.
    pub(crate) known: bool,
}

impl Count {
    /// What a leader has answered.
    pub(crate) fn known(ready: u32, consumers: u32) -> Self {
        Self { ready, consumers, known: true }
    }
}

/// What the broker counts in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Of every partition, in order.
    pub(crate) partitions: Vec<Count>,
    /// Of the inbox.
    pub(crate) inbox: Count,
    /// Of the dead letters.
    pub(crate) dead: Count,
}

impl Collector {
    /// Connects, and reads the layout that is in force.
    ///
    /// # Errors
    /// [`Error::TopologyMissing`] and the errors of connecting.
    pub(crate) async fn open(connect: &Connect, role: &str) -> Result<Self, Error> {
        let connection = connect.open(role).await?;
        let namespace = connect.namespace().clone();
        let topology = topology::read(&connection, &namespace).await?;
        let mut queues: Vec<_> =
            topology.partitions().map(|p| namespace.partition(&topology, p)).collect();
        queues.extend([namespace.inbox(), namespace.dead()]);
        let mut shares = Vec::new();
        for share in queues.chunks(queues.len().div_ceil(CHANNELS)) {
            let channel = connection.create_channel().await.doing("open a channel")?;
            shares.push((channel, share.into()));
        }
        Ok(Self { connection, namespace, topology, shares })
    }

    /// The layout, as it was when this was opened.
    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Counts all queues.
    ///
    /// # Errors
    /// [`Error::QueueMissing`], and when the connection is lost.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub(crate) async fn counts(&self) -> Result<Counts, Error> {
        let mut counting = JoinSet::new();
        for (place, (channel, queues)) in self.shares.iter().enumerate() {
            let (channel, queues) = (channel.clone(), Arc::clone(queues));
            counting.spawn(async move { Ok((place, count(&channel, &queues).await?)) });
        }
        let mut shares = vec![Vec::new(); self.shares.len()];
        while let Some(counted) = counting.join_next().await {
            let (place, counts) = counted.unwrap_or_else(|panic| {
                Err(Error::Broker { doing: "count".to_owned(), source: Box::new(panic) })
            })?;
            shares[place] = counts;
        }
        let mut partitions = shares.concat();
        // The last two, as they were put together.
        let dead = partitions.pop().unwrap_or_default();
        let inbox = partitions.pop().unwrap_or_default();
        Ok(Counts { partitions, inbox, dead })
    }

    /// The namespace.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// For what is read beside the counts.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What operators have ordered. `None` in a namespace that nobody can steer, or where
    /// it cannot be read now.
    ///
    /// # Errors
    /// [`Error::NotPermitted`].
    pub(crate) async fn orders(&self) -> Result<Option<OrderLog>, Error> {
        match OrderLog::open(&self.connection, &self.namespace).await {
            Ok(orders) => Ok(Some(orders)),
            Err(Error::SteeringMissing { .. }) => Ok(None),
            // The rest is worth the more to know in a cluster that is in trouble.
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "cannot tell what is paused");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// A place to ask the workers how they are.
    ///
    /// # Errors
    /// When the connection is lost, or the user may not ask.
    pub(crate) async fn control(&self) -> Result<Control, Error> {
        Control::open(&self.connection, &self.namespace, false).await
    }

    /// Says goodbye to the broker.
    pub(crate) async fn close(self) {
        close_connection(self.connection).await;
    }
}

async fn count(channel: &Channel, queues: &[String]) -> Result<Vec<Count>, Error> {
    let mut found = Vec::with_capacity(queues.len());
    for queue in queues {
        let counted = counts(channel, queue).await?;
        found.push(match counted {
            Counted::Silent => Count::default(),
            counted => counted.known(queue).map(|(ready, all)| Count::known(ready, all))?,
        });
    }
    Ok(found)
}
