//! A record before its ack: what a tenure did goes to the journal, and an ack is sent
//! when all that was recorded before it is there.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use crate::protocol::journal::Record;
use crate::protocol::settlement::Ack;
use crate::rabbit::consumer::QueueChannel;
use crate::rabbit::error::Error;
use crate::rabbit::journal::{Journal, Position};

/// The records and acks of one tenure. Without a journal, acks wait for nothing.
pub(super) struct Recording {
    journal: Option<(Arc<Journal>, watch::Receiver<Position>)>,
    /// Of the last record.
    recorded: Position,
    /// What waits for its record.
    acks: VecDeque<(Position, Ack)>,
}

impl Recording {
    pub(super) fn new(journal: Option<Arc<Journal>>) -> Self {
        let journal = journal.map(|journal| {
            let settled = journal.settled();
            (journal, settled)
        });
        Self { journal, recorded: Position::default(), acks: VecDeque::new() }
    }

    /// Whether anything is recorded at all.
    pub(super) fn records(&self) -> bool {
        self.journal.is_some()
    }

    pub(super) fn append(&mut self, record: Record) {
        if let Some((journal, _)) = &self.journal {
            self.recorded = journal.append(record);
        }
    }

    /// Sends an ack when all records up to now are in the journal.
    pub(super) fn ack_later(&mut self, ack: Ack) {
        self.acks.push_back((self.recorded, ack));
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
        if let Some((_, settled)) = &mut self.journal
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
        }
        Ok(())
    }

    fn is_recorded(&self, position: Position) -> bool {
        self.journal.as_ref().is_none_or(|(_, settled)| *settled.borrow() >= position)
    }

    /// Waits until everything is in the journal, and acks.
    ///
    /// # Errors
    /// When the channel is lost.
    pub(super) async fn settle(&mut self, channel: &QueueChannel) -> Result<(), Error> {
        if let Some((_, settled)) = &mut self.journal {
            // An error is the end of the journal, and of the worker.
            settled.wait_for(|settled| *settled >= self.recorded).await.ok();
        }
        self.ack(channel).await
    }
}
