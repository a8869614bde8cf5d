//! Waits for tasks to be executed, by following the journal.
//!
//! One follower serves everybody who waits on one producer. It begins when
//! somebody asks, where the task in question was published, and ends when nobody
//! has asked for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::Backoff;
use crate::protocol::journal::{Batch, Entry, Fingerprint, Outcome, Record};
use crate::protocol::ownership::WorkerId;
use crate::protocol::result::TaskResult;
use crate::rabbit::connection::{Connect, Connection, close_connection};
use crate::rabbit::error::Error;
use crate::rabbit::journal::{JournalReader, Start};

/// A task was executed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Executed {
    /// By whom.
    pub worker: WorkerId,
    /// When the handler started, by the worker's clock.
    pub started_at: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// What it said.
    pub result: TaskResult,
}

/// A task was not executed, or nobody can tell.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum NotExecuted {
    /// It was given up. If it is replayed it may be executed yet.
    #[error("the task is in the dead letters: {reason}")]
    DeadLettered {
        /// Why.
        reason: String,
    },
    /// The journal cannot be read.
    #[error("whether the task was executed cannot be told: {0}")]
    Unknown(#[source] Arc<Error>),
}

type Answer = Result<Executed, NotExecuted>;

/// What is known of the tasks of one producer.
#[derive(Debug)]
pub(crate) struct Executions {
    connect: Connect,
    /// Only its tasks are remembered.
    producer: Arc<str>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<Fingerprint, Waiting>,
    known: Known,
    /// Where the follower began, if there is one.
    follower: Option<(SystemTime, AbortHandle)>,
}

/// Those who wait for one task.
#[derive(Debug)]
struct Waiting {
    /// Where its end is to be looked for.
    from: SystemTime,
    askers: Vec<oneshot::Sender<Answer>>,
}

/// Clocks may differ by half of it, the broker's and ours.
const MARGIN: Duration = Duration::from_secs(10);

/// A follower whom nobody asks for so long ends.
const IDLE: Duration = Duration::from_secs(10);

impl Executions {
    pub(crate) fn new(connect: Connect, producer: Arc<str>) -> Arc<Self> {
        Arc::new(Self { connect, producer, state: Mutex::default() })
    }

    /// Waits for the end of a task that was published at that time.
    ///
    /// # Cancel safety
    /// Nothing is lost: it can be asked for again.
    pub(crate) async fn wait(
        self: &Arc<Self>,
        task: Fingerprint,
        published_at: SystemTime,
    ) -> Answer {
        let from = published_at.checked_sub(MARGIN).unwrap_or(UNIX_EPOCH);
        let answer = {
            let mut state = self.state();
            if let Some(answer) = state.known.get(&task) {
                return answer;
            }
            let (sender, answer) = oneshot::channel();
            let nobody = || Waiting { from, askers: Vec::new() };
            state.waiting.entry(task).or_insert_with(nobody).askers.push(sender);
            // Half of the margin, so that not every task that was published a little
            // earlier than the others begins anew.
            let latest = from + MARGIN / 2;
            let read_past = state.known.forgotten_until >= latest;
            let follows = state.follower.as_ref().is_some_and(|(began, _)| *began <= latest);
            if !follows || read_past {
                state.follow(self);
            }
            answer
        };
        answer.await.unwrap_or_else(|_| {
            let doing = "follow the journal".to_owned();
            let source = "the follower has ended".into();
            Err(NotExecuted::Unknown(Arc::new(Error::Broker { doing, source })))
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, batch: Batch) {
        let mut state = self.state();
        for entry in batch.into_entries() {
            if entry.record.producer.as_ref() != Some(&self.producer) {
                continue;
            }
            let task = Fingerprint::of_record(&entry.record);
            let ended_at = UNIX_EPOCH + Duration::from_micros(entry.record.end_us());
            let Some(answer) = answer(entry) else { continue };
            for asker in state.waiting.remove(&task).into_iter().flat_map(|w| w.askers) {
                // Who asked may have given up.
                asker.send(answer.clone()).ok();
            }
            state.known.insert(task, answer, ended_at);
        }
    }

    fn is_waited_for(&self) -> bool {
        let mut state = self.state();
        state.waiting.retain(|_, waiting| waiting.askers.iter().any(|asker| !asker.is_closed()));
        !state.waiting.is_empty()
    }

    fn fail(&self, error: Error) {
        let error = Arc::new(error);
        let mut state = self.state();
        for asker in std::mem::take(&mut state.waiting).into_values().flat_map(|w| w.askers) {
            asker.send(Err(NotExecuted::Unknown(Arc::clone(&error)))).ok();
        }
        state.follower = None;
    }
}

/// How a task ended, if it did.
fn answer(entry: Entry) -> Option<Answer> {
    let Entry { worker, record: Record { at_us, took_us, outcome, reason, result, .. } } = entry;
    match outcome {
        Outcome::Executed => Some(Ok(Executed {
            worker,
            started_at: UNIX_EPOCH + Duration::from_micros(at_us),
            took: Duration::from_micros(took_us),
            result,
        })),
        Outcome::DeadLettered => {
            let reason = reason.unwrap_or_else(|| "no reason is given".to_owned());
            Some(Err(NotExecuted::DeadLettered { reason }))
        }
        Outcome::Failed | Outcome::Aborted | Outcome::Lost => None,
    }
}

impl State {
    /// Begins, anew if need be, where the end of everything can be found that is waited for.
    fn follow(&mut self, executions: &Arc<Executions>) {
        if let Some((_, follower)) = self.follower.take() {
            follower.abort();
        }
        let from = self.waiting.values().map(|waiting| waiting.from).min();
        let from = from.unwrap_or_else(SystemTime::now);
        // What is read now is known again.
        self.known = Known::default();
        let following = follow(Arc::downgrade(executions), executions.connect.clone(), from);
        self.follower = Some((from, tokio::spawn(following).abort_handle()));
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some((_, follower)) = self.follower.take() {
            follower.abort();
        }
    }
}

async fn follow(executions: Weak<Executions>, connect: Connect, from: SystemTime) {
    let mut backoff = Backoff::new(None);
    loop {
        let Err(error) = read(&executions, &connect, from).await else { return };
        let Some(executions) = executions.upgrade() else { return };
        if !error.is_retryable() {
            return executions.fail(error);
        }
        drop(executions);
        tracing::warn!(%error, "cannot follow the journal, trying again");
        sleep(backoff.next().unwrap_or_default()).await;
    }
}

async fn read(
    executions: &Weak<Executions>,
    connect: &Connect,
    from: SystemTime,
) -> Result<(), Error> {
    let connection: Connection = connect.open("producer, journal").await?;
    let start = Start::Since(from);
    let mut reader = JournalReader::open(&connection, connect.namespace(), start, false).await?;
    let mut asked = Instant::now();
    loop {
        let batch = timeout(Duration::from_secs(1), reader.next()).await;
        let Some(executions) = executions.upgrade() else { break };
        if let Ok(batch) = batch {
            executions.note(batch?);
        }
        if executions.is_waited_for() {
            asked = Instant::now();
        } else if asked.elapsed() > IDLE {
            // Under the lock that others ask with: nobody is left behind.
            let mut state = executions.state();
            if state.waiting.is_empty() {
                state.follower = None;
                break;
            }
        }
    }
    reader.close().await;
    close_connection(connection).await;
    Ok(())
}

/// The last ends, in two generations: the older one is forgotten when the younger one is
/// full, and spans as long as it may take until somebody asks.
#[derive(Debug)]
struct Known {
    young: HashMap<Fingerprint, Answer>,
    old: HashMap<Fingerprint, Answer>,
    young_from: Option<SystemTime>,
    young_until: SystemTime,
    old_until: SystemTime,
    /// Ends up to then may have been forgotten.
    forgotten_until: SystemTime,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            young_from: None,
            young_until: UNIX_EPOCH,
            old_until: UNIX_EPOCH,
            forgotten_until: UNIX_EPOCH,
        }
    }
}

impl Known {
    const GENERATION: usize = 16_384;
    /// Some 20 MB, and ten seconds of 13,000 tasks/s.
    const MOST: usize = 8 * Self::GENERATION;

    fn get(&self, task: &Fingerprint) -> Option<Answer> {
        self.young.get(task).or_else(|| self.old.get(task)).cloned()
    }

    fn insert(&mut self, task: Fingerprint, answer: Answer, ended_at: SystemTime) {
        let spans = |from: SystemTime| ended_at.duration_since(from).is_ok_and(|s| s >= MARGIN);
        let is_full = self.young.len() >= Self::GENERATION;
        if is_full && self.young_from.is_none_or(spans) || self.young.len() >= Self::MOST {
            self.forgotten_until = self.forgotten_until.max(self.old_until);
            self.old = std::mem::take(&mut self.young);
            self.old_until = self.young_until;
            self.young_from = None;
        }
        self.young_from.get_or_insert(ended_at);
        self.young.insert(task, answer);
        self.young_until = self.young_until.max(ended_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::task::{Origin, TaskId};

    /// So many ends, each so long after the one before.
    fn known(ends: u64, apart: Duration) -> Known {
        let id = TaskId::new("t").expect("an id");
        let mut known = Known::default();
        for sequence in 0..ends {
            let origin = Origin { producer: "p".into(), sequence, republished: false };
            let reason = String::new();
            let end = UNIX_EPOCH + apart * u32::try_from(sequence).expect("few");
            let task = Fingerprint::new(&id, &origin);
            known.insert(task, Err(NotExecuted::DeadLettered { reason }), end);
        }
        known
    }

    #[test]
    fn who_asks_soon_finds_the_end_however_fast_they_come() {
        let apart = Duration::from_micros(200);
        let known = known(150_000, apart);
        let youngest = UNIX_EPOCH + apart * 150_000;
        let lasts = youngest.duration_since(known.forgotten_until).expect("later");
        assert!(lasts >= MARGIN, "{lasts:?}");
        assert!(known.old.len() + known.young.len() <= 2 * Known::MOST);
    }

    #[test]
    fn what_is_known_is_bounded() {
        assert_eq!(known(100_000, Duration::ZERO).forgotten_until, UNIX_EPOCH);
        let many = known(400_000, Duration::ZERO);
        assert!(many.old.len() + many.young.len() <= 2 * Known::MOST);
        let slow = known(60_000, Duration::from_secs(1));
        assert!(slow.old.len() + slow.young.len() <= 2 * Known::GENERATION);
    }
}
