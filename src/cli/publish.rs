//! `keylane publish`

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, anyhow};
use futures_lite::{StreamExt, stream};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Broker;
use super::lines::{Fields, Item, LineError, MAX_KIND_BYTES, read};
use super::metrics::MetricsArgs;
use super::progress::{bar, counted, grouped};
use super::rejects::Rejects;
use super::signals::{INTERRUPTED, until_signalled};
use crate::{Producer, ProducerOptions, PublishError, Task, TraceContext};

/// Exit code when lines of the input were skipped.
const SKIPPED: u8 = 3;

/// Publish tasks from newline-delimited JSON, a task a line
///
/// The line itself is the payload. Tasks of one resource are executed in the
/// order of their lines.
#[derive(Debug, clap::Args)]
pub(super) struct Publish {
    /// The file; `-` is standard input
    #[arg(default_value = "-", value_name = "FILE")]
    file: PathBuf,
    /// Where the resource stands in a line, as a JSON pointer: `/account/id`.
    /// A string or a whole number
    #[arg(long, value_name = "POINTER", value_parser = parse_pointer)]
    resource: String,
    /// Where the task id stands [default: a new one for every line]
    #[arg(long, value_name = "POINTER", value_parser = parse_pointer)]
    id: Option<String>,
    /// Where the kind of task stands
    #[arg(long, value_name = "POINTER", value_parser = parse_pointer)]
    kind: Option<String>,
    /// One kind for all tasks
    #[arg(long, value_name = "NAME", conflicts_with = "kind", value_parser = parse_kind)]
    kind_name: Option<String>,
    /// Where the W3C `traceparent` stands; for lines without a valid one it is that of
    /// the environment, in TRACEPARENT and TRACESTATE
    #[arg(long, value_name = "POINTER", value_parser = parse_pointer)]
    traceparent: Option<String>,
    /// Pass over lines that are no task, and tell which and why; the exit code is 3 then
    #[arg(long)]
    skip_invalid: bool,
    /// Write those lines to this file, each as a JSON object with `line`, `reason` and `text`
    ///
    /// With `jq -r .text FILE`, what was mended can be published. Implies --skip-invalid.
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
    /// Read and check all lines, and publish nothing; the exit code is 3 if one is no task
    ///
    /// Needs no broker. What only a broker knows, such as its limit for messages, is not checked.
    #[arg(long)]
    dry_run: bool,
    /// Begin at this line, counted from 1: where an earlier run was interrupted, which it tells
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
    /// Tasks that are sent and not confirmed, at the most
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_in_flight: u32,
    /// Largest line, in bytes; the broker's own limit is 16 MiB unless raised
    #[arg(long, default_value_t = 16 << 20, value_name = "BYTES")]
    max_payload: usize,
    #[command(flatten)]
    metrics: MetricsArgs,
    /// Print what was done as one JSON object
    #[arg(long)]
    json: bool,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Summary {
    published: u64,
    skipped: u64,
    published_again: u64,
    seconds: f64,
    /// Lines with nothing on them.
    blank: u64,
    /// Where to go on, if the end was not reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_line: Option<u64>,
}

/// What the reader knows of the lines whose tasks are not answered.
#[derive(Debug, Default)]
struct Reading {
    /// Line numbers, in the order of the tasks.
    lines: VecDeque<u64>,
    /// The last line that was read.
    last: u64,
    rejects: Rejects,
    blank: u64,
    bytes: u64,
    /// Why reading stopped early.
    error: Option<anyhow::Error>,
    /// It was told to.
    interrupted: bool,
}

impl Publish {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let name = self.name();
        let (items, size) = read(&self.file, self.fields()).with_context(|| name.clone())?;
        let rejects = Rejects::new(self.rejects.as_deref())?;
        let reading = Reading { last: self.from_line - 1, rejects, ..Reading::default() };
        let reading = Arc::new(Mutex::new(reading));
        if self.dry_run {
            return until_signalled("ending", async |shutdown| {
                self.check(&name, items, reading, shutdown).await
            })
            .await;
        }
        let options = ProducerOptions {
            max_in_flight: self.max_in_flight as usize,
            max_payload: self.max_payload,
            metrics: self.metrics.serve().await?,
            ..ProducerOptions::default()
        };
        let producer = Producer::open(&broker.connect()?, options).await?;
        until_signalled("waiting for what is sent to be confirmed", async |shutdown| {
            self.publish(&name, producer, items, (size, reading), shutdown).await
        })
        .await
    }

    fn fields(&self) -> Fields {
        Fields {
            resource: self.resource.clone(),
            id: self.id.clone(),
            kind: self.kind.clone(),
            kind_name: self.kind_name.clone(),
            traceparent: self.traceparent.clone(),
            trace_context: trace_of_environment(),
            max_bytes: self.max_payload,
            first_line: self.from_line,
        }
    }

    fn skips(&self) -> bool {
        self.skip_invalid || self.dry_run || self.rejects.is_some()
    }

    fn name(&self) -> String {
        match self.file.as_os_str().as_encoded_bytes() {
            b"-" => "standard input".to_owned(),
            _ => self.file.display().to_string(),
        }
    }

    /// Reads all lines, and publishes nothing.
    async fn check(
        &self,
        name: &str,
        items: mpsc::Receiver<Item>,
        reading: Arc<Mutex<Reading>>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<ExitCode> {
        let started = Instant::now();
        let tasks = self.tasks(name, items, Arc::clone(&reading), shutdown);
        let published = tasks.fold(0, |count, _| {
            lock(&reading).lines.pop_front();
            count + 1
        });
        let summary = Summary { published: published.await, ..Summary::default() };
        self.end(name, &reading, summary, started, None)
    }

    async fn publish(
        &self,
        name: &str,
        producer: Producer,
        items: mpsc::Receiver<Item>,
        (size, reading): (Option<u64>, Arc<Mutex<Reading>>),
        shutdown: CancellationToken,
    ) -> anyhow::Result<ExitCode> {
        let started = Instant::now();
        let progress = bar(
            size,
            match size {
                Some(_) => "{bar:40.cyan} {bytes}/{total_bytes}  {msg}  {eta} left",
                None => "{spinner:.cyan} {msg}",
            },
        );
        let tasks = self.tasks(name, items, Arc::clone(&reading), shutdown.clone());
        let mut published = Box::pin(producer.publish_all(tasks));
        let mut summary = Summary::default();
        let mut refused = None;
        let blocked = tokio::spawn(show_blocked(producer.blocked(), progress.clone()));
        while let Some(done) = published.next().await {
            let line = lock(&reading).lines.front().copied().unwrap_or_default();
            summary.published_again += u64::from(done.sent.saturating_sub(1));
            match done.outcome {
                Ok(_) => summary.published += 1,
                Err(error) if self.skips() && is_its_own(&error) => {
                    let text = Some(done.task.payload.as_ref());
                    lock(&reading).rejects.add(line, error.to_string(), text)?;
                }
                Err(error) => {
                    refused = Some(anyhow!("{name}, line {line}: {error}").context(format!(
                        "stopped; the {} before it are published, up to {} after it may be",
                        counted(summary.published, "task"),
                        self.max_in_flight
                    )));
                    break;
                }
            }
            lock(&reading).lines.pop_front();
            if summary.published.is_multiple_of(256) {
                let rate = summary.published as f64 / started.elapsed().as_secs_f64();
                progress
                    .set_message(format!("{}, {rate:.0}/s", counted(summary.published, "task")));
                progress.set_position(lock(&reading).bytes);
            }
        }
        drop(published);
        blocked.abort();
        progress.finish_and_clear();
        producer.close().await;
        self.end(name, &reading, summary, started, refused)
    }

    /// Tells what was done.
    fn end(
        &self,
        name: &str,
        reading: &Mutex<Reading>,
        mut summary: Summary,
        started: Instant,
        refused: Option<anyhow::Error>,
    ) -> anyhow::Result<ExitCode> {
        let mut reading = std::mem::take(&mut *lock(reading));
        let refused = refused.or(reading.error.take());
        summary.skipped = reading.rejects.count();
        summary.blank = reading.blank;
        summary.seconds = started.elapsed().as_secs_f64();
        if refused.is_some() || reading.interrupted {
            // The first whose task is not confirmed.
            let next = reading.lines.front().copied();
            summary.next_line = Some(next.unwrap_or(reading.last + 1));
        }
        reading.rejects.tell(name)?;
        self.report(&summary, reading.interrupted)?;
        match refused {
            Some(error) => Err(error),
            None if reading.interrupted => Ok(ExitCode::from(INTERRUPTED)),
            None if summary.skipped > 0 => Ok(ExitCode::from(SKIPPED)),
            None => Ok(ExitCode::SUCCESS),
        }
    }

    /// The tasks of the lines, until the first that is none.
    fn tasks(
        &self,
        name: &str,
        items: mpsc::Receiver<Item>,
        reading: Arc<Mutex<Reading>>,
        shutdown: CancellationToken,
    ) -> impl futures_lite::Stream<Item = Task> {
        let (name, skip) = (name.to_owned(), self.skips());
        stream::unfold(items, move |mut items| {
            let (name, reading, shutdown) = (name.clone(), Arc::clone(&reading), shutdown.clone());
            async move {
                loop {
                    let item = tokio::select! {
                        biased;
                        () = shutdown.cancelled() => {
                            lock(&reading).interrupted = true;
                            return None;
                        }
                        item = items.recv() => item?,
                    };
                    let mut reading = lock(&reading);
                    reading.bytes = item.end;
                    let reason = match item.task {
                        Ok(task) => {
                            reading.last = item.line;
                            reading.lines.push_back(item.line);
                            drop(reading);
                            return Some((task, items));
                        }
                        Err(LineError::Blank) => {
                            reading.last = item.line;
                            reading.blank += 1;
                            continue;
                        }
                        Err(reason) => reason,
                    };
                    let rejected = match skip && !reason.is_final() {
                        true => {
                            reading.rejects.add(item.line, reason.to_string(), item.text.as_deref())
                        }
                        false => Err(anyhow!("{name}, line {}: {reason}", item.line)),
                    };
                    if let Err(error) = rejected {
                        reading.error = Some(error);
                        return None;
                    }
                    reading.last = item.line;
                }
            }
        })
    }

    fn report(&self, summary: &Summary, interrupted: bool) -> anyhow::Result<()> {
        if self.json {
            out!("{}", serde_json::to_string(summary)?);
            return Ok(());
        }
        let rate = summary.published as f64 / summary.seconds.max(1e-9);
        let tasks = counted(summary.published, "task");
        let mut text = match self.dry_run {
            true => format!("{tasks}, and none is published"),
            false => format!("published {tasks} in {:.1} s ({rate:.0}/s)", summary.seconds),
        };
        if summary.skipped > 0 {
            text += &format!("; skipped {} without a task", counted(summary.skipped, "line"));
        }
        if summary.blank > 0 {
            text += &format!("; {}", counted(summary.blank, "blank line"));
        }
        if summary.published_again > 0 {
            let again = grouped(summary.published_again);
            text += &format!("; sent {again} again after a lost connection, they may run twice");
        }
        if interrupted {
            text += "; interrupted before the end of the input";
        }
        if let Some(line) = summary.next_line {
            text += &format!("; go on with --from-line {line}");
        }
        out!("{text}");
        Ok(())
    }
}

/// The trace that we run in, as that of a handler's command.
fn trace_of_environment() -> Option<TraceContext> {
    let traceparent = std::env::var("TRACEPARENT").ok()?;
    let tracestate = std::env::var("TRACESTATE").ok();
    TraceContext::new(traceparent, tracestate.as_deref()).ok()
}

async fn show_blocked(
    mut blocked: tokio::sync::watch::Receiver<Option<String>>,
    progress: ProgressBar,
) {
    while blocked.changed().await.is_ok() {
        let reason = blocked.borrow_and_update().clone();
        if let Some(reason) = reason {
            progress.set_message(format!("waiting: the broker takes no messages ({reason})"));
        }
    }
}

/// Whether a task was refused for what it is: another one may be published.
fn is_its_own(error: &PublishError) -> bool {
    matches!(error, PublishError::Invalid { .. } | PublishError::TooLarge { .. })
}

fn lock(reading: &Mutex<Reading>) -> std::sync::MutexGuard<'_, Reading> {
    reading.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks a kind for all tasks.
fn parse_kind(text: &str) -> Result<String, String> {
    if text.len() <= MAX_KIND_BYTES {
        Ok(text.to_owned())
    } else {
        Err(format!("a kind has {MAX_KIND_BYTES} bytes at the most"))
    }
}

/// Checks the form of a JSON pointer (RFC 6901).
fn parse_pointer(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err(format!("a JSON pointer starts with a slash: /{text}"))
    }
}
