//! Keeps looking at a namespace, for the page and for `keylane top`: over one
//! connection for the counts and the workers and one for the journal, which come
//! back by themselves.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::snapshot::Snapshot;
use super::view::View;
use crate::backoff::Backoff;
use crate::protocol::journal::Batch;
use crate::protocol::steering::Steering;
use crate::rabbit::collector::{Collector, Counts};
use crate::rabbit::connection::{Connect, Connection};
use crate::rabbit::control::{Control, Said, WorkerReport};
use crate::rabbit::error::Error;
use crate::rabbit::journal::{JournalReader, Start};
use crate::rabbit::steering::OrderLog;

/// Between two looks, while somebody watches.
const PERIOD: Duration = Duration::from_secs(1);

/// And while nobody does: enough to know who is there, at a tenth of the cost.
const UNWATCHED_PERIOD: Duration = Duration::from_secs(10);

/// Counting takes at most this part of the time: a broker with a thousand
/// partitions that is slow is not made slower.
const COUNTING_SHARE: u32 = 5;

/// Longer than a broker under load takes for anything that is asked here.
const LIMIT: Duration = Duration::from_secs(20);

/// Recorded before the start, so that the first look shows something. A fleet that
/// executes 10,000 tasks a second has 600,000 records in that time, which are read
/// in seconds.
const LOOK_BACK: Duration = Duration::from_secs(60);

/// At the start: time for the first answer of a worker, and after each for the
/// next. Who is slower is in the next picture.
const FIRST_ANSWER: Duration = Duration::from_millis(500);
const NEXT_ANSWER: Duration = Duration::from_millis(100);

/// Looks until it is dropped.
pub(crate) struct Observer {
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    connect: Connect,
    role: &'static str,
    frames: watch::Sender<Arc<Frame>>,
    /// Somebody begins to watch.
    watched: Notify,
    looks: Arc<Looks>,
}

/// A snapshot, and its JSON once somebody has asked for it.
pub(crate) struct Frame {
    pub(crate) snapshot: Snapshot,
    json: OnceLock<String>,
}

impl Frame {
    fn new(snapshot: Snapshot) -> Arc<Self> {
        Arc::new(Self { snapshot, json: OnceLock::new() })
    }

    pub(crate) fn json(&self) -> &str {
        self.json.get_or_init(|| {
            serde_json::to_string(&self.snapshot).unwrap_or_else(|error| {
                tracing::error!(%error, "a snapshot cannot be written");
                "null".to_owned()
            })
        })
    }
}

/// Looks of our own at the dead letters: while one lasts, the broker does not count
/// what we hold. Odd while one lasts.
#[derive(Default)]
pub(crate) struct Looks(AtomicU64);

impl Looks {
    /// A look that lasts until this is dropped. One at a time.
    pub(crate) fn begin(self: &Arc<Self>) -> Look {
        self.0.fetch_add(1, Ordering::SeqCst);
        Look(Arc::clone(self))
    }

    fn mark(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether there was none since the mark.
    fn none_since(&self, mark: u64) -> bool {
        mark.is_multiple_of(2) && self.mark() == mark
    }
}

pub(crate) struct Look(Arc<Looks>);

impl Drop for Look {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// What comes in.
enum Heard {
    Asked,
    Counts(Counts, Option<u32>),
    Steering(Steering),
    Report(WorkerReport),
    Batch(Batch),
    CaughtUp,
}

impl Observer {
    /// Connects, and has looked once when it returns.
    ///
    /// # Errors
    /// Whatever keeps it from looking at all; later it tries again.
    pub(crate) async fn start(
        connect: &Connect,
        role: &'static str,
        looks: Arc<Looks>,
    ) -> Result<Self, Error> {
        let mut session = Session::open(connect, role).await?;
        let mut view = View::new(connect.namespace(), *session.collector.topology(), now_us());
        session.first_look(&mut view).await?;
        let frames = watch::Sender::new(Frame::new(view.snapshot(now_us())));
        let connect = connect.clone();
        let shared = Arc::new(Shared { connect, role, frames, watched: Notify::new(), looks });
        let task = tokio::spawn(Arc::clone(&shared).run(view, session)).abort_handle();
        Ok(Self { shared, task })
    }

    /// The pictures from now on, a new one every second for as long as this is kept.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Frame>> {
        let receiver = self.shared.frames.subscribe();
        self.shared.watched.notify_waiters();
        receiver
    }

    /// The last picture.
    pub(crate) fn frame(&self) -> Arc<Frame> {
        Arc::clone(&self.shared.frames.borrow())
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn run(self: Arc<Self>, mut view: View, first: Session) {
        let mut session = Some(first);
        let mut backoff = Backoff::new(None);
        loop {
            let error = match session.take() {
                Some(session) => {
                    let error = self.follow(&mut view, session).await;
                    backoff = Backoff::new(None);
                    error
                }
                None => match Session::open(&self.connect, self.role).await {
                    Ok(found) => {
                        view.found(*found.collector.topology(), now_us());
                        session = Some(found);
                        continue;
                    }
                    Err(error) => error,
                },
            };
            tracing::warn!(%error, "lost the broker, trying again");
            view.lost(error.to_string(), now_us());
            self.frames.send_replace(Frame::new(view.snapshot(now_us())));
            sleep(backoff.next().unwrap_or(PERIOD)).await;
        }
    }

    /// Goes on until something fails.
    async fn follow(&self, view: &mut View, session: Session) -> Error {
        let Session { collector, orders, mut control, journal: _kept, mut reader } = session;
        let (heard, hearing) = mpsc::channel(64);
        tokio::select! {
            error = self.count(&collector, heard.clone()) => error,
            error = self.follow_orders(&collector, orders, heard.clone()) => error,
            error = self.ask(&mut control, heard.clone()) => error,
            error = read(&mut reader, heard) => error,
            never = self.publish(view, hearing) => match never {},
        }
    }

    async fn count(&self, collector: &Collector, heard: mpsc::Sender<Heard>) -> Error {
        loop {
            let (began, mark) = (Instant::now(), self.looks.mark());
            let counts = match limited(collector.counts()).await {
                Ok(counts) => counts,
                Err(error) => return error,
            };
            let dead = self.looks.none_since(mark).then_some(counts.dead.ready);
            heard.send(Heard::Counts(counts, dead)).await.ok();
            self.pause(PERIOD.max(began.elapsed() * (COUNTING_SHARE - 1))).await;
        }
    }

    async fn follow_orders(
        &self,
        collector: &Collector,
        orders: Option<OrderLog>,
        heard: mpsc::Sender<Heard>,
    ) -> Error {
        // Nobody can steer this namespace.
        let Some(mut orders) = orders else { return std::future::pending().await };
        loop {
            if let Err(error) = limited(orders.catch_up(collector.connection())).await {
                return error;
            }
            let steering = orders.ledger().steering().clone();
            heard.send(Heard::Steering(steering)).await.ok();
            self.pause(PERIOD).await;
        }
    }

    async fn ask(&self, control: &mut Control, heard: mpsc::Sender<Heard>) -> Error {
        loop {
            heard.send(Heard::Asked).await.ok();
            if let Err(error) = limited(control.say(&Said::Report)).await {
                return error;
            }
            let pause = self.pause(PERIOD);
            tokio::pin!(pause);
            loop {
                let answer = tokio::select! {
                    () = &mut pause => break,
                    answer = control.next_answer() => answer,
                };
                match answer {
                    Some(Ok(report)) => heard.send(Heard::Report(report)).await.ok(),
                    Some(Err(error)) => return error,
                    None => return ended("ask the workers"),
                };
            }
        }
    }

    async fn pause(&self, period: Duration) {
        if self.frames.receiver_count() > 0 {
            return sleep(period).await;
        }
        tokio::select! {
            () = sleep(UNWATCHED_PERIOD.max(period)) => {}
            () = self.watched.notified() => {}
        }
    }

    async fn publish(&self, view: &mut View, mut hearing: mpsc::Receiver<Heard>) -> Infallible {
        loop {
            let pause = self.pause(PERIOD);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(heard) = hearing.recv() => note(view, heard),
                }
            }
            self.frames.send_replace(Frame::new(view.snapshot(now_us())));
        }
    }
}

/// Nothing more comes for so long: what was recorded before has been read.
const CAUGHT_UP: Duration = Duration::from_millis(500);

async fn read(reader: &mut JournalReader, heard: mpsc::Sender<Heard>) -> Error {
    let (began_us, mut caught_up) = (now_us(), false);
    loop {
        let batch = match timeout(CAUGHT_UP, reader.next()).await {
            Ok(Ok(batch)) => Some(batch),
            Ok(Err(error)) => return error,
            Err(_) => None,
        };
        let is_new = |batch: &Batch| batch.records.iter().any(|r| r.end_us() >= began_us);
        if !caught_up && batch.as_ref().is_none_or(is_new) {
            caught_up = true;
            heard.send(Heard::CaughtUp).await.ok();
        }
        if let Some(batch) = batch {
            heard.send(Heard::Batch(batch)).await.ok();
        }
    }
}

/// What is open while the broker answers.
struct Session {
    collector: Collector,
    orders: Option<OrderLog>,
    control: Control,
    /// Of the reader's own: what it has to catch up with delays nothing else.
    journal: Connection,
    reader: JournalReader,
}

impl Session {
    async fn open(connect: &Connect, role: &str) -> Result<Self, Error> {
        let collector = limited(Collector::open(connect, role)).await?;
        let orders = limited(collector.orders()).await?;
        let control = limited(collector.control()).await?;
        let journal = connect.open(&format!("{role}, journal")).await?;
        let start = Start::Since(SystemTime::now() - LOOK_BACK);
        let namespace = connect.namespace();
        let reader = limited(JournalReader::open(&journal, namespace, start, false)).await?;
        Ok(Self { collector, orders, control, journal, reader })
    }

    /// Counts, and hears who is there.
    async fn first_look(&mut self, view: &mut View) -> Result<(), Error> {
        let counts = limited(self.collector.counts()).await?;
        let consumed = counts.partitions.iter().any(|count| count.consumers > 0);
        let dead = counts.dead.ready;
        view.note_counts(counts, Some(dead));
        if let Some(orders) = &self.orders {
            view.note_steering(orders.ledger().steering().clone());
        }
        // Also where nobody would answer: whoever may not ask is told so now.
        limited(self.control.say(&Said::Report)).await?;
        limited(self.control.taken()).await?;
        let patience = if consumed { FIRST_ANSWER } else { NEXT_ANSWER };
        for report in self.control.answers(patience, NEXT_ANSWER).await? {
            view.note_report(report, now_us());
        }
        Ok(())
    }
}

async fn limited<T>(asking: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let silent = Error::Silent { seconds: LIMIT.as_secs() };
    timeout(LIMIT, asking).await.unwrap_or(Err(silent))
}

fn ended(doing: &str) -> Error {
    Error::Broker { doing: doing.to_owned(), source: "the broker ended the channel".into() }
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

fn note(view: &mut View, heard: Heard) {
    match heard {
        Heard::Asked => view.note_question(),
        Heard::Counts(counts, dead) => view.note_counts(counts, dead),
        Heard::Steering(steering) => view.note_steering(steering),
        Heard::Report(report) => view.note_report(report, now_us()),
        Heard::Batch(batch) => view.note_batch(batch, now_us()),
        Heard::CaughtUp => view.note_caught_up(),
    }
}
