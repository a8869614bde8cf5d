//! `keylane bench-worker`: the worker processes that the benchmark kills.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::ledger::Note;
use crate::cli::Broker;
use crate::cli::signals::until_signalled;
use crate::{Failure, WorkerId, WorkerOptions, handler_fn};

/// A worker whose handler waits (used by `keylane bench`)
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct BenchWorker {
    #[arg(long)]
    id: WorkerId,
    #[arg(long)]
    slots: u32,
    #[arg(long)]
    task_ms: u64,
    /// Print a line per execution
    #[arg(long)]
    tell: bool,
}

/// One execution, as a line of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Execution {
    pub(super) partition: u32,
    pub(super) resource: u32,
    pub(super) sequence: u32,
    pub(super) redelivered: bool,
    pub(super) start_us: u64,
    pub(super) end_us: u64,
}

impl Execution {
    fn to_line(self) -> String {
        let Self { partition, resource, sequence, redelivered, start_us, end_us } = self;
        let redelivered = u8::from(redelivered);
        format!("{partition} {resource} {sequence} {redelivered} {start_us} {end_us}\n")
    }

    pub(super) fn from_line(line: &str) -> Option<Self> {
        let mut numbers = line.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        Some(Self {
            partition: next()? as u32,
            resource: next()? as u32,
            sequence: next()? as u32,
            redelivered: next()? != 0,
            start_us: next()?,
            end_us: next()?,
        })
    }
}

/// Microseconds since 1970: all processes are on this machine.
pub(super) fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

impl BenchWorker {
    pub(in crate::cli) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let connect = broker.connect()?;
        let Self { id, slots, .. } = self;
        let options = WorkerOptions { id, slots, ..WorkerOptions::default() };
        let (pause, tell) = (Duration::from_millis(self.task_ms), self.tell);
        let handler = handler_fn(move |attempt| async move {
            let start_us = now_us();
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            if tell {
                let Some(note) = Note::from_payload(&attempt.task.payload) else {
                    return Err(Failure::dead("no benchmark's payload"));
                };
                let line = Execution {
                    partition: attempt.partition.number(),
                    resource: note.resource,
                    sequence: note.sequence,
                    redelivered: attempt.redelivered,
                    start_us,
                    end_us: now_us(),
                };
                let told = std::io::stdout().lock().write_all(line.to_line().as_bytes());
                told.map_err(|error| Failure::failed(error.to_string()))?;
            }
            Ok(())
        });
        until_signalled("finishing the tasks that run", async |shutdown| {
            crate::work(&connect, options, handler, shutdown).await?;
            Ok(ExitCode::SUCCESS)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execution_survives_its_line() {
        let execution = Execution {
            partition: 1,
            resource: 2,
            sequence: 3,
            redelivered: true,
            start_us: 4,
            end_us: 5,
        };
        assert_eq!(Execution::from_line(execution.to_line().trim_end()), Some(execution));
        assert_eq!(Execution::from_line("1 2"), None);
    }
}
