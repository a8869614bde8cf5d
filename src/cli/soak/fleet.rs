//! The workers of a soak: processes that live through all of it.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::watch::Watch;
use crate::Connect;
use crate::cli::hand_over;

/// A drain takes as long as the tasks that run, and what is left to record: more
/// than this means that a worker hangs.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Killed when it is dropped.
#[derive(Debug)]
pub(super) struct Fleet {
    members: Vec<Child>,
    readers: JoinSet<()>,
    watch: Arc<Watch>,
}

impl Fleet {
    pub(super) fn new(watch: Arc<Watch>) -> Self {
        Self { members: Vec::new(), readers: JoinSet::new(), watch }
    }

    /// Starts a worker. Its log goes into a file of the directory.
    pub(super) fn join(
        &mut self,
        connect: &Connect,
        directory: &Path,
        task_time: Option<Duration>,
    ) -> anyhow::Result<()> {
        let id = format!("soak-{}", self.members.len() + 1);
        let log = File::create(directory.join(format!("{id}.log")))?;
        let binary = std::env::current_exe().context("cannot find the running program")?;
        let mut command = Command::new(binary);
        command
            .args(["soak-worker", "--id", &id, "--log", "info,lapin=off"])
            .args(["--namespace", connect.namespace().as_str(), "--directory"])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for us: we end them when everything is told.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(time) = task_time {
            command.args(["--task-ms", &time.as_millis().to_string()]);
        }
        hand_over(connect, &mut command);
        let mut child = command.spawn().context("cannot start a worker process")?;
        let stdout = child.stdout.take().context("the worker's output is piped")?;
        let watch = Arc::clone(&self.watch);
        self.readers.spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    Ok(said) => watch.note(said),
                    Err(error) => tracing::warn!(%error, line, "a worker says something else"),
                }
            }
        });
        self.members.push(child);
        Ok(())
    }

    /// An error if a worker has ended by itself.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        for (number, child) in (1..).zip(&mut self.members) {
            if let Some(status) = child.try_wait()? {
                bail!("worker soak-{number} ended by itself: {status}");
            }
        }
        Ok(())
    }

    /// Everybody drains, and ends well.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        for child in &mut self.members {
            drop(child.stdin.take());
        }
        for (number, child) in (1..).zip(&mut self.members) {
            let ended = timeout(DRAIN_TIMEOUT, child.wait()).await;
            let status = ended.with_context(|| format!("worker soak-{number} does not end"))??;
            if !status.success() {
                bail!("worker soak-{number} ended with {status}");
            }
        }
        while self.readers.join_next().await.is_some() {}
        Ok(())
    }
}
