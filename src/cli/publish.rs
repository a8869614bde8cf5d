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
use super::lines::{Fields, Item, read};
use super::metrics::MetricsArgs;
use super::progress::{bar, counted, grouped};
use super::signals::{INTERRUPTED, until_signalled};
use crate::{Producer, ProducerOptions, Task, TraceContext};

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
    #[arg(long, value_name = "NAME", conflicts_with = "kind")]
    kind_name: Option<String>,
    /// Where the W3C `traceparent` stands; for lines without a valid one it is that of
    /// the environment, in TRACEPARENT and TRACESTATE
    #[arg(long, value_name = "POINTER", value_parser = parse_pointer)]
    traceparent: Option<String>,
    /// Count lines that are no task, and go on; the exit code is 3 then
    #[arg(long)]
    skip_invalid: bool,
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
}

/// What the reader knows of the lines whose tasks are not answered.
#[derive(Debug, Default)]
struct Reading {
    /// Line numbers, in the order of the tasks.
    lines: VecDeque<u64>,
    skipped: u64,
    bytes: u64,
    /// Why reading stopped early.
    error: Option<anyhow::Error>,
    /// It was told to.
    interrupted: bool,
}

impl Publish {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let options = ProducerOptions {
            max_in_flight: self.max_in_flight as usize,
            max_payload: self.max_payload,
            metrics: self.metrics.serve().await?,
            ..ProducerOptions::default()
        };
        let name = self.name();
        let fields = Fields {
            resource: self.resource.clone(),
            id: self.id.clone(),
            kind: self.kind.clone(),
            kind_name: self.kind_name.clone(),
            traceparent: self.traceparent.clone(),
            trace_context: trace_of_environment(),
            max_bytes: self.max_payload,
        };
        let (items, size) = read(&self.file, fields).with_context(|| name.clone())?;
        let producer = Producer::open(&broker.connect()?, options).await?;
        until_signalled("waiting for what is sent to be confirmed", async |shutdown| {
            self.publish(&name, producer, items, size, shutdown).await
        })
        .await
    }

    fn name(&self) -> String {
        match self.file.as_os_str().as_encoded_bytes() {
            b"-" => "standard input".to_owned(),
            _ => self.file.display().to_string(),
        }
    }

    async fn publish(
        &self,
        name: &str,
        producer: Producer,
        items: mpsc::Receiver<Item>,
        size: Option<u64>,
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
        let reading = Arc::new(Mutex::new(Reading::default()));
        let tasks = self.tasks(name, items, Arc::clone(&reading), shutdown.clone());
        let mut published = Box::pin(producer.publish_all(tasks));
        let mut summary = Summary::default();
        let mut refused = None;
        let blocked = tokio::spawn(show_blocked(producer.blocked(), progress.clone()));
        while let Some(done) = published.next().await {
            let line = lock(&reading).lines.pop_front().unwrap_or_default();
            summary.published_again += u64::from(done.sent - 1);
            match done.outcome {
                Ok(_) => summary.published += 1,
                Err(error) => {
                    refused = Some(anyhow!("{name}, line {line}: {error}").context(format!(
                        "stopped; the {} lines before it are published, up to {} after it may be",
                        summary.published, self.max_in_flight
                    )));
                    break;
                }
            }
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
        let Reading { error: invalid, skipped, interrupted, .. } =
            std::mem::take(&mut *lock(&reading));
        summary.skipped = skipped;
        summary.seconds = started.elapsed().as_secs_f64();
        self.report(&summary, interrupted)?;
        match refused.or(invalid) {
            Some(error) => Err(error),
            None if interrupted => Ok(ExitCode::from(INTERRUPTED)),
            None if skipped > 0 => Ok(ExitCode::from(SKIPPED)),
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
        let (name, skip) = (name.to_owned(), self.skip_invalid);
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
                    match item.task {
                        Ok(task) => {
                            reading.lines.push_back(item.line);
                            drop(reading);
                            return Some((task, items));
                        }
                        Err(reason) if skip && !reason.is_final() => {
                            reading.skipped += 1;
                            drop(reading);
                            tracing::debug!(line = item.line, %reason, "skipped");
                        }
                        Err(reason) => {
                            reading.error = Some(anyhow!("{name}, line {}: {reason}", item.line));
                            return None;
                        }
                    }
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
        let mut text = format!(
            "published {} in {:.1} s ({rate:.0}/s)",
            counted(summary.published, "task"),
            summary.seconds
        );
        if summary.skipped > 0 {
            text += &format!("; skipped {} without a task", counted(summary.skipped, "line"));
        }
        if summary.published_again > 0 {
            let again = grouped(summary.published_again);
            text += &format!("; sent {again} again after a lost connection, they may run twice");
        }
        if interrupted {
            text += "; interrupted before the end of the input";
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

fn lock(reading: &Mutex<Reading>) -> std::sync::MutexGuard<'_, Reading> {
    reading.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks the form of a JSON pointer (RFC 6901).
fn parse_pointer(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err(format!("a JSON pointer starts with a slash: /{text}"))
    }
}
