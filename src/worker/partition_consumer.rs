//! One partition on one worker, over all the channels of a session: owns it,
//! stands in its line, or waits for a place there.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, sleep_until, timeout};

use super::session::Session;
use super::tenure::Tenure;
use super::{Execute, WorkerOptions};
use crate::backoff::Backoff;
use crate::rabbit::connection::{Connection, close_connection};
use crate::rabbit::consumer::QueueChannel;
use crate::rabbit::error::Error;
use crate::worker::line::Next;

/// An owner that gives way to one that has just come waits for so long: those who stand between
/// them step back meanwhile, and are handed nothing on the way.
const SORTING: Duration = Duration::from_millis(30);

/// A queue that has a leader answers in far less.
const SLOW: Duration = Duration::from_secs(5);

/// Consumes one partition for as long as the session lasts.
pub(super) struct PartitionConsumer<E> {
    session: Arc<Session<E>>,
    /// Which of the session's queues it is; a partition's number, or 0 for the
    /// inbox.
    index: usize,
    queue: String,
}

impl<E: Execute> PartitionConsumer<E> {
    pub(super) fn new(session: Arc<Session<E>>, index: usize, queue: String) -> Self {
        Self { session, index, queue }
    }

    /// Stands where the plan says, until the session drains.
    pub(super) async fn run(self) -> Result<(), Error> {
        let drain = self.session.drains[self.index].clone();
        let abort = self.session.abort.clone();
        let mut backoff = Backoff::new(None);
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return Ok(()),
                () = abort.cancelled() => return Ok(()),
                () = self.until_attaching() => {}
            }
            let result = self.stand_in_line().await;
            self.session.line.detached(self.index);
            let Err(error) = result else {
                backoff = Backoff::new(None);
                continue;
            };
            // A missing right is not mended by trying again; a queue may be, and is left out alone.
            let missing = matches!(error, Error::QueueMissing { .. });
            if !(error.is_retryable() || missing) || !self.session.connections.connected() {
                return Err(error);
            }
            let delay = backoff.next().unwrap_or_default();
            tracing::warn!(queue = self.queue, %error, retry_in = ?delay, "lost a queue");
            tokio::select! {
                () = sleep(delay) => {}
                () = drain.cancelled() => {}
                () = abort.cancelled() => {}
            }
        }
    }

    /// Attaches, and comes back when the partition was given up or lost.
    async fn stand_in_line(&self) -> Result<(), Error> {
        let Session { shared, connections, .. } = self.session.as_ref();
        if !shared.set_apart().contains(&self.index) {
            return self.stand_on(connections.of(self.index).await?).await;
        }
        let own = connections.for_one().await?;
        let result = self.stand_on(&own).await;
        close_connection(own).await;
        result
    }

    async fn stand_on(&self, connection: &Connection) -> Result<(), Error> {
        let channel = self.open(connection).await?;
        self.session.shared.set_apart().remove(&self.index);
        self.session.line.attached(self.index);
        self.session.say_working();
        let tenure = Tenure::new(Arc::clone(&self.session), self.index, &self.queue, channel);
        let drain = &self.session.drains[self.index];
        tenure
            .run(async {
                tokio::select! {
                    () = drain.cancelled() => {}
                    () = self.until_giving_up() => {}
                }
            })
            .await
    }

    async fn until_attaching(&self) {
        let left_behind = self.session.shared.left_behind().get(&self.index).cloned();
        if let Some(over) = left_behind {
            over.cancelled().await;
        }
        loop {
            let changed = self.session.line.changed(self.index);
            match self.session.line.next(self.index, false) {
                Next::Attach => return,
                Next::WaitUntil(due) => tokio::select! {
                    () = sleep_until(due) => {}
                    () = changed => {}
                },
                Next::Stay | Next::GiveUp => changed.await,
            }
        }
    }

    async fn until_giving_up(&self) {
        loop {
            let changed = self.session.line.changed(self.index);
            let serving = || self.session.held[self.index].served();
            match self.session.line.next(self.index, serving()) {
                Next::GiveUp if !serving() => return,
                Next::GiveUp => {
                    sleep(SORTING).await;
                    if self.session.line.next(self.index, true) == Next::GiveUp {
                        return;
                    }
                }
                Next::Stay | Next::Attach | Next::WaitUntil(_) => changed.await,
            }
        }
    }

    async fn open(&self, connection: &Connection) -> Result<QueueChannel, Error> {
        let Session { shared, topology, opening, .. } = self.session.as_ref();
        let WorkerOptions { id, consumer_timeout, .. } = &shared.options;
        let (prefetch, longest) = (topology.prefetch, *consumer_timeout);
        let opened =
            QueueChannel::open(connection, &self.queue, id, prefetch, longest, &shared.spill);
        let mut opened = pin!(opened);
        // It is closed with the session, which ends us.
        let turn = opening.acquire().await.ok();
        let in_time = timeout(SLOW, opened.as_mut()).await;
        // Others do not wait for a queue that has no leader. In the end the broker may answer that
        // with the end of the connection: the next time it is one of its own.
        drop(turn);
        let opened = match in_time {
            Ok(opened) => opened,
            Err(_) => {
                tracing::warn!(queue = self.queue, "does not answer: has it lost its leader?");
                shared.set_apart().insert(self.index);
                opened.await
            }
        };
        opened?.ok_or_else(|| Error::QueueMissing { queue: self.queue.clone() })
    }
}
