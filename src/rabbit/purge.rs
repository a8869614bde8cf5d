//! Removing a namespace with all that is in it.

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};

use super::connection::{Connect, close, close_connection};
use super::error::{Doing, Error};
use crate::protocol::names::Namespace;
use crate::protocol::partition::Topology;

/// Removes everything that a namespace of this topology has on the broker, tasks
/// and dead letters included. What is not there is no error.
///
/// # Errors
/// [`Error::NotPermitted`] and the errors of connecting.
///
/// # Cancel safety
/// What was removed stays removed; calling it again completes it.
pub(crate) async fn purge(connect: &Connect, topology: &Topology) -> Result<(), Error> {
    let connection = connect.open("purge").await?;
    let channel = connection.create_channel().await.doing("open a channel")?;
    let namespace = connect.namespace();
    // The record goes first: nobody begins to use what is about to vanish.
    let mut queues = vec![namespace.topology()];
    for partition in topology.partitions() {
        let queue = namespace.partition(topology, partition);
        queues.push(Namespace::claims(&queue));
        queues.push(Namespace::epoch(&queue));
        queues.push(queue);
    }
    queues.extend([namespace.inbox(), namespace.dead(), namespace.planner()]);
    queues.extend([namespace.journal(), namespace.steering()]);
    for queue in queues {
        let deleted = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
        deleted.await.doing(format!("delete {queue}"))?;
    }
    let exchanges = [namespace.control(), namespace.fleet(), namespace.submit()];
    for exchange in exchanges.into_iter().chain([namespace.exchange(topology)]) {
        let deleted =
            channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default());
        deleted.await.doing(format!("delete {exchange}"))?;
    }
    close(&channel).await;
    close_connection(connection).await;
    Ok(())
}
