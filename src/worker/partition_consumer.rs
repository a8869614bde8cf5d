//! One partition on one worker, over all the channels of a session: owns it,
//! stands in its line, or waits for a place there.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, sleep_until};

use super::session::Session;
use super::tenure::Tenure;
use super::{Execute, WorkerOptions};
use crate::backoff::Backoff;
use crate::rabbit::consumer::QueueChannel;
use crate::rabbit::error::Error;
use crate::worker::line::Next;

/// An owner that gives way to one that has just come waits for so long: those who stand between
/// them step back meanwhile, and are handed nothing on the way.
const SORTING: Duration = Duration::from_millis(30);

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
            // A missing right or queue is not mended by trying again.
            if !error.is_retryable() || !self.session.connections.connected() {
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
        let channel = self.open().await?;
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

    async fn open(&self) -> Result<QueueChannel, Error> {
        let Session { shared, connections, topology, opening, .. } = self.session.as_ref();
        // It is closed with the session, which ends us.
        let _turn = opening.acquire().await.ok();
        let connection = connections.of(self.index).await?;
        let WorkerOptions { id, consumer_timeout, .. } = &shared.options;
        QueueChannel::open(connection, &self.queue, id, topology.prefetch, *consumer_timeout)
            .await?
            .ok_or_else(|| Error::QueueMissing { queue: self.queue.clone() })
    }
}
