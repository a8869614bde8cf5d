//! What was executed lately: read when a delivery comes that an owner was lost
//! with.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use lapin::Connection;
use tokio::time::{Instant, sleep, timeout};

use super::reader::{JournalReader, Start};
use super::writer::Journal;
use crate::protocol::journal::Executed;
use crate::protocol::names::Namespace;
use crate::protocol::partition::PartitionId;
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
#[derive(Debug, Default)]
pub(crate) struct Lately {
    /// The tasks that were executed.
    pub(crate) executed: Executed,
    /// The partitions in which others have done something.
    pub(crate) partitions: HashSet<PartitionId>,
}

/// The partitions of a lost worker come within milliseconds of one another. One look
/// serves all that have come by then.
const GATHER: Duration = Duration::from_millis(10);

/// What was recorded within the window and before this was called, and when it was
/// last true. Nothing, if that cannot be read in 2 s.
pub(crate) async fn recorded_lately(
    connection: &Connection,
    namespace: &Namespace,
    journal: &Journal,
    window: Window,
) -> (Instant, Lately) {
    sleep(GATHER).await;
    let began = Instant::now();
    let lately = match timeout(TIMEOUT, read(connection, namespace, journal, window)).await {
        Ok(Ok(lately)) => lately,
        Ok(Err(error)) => {
            tracing::warn!(%error, "what was executed and not acked is executed again");
            Lately::default()
        }
        Err(_) => {
            tracing::warn!("the journal is too slow: what was not acked is executed again");
            Lately::default()
        }
    };
    let (tasks, took) = (lately.executed.len(), began.elapsed());
    tracing::debug!(?window, tasks, ?took, "read the last executions");
    (began, lately)
}

async fn read(
    connection: &Connection,
    namespace: &Namespace,
    journal: &Journal,
    window: Window,
) -> Result<Lately, Error> {
    let start = Start::Since(SystemTime::now() - window.length());
    // Our own mark is where it ends: what was there before it has come by then.
    let opened = JournalReader::open(connection, namespace, start, false);
    let (reader, mark) = tokio::join!(opened, journal.mark());
    let mut reader = reader?;
    let mut lately = Lately::default();
    let Some(mark) = mark else { return Ok(lately) };
    loop {
        let batch = reader.next().await?;
        lately.executed.note(&batch);
        if batch.writer != *journal.writer() {
            lately.partitions.extend(batch.records.iter().map(|record| record.partition));
        } else if batch.number >= mark {
            break;
        }
    }
    reader.close().await;
    Ok(lately)
}
