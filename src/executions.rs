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
    waiting: HashMap<Fingerprint, Vec<oneshot::Sender<Answer>>>,
    /// When the oldest task that is waited for was published.
    oldest: Option<SystemTime>,
    known: Known,
    /// Where the follower began, if there is one.
    follower: Option<(SystemTime, AbortHandle)>,
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
            state.waiting.entry(task).or_default().push(sender);
            state.oldest = Some(state.oldest.map_or(from, |oldest| oldest.min(from)));
            // Half of the margin, so that not every task that was published a little
            // earlier than the others begins anew.
            let latest = from + MARGIN / 2;
            let read_past = state.known.forgotten_until >= latest;
            let follows = state.follower.as_ref().is_some_and(|(began, _)| *began <= latest);
            if !follows || read_past {
                state.known.forgotten_until = UNIX_EPOCH;
                state.follow(self, from);
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
            for waiting in state.waiting.remove(&task).unwrap_or_default() {
                // Who asked may have given up.
                waiting.send(answer.clone()).ok();
            }
            state.known.insert(task, answer, ended_at);
        }
        if state.waiting.is_empty() {
            state.oldest = None;
        }
    }

    fn is_waited_for(&self) -> bool {
        let mut state = self.state();
        state.waiting.retain(|_, waiting| waiting.iter().any(|sender| !sender.is_closed()));
        !state.waiting.is_empty()
    }

    fn fail(&self, error: Error) {
        let error = Arc::new(error);
        let mut state = self.state();
        for waiting in std::mem::take(&mut state.waiting).into_values().flatten() {
            waiting.send(Err(NotExecuted::Unknown(Arc::clone(&error)))).ok();
        }
        state.oldest = None;
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
    fn follow(&mut self, executions: &Arc<Executions>, from: SystemTime) {
        if let Some((_, follower)) = self.follower.take() {
            follower.abort();
        }
        let from = self.oldest.map_or(from, |oldest| oldest.min(from));
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

/// The last ends, in two generations: the older one is forgotten when the younger
/// one is full.
#[derive(Debug)]
struct Known {
    young: HashMap<Fingerprint, Answer>,
    old: HashMap<Fingerprint, Answer>,
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
            young_until: UNIX_EPOCH,
            old_until: UNIX_EPOCH,
            forgotten_until: UNIX_EPOCH,
        }
    }
}

impl Known {
    const GENERATION: usize = 16_384;

    fn get(&self, task: &Fingerprint) -> Option<Answer> {
        self.young.get(task).or_else(|| self.old.get(task)).cloned()
    }

    fn insert(&mut self, task: Fingerprint, answer: Answer, ended_at: SystemTime) {
        if self.young.len() == Self::GENERATION {
            self.forgotten_until = self.forgotten_until.max(self.old_until);
            self.old = std::mem::take(&mut self.young);
            self.old_until = self.young_until;
        }
        self.young.insert(task, answer);
        self.young_until = self.young_until.max(ended_at);
    }
}
