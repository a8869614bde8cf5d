//! What runs in a worker process.

mod mesh;
mod tally;
mod told;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

pub use mesh::{Incoming, Mesh};
pub use tally::{Counters, Tally};
pub use told::Told;

use crate::clock::now_us;
use crate::contestants;
use crate::plan::Plan;
use crate::work::{Guard, Job, State, Truth, Written};

/// One worker process of one run.
#[derive(Debug)]
pub struct Worker {
    /// What is to be done.
    pub plan: Plan,
    /// What is counted.
    pub counters: Counters,
    /// Cancelled when no more tasks will come.
    pub stop: CancellationToken,
    /// Connections to the other workers, for the patterns that have them.
    pub mesh: Mesh,
    truth: Truth,
}

/// How an execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executed {
    /// The state is written.
    Done,
    /// The store refused the write: somebody else has taken over. Nothing has changed.
    Refused,
}

impl Worker {
    /// The handler: reads the state of these resources, waits, writes it. Each resource has
    /// the guard that its lock gives. `last` says whether the task is executed then.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn execute(
        &self,
        job: &Job,
        touched: &[(u32, Guard)],
        last: bool,
    ) -> anyhow::Result<Executed> {
        let start_us = now_us();
        let truth = &self.truth;
        let mut inside = Vec::with_capacity(touched.len());
        for (resource, _) in touched {
            let entered = truth.enter(*resource).context("cannot enter a resource")?;
            self.counters.overlaps.add(u64::from(entered.overlapped));
            inside.push(entered);
        }
        let read: Vec<State> =
            touched.iter().map(|(r, _)| truth.read(*r)).collect::<Result<_, _>>()?;
        self.dwell(job).await?;
        for ((resource, guard), state) in touched.iter().zip(read) {
            let guard = match guard {
                Guard::Token(token) if self.plan.fenced => Guard::Token(*token),
                Guard::Nothing | Guard::Token(_) => Guard::Nothing,
            };
            if truth.write(*resource, state.after(job.number), guard)? == Written::Refused {
                self.counters.fenced_off.add(1);
                self.counters.wasted.add(1);
                return Ok(Executed::Refused);
            }
        }
        drop(inside);
        if last {
            self.tell_executed(job, start_us)?;
        }
        Ok(Executed::Done)
    }

    /// The time that the handler takes between its read and its write.
    ///
    /// # Errors
    /// Those of the trap's file, and of standard output.
    pub async fn dwell(&self, job: &Job) -> anyhow::Result<()> {
        if job.trap && self.truth.spring_trap()? {
            // From before it is told: the pause may come at once, and is to be a part of it.
            let until = Instant::now() + Duration::from_millis(self.plan.hold_ms);
            tell(Told::Holding { resource: job.resource, at_us: now_us() })?;
            sleep_until(until).await;
        } else if self.plan.handler_ms > 0 {
            sleep(Duration::from_millis(self.plan.handler_ms)).await;
        }
        Ok(())
    }

    /// Two transfers that are traps, in opposite directions, wait here for each other while
    /// each holds its first lock: a deadlock that happens for sure.
    ///
    /// # Errors
    /// Those of the traps' files.
    pub async fn meet(&self, job: &Job) -> anyhow::Result<()> {
        let Some(other) = job.other.filter(|_| job.trap) else { return Ok(()) };
        self.truth.arrive(job.resource)?;
        while !self.truth.has_arrived(other) {
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Tells the coordinator that a task is executed, at once: a process that is killed has
    /// told all that it did.
    ///
    /// # Errors
    /// Those of standard output.
    pub fn tell_executed(&self, job: &Job, start_us: u64) -> anyhow::Result<()> {
        self.counters.executed.add(1);
        let (number, end_us) = (job.number, now_us());
        tell(Told::Executed { number, start_us, end_us })
    }
}

fn tell(told: Told) -> anyhow::Result<()> {
    let line = told.to_line();
    std::io::stdout().lock().write_all(line.as_bytes()).context("cannot tell the coordinator")
}

/// Runs a worker process: reads its plan and works until its standard input ends.
///
/// # Errors
/// Those of the contestant; and the coordinator has to be there.
pub async fn run() -> anyhow::Result<()> {
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    let line = input.next_line().await?.context("no plan")?;
    let plan: Plan = serde_json::from_str(&line).context("not a plan")?;
    let contestant = contestants::find(&plan.contestant)?;
    let mesh = Mesh::listen(plan.worker).await?;
    tell(Told::Ready { address: mesh.address() })?;

    let line = input.next_line().await?.context("no addresses of the workers")?;
    let addresses: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let truth = Truth::new(&plan.truth);
    let (counters, stop) = (Counters::default(), CancellationToken::new());
    if contestant.about().meshed {
        mesh.connect(&addresses).await?;
    }
    let worker = Arc::new(Worker { plan, counters, stop, mesh, truth });
    let ended = tokio::spawn(until_end_of_input(input, worker.stop.clone()));
    contestant.work(Arc::clone(&worker)).await?;
    ended.abort();
    tell(Told::Tally(worker.counters.tally()))
}

/// Says that this worker takes tasks from now on.
///
/// # Errors
/// Those of standard output.
pub fn started() -> anyhow::Result<()> {
    tell(Told::Started)
}

async fn until_end_of_input(mut input: Lines<BufReader<Stdin>>, stop: CancellationToken) {
    // An error ends it as well: the coordinator is gone.
    while let Ok(Some(_)) = input.next_line().await {}
    stop.cancel();
}
