//! Writes records as groups: whatever is there when a batch was confirmed makes
//! the next one. One batch is on its way at a time, so their order is that of
//! their numbers, and one that is lost is simply written again.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use uuid::Uuid;

use super::JournalFigures;
use super::unacked::{AllUnacked, Unacked};
use crate::backoff::Backoff;
use crate::protocol::journal::{Batch, Record};
use crate::protocol::ownership::WorkerId;
use crate::rabbit::publisher::{PublishError, Publisher, Route, Sent};

/// Where a record stands among those of its writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Position(pub(super) u64);

impl Position {
    /// Behind all others.
    pub(crate) const ANY: Self = Self(u64::MAX);
}

/// Records of a batch, at the most: some hundred kilobytes of them.
const BATCH: usize = 512;

/// How long the first record of a batch waits for others. Acks wait longer for
/// one another, so it delays none, and saves the broker most of the messages.
const LINGER: Duration = Duration::from_millis(20);

/// How long acks wait for a broker that does not take records: one that runs low
/// on memory takes none until somebody has worked its queues off. After that,
/// work goes on, and the records are written when that is possible again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Executions that may be acked before they are recorded. When so many wait, their acks wait
/// too: what is lost with the worker is bounded.
const UNRECORDED: u64 = 10_000;

/// Records that are kept for a broker that takes none. Older ones are given up,
/// which a reader sees by the number that they would have had.
const KEPT: usize = 100_000;

/// Time to write what is left, when the worker ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time to say that this was all.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// The journal, as one worker process writes it.
pub(crate) struct Journal {
    state: Mutex<State>,
    wake: Notify,
    /// Somebody waits: nothing lingers.
    hurry: Notify,
    /// Nobody waits for records up to here.
    settled: watch::Sender<Position>,
    writer: Arc<str>,
    task: Mutex<Option<AbortHandle>>,
    publisher: Publisher,
    figures: Arc<JournalFigures>,
    unacked: Mutex<AllUnacked>,
}

#[derive(Default)]
struct State {
    records: VecDeque<Record>,
    appended: Position,
    marks: Vec<oneshot::Sender<u64>>,
    /// Records that were given up, and will be missed.
    lost: bool,
    /// Records that came late, and no batch has said so.
    late: u64,
    closing: bool,
}

impl Journal {
    /// Starts to write. `publisher` waits for a lost broker, for ever.
    pub(crate) fn start(publisher: Publisher, stream: &str, worker: WorkerId) -> Arc<Self> {
        let journal = Arc::new(Self {
            state: Mutex::default(),
            wake: Notify::new(),
            hurry: Notify::new(),
            settled: watch::Sender::new(Position::default()),
            writer: Uuid::new_v4().simple().to_string().into(),
            task: Mutex::default(),
            publisher,
            figures: Arc::default(),
            unacked: Mutex::default(),
        });
        let writing = Arc::clone(&journal).write(Route::queue(stream), worker);
        let handle = tokio::spawn(writing).abort_handle();
        *journal.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        journal
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who writes: names this run of the worker in its batches.
    pub(crate) fn writer(&self) -> &Arc<str> {
        &self.writer
    }

    /// For a tenure that records and acks.
    pub(crate) fn unacked(&self) -> Unacked {
        self.unacked.lock().unwrap_or_else(PoisonError::into_inner).add()
    }

    /// Adds a record. It is in the journal when its position is settled. `unacked`, if an ack
    /// is to follow.
    pub(crate) fn append(&self, record: Record, unacked: Option<&Unacked>) -> Position {
        let mut state = self.state();
        if state.records.len() == KEPT {
            state.records.pop_front();
            state.lost = true;
            self.figures.given_up.fetch_add(1, Ordering::Relaxed);
        }
        state.records.push_back(record);
        state.appended.0 += 1;
        let position = state.appended;
        if let Some(unacked) = unacked {
            // Before it is written.
            unacked.recorded(position);
        }
        self.figures.waits();
        drop(state);
        self.wake.notify_one();
        position
    }

    /// What it has written, and what waits.
    pub(crate) fn figures(&self) -> &Arc<JournalFigures> {
        &self.figures
    }

    /// Up to where the broker has confirmed, or is not waited for.
    pub(crate) fn settled(&self) -> watch::Receiver<Position> {
        self.settled.subscribe()
    }

    /// Writes a batch, if need be an empty one, and says its number when it is
    /// confirmed. What others have recorded until now stands before it.
    pub(crate) async fn mark(&self) -> Option<u64> {
        let (sender, number) = oneshot::channel();
        self.state().marks.push(sender);
        self.wake.notify_one();
        self.hurry.notify_one();
        number.await.ok()
    }

    /// Somebody waits for what was recorded: it is written at once.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Writes what is left and closes the connection.
    pub(crate) async fn close(&self) {
        self.state().closing = true;
        self.wake.notify_one();
        self.hurry.notify_one();
        let written = async {
            let appended = self.state().appended;
            // The sender is ours.
            self.settled().wait_for(|settled| *settled >= appended).await.is_ok()
        };
        if timeout(CLOSE_TIMEOUT, written).await.is_err() {
            tracing::warn!("the last records could not be written to the journal");
        } else if self.state().appended > Position::default() {
            // Who has never written anything need not say so.
            timeout(GOODBYE_TIMEOUT, self.mark()).await.ok();
        }
        // It may be trying to connect, for ever, and keeps the journal alive.
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
        self.publisher.close().await;
    }

    async fn write(self: Arc<Self>, route: Route, worker: WorkerId) {
        // 0 means that it is not known (`Batch::open_from`).
        let mut number = 1;
        let mut open = Open::default();
        loop {
            self.wake.notified().await;
            loop {
                let batch_is_full = || self.state().records.len() >= BATCH;
                let urgent = {
                    let state = self.state();
                    if state.records.is_empty() && state.marks.is_empty() {
                        break;
                    }
                    state.closing || !state.marks.is_empty()
                };
                if !urgent && !batch_is_full() {
                    // One that was meant for an earlier batch costs nothing.
                    timeout(LINGER, self.hurry.notified()).await.ok();
                }
                let taken_at = Instant::now();
                let (records, last, marks, late, ended) = {
                    let mut state = self.state();
                    // A number that is never written shows what was given up.
                    number += u64::from(std::mem::take(&mut state.lost));
                    let count = state.records.len().min(BATCH);
                    let records: Vec<_> = state.records.drain(..count).collect();
                    let last = Position(state.appended.0 - state.records.len() as u64);
                    let (marks, late) = (std::mem::take(&mut state.marks), state.late);
                    state.late = 0;
                    let ended = state.closing && state.records.is_empty() && !marks.is_empty();
                    (records, last, marks, late, ended)
                };
                let count = records.len() as u64;
                open.note(number, last);
                let batch = Batch {
                    v: Batch::VERSION,
                    writer: Arc::clone(&self.writer),
                    number,
                    open_from: open.first(number, self.first_unacked()),
                    late,
                    ended,
                    worker: worker.clone(),
                    records,
                };
                match serde_json::to_vec(&batch) {
                    Ok(body) => self.commit(&route, body.into()).await,
                    Err(error) => tracing::error!(%error, "a batch of records is lost"),
                }
                {
                    // Locked, so that what comes meanwhile is not forgotten.
                    let state = self.state();
                    let more = !state.records.is_empty();
                    self.figures.confirmed(count, taken_at.into_std(), more);
                }
                self.settled.send_replace(last);
                for mark in marks {
                    // Who asked may have given up.
                    mark.send(number).ok();
                }
                number += 1;
            }
        }
    }

    fn first_unacked(&self) -> Option<Position> {
        self.unacked.lock().unwrap_or_else(PoisonError::into_inner).first()
    }

    /// Waits for the answer. A node that gives none for long, though it could, may be cut
    /// off from the others: the next one is tried.
    async fn confirmed(&self, sent: Sent) -> Result<(), PublishError> {
        let session = sent.session();
        let mut confirmed = pin!(sent.confirmed());
        loop {
            match timeout(PATIENCE, &mut confirmed).await {
                Ok(answer) => return answer,
                Err(_) if self.publisher.blocked().borrow().is_some() => {}
                Err(_) => {
                    self.publisher.leave(session).await;
                    let reason = format!("its node gave no answer for {PATIENCE:?}");
                    return Err(PublishError::Indeterminate { reason });
                }
            }
        }
    }

    /// Publishes a batch until it is confirmed.
    async fn commit(&self, route: &Route, body: Bytes) {
        let deadline = Instant::now() + PATIENCE;
        let confirmed = async {
            let mut backoff = Backoff::new(None);
            loop {
                let properties = BasicProperties::default()
                    .with_content_type("application/json".into())
                    .with_delivery_mode(2);
                let sent = self.publisher.send(route, properties, body.clone(), None).await;
                let result = match sent {
                    Ok(sent) => self.confirmed(sent).await,
                    Err(error) => Err(error),
                };
                let Err(error) = result else { return };
                let delay = backoff.next().unwrap_or_default();
                tracing::warn!(%error, retry_in = ?delay, "the journal was not written");
                sleep(delay).await;
            }
        };
        tokio::pin!(confirmed);
        tokio::select! {
            () = &mut confirmed => return,
            () = sleep_until(deadline) => {}
        }
        tracing::error!(
            at_most = UNRECORDED,
            "the broker takes no records: tasks are acked without one until it does again"
        );
        let before = *self.settled.borrow();
        let unrecorded = Position(before.0.saturating_add(UNRECORDED));
        self.figures.stalled.store(true, Ordering::Relaxed);
        self.settled.send_replace(unrecorded);
        confirmed.await;
        self.figures.stalled.store(false, Ordering::Relaxed);
        let late = {
            let mut state = self.state();
            let late = state.appended.min(unrecorded).0 - before.0;
            state.late += late;
            late
        };
        self.figures.late.fetch_add(late, Ordering::Relaxed);
        tracing::info!(late, "the broker takes records again");
    }
}

/// The batches that may have records whose acks were not sent.
#[derive(Debug, Default)]
struct Open {
    /// Each with its last record.
    batches: VecDeque<(u64, Position)>,
}

impl Open {
    /// A batch is about to be written.
    fn note(&mut self, number: u64, last: Position) {
        self.batches.push_back((number, last));
    }

    /// The first batch that is open, as the batch of that number has it. 0 if that is not
    /// known.
    fn first(&mut self, number: u64, first_unacked: Option<Position>) -> u64 {
        let is_acked = |last: Position| first_unacked.is_none_or(|first| last < first);
        while self.batches.front().is_some_and(|(_, last)| is_acked(*last)) {
            self.batches.pop_front();
        }
        match self.batches.front() {
            // Somebody else recorded it.
            _ if first_unacked == Some(Position::default()) => 0,
            Some((first, _)) => *first,
            None => number,
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_says_from_where_on_acks_are_missing() {
        let mut open = Open::default();
        let mut next = |number, last, first_unacked: Option<u64>| {
            open.note(number, Position(last));
            open.first(number, first_unacked.map(Position))
        };
        assert_eq!(next(0, 2, Some(1)), 0);
        assert_eq!(next(1, 4, Some(2)), 0, "2 is in batch 0");
        assert_eq!(next(2, 6, Some(3)), 1);
        assert_eq!(next(3, 6, Some(6)), 2, "an empty batch");
        assert_eq!(next(4, 8, None), 4, "all were acked");
        assert_eq!(next(5, 9, Some(9)), 5);
        assert_eq!(next(6, 9, Some(0)), 0, "somebody else's");
        assert_eq!(next(7, 9, Some(9)), 5);
    }
}
