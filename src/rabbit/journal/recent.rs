//! What was executed lately: read when a delivery comes that an owner was lost
//! with.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lapin::Connection;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::reader::{JournalReader, Start};
use super::writer::Journal;
use crate::protocol::journal::Executed;
use crate::protocol::names::Namespace;
use crate::protocol::partition::PartitionId;
use crate::protocol::task::Task;
use crate::rabbit::error::Error;

/// How far back a look goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Window {
    /// An owner that was killed is found lost at once, and acks follow their records
    /// within 5 s.
    Short,
    /// One that fell silent is found lost after two heartbeats, 20 s, and one whose node was lost
    /// after the broker's wait for it, a minute.
    Long,
}

impl Window {
    const fn length(self) -> Duration {
        match self {
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
    looks: Vec<Arc<Executed>>,
    /// The partitions in which others have done something.
    partitions: Arc<HashSet<PartitionId>>,
}

impl Lately {
    /// Whether this task was executed.
    pub(crate) fn contains(&self, task: &Task) -> bool {
        self.looks.iter().any(|executed| executed.contains(task))
    }

    /// Whether another worker has done something in this partition.
    pub(crate) fn knows(&self, partition: PartitionId) -> bool {
        self.partitions.contains(&partition)
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
    tail: Arc<Mutex<Option<Tail>>>,
}

/// Where the last look ended.
struct Tail {
    reader: JournalReader,
    opened: Instant,
    /// What was recorded before is in `lately`.
    asked: Instant,
    lately: Lately,
}

impl Recent {
    pub(crate) fn new(window: Window) -> Self {
        Self { window, tail: Arc::default() }
    }

    /// What was recorded within the window and before `by`, and maybe more. Nothing, if
    /// that cannot be read in 2 s.
    pub(crate) async fn look(
        &self,
        connection: &Connection,
        namespace: &Namespace,
        journal: &Journal,
        by: Instant,
    ) -> Lately {
        // Whoever comes while another one looks finds what that has found.
        let mut kept = self.tail.lock().await;
        if let Some(tail) = kept.as_ref()
            && tail.asked >= by
        {
            return tail.lately.clone();
        }
        sleep(GATHER).await;
        let began = Instant::now();
        let tail = kept.take().filter(|tail| tail.opened.elapsed() < READS_ON);
        let looking = self.look_on(tail, connection, namespace, journal);
        let lately = match timeout(TIMEOUT, looking).await {
            Ok(Ok(tail)) => {
                if tail.opened >= began {
                    self.close_later(tail.opened);
                }
                kept.insert(tail).lately.clone()
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "what was executed and not acked is executed again");
                Lately::default()
            }
            Err(_) => {
                tracing::warn!("the journal is too slow: what was not acked is executed again");
                Lately::default()
            }
        };
        let tasks: usize = lately.looks.iter().map(|executed| executed.len()).sum();
        let (window, took) = (self.window, began.elapsed());
        tracing::debug!(?window, tasks, ?took, "read the last executions");
        lately
    }

    /// Ends the reader that was opened then, so that nothing is kept for it.
    fn close_later(&self, opened: Instant) {
        let tail = Arc::clone(&self.tail);
        tokio::spawn(async move {
            sleep_until(opened + READS_ON).await;
            let ours = tail.lock().await.take_if(|tail| tail.opened == opened);
            if let Some(Tail { reader, .. }) = ours {
                reader.close().await;
            }
        });
    }

    /// Reads up to a mark of our own: what was there before it has come by then.
    async fn look_on(
        &self,
        tail: Option<Tail>,
        connection: &Connection,
        namespace: &Namespace,
        journal: &Journal,
    ) -> Result<Tail, Error> {
        let asked = Instant::now();
        let start = Start::Since(SystemTime::now() - self.window.length());
        let opened = async {
            match tail {
                Some(tail) => Ok::<_, Error>(tail),
                None => {
                    let reader = JournalReader::open(connection, namespace, start, false).await?;
                    Ok(Tail { reader, opened: asked, asked, lately: Lately::default() })
                }
            }
        };
        let (tail, mark) = tokio::join!(opened, journal.mark());
        let mut tail = tail?;
        // The journal ends with the worker.
        let Some(mark) = mark else { return Ok(tail) };
        let mut executed = Executed::default();
        let mut partitions = HashSet::clone(&tail.lately.partitions);
        loop {
            let batch = tail.reader.next().await?;
            executed.note(&batch);
            if batch.writer != *journal.writer() {
                partitions.extend(batch.records.iter().map(|record| record.partition));
            } else if batch.number >= mark {
                break;
            }
        }
        tail.lately.looks.push(Arc::new(executed));
        tail.lately.partitions = Arc::new(partitions);
        tail.asked = asked;
        Ok(tail)
    }
}
