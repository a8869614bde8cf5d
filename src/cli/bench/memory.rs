//! Whether a publisher and a worker stay as small as they began.

use std::io::{BufWriter, Write};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::process::Command;
use tokio::time::sleep;

use super::fleet::{Shape, Told};
use super::{drained, this_program};
use crate::Connect;
use crate::cli::hand_over;

const RESOURCES: u64 = 1_000;

/// In megabytes of resident memory.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Memory {
    pub(super) publisher_peak: f64,
    pub(super) worker_peak: f64,
    /// Peak, less what it was after a tenth of the run.
    pub(super) publisher_growth: f64,
    pub(super) worker_growth: f64,
    pub(super) tasks: u64,
}

/// Publishes a file with `keylane publish` while a worker process executes it.
pub(super) async fn run(
    tasks: u64,
    connect: &Connect,
    progress: &ProgressBar,
) -> anyhow::Result<(Memory, u64)> {
    progress.set_message("memory");
    let input = std::env::temp_dir().join(format!("keylane-bench-{}.ndjson", std::process::id()));
    let _removed = RemovedFile(input.clone());
    let mut file = BufWriter::new(std::fs::File::create(&input).context("a temporary file")?);
    let filling = ".".repeat(150);
    for n in 0..tasks {
        writeln!(
            file,
            r#"{{"resource":"resource-{}","n":{n},"filling":"{filling}"}}"#,
            n % RESOURCES
        )?;
    }
    file.flush()?;
    drop(file);

    let shape = Shape { slots: 64, task_ms: 0, tell: false };
    let worker = Told::default().spawn(connect, "bench-memory", shape)?;
    let mut publisher = Command::new(this_program()?);
    hand_over(connect, &mut publisher);
    let mut publisher = publisher
        .args(["publish", "--resource", "/resource", "--namespace", connect.namespace().as_str()])
        .arg(&input)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a publisher")?;
    let publisher_pid = publisher.id().context("the publisher has ended")?;
    let (mut of_publisher, mut of_worker) = (Vec::new(), Vec::new());
    let published = loop {
        of_publisher.extend(resident_mb(publisher_pid));
        of_worker.extend(resident_mb(worker.pid()?));
        progress.set_message(format!(
            "memory: publisher {:.0} MB, worker {:.0} MB",
            of_publisher.last().unwrap_or(&0.0),
            of_worker.last().unwrap_or(&0.0)
        ));
        if let Some(ended) = publisher.try_wait()? {
            break ended;
        }
        sleep(Duration::from_millis(100)).await;
    };
    if !published.success() {
        bail!("the publisher failed: {published}");
    }
    drained(connect).await?;
    of_worker.extend(resident_mb(worker.pid()?));
    let executed = crate::status(connect).await?.workers.iter().map(|w| w.executed).sum::<u64>();
    worker.terminate()?;
    let memory = Memory {
        publisher_peak: peak(&of_publisher),
        worker_peak: peak(&of_worker),
        publisher_growth: growth(&of_publisher),
        worker_growth: growth(&of_worker),
        tasks,
    };
    Ok((memory, tasks.abs_diff(executed)))
}

fn peak(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(0.0, f64::max)
}

fn growth(samples: &[f64]) -> f64 {
    peak(samples) - samples.get(samples.len() / 10).copied().unwrap_or(0.0)
}

/// Resident memory of a process, as Linux tells it.
fn resident_mb(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

struct RemovedFile(std::path::PathBuf);

impl Drop for RemovedFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, "a temporary file stays");
        }
    }
}
