//! The demo's course: who joins and who dies when, and when it is over.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use serde::Serialize;
use tokio::sync::mpsc::UnboundedReceiver;

use super::fleet::Fleet;
use super::queues::Queues;
use super::show::Show;
use crate::cli::progress::grouped;
use crate::demo::Repository;

/// Often enough for the eye.
const TICK: Duration = Duration::from_millis(50);

/// A process starts in a tenth of a second; this is a machine that is very busy.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Without progress for this long something is wrong: tasks take milliseconds,
/// and work that a dead worker leaves goes on within a second.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The queues are looked at again after this time without progress: a worker that
/// was killed may have executed a task and not told.
const QUIET: Duration = Duration::from_secs(2);

/// What happens to the fleet.
#[derive(Debug, Clone, Copy)]
enum Act {
    Kill,
    Join,
    Drain,
}

/// When, in percent of the tasks executed: early enough that the newcomers have
/// work left to take over.
const ACTS: [(u64, Act); 4] = [(25, Act::Kill), (40, Act::Join), (55, Act::Drain), (70, Act::Join)];

/// What happened to the workers.
#[derive(Debug, Default, Serialize)]
pub(super) struct Workers {
    /// At the start.
    pub(super) started: usize,
    /// With SIGKILL.
    pub(super) killed: usize,
    /// With SIGTERM.
    pub(super) drained: usize,
    /// On the way.
    pub(super) joined: usize,
}

/// A run that came to its end.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) workers: Workers,
    pub(super) dead_letters: u32,
    /// From the first task published to the last one executed.
    pub(super) took: Duration,
}

/// Everything that a run needs.
pub(super) struct Run<'a> {
    pub(super) queues: &'a Queues,
    pub(super) fleet: Fleet,
    pub(super) show: &'a mut Show,
    /// What the workers say on standard error.
    pub(super) said: UnboundedReceiver<String>,
    pub(super) tasks: u64,
}

impl Run<'_> {
    /// Starts the workers, publishes the history and waits until all of it is
    /// executed. Dropping the future kills the workers.
    pub(super) async fn play(
        mut self,
        workers: usize,
        repository: Repository,
    ) -> anyhow::Result<Done> {
        let played = self.start_and_watch(workers, repository).await;
        if played.is_err() {
            // Why a worker ended is on its way through a pipe.
            let words =
                async { while self.said.recv().await.inspect(|l| self.show.line(l)).is_some() {} };
            tokio::time::timeout(4 * TICK, words).await.ok();
        }
        let done = played?;
        self.fleet.stop().await?;
        while let Ok(line) = self.said.try_recv() {
            self.show.line(&line);
        }
        Ok(done)
    }

    async fn start_and_watch(
        &mut self,
        workers: usize,
        repository: Repository,
    ) -> anyhow::Result<Done> {
        self.start(workers).await?;
        let published = Cell::new(0);
        let queues = self.queues;
        let publish = async {
            let outcome = queues.publish(repository, &published).await;
            outcome.map_err(|error| error.context("cannot publish the history"))
        };
        let (done, ()) = tokio::try_join!(self.watch(workers, &published), publish)?;
        Ok(done)
    }

    /// Starts the first workers and waits until all of them consume.
    async fn start(&mut self, workers: usize) -> anyhow::Result<()> {
        self.show.line(&format!("starting {workers} workers, each a process"));
        for _ in 0..workers {
            self.fleet.join()?;
        }
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            self.fleet.drained()?;
            while let Ok(line) = self.said.try_recv() {
                self.show.line(&line);
            }
            if self.queues.backlog().await?.workers >= workers {
                break;
            }
            if Instant::now() > deadline {
                bail!("not all of the {workers} workers came up in {} s", START_TIMEOUT.as_secs());
            }
            tokio::time::sleep(2 * TICK).await;
        }
        self.show.start();
        self.show.line("all are up; publishing");
        Ok(())
    }

    async fn watch(&mut self, workers: usize, published: &Cell<u64>) -> anyhow::Result<Done> {
        let started = Instant::now();
        let mut happened = Workers { started: workers, ..Workers::default() };
        let mut acts = ACTS.into_iter().peekable();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut seen, mut changed, mut looked) = ((0, 0), Instant::now(), Instant::now());
        loop {
            ticks.tick().await;
            while let Ok(line) = self.said.try_recv() {
                self.show.line(&line);
            }
            for number in self.fleet.drained()? {
                self.show.line(&format!("worker {number} has finished its tasks and is gone"));
            }
            let executed = self.fleet.executed();
            let tasks = self.tasks;
            let due = |&(percent, _): &(u64, Act)| executed * 100 >= percent * tasks;
            while let Some((_, act)) = acts.next_if(due) {
                self.act(act, &mut happened).await?;
            }
            self.show.progress(published.get(), executed, self.fleet.working());
            if seen != (published.get(), executed) {
                (seen, changed) = ((published.get(), executed), Instant::now());
            }
            if published.get() < self.tasks && changed.elapsed() < STALL_TIMEOUT {
                continue;
            }
            // A task that was not told of, or that ended in the dead letters.
            let quiet = changed.elapsed() > QUIET && looked.elapsed() > QUIET;
            if executed < self.tasks && !quiet {
                continue;
            }
            looked = Instant::now();
            let backlog = self.queues.backlog().await?;
            if backlog.tasks == 0 && published.get() >= self.tasks {
                let took = changed.max(started) - started;
                self.show.finish();
                return Ok(Done { workers: happened, dead_letters: backlog.dead, took });
            }
            if changed.elapsed() > STALL_TIMEOUT {
                return Err(anyhow!(
                    "nothing has moved for {} s: {} of {} tasks are published, {} executed, {} are \
                     dead letters. {}",
                    STALL_TIMEOUT.as_secs(),
                    grouped(published.get()),
                    grouped(self.tasks),
                    grouped(executed),
                    backlog.dead,
                    backlog.standing
                ));
            }
        }
    }

    async fn act(&mut self, act: Act, happened: &mut Workers) -> anyhow::Result<()> {
        let line = match act {
            Act::Kill => {
                happened.killed += 1;
                format!("worker {} was killed (SIGKILL)", self.fleet.kill().await?)
            }
            Act::Drain => {
                happened.drained += 1;
                format!("worker {} was told to leave (SIGTERM)", self.fleet.drain()?)
            }
            Act::Join => {
                happened.joined += 1;
                format!("worker {} joined", self.fleet.join()?)
            }
        };
        self.show.line(&line);
        Ok(())
    }
}
