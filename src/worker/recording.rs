//! A record before its ack: what a tenure did goes to the journal, and an ack is sent
//! when all that was recorded before it is there.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use crate::protocol::journal::{Outcome, Record};
use crate::protocol::settlement::Ack;
use crate::rabbit::consumer::QueueChannel;
use crate::rabbit::error::Error;
use crate::rabbit::journal::{Journal, Position, Unacked};

/// The records and acks of one tenure. Without a journal, acks wait for nothing.
pub(super) struct Recording {
    writing: Option<Writing>,
    /// Of the last record.
    recorded: Position,
    /// Of the last one of an execution.
    executed: Position,
    /// What waits for its record.
    acks: VecDeque<(Position, Ack)>,
    /// Another owner's record waits for the acks that wait for this.
    foreign: Option<Position>,
}

struct Writing {
    journal: Arc<Journal>,
    settled: watch::Receiver<Position>,
    /// What was recorded and not acked, for the journal's readers.
    unacked: Unacked,
}

impl Recording {
    pub(super) fn new(journal: Option<Arc<Journal>>) -> Self {
        let writing = journal.map(|journal| {
            let (settled, unacked) = (journal.settled(), journal.unacked());
            Writing { journal, settled, unacked }
        });
        Self {
            writing,
            recorded: Position::default(),
            executed: Position::default(),
            acks: VecDeque::new(),
            foreign: None,
        }
    }

    /// Whether anything is recorded at all.
    pub(super) fn records(&self) -> bool {
        self.writing.is_some()
    }

    pub(super) fn append(&mut self, record: Record) {
        let Some(Writing { journal, unacked, .. }) = &self.writing else { return };
        let is_executed = record.outcome == Outcome::Executed;
        self.recorded = journal.append(record, is_executed.then_some(unacked));
        if is_executed {
            self.executed = self.recorded;
        }
    }

    /// Something is to be acked that another owner has recorded.
    pub(super) fn foreign(&mut self) {
        self.foreign = Some(Position::ANY);
        if let Some(Writing { unacked, .. }) = &self.writing {
            unacked.foreign();
        }
    }

    /// Sends an ack when all records up to now are in the journal.
    pub(super) fn ack_later(&mut self, ack: Ack) {
        self.acks.push_back((self.recorded, ack));
        // Whatever is done is acked together.
        self.foreign = self.foreign.map(|foreign| foreign.min(self.recorded));
    }

    /// Whether an ack has not been sent.
    pub(super) fn holds_acks(&self) -> bool {
        !self.acks.is_empty()
    }

    /// Waits until the journal has more.
    ///
    /// # Cancel safety
    /// Nothing is missed.
    pub(super) async fn progress(&mut self) {
        if let Some(Writing { settled, .. }) = &mut self.writing
            && settled.changed().await.is_ok()
        {
            return;
        }
        // Without a journal nothing waits; its end is that of the worker.
        std::future::pending().await
    }

    /// Sends the acks of what is in the journal.
    ///
    /// # Errors
    /// When the channel is lost.
    pub(super) async fn ack(&mut self, channel: &QueueChannel) -> Result<(), Error> {
        while let Some((position, ack)) = self.acks.front().copied() {
            if !self.is_recorded(position) {
                break;
            }
            channel.ack(ack).await?;
            self.acks.pop_front();
            let all_of_these = self.acks.front().is_none_or(|(next, _)| *next > position);
            if all_of_these && self.foreign.is_none_or(|foreign| foreign <= position) {
                self.foreign = None;
                if let Some(Writing { unacked, .. }) = &self.writing {
                    unacked.acked(position, self.executed);
                }
            }
        }
        Ok(())
    }

    fn is_recorded(&self, position: Position) -> bool {
        self.writing.as_ref().is_none_or(|writing| *writing.settled.borrow() >= position)
    }

    /// Waits until everything is in the journal, and acks.
    ///
    /// # Errors
    /// When the channel is lost.
    pub(super) async fn settle(&mut self, channel: &QueueChannel) -> Result<(), Error> {
        if let Some(Writing { journal, settled, .. }) = &mut self.writing {
            journal.hurry();
            // An error is the end of the journal, and of the worker.
            settled.wait_for(|settled| *settled >= self.recorded).await.ok();
        }
        self.ack(channel).await
    }
}
