//! The worker processes of a run, as the coordinator sees them.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::plan::Plan;
use crate::worker::{Tally, Told};

/// A worker that does not start or end by then is not going to.
const PATIENCE: Duration = Duration::from_secs(60);

/// Worker processes; killed when this is dropped.
#[derive(Debug)]
pub struct Fleet {
    workers: Vec<Process>,
    told: mpsc::UnboundedReceiver<(u32, Option<Told>)>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    /// Killed by us: it has nothing more to tell.
    killed: bool,
}

impl Fleet {
    /// Starts `plan.workers` processes of `program`, and waits until all take tasks.
    ///
    /// # Errors
    /// If one does not.
    pub async fn start(program: &Path, plan: &Plan) -> anyhow::Result<Self> {
        let (sender, told) = mpsc::unbounded_channel();
        let mut fleet = Self { workers: Vec::new(), told };
        for number in 0..plan.workers {
            let plan = Plan { worker: number, ..plan.clone() };
            fleet.workers.push(spawn(program, &plan, sender.clone()).await?);
        }
        drop(sender);
        let mut addresses = vec![String::new(); plan.workers as usize];
        fleet
            .each(|worker, told| match told {
                Told::Ready { address } => {
                    addresses[worker as usize] = address;
                    true
                }
                Told::Started | Told::Holding { .. } | Told::Executed { .. } | Told::Tally(_) => {
                    false
                }
            })
            .await?;
        let line = format!("{}\n", addresses.join(" "));
        for worker in &mut fleet.workers {
            let stdin = worker.stdin.as_mut().context("a worker's input is closed")?;
            stdin.write_all(line.as_bytes()).await.context("a worker has ended")?;
        }
        fleet.each(|_, told| told == Told::Started).await?;
        Ok(fleet)
    }

    /// Waits until every worker has told something that `expected` says is the thing.
    async fn each(&mut self, mut expected: impl FnMut(u32, Told) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut left = self.workers.len();
        while left > 0 {
            let told = timeout_at(deadline, self.told.recv()).await;
            match told.context("a worker does not start in time")? {
                Some((worker, Some(told))) => left -= usize::from(expected(worker, told)),
                Some((worker, None)) => bail!("worker {worker} ended while it started"),
                None => bail!("all workers have ended"),
            }
        }
        Ok(())
    }

    /// What is told next, by whom. `None` if nothing is told until `deadline`.
    ///
    /// # Errors
    /// If a worker has ended that was not killed here.
    pub async fn next(&mut self, deadline: Instant) -> anyhow::Result<Option<(u32, Told)>> {
        loop {
            match timeout_at(deadline, self.told.recv()).await {
                Err(_) => return Ok(None),
                Ok(None) => bail!("all workers have ended"),
                Ok(Some((worker, Some(told)))) => return Ok(Some((worker, told))),
                Ok(Some((worker, None))) => {
                    ensure!(self.workers[worker as usize].killed, "worker {worker} has ended");
                }
            }
        }
    }

    fn signal(&self, worker: u32, signal: Signal) -> anyhow::Result<()> {
        let id = self.workers[worker as usize].child.id().context("the worker has ended")?;
        let pid = Pid::from_raw(i32::try_from(id)?).context("no process number")?;
        kill_process(pid, signal).context("cannot signal a worker")
    }

    /// Kills a worker, as a machine that loses its power.
    ///
    /// # Errors
    /// If it has ended.
    pub fn kill(&mut self, worker: u32) -> anyhow::Result<()> {
        self.workers[worker as usize].killed = true;
        self.signal(worker, Signal::KILL)
    }

    /// Stops a worker in the middle of whatever it does, as a long pause of its virtual
    /// machine.
    ///
    /// # Errors
    /// If it has ended.
    pub fn pause(&self, worker: u32) -> anyhow::Result<()> {
        self.signal(worker, Signal::STOP)
    }

    /// Lets a paused worker go on.
    ///
    /// # Errors
    /// If it has ended.
    pub fn resume(&self, worker: u32) -> anyhow::Result<()> {
        self.signal(worker, Signal::CONT)
    }

    /// Lets all workers end, and adds up what they counted. Also hands over what they told
    /// until then.
    ///
    /// # Errors
    /// If one does not end, or not well.
    pub async fn stop(mut self) -> anyhow::Result<(Tally, Vec<Told>)> {
        for worker in &mut self.workers {
            drop(worker.stdin.take());
        }
        let deadline = Instant::now() + PATIENCE;
        let (mut total, mut rest) = (Tally::default(), Vec::new());
        let told = loop {
            match timeout_at(deadline, self.told.recv()).await {
                Err(_) => break false,
                Ok(None) => break true,
                Ok(Some((_, Some(Told::Tally(tally))))) => total = total.plus(tally),
                Ok(Some((_, Some(told)))) => rest.push(told),
                Ok(Some((_, None))) => {}
            }
        };
        ensure!(told, "a worker does not end");
        for worker in &mut self.workers {
            let status = worker.child.wait().await?;
            ensure!(worker.killed || status.success(), "a worker ended with {status}");
        }
        Ok((total, rest))
    }
}

async fn spawn(
    program: &Path,
    plan: &Plan,
    sender: mpsc::UnboundedSender<(u32, Option<Told>)>,
) -> anyhow::Result<Process> {
    // It becomes the worker, and the kernel kills it with us, even while it is paused.
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .arg("worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a worker")?;
    let mut stdin = child.stdin.take().context("no input")?;
    let line = format!("{}\n", serde_json::to_string(plan)?);
    stdin.write_all(line.as_bytes()).await.context("a worker has ended")?;
    let stdout = child.stdout.take().context("no output")?;
    let worker = plan.worker;
    tokio::spawn(async move {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let Some(told) = Told::from_line(&line) else { continue };
            if sender.send((worker, Some(told))).is_err() {
                return;
            }
        }
        // The coordinator listens no more: it needs no goodbye.
        drop(sender.send((worker, None)));
    });
    Ok(Process { child, stdin: Some(stdin), killed: false })
}
