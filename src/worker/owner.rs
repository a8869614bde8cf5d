//! One partition on one worker, over all the channels of a session: owns it,
//! or stands by.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::Execute;
use super::session::Session;
use super::tenure::Tenure;
use crate::backoff::Backoff;
use crate::protocol::ownership::priority;
use crate::protocol::partition::PartitionId;
use crate::rabbit::consumer::QueueChannel;
use crate::rabbit::error::Error;

/// Tells an owner that a newcomer wins its partition.
pub(super) struct Outbid;

/// Consumes one partition for as long as the session lasts.
pub(super) struct Owner<E> {
    session: Arc<Session<E>>,
    /// Which of the session's queues it is; a partition's number, or 0 for the
    /// inbox.
    index: usize,
    queue: String,
    outbids: mpsc::UnboundedReceiver<Outbid>,
}

impl<E: Execute> Owner<E> {
    pub(super) fn new(
        session: Arc<Session<E>>,
        index: usize,
        queue: String,
        outbids: mpsc::UnboundedReceiver<Outbid>,
    ) -> Self {
        Self { session, index, queue, outbids }
    }

    /// Owns the partition or stands by, until the session drains. Says once
    /// when it consumes.
    pub(super) async fn run(mut self, opened: mpsc::Sender<()>) -> Result<(), Error> {
        let mut opened = Some(opened);
        let mut backoff = Backoff::new(None);
        loop {
            let drain = &self.session.drains[self.index];
            if drain.is_cancelled() || self.session.abort.is_cancelled() {
                return Ok(());
            }
            // What was asked of an earlier channel has been done; who asked for
            // it consumes already, and will have the right of way.
            while self.outbids.try_recv().is_ok() {}
            let channel = self.open().await?;
            if let Some(opened) = opened.take() {
                // The listener may have ended; then nobody waits.
                opened.send(()).await.ok();
            }
            let tenure = Tenure::new(Arc::clone(&self.session), self.index, &self.queue, channel);
            let result = tenure.run(&mut self.outbids).await;
            let Err(error) = result else { continue };
            if !self.session.connection.status().connected() {
                return Err(error);
            }
            let delay = backoff.next().unwrap_or_default();
            tracing::warn!(queue = self.queue, %error, retry_in = ?delay, "lost a queue");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = drain.cancelled() => {}
                () = self.session.abort.cancelled() => {}
            }
        }
    }

    async fn open(&self) -> Result<QueueChannel, Error> {
        let Session { shared, connection, topology, .. } = self.session.as_ref();
        let options = &shared.options;
        let partition = PartitionId::new(self.index as u32);
        let priority = priority(&options.id, options.weight, partition);
        QueueChannel::open(connection, &self.queue, &options.id, Some(priority), topology.prefetch)
            .await?
            .ok_or_else(|| Error::QueueMissing { queue: self.queue.clone() })
    }
}
