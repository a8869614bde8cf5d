//! What of a tenure goes into the journal.

use std::time::Duration;

use super::Tenure;
use crate::protocol::fence::FencingToken;
use crate::protocol::journal::{self, Record};
use crate::protocol::settlement::DeliveryTag;
use crate::worker::Execute;
use crate::worker::held::HeldDelivery;

/// Time to record what a drain has aborted.
const LAST_RECORDS: Duration = Duration::from_secs(5);

impl<E: Execute> Tenure<'_, E> {
    /// Acks what was executed, and has all that was done here in the journal before
    /// the next owner begins.
    pub(super) async fn settle(&mut self) {
        // Whoever is told to end does not wait for a broker that takes no records.
        let told = async {
            self.session.abort.cancelled().await;
            tokio::time::sleep(LAST_RECORDS).await;
        };
        let settled = tokio::select! {
            settled = self.recording.settle(&self.channel) => settled,
            () = self.session.lost.cancelled() => return,
            () = told => return,
        };
        if let Err(error) = settled {
            tracing::debug!(queue = self.queue, %error, "the last acks are lost");
        }
    }

    /// Adds to the journal how an attempt ended. Its ack waits for that.
    pub(super) fn record(
        &mut self,
        tag: DeliveryTag,
        outcome: journal::Outcome,
        reason: Option<&str>,
    ) {
        let record = self.deliveries.get(&tag).and_then(|held| self.record_of(held, outcome));
        self.append(record.map(|record| Record {
            reason: reason.map(|text| text.chars().take(Record::MAX_REASON_CHARS).collect()),
            ..record
        }));
    }

    pub(super) fn append(&mut self, record: Option<Record>) {
        if let Some(record) = record {
            self.recording.append(record);
        }
    }

    /// `None` if it is no task, if its handler never began, or without a journal.
    pub(super) fn record_of(
        &self,
        held: &HeldDelivery,
        outcome: journal::Outcome,
    ) -> Option<Record> {
        let (_, task) = held.task.as_ref().filter(|_| self.recording.records())?;
        let partition = self.session.topology.partition_of(&task.resource);
        let epoch = self.mint.token().map(FencingToken::epoch);
        held.record(outcome, partition, epoch, self.session.shared.stints.now_us())
    }

    /// What ran to the last has no end of its own.
    pub(super) fn record_aborted(&mut self) {
        for tag in std::mem::take(&mut self.running_tags).into_values() {
            self.record(tag, journal::Outcome::Aborted, None);
        }
    }
}
