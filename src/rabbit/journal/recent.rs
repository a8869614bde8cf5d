//! What was settled lately: read when a delivery comes that an owner was lost
//! with.

use std::sync::Arc;
use std::time::Duration;

use lapin::Connection;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::reader::{JournalReader, Start};
use super::writer::Journal;
use crate::protocol::journal::{Attempts, Coverage};
use crate::protocol::names::Namespace;
use crate::protocol::partition::PartitionId;
use crate::protocol::suppression::Settled;
use crate::protocol::task::{Resource, Task, TaskId};
use crate::rabbit::error::Error;

/// How far back a look goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Window {
    /// An owner that was killed is found lost at once, and acks mostly follow their records
    /// at once.
    Shortest,
    /// It recorded little, or its acks came late. They mostly follow within 5 s.
    Short,
    /// One that fell silent is found lost after two heartbeats, 20 s, and one whose node was lost
    /// after the broker's wait for it, a minute.
    Long,
}

impl Window {
    const fn length(self) -> Duration {
        match self {
            Self::Shortest => Duration::from_secs(2),
            Self::Short => Duration::from_secs(8),
            Self::Long => Duration::from_secs(90),
        }
    }
}

/// How long a partition waits for the answer. Then what is asked about is
/// executed again.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What the journal has said lately.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lately {
    /// What each look has found; all of them are kept, and none is changed.
    looks: Vec<Arc<Settled>>,
    /// Of what was recorded.
    coverage: Arc<Coverage>,
    attempts: Arc<Attempts>,
}

impl Lately {
    /// Whether this task was settled.
    pub(crate) fn contains(&self, task: &Task) -> bool {
        self.looks.iter().any(|settled| settled.contains(task))
    }

    /// How often this task has failed.
    pub(crate) fn failed(&self, task: &TaskId, resource: &Resource) -> u32 {
        self.attempts.of(task, resource)
    }

    /// Whether somebody has recorded something in this partition, and everything that may
    /// not have been acked is here.
    pub(crate) fn covers(&self, partition: PartitionId) -> bool {
        self.coverage.of(partition)
    }
}

/// The partitions of a lost worker come within milliseconds of one another. One look
/// serves all that have come by then.
const GATHER: Duration = Duration::from_millis(10);

/// So long after it was opened a reader reads on when it is asked again.
const READS_ON: Duration = Duration::from_secs(10);

/// Looks at what was recorded within a window, for all partitions of a session. Looks that
/// come soon after one another share a reader.
pub(crate) struct Recent {
    window: Window,
    last: Arc<Mutex<Option<Look>>>,
}

/// The last look.
struct Look {
    /// What was recorded before was found.
    asked: Instant,
    /// `None` if it could not be read.
    found: Option<Lately>,
    /// Where it ended, while that is kept.
    tail: Option<Tail>,
}

struct Tail {
    reader: JournalReader,
    opened: Instant,
}

impl Recent {
    pub(crate) fn new(window: Window) -> Self {
        Self { window, last: Arc::default() }
    }

    /// What was recorded within the window and before `by`, and maybe more. `None`, if
    /// that cannot be read in 2 s.
    pub(crate) async fn look(
        &self,
        connection: &Connection,
        namespace: &Namespace,
        journal: &Journal,
        by: Instant,
    ) -> Option<Lately> {
        // Whoever comes while another one looks finds what that has found, or has not.
        let mut last = self.last.lock().await;
        if let Some(look) = last.as_ref()
            && look.asked >= by
        {
            return look.found.clone();
        }
        sleep(GATHER).await;
        let asked = Instant::now();
        let before = last.take().and_then(|look| look.tail.zip(look.found));
        let before = before.filter(|(tail, _)| tail.opened.elapsed() < READS_ON);
        let looking = async {
            if before.is_some() {
                match self.read_on(before, connection, namespace, journal).await {
                    Ok(looked) => return Ok(looked),
                    Err(error) => tracing::debug!(%error, "reads the journal anew"),
                }
            }
            self.read_on(None, connection, namespace, journal).await
        };
        let looked = match timeout(TIMEOUT, looking).await {
            Ok(Ok(looked)) => Some(looked),
            Ok(Err(error)) => {
                tracing::warn!(%error, "what was executed and not acked is executed again");
                None
            }
            Err(_) => {
                tracing::warn!("the journal is too slow: what was not acked is executed again");
                None
            }
        };
        let (tail, found) = looked.unzip();
        if let Some(tail) = tail.as_ref().filter(|tail| tail.opened >= asked) {
            self.close_later(tail.opened);
        }
        let looks = found.iter().flat_map(|lately: &Lately| &lately.looks);
        let tasks: usize = looks.map(|settled| settled.len()).sum();
        let (window, took) = (self.window, asked.elapsed());
        tracing::debug!(?window, tasks, ?took, "read the last executions");
        last.insert(Look { asked, found, tail }).found.clone()
    }

    /// Ends the reader that was opened then, so that nothing is kept for it.
    fn close_later(&self, opened: Instant) {
        let last = Arc::clone(&self.last);
        tokio::spawn(async move {
            sleep_until(opened + READS_ON).await;
            let mut last = last.lock().await;
            let tail = last.as_mut().map(|look| &mut look.tail);
            let ours = tail.and_then(|tail| tail.take_if(|tail| tail.opened == opened));
            drop(last);
            if let Some(Tail { reader, .. }) = ours {
                reader.close().await;
            }
        });
    }

    /// Reads up to a mark of our own: what was there before it has come by then. Begins
    /// where the look before ended.
    async fn read_on(
        &self,
        before: Option<(Tail, Lately)>,
        connection: &Connection,
        namespace: &Namespace,
        journal: &Journal,
    ) -> Result<(Tail, Lately), Error> {
        let start = Start::Within(self.window.length());
        let opening = async {
            if let Some(before) = before {
                return Ok::<_, Error>(before);
            }
            let opened = Instant::now();
            let reader = JournalReader::open(connection, namespace, start, false).await?;
            Ok((Tail { reader, opened }, Lately::default()))
        };
        // One after the other: if nothing was recorded lately, reading begins with what comes
        // then, and the mark has to be among it.
        let (mut tail, mut lately) = opening.await?;
        // The journal ends with the worker.
        let Some(mark) = journal.mark().await else { return Ok((tail, lately)) };
        let mut settled = Settled::default();
        let mut coverage = Coverage::clone(&lately.coverage);
        let mut attempts = Attempts::clone(&lately.attempts);
        loop {
            let batch = tail.reader.next().await?;
            settled.note(&batch);
            attempts.note(&batch);
            // Ours too: we may have lost the partition, and got it back.
            coverage.note(&batch);
            if batch.writer == *journal.writer() && batch.number >= mark {
                break;
            }
        }
        lately.looks.push(Arc::new(settled));
        (lately.coverage, lately.attempts) = (Arc::new(coverage), Arc::new(attempts));
        Ok((tail, lately))
    }
}
