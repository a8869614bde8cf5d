//! `keylane history` and `keylane task`

use std::collections::VecDeque;
use std::process::ExitCode;
use std::time::Duration;

use super::Broker;
use super::since::{Since, time};
use crate::protocol::journal::{Entry, Record, Written};
use crate::protocol::text::OneLine;
use crate::{JournalReader, Resource, TaskId, TaskState, find_task};

/// Show what was executed on a resource, in order
#[derive(Debug, clap::Args)]
pub(super) struct History {
    /// The resource
    #[arg(long)]
    resource: Resource,
    /// From then on: so long ago (`2h`), or at a UTC time [default: all that is kept]
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    /// The last so many attempts only
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

impl History {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let since = self.since.map(|since| since.0);
        let mut journal = JournalReader::open(&broker.connect()?, since).await?;
        let mut written = Written::default();
        let mut last = VecDeque::new();
        let mut any = false;
        while let Some(batch) = journal.next_before_end().await? {
            if !written.is_new(&batch) {
                continue;
            }
            for entry in batch.into_entries().filter(|e| e.record.resource == self.resource) {
                if let Some(most) = self.last {
                    if last.len() == most {
                        last.pop_front();
                    }
                    last.push_back(entry);
                } else {
                    print(&entry, self.json, !any)?;
                }
                any = true;
            }
        }
        journal.close().await;
        for (index, entry) in last.iter().enumerate() {
            print(entry, self.json, index == 0)?;
        }
        if !any {
            eprintln!("keylane: no execution on resource {:?} is recorded", self.resource.as_str());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Show how far a task is: NotExecuted, Executing, Executed or dead-lettered
///
/// Exit code 1 if nothing is known of it.
#[derive(Debug, clap::Args)]
pub(super) struct Task {
    /// The task's id
    id: TaskId,
    /// Look at what was recorded from then on only: so long ago (`2h`), or at a
    /// UTC time
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Task {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let id = self.id;
        let since = self.since.map(|since| since.0);
        let trace = find_task(&broker.connect()?, &id, since).await?;
        let unknown = trace.attempts.is_empty() && trace.state == TaskState::NotExecuted;
        if self.json {
            out!("{}", serde_json::to_string(&trace)?);
        } else if unknown {
            out!("task {}: {}", OneLine(id.as_str()), trace.state);
        } else {
            let running = trace.executing.first().map(|found| &found.running);
            let ended = trace.attempts.last().map(|entry| &entry.record);
            let place = running.map(|running| (&running.resource, running.partition));
            let place = place.or(ended.map(|record| (&record.resource, record.partition)));
            match place {
                Some((resource, partition)) => {
                    let (id, resource) = (OneLine(id.as_str()), OneLine(resource.as_str()));
                    out!("task {id}: {}, resource {resource}, partition {partition}", trace.state);
                }
                None => out!("task {}: {}", OneLine(id.as_str()), trace.state),
            }
            for (index, entry) in trace.attempts.iter().enumerate() {
                print(entry, false, index == 0)?;
            }
            for found in &trace.executing {
                let running = &found.running;
                let (worker, attempt) = (&found.worker, running.attempt);
                out!("running on {worker} since {}, attempt {attempt}", time(running.since_us));
            }
        }
        if unknown {
            eprintln!(
                "keylane: no attempt is recorded: it waits for its turn, was never published, or is \
                 older than the journal"
            );
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One line, with a heading before the first.
fn print(entry: &Entry, json: bool, first: bool) -> anyhow::Result<()> {
    if json {
        out!("{}", serde_json::to_string(entry)?);
        return Ok(());
    }
    if first {
        out!(
            "{:27}  {:>12}  {:13}  {:>7}  {:>5}  {:36}  worker",
            "started",
            "took",
            "outcome",
            "attempt",
            "epoch",
            "task"
        );
    }
    let Record { task, at_us, took_us, attempt, epoch, outcome, reason, result, .. } =
        &entry.record;
    let took = humantime::format_duration(Duration::from_micros(*took_us)).to_string();
    let took = took.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let epoch = epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string());
    let again = if entry.record.redelivered { " (redelivered)" } else { "" };
    out!(
        "{:27}  {took:>12}  {:13}  {attempt:>7}  {epoch:>5}  {:36}  {}{again}",
        time(*at_us),
        outcome,
        OneLine(task.as_str()).to_string(),
        entry.worker
    );
    if let Some(reason) = reason {
        out!("  {}", reason.replace('\n', "\n  "));
    }
    if let Some(result) = result.as_str() {
        out!("  result: {}", result.replace('\n', "\n  "));
    }
    Ok(())
}
