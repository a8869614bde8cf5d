//! One run: a contestant does a workload, and what really happened is found out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::contestants::Contestant;
use crate::fleet::Fleet;
use crate::plan::{Endpoints, Plan};
use crate::work::{HOT, Job, State, Truth, Workload, expected, jobs};
use crate::worker::{Tally, Told};

/// A fleet that executes nothing for so long has come to a standstill.
const STANDSTILL: Duration = Duration::from_secs(30);

/// What all runs share.
#[derive(Debug)]
pub struct Setting {
    /// Which program the workers are: this one, with the argument `worker`.
    pub program: PathBuf,
    /// Where the servers are.
    pub endpoints: Endpoints,
    /// Worker processes.
    pub workers: u32,
    /// Tasks that each has in hand.
    pub slots: u32,
    /// Resources.
    pub resources: u32,
    /// The lease of all locks that have one.
    pub lease_ms: u64,
    /// The folder of the neutral store, in memory where that can be.
    folder: TempDir,
}

impl Setting {
    /// With the default fleet.
    ///
    /// # Errors
    /// If there is no place for the neutral store.
    pub fn new(program: &Path, endpoints: Endpoints) -> anyhow::Result<Self> {
        let memory = Path::new("/dev/shm");
        let mut builder = tempfile::Builder::new();
        let folder = match builder.prefix("comparison-truth-").tempdir_in(memory) {
            Ok(folder) => folder,
            Err(_) => builder.tempdir().context("cannot make a temporary folder")?,
        };
        let program = program.to_owned();
        Ok(Self {
            program,
            endpoints,
            workers: 4,
            slots: 4,
            resources: 1_000,
            lease_ms: 2_000,
            folder,
        })
    }

    /// The plan of a run, for a worker with the number 0.
    #[must_use]
    pub fn plan(&self, contestant: &str, handler_ms: u64) -> Plan {
        Plan {
            run: format!("{:08x}", fastrand::u32(..)),
            contestant: contestant.to_owned(),
            endpoints: self.endpoints.clone(),
            worker: 0,
            workers: self.workers,
            slots: self.slots,
            handler_ms,
            hold_ms: 0,
            lease_ms: self.lease_ms,
            heartbeat_s: 10,
            fenced: false,
            resources: self.resources,
            truth: self.folder.path().to_owned(),
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Tasks published.
    pub tasks: u64,
    /// Different tasks executed. Less than all: the run was given up.
    pub executed: u64,
    /// From the first publish to the last execution.
    pub seconds: f64,
    /// What the workers counted.
    pub tally: Tally,
    /// The share of their time in which the workers' slots waited.
    pub waiting: f64,
    /// From publish to executed, of the tasks on the hot resource. `None` if there is none.
    pub hot: Option<Latency>,
    /// The same, of all other tasks.
    pub others: Option<Latency>,
    /// What the final states show.
    pub verdict: Verdict,
}

impl Outcome {
    /// Tasks per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.executed as f64 / self.seconds
    }
}

/// Milliseconds from publish to executed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
}

impl Latency {
    fn of(mut all_us: Vec<u64>) -> Option<Self> {
        all_us.sort_unstable();
        let at = |share: f64| {
            let place = (all_us.len().checked_sub(1)? as f64 * share).round() as usize;
            Some(*all_us.get(place)? as f64 / 1e3)
        };
        Some(Self { p50: at(0.5)?, p99: at(0.99)? })
    }
}

/// The ground truth: the final states beside those that publish order gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Verdict {
    /// Updates that are missing: somebody overwrote them.
    pub lost: u64,
    /// Updates too many: a task was executed again, after a crash.
    pub repeated: u64,
    /// Resources whose tasks were executed in another order than they were published in.
    pub reordered: u64,
    /// Handlers that found another one of their resource running. Expected of the patterns
    /// that let attempts overlap.
    pub overlaps: u64,
}

impl Verdict {
    fn new(jobs: &[Job], told: &BTreeMap<u32, u64>, found: &[State], overlaps: u64) -> Self {
        let resources = u32::try_from(found.len()).unwrap_or(u32::MAX);
        let wanted = expected(jobs, resources);
        let mut executions = vec![0; found.len()];
        for job in jobs {
            for resource in job.touches() {
                executions[resource as usize] += told.get(&job.number).copied().unwrap_or(0);
            }
        }
        let mut verdict = Self { overlaps, ..Self::default() };
        for ((wanted, found), executions) in wanted.iter().zip(found).zip(executions) {
            verdict.lost += u64::saturating_sub(executions, found.sequence);
            verdict.repeated += found.sequence.saturating_sub(wanted.sequence);
            verdict.reordered += u64::from(wanted.hash != found.hash);
        }
        verdict
    }

    /// Whether any effect was lost.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.lost == 0
    }

    /// Whether all resources have seen their tasks in publish order.
    #[must_use]
    pub const fn ordered(&self) -> bool {
        self.reordered == 0
    }
}

/// Runs a workload with so many tasks.
///
/// # Errors
/// If something breaks. A fleet that stands still is no error, but an outcome.
pub async fn run(
    setting: &Setting,
    contestant: &dyn Contestant,
    workload: Workload,
    handler_ms: u64,
    tasks: u32,
) -> anyhow::Result<Outcome> {
    let plan = setting.plan(contestant.about().name, handler_ms);
    let mut jobs = jobs(workload, tasks, setting.resources);
    let truth = Truth::new(&plan.truth);
    truth.clear()?;
    contestant.prepare(&plan).await.context("cannot prepare a run")?;
    let mut fleet = Fleet::start(&setting.program, &plan).await?;
    contestant.settle(&plan).await?;

    let mut record = Record::new(jobs.len());
    let publishing = contestant.publish(&plan, &mut jobs);
    let (published, executed) = tokio::join!(publishing, record.until(tasks as usize, &mut fleet));
    published.context("cannot publish")?;
    executed?;

    let mut tally = Tally::default();
    if record.is_complete() {
        tally = fleet.stop().await?.0;
    } else {
        drop(fleet);
    }
    let found = match contestant.states(&plan).await? {
        Some(states) => states,
        None => truth.states(plan.resources)?,
    };
    contestant.clean(&plan).await.context("cannot clean up after a run")?;
    Ok(record.outcome(setting, workload, &jobs, tally, &found))
}

/// What is known about the executions of a run.
pub(crate) struct Record {
    tasks: usize,
    /// How often each task was executed.
    times: BTreeMap<u32, u64>,
    /// When each was executed first.
    ends: BTreeMap<u32, u64>,
}

impl Record {
    pub(crate) fn new(tasks: usize) -> Self {
        Self { tasks, times: BTreeMap::new(), ends: BTreeMap::new() }
    }

    fn is_complete(&self) -> bool {
        self.ends.len() >= self.tasks
    }

    /// Different tasks executed.
    pub(crate) fn executed(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Tasks executed more than once.
    pub(crate) fn repeated(&self) -> u64 {
        self.times.values().filter(|times| **times > 1).count() as u64
    }

    pub(crate) fn note(&mut self, told: &Told) {
        if let Told::Executed { number, end_us, .. } = told {
            *self.times.entry(*number).or_default() += 1;
            self.ends.entry(*number).or_insert(*end_us);
        }
    }

    /// Until so many tasks are executed, or nothing has happened for long.
    pub(crate) async fn until(&mut self, tasks: usize, fleet: &mut Fleet) -> anyhow::Result<()> {
        while self.ends.len() < tasks {
            match fleet.next(Instant::now() + STANDSTILL).await? {
                Some((_, told)) => self.note(&told),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    pub(crate) fn verdict(&self, jobs: &[Job], found: &[State], overlaps: u64) -> Verdict {
        Verdict::new(jobs, &self.times, found, overlaps)
    }

    fn outcome(
        &self,
        setting: &Setting,
        workload: Workload,
        jobs: &[Job],
        tally: Tally,
        found: &[State],
    ) -> Outcome {
        let first = jobs.first().map_or(0, |job| job.published_us);
        let last = self.ends.values().max().copied().unwrap_or(first);
        let seconds = last.saturating_sub(first) as f64 / 1e6;
        let has_hot = matches!(workload, Workload::Hot90 | Workload::Zipf | Workload::One);
        let latency = |hot: bool| {
            let of = jobs.iter().filter(|job| (has_hot && job.resource == HOT) == hot);
            let took =
                |job: &Job| Some(self.ends.get(&job.number)?.saturating_sub(job.published_us));
            Latency::of(of.filter_map(took).collect())
        };
        let slots = f64::from(setting.workers * setting.slots);
        Outcome {
            tasks: jobs.len() as u64,
            executed: self.executed(),
            seconds,
            tally,
            waiting: tally.waited_us as f64 / 1e6 / (seconds * slots),
            hot: latency(true),
            others: latency(false),
            verdict: self.verdict(jobs, found, tally.overlaps),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_states_tell_what_happened() {
        let all = jobs(Workload::One, 3, 2);
        let told = BTreeMap::from([(0, 1), (1, 1), (2, 1)]);
        let verdict = |order: &[u32]| {
            let state = order.iter().fold(State::default(), |state, number| state.after(*number));
            Verdict::new(&all, &told, &[state, State::default()], 0)
        };
        let zero = Verdict::default();
        assert_eq!(verdict(&[0, 1, 2]), zero);
        assert_eq!(verdict(&[1, 0, 2]), Verdict { reordered: 1, ..zero });
        assert_eq!(verdict(&[0, 2]), Verdict { lost: 1, reordered: 1, ..zero });
        assert_eq!(verdict(&[0, 1, 1, 2]), Verdict { repeated: 1, reordered: 1, ..zero });
    }
}
