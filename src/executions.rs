//! Waits for tasks to be executed, by following the journal.
//!
//! One follower serves everybody who waits on one producer. It begins when somebody asks, as
//! long ago as the task in question was published, reads while somebody waits, and ends when
//! nobody has asked for a while. No clock is compared with the broker's or a worker's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

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

/// A task that was published.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Published {
    pub(crate) task: Fingerprint,
    /// Its number among those of its producer.
    pub(crate) sequence: u64,
    pub(crate) at: Moment,
}

/// A time in the past, by both of our clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    counted: Instant,
    told: SystemTime,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { counted: Instant::now(), told: SystemTime::now() }
    }

    /// The longer of what the clocks say: one may stand still while the machine sleeps, the
    /// other may be set.
    fn age(self) -> Duration {
        self.counted.elapsed().max(self.told.elapsed().unwrap_or_default())
    }

    fn earlier(self, by: Duration) -> Self {
        let counted = self.counted.checked_sub(by).unwrap_or(self.counted);
        Self { counted, told: self.told.checked_sub(by).unwrap_or(UNIX_EPOCH) }
    }
}

/// What is known of the tasks of one producer.
#[derive(Debug)]
pub(crate) struct Executions {
    connect: Connect,
    /// Only its tasks are remembered.
    producer: Arc<str>,
    /// Nothing was published before.
    opened: Moment,
    state: Mutex<State>,
    /// Somebody waits.
    asked: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<Fingerprint, Vec<oneshot::Sender<Answer>>>,
    known: Known,
    follower: Option<Follower>,
    /// How many there have been.
    followers: u64,
}

#[derive(Debug)]
struct Follower {
    number: u64,
    /// The end of what was published from then on is read.
    began: Moment,
    /// The batch that it reads next, once it has read any.
    next: Option<u64>,
    handle: AbortHandle,
}

/// By so much more a follower begins earlier, for what it takes to open the journal.
const MARGIN: Duration = Duration::from_secs(10);

/// A follower whom nobody asks for so long ends.
const IDLE: Duration = Duration::from_secs(10);

impl Executions {
    pub(crate) fn new(connect: Connect, producer: Arc<str>) -> Arc<Self> {
        let (state, asked) = (Mutex::default(), Arc::default());
        Arc::new(Self { connect, producer, opened: Moment::now(), state, asked })
    }

    /// Waits for the end of a task.
    ///
    /// # Cancel safety
    /// Nothing is lost: it can be asked for again.
    pub(crate) async fn wait(self: &Arc<Self>, published: Published) -> Answer {
        let answer = {
            let mut state = self.state();
            if let Some(answer) = state.known.get(&published.task) {
                return answer;
            }
            let (sender, answer) = oneshot::channel();
            state.waiting.entry(published.task).or_default().push(sender);
            let began = state.follower.as_ref().map(|follower| follower.began);
            let forgotten = state.known.may_have_forgotten(published.sequence);
            if let Some(from) = begins(began, published.at, forgotten, self.opened) {
                state.follow(self, from);
            }
            answer
        };
        self.asked.notify_one();
        answer.await.unwrap_or_else(|_| {
            let doing = "follow the journal".to_owned();
            let source = "the follower has ended".into();
            Err(NotExecuted::Unknown(Arc::new(Error::Broker { doing, source })))
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what a follower has read, unless another one has taken its place.
    fn note(&self, number: u64, batch: Batch, offset: Option<u64>) {
        let mut state = self.state();
        let Some(follower) = state.follower.as_mut().filter(|f| f.number == number) else { return };
        follower.next = offset.map(|offset| offset + 1);
        for entry in batch.into_entries() {
            if entry.record.producer.as_ref() != Some(&self.producer) {
                continue;
            }
            let Some(task) = Fingerprint::of_record(&entry.record) else { continue };
            let sequence = entry.record.sequence.unwrap_or_default();
            let Some(answer) = answer(entry) else { continue };
            for asker in state.waiting.remove(&task).into_iter().flatten() {
                // Who asked may have given up.
                asker.send(answer.clone()).ok();
            }
            state.known.insert(task, sequence, answer);
        }
    }

    fn is_waited_for(&self) -> bool {
        let mut state = self.state();
        state.waiting.retain(|_, askers| askers.iter().any(|asker| !asker.is_closed()));
        !state.waiting.is_empty()
    }

    /// Whether a follower of this number has nothing to do any more. Under the lock that
    /// others ask with: nobody is left behind.
    fn ends(&self, number: u64) -> bool {
        let mut state = self.state();
        let is_last = state.follower.as_ref().is_some_and(|f| f.number == number);
        if is_last && state.waiting.is_empty() {
            state.follower = None;
        }
        !is_last || state.follower.is_none()
    }

    fn fail(&self, error: Error) {
        let error = Arc::new(error);
        let mut state = self.state();
        for asker in std::mem::take(&mut state.waiting).into_values().flatten() {
            asker.send(Err(NotExecuted::Unknown(Arc::clone(&error)))).ok();
        }
        state.follower = None;
    }
}

/// From when on a follower has to read anew for what was published `at` that time, if it has to.
/// `began` is the one that there is, if its end may be `forgotten` it was read. Whoever asks for
/// older and older tasks has it go back twice as far each time, but not before `opened`.
fn begins(began: Option<Moment>, at: Moment, forgotten: bool, opened: Moment) -> Option<Moment> {
    let Some(began) = began else { return Some(at) };
    if at.counted >= began.counted {
        return forgotten.then_some(at);
    }
    let twice = began.earlier(began.age());
    let from = if twice.counted < at.counted { twice } else { at };
    let before_all = from.counted < opened.counted && opened.counted <= at.counted;
    Some(if before_all { opened } else { from })
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
        Outcome::Failed | Outcome::Aborted | Outcome::Lost | Outcome::Superseded => None,
    }
}

impl State {
    /// Begins anew. Whoever waits is answered: what was not found where the last one read is
    /// behind that, and so behind `from`.
    fn follow(&mut self, executions: &Arc<Executions>, from: Moment) {
        if let Some(Follower { handle, .. }) = self.follower.take() {
            handle.abort();
        }
        // What is read now is known again.
        self.known = Known::default();
        self.followers += 1;
        let (number, asked) = (self.followers, Arc::clone(&executions.asked));
        let connect = executions.connect.clone();
        let following = follow(Arc::downgrade(executions), connect, number, asked);
        let handle = tokio::spawn(following).abort_handle();
        self.follower = Some(Follower { number, began: from, next: None, handle });
    }

    /// Where the follower goes on.
    fn start(&self) -> Option<Start> {
        let Follower { began, next, .. } = self.follower.as_ref()?;
        Some(next.map_or_else(|| Start::Within(began.age() + MARGIN), Start::Offset))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(Follower { handle, .. }) = self.follower.take() {
            handle.abort();
        }
    }
}

async fn follow(executions: Weak<Executions>, connect: Connect, number: u64, asked: Arc<Notify>) {
    let mut backoff = Backoff::new(None);
    loop {
        let Err(error) = read(&executions, &connect, number, &asked).await else { return };
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
    number: u64,
    asked: &Notify,
) -> Result<(), Error> {
    let connection: Connection = connect.open("producer, journal").await?;
    let start = executions.upgrade().and_then(|executions| executions.state().start());
    let Some(start) = start else { return Ok(()) };
    let mut reader = JournalReader::open(&connection, connect.namespace(), start, false).await?;
    let mut idle_since = None;
    while let Some(waited_for) = executions.upgrade().map(|all| all.is_waited_for()) {
        if waited_for {
            idle_since = None;
            let batch = timeout(Duration::from_secs(1), reader.next()).await;
            let Some(executions) = executions.upgrade() else { break };
            if let Ok(batch) = batch {
                executions.note(number, batch?, reader.offset());
            }
            continue;
        }
        // Nothing is read that nobody waits for: only so much is remembered.
        let idle_since = *idle_since.get_or_insert_with(Instant::now);
        if idle_since.elapsed() < IDLE {
            timeout(Duration::from_secs(1), asked.notified()).await.ok();
        } else if executions.upgrade().is_none_or(|executions| executions.ends(number)) {
            break;
        }
    }
    reader.close().await;
    close_connection(connection).await;
    Ok(())
}

/// The last ends, in two generations: the older one is forgotten when the younger one is
/// full.
#[derive(Debug, Default)]
struct Known {
    young: Generation,
    old: Generation,
    /// The highest number of a task whose end was forgotten.
    forgotten: Option<u64>,
}

#[derive(Debug, Default)]
struct Generation {
    ends: HashMap<Fingerprint, Answer>,
    /// The highest number among them.
    highest: Option<u64>,
}

impl Known {
    /// Some 10 MB.
    const GENERATION: usize = 1 << 16;

    fn get(&self, task: &Fingerprint) -> Option<Answer> {
        self.young.ends.get(task).or_else(|| self.old.ends.get(task)).cloned()
    }

    fn may_have_forgotten(&self, sequence: u64) -> bool {
        self.forgotten.is_some_and(|forgotten| sequence <= forgotten)
    }

    fn insert(&mut self, task: Fingerprint, sequence: u64, answer: Answer) {
        if self.young.ends.len() == Self::GENERATION {
            self.forgotten = self.forgotten.max(self.old.highest);
            self.old = std::mem::take(&mut self.young);
        }
        self.young.ends.insert(task, answer);
        self.young.highest = self.young.highest.max(Some(sequence));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::task::{Origin, Resource, TaskId};

    #[test]
    fn what_is_known_is_bounded_and_what_is_forgotten_is_known() {
        let (id, r) = (TaskId::new("t").expect("an id"), Resource::new("r").expect("a key"));
        let task = |sequence| {
            let origin = Origin { producer: "p".into(), sequence, republished: false };
            Fingerprint::new(&id, &r, &origin)
        };
        let mut known = Known::default();
        let ends = 5 * Known::GENERATION as u64;
        for sequence in 0..ends {
            let reason = String::new();
            known.insert(task(sequence), sequence, Err(NotExecuted::DeadLettered { reason }));
        }
        assert!(known.young.ends.len() + known.old.ends.len() <= 2 * Known::GENERATION);
        for sequence in (0..ends).step_by(1_000) {
            let is_known = known.get(&task(sequence)).is_some();
            assert!(is_known || known.may_have_forgotten(sequence), "{sequence}");
        }
        assert!(!known.may_have_forgotten(ends), "it is still to come");
    }

    #[tokio::test]
    async fn a_follower_goes_on_where_it_was() {
        // Nobody is there: it is not to get far.
        let connect = Connect::new("amqp://127.0.0.1:1").expect("a URL");
        let executions = Executions::new(connect, "p".into());
        let batch = |number| {
            let json =
                format!(r#"{{"v":1,"writer":"x","number":{number},"worker":"w","records":[]}}"#);
            Batch::read(json.as_bytes()).expect("a batch")
        };
        executions.state().follow(&executions, executions.opened);
        assert!(matches!(executions.state().start(), Some(Start::Within(ago)) if ago >= MARGIN));
        executions.note(1, batch(1), Some(41));
        assert!(matches!(executions.state().start(), Some(Start::Offset(42))));
        executions.state().follow(&executions, executions.opened);
        executions.note(1, batch(2), Some(90));
        let start = executions.state().start();
        assert!(matches!(start, Some(Start::Within(_))), "another one has taken its place");
    }

    #[test]
    fn whoever_asks_for_older_and_older_tasks_has_few_followers_begin() {
        let now = Moment::now().earlier(Duration::from_secs(1));
        let opened = now.earlier(Duration::from_secs(200));
        let (mut began, mut times) = (None, 0);
        for ago in 0..=200 {
            let at = now.earlier(Duration::from_secs(ago));
            if let Some(from) = begins(began, at, false, opened) {
                assert!(from.counted <= at.counted && from.counted >= opened.counted);
                (began, times) = (Some(from), times + 1);
            }
        }
        assert!((4..12).contains(&times), "{times}");
        assert!(begins(began, now, false, opened).is_none(), "it is read, or will be");
        let again = begins(began, now, true, opened).map(|from| from.counted);
        assert_eq!(again, Some(now.counted), "it may be forgotten");
    }

    #[test]
    fn a_clock_that_was_set_makes_nothing_younger() {
        let published = Moment::now().earlier(Duration::from_secs(60));
        let ahead = Moment { told: published.told + Duration::from_secs(3_600), ..published };
        let slept = Moment { counted: Instant::now(), ..published };
        for moment in [published, ahead, slept] {
            assert!(moment.age() >= Duration::from_secs(60), "{moment:?}");
        }
    }
}
