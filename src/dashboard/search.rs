//! Looks in the journal for a task or a resource: what was executed, by whom, from
//! when to when.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::journal::{TaskTrace, find_task};
use crate::protocol::journal::{Entry, Written};
use crate::protocol::task::{Resource, TaskId};
use crate::rabbit::connection::{Connect, close_connection};
use crate::rabbit::error::Error;
use crate::rabbit::journal::{JournalReader, Start};

/// Executions that are given, the last ones.
const MOST: usize = 500;

/// Attempts at one task that are given, the last ones.
const MOST_ATTEMPTS: usize = 100;

/// Searches at once: each reads a journal that may hold millions of records.
const AT_ONCE: usize = 2;

/// What is not found by then is not waited for.
const LIMIT: Duration = Duration::from_secs(60);

/// Looks things up, a few at a time.
pub(super) struct Searcher {
    connect: Connect,
    turns: Semaphore,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Findings {
    /// What was looked for.
    query: String,
    /// The task of that id.
    task: Option<TaskTrace>,
    /// The resource of that name, or that of the task.
    resource: Option<Resource>,
    /// The last attempts at the resource's tasks, oldest first.
    attempts: Vec<Entry>,
    /// There were more before these.
    more: bool,
    /// How many pairs of these ran at the same time, by the workers' clocks.
    overlaps: usize,
    /// Whether all was read in time.
    complete: bool,
}

impl Searcher {
    pub(super) fn new(connect: &Connect) -> Self {
        Self { connect: connect.clone(), turns: Semaphore::new(AT_ONCE) }
    }

    /// Looks for a task of this id and a resource of this name in what was recorded
    /// from `since` on. `None` when too many others look for something already.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub(super) async fn search(
        &self,
        query: &str,
        since: Option<SystemTime>,
    ) -> Result<Option<Findings>, Error> {
        let Ok(_turn) = self.turns.try_acquire() else { return Ok(None) };
        let deadline = Instant::now() + LIMIT;
        let (task, found) =
            tokio::join!(self.task(query, since, deadline), self.resource(query, since, deadline));
        let (task, mut found) = (task?, found?);
        let mut resource = Resource::new(query).ok().filter(|_| !found.attempts.is_empty());
        if resource.is_none()
            && let Some(touched) = task.as_ref().and_then(touched)
        {
            found = self.resource(touched.as_str(), since, deadline).await?;
            resource = Some(touched);
        }
        let overlaps = overlaps(&found.attempts);
        let Found { attempts, more, complete } = found;
        let attempts = Vec::from(attempts);
        let query = query.to_owned();
        Ok(Some(Findings { query, task, resource, attempts, more, overlaps, complete }))
    }

    async fn task(
        &self,
        query: &str,
        since: Option<SystemTime>,
        deadline: Instant,
    ) -> Result<Option<TaskTrace>, Error> {
        let Ok(id) = TaskId::new(query) else { return Ok(None) };
        let finding = find_task(&self.connect, &id, since);
        let Ok(trace) = timeout_at(deadline, finding).await else { return Ok(None) };
        let mut trace = trace?;
        let superfluous = trace.attempts.len().saturating_sub(MOST_ATTEMPTS);
        trace.attempts.drain(..superfluous);
        let known = !trace.attempts.is_empty() || !trace.executing.is_empty();
        Ok(known.then_some(trace))
    }

    async fn resource(
        &self,
        name: &str,
        since: Option<SystemTime>,
        deadline: Instant,
    ) -> Result<Found, Error> {
        let mut found = Found::default();
        let reading = self.read(name, since, &mut found);
        let complete = match timeout_at(deadline, reading).await {
            Ok(read) => read.map(|()| true)?,
            Err(_) => false,
        };
        found.complete = complete;
        Ok(found)
    }

    async fn read(
        &self,
        name: &str,
        since: Option<SystemTime>,
        found: &mut Found,
    ) -> Result<(), Error> {
        let connection = self.connect.open("dashboard, search").await?;
        let start = since.map_or(Start::First, Start::Since);
        let namespace = self.connect.namespace();
        let mut reader = JournalReader::open(&connection, namespace, start, true).await?;
        let mut written = Written::default();
        while let Some(batch) = reader.next_before_end().await? {
            if written.is_new(&batch) {
                let wanted = |entry: &Entry| entry.record.resource.as_str() == name;
                batch.into_entries().filter(wanted).for_each(|entry| found.push(entry));
            }
        }
        reader.close().await;
        close_connection(connection).await;
        Ok(())
    }
}

#[derive(Default)]
struct Found {
    attempts: VecDeque<Entry>,
    more: bool,
    complete: bool,
}

impl Found {
    fn push(&mut self, entry: Entry) {
        if self.attempts.len() == MOST {
            self.attempts.pop_front();
            self.more = true;
        }
        self.attempts.push_back(entry);
    }
}

fn touched(trace: &TaskTrace) -> Option<Resource> {
    let ended = trace.attempts.last().map(|entry| &entry.record.resource);
    ended.or(trace.executing.first().map(|found| &found.running.resource)).cloned()
}

/// How many began before an earlier one had ended.
fn overlaps(attempts: &VecDeque<Entry>) -> usize {
    let ran = attempts.iter().filter(|entry| entry.record.outcome.is_attempt());
    let mut ran: Vec<_> = ran.map(|e| (e.record.at_us, e.record.end_us())).collect();
    ran.sort_unstable();
    let (mut ended, mut overlaps) = (0, 0);
    for (at, end) in ran {
        overlaps += usize::from(at < ended);
        ended = ended.max(end);
    }
    overlaps
}
