//! Where the tasks of the demo wait: keylane's partitions, or one plain queue.

use std::cell::Cell;
use std::num::NonZeroU16;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use futures_lite::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::demo::history::HistoryError;
use crate::demo::{Edit, Repository};
use crate::rabbit::naive::NaiveQueue;
use crate::rabbit::purge::purge;
use crate::{
    Connect, DeadLetters, PartitionCount, PartitionStatus, Producer, ProducerOptions, Task,
    Topology,
};

/// A few for each worker of any fleet that fits on one machine.
const PARTITIONS: PartitionCount = match PartitionCount::new(32) {
    Ok(count) => count,
    Err(_) => PartitionCount::DEFAULT,
};

/// Deliveries of one partition that a worker holds: some rounds of its slots. More
/// would come back as redelivered with every hand-over.
const PREFETCH: NonZeroU16 = NonZeroU16::new(64).unwrap();

/// Edits that are read before they can be published: enough to never wait for
/// git, too few to matter in memory.
const READ_AHEAD: usize = 1_000;

/// A broker that is gone for this long ends the demo.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many of a long list a person reads.
const SHOWN: usize = 5;

/// The queues of one namespace.
#[derive(Debug)]
pub(super) struct Queues {
    connect: Connect,
    naive: bool,
}

/// What is not done yet.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Tasks that wait or are at a worker and not settled (for plain queues:
    /// those that wait).
    pub(super) tasks: u64,
    /// Workers that answer.
    pub(super) workers: usize,
    /// Dead letters.
    pub(super) dead: u32,
    /// Where the tasks stand.
    pub(super) standing: String,
}

impl Queues {
    /// Nothing happens on the broker yet.
    pub(super) fn new(connect: Connect, naive: bool) -> Self {
        Self { connect, naive }
    }

    /// Declares them.
    pub(super) async fn declare(&self) -> anyhow::Result<()> {
        if self.naive {
            NaiveQueue::open(&self.connect, "coordinator").await?.close().await;
        } else {
            let topology = Topology::first(PARTITIONS).with_prefetch(PREFETCH);
            crate::init(&self.connect, topology).await?;
        }
        Ok(())
    }

    /// Publishes all edits of a history, oldest first, and counts those that the
    /// broker has confirmed.
    pub(super) async fn publish(
        &self,
        repository: Repository,
        published: &Cell<u64>,
    ) -> anyhow::Result<()> {
        let failure = OnceLock::new();
        let edits = edits(repository).map(|edit| {
            let edit = edit?;
            let (resource, payload) = (edit.resource()?, edit.to_payload()?);
            anyhow::Ok(Task::on(resource, payload).with_kind("edit"))
        });
        // The first edit that cannot be read ends the tasks.
        let tasks = edits.map(|task| task.map_err(|error| failure.set(error).ok()).ok());
        let tasks = tasks.take_while(Option::is_some).filter_map(|task| task);
        let count = || published.set(published.get() + 1);
        if self.naive {
            let queue = NaiveQueue::open(&self.connect, "producer").await?;
            queue.publish_all(tasks.map(|task| task.payload), count).await?;
        } else {
            let options = ProducerOptions { patience: Some(PATIENCE), ..Default::default() };
            let producer = Producer::open(&self.connect, options).await?;
            let mut outcomes = Box::pin(producer.publish_all(tasks));
            while let Some(done) = outcomes.next().await {
                let resource = done.task.resource;
                done.outcome.with_context(|| format!("a task of {resource} is not published"))?;
                count();
            }
            drop(outcomes);
            producer.close().await;
        }
        failure.into_inner().map_or(Ok(()), Err)
    }

    /// What is not done yet.
    pub(super) async fn backlog(&self) -> anyhow::Result<Backlog> {
        if self.naive {
            let queue = NaiveQueue::open(&self.connect, "coordinator").await?;
            let (ready, workers) = queue.counts().await?;
            queue.close().await;
            let (tasks, workers) = (u64::from(ready), workers as usize);
            return Ok(Backlog { tasks, workers, ..Backlog::default() });
        }
        let status = crate::status(&self.connect).await?;
        let tasks = |partition: &PartitionStatus| u64::from(partition.ready + partition.unsettled);
        let open = status.partitions.iter().filter(|partition| tasks(partition) > 0);
        let standing = open.clone().take(SHOWN).map(|partition| {
            let owner = partition.owner.as_ref().map_or("nobody", |owner| owner.as_str());
            let (number, ready) = (partition.partition, partition.ready);
            format!(
                "partition {number} ({owner}): {ready} ready, {} unsettled",
                partition.unsettled
            )
        });
        Ok(Backlog {
            tasks: open.clone().map(tasks).sum(),
            workers: status.workers.len(),
            dead: status.dead,
            standing: standing.collect::<Vec<_>>().join("; "),
        })
    }

    /// Why the first dead letters are dead.
    pub(super) async fn obituaries(&self) -> anyhow::Result<Vec<String>> {
        let mut reasons = Vec::new();
        if !self.naive {
            let mut dead = DeadLetters::open(&self.connect).await?;
            while reasons.len() < SHOWN
                && let Some(letter) = dead.next().await?
            {
                reasons.push(letter.reason);
            }
            dead.close().await;
        }
        Ok(reasons)
    }

    /// Removes them with all that is in them.
    pub(super) async fn remove(&self) -> anyhow::Result<()> {
        if self.naive {
            NaiveQueue::open(&self.connect, "coordinator").await?.delete().await?;
        } else {
            purge(&self.connect, &Topology::first(PARTITIONS)).await?;
        }
        Ok(())
    }
}

/// The edits of a history, read by a thread that ends when they are dropped.
fn edits(repository: Repository) -> impl Stream<Item = Result<Edit, HistoryError>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    spawn_blocking(move || match repository.edits() {
        Ok(mut edits) => while edits.next().is_some_and(|e| sender.blocking_send(e).is_ok()) {},
        Err(error) => drop(sender.blocking_send(Err(error))),
    });
    stream::unfold(receiver, |mut receiver| async move {
        let edit = receiver.recv().await?;
        Some((edit, receiver))
    })
}
