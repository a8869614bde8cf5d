//! What is said about the runs: medians over the rounds, as JSON, as tables and as a page.

mod chart;
mod html;
mod markdown;
mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::contestants::{About, Fence};
use crate::measure::{Latency, Outcome};
use crate::stress::{Stress, Stressed};
use crate::work::Workload;

pub use html::page;
pub use markdown::{refresh, sections};
pub use table::print;

/// All that a call of the program found out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The command that was called.
    pub command: String,
    /// The machine, in a line.
    pub machine: String,
    /// The servers, with their versions.
    pub servers: Vec<String>,
    /// The shape of the fleet and of the work.
    pub shape: Shape,
    /// What was not run, and why.
    pub left_out: Vec<String>,
    /// The contestants, in order.
    pub contestants: Vec<Entry>,
    /// The measurements: contestant, workload, handler time.
    pub measured: Vec<Measured>,
    /// The stress runs.
    pub stressed: Vec<StressRow>,
}

/// The shape of the fleet and of the work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Shape {
    /// Worker processes.
    pub workers: u32,
    /// Slots of each.
    pub slots: u32,
    /// Resources.
    pub resources: u32,
    /// The lease of all locks that have one.
    pub lease_ms: u64,
    /// Rounds.
    pub rounds: u32,
    /// Tasks of a run, by the handler's time.
    pub tasks: BTreeMap<u64, u32>,
}

/// A contestant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its pattern.
    pub pattern: String,
    /// Its system.
    pub on: String,
    /// What stops a stale write, if there is something.
    pub fence: Option<String>,
    /// Whether attempts may overlap by design.
    pub exclusive: bool,
}

impl Entry {
    /// As the contestant describes itself.
    #[must_use]
    pub fn new(about: &About) -> Self {
        let fence = match about.fence {
            Fence::None => None,
            Fence::Token(what) | Fence::Inherent(what) => Some(what.to_owned()),
        };
        Self {
            name: about.name.to_owned(),
            pattern: about.pattern.to_owned(),
            on: about.on.to_owned(),
            fence,
            exclusive: about.exclusive,
        }
    }
}

/// One contestant in one workload: the medians of its rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Which contestant.
    pub contestant: String,
    /// Which workload.
    pub workload: Workload,
    /// How long the handler waits.
    pub handler_ms: u64,
    /// Tasks of each run.
    pub tasks: u64,
    /// Rounds that were completed, of those that were begun.
    pub completed: u32,
    /// Rounds.
    pub rounds: u32,
    /// Tasks per second, from the first publish to the last execution.
    pub rate: f64,
    /// The slowest and the fastest round.
    pub rates: (f64, f64),
    /// From publish to executed, of the hot resource.
    pub hot: Option<Latency>,
    /// From publish to executed, of all others.
    pub others: Option<Latency>,
    /// Round trips for coordination, per task.
    pub operations: f64,
    /// Messages between workers, per task.
    pub messages: f64,
    /// The share of the slots' time that was spent waiting.
    pub waiting: f64,
    /// Executions thrown away, per task.
    pub wasted: f64,
    /// Deadlocks in all rounds.
    pub deadlocks: u64,
    /// Lost updates in all rounds.
    pub lost: u64,
    /// Updates that were made twice, in all rounds.
    pub repeated: u64,
    /// Handlers of one resource that overlapped, in all rounds.
    pub overlaps: u64,
    /// Resources whose tasks were reordered, in the worst round.
    pub reordered: u64,
    /// What broke, if something did.
    pub failures: Vec<String>,
}

impl Measured {
    /// The medians of these rounds.
    #[must_use]
    pub fn new(
        contestant: &str,
        workload: Workload,
        handler_ms: u64,
        outcomes: &[Result<Outcome, String>],
    ) -> Self {
        let good: Vec<&Outcome> = outcomes.iter().filter_map(|one| one.as_ref().ok()).collect();
        let complete: Vec<&Outcome> =
            good.iter().copied().filter(|one| one.executed == one.tasks).collect();
        let of = |value: &dyn Fn(&Outcome) -> f64| {
            median(complete.iter().map(|one| value(one)).collect())
        };
        let sum = |value: &dyn Fn(&Outcome) -> u64| good.iter().map(|one| value(one)).sum();
        let latency = |which: &dyn Fn(&Outcome) -> Option<Latency>| {
            let all: Vec<Latency> = complete.iter().filter_map(|one| which(one)).collect();
            (!all.is_empty()).then(|| Latency {
                p50: median(all.iter().map(|one| one.p50).collect()),
                p99: median(all.iter().map(|one| one.p99).collect()),
            })
        };
        let rates = complete.iter().map(|one| one.rate());
        let per_task = |count: u64, one: &Outcome| count as f64 / one.tasks as f64;
        let stuck = good.iter().filter(|one| one.executed < one.tasks);
        let stuck =
            stuck.map(|one| format!("stood still after {} of {} tasks", one.executed, one.tasks));
        let broken = outcomes.iter().filter_map(|one| one.as_ref().err().cloned());
        Self {
            contestant: contestant.to_owned(),
            workload,
            handler_ms,
            tasks: good.first().map_or(0, |one| one.tasks),
            completed: complete.len() as u32,
            rounds: outcomes.len() as u32,
            rate: of(&Outcome::rate),
            rates: (rates.clone().fold(f64::INFINITY, f64::min), rates.fold(0.0, f64::max)),
            hot: latency(&|one| one.hot),
            others: latency(&|one| one.others),
            operations: of(&|one| per_task(one.tally.operations, one)),
            messages: of(&|one| per_task(one.tally.messages, one)),
            waiting: of(&|one| one.waiting),
            wasted: of(&|one| per_task(one.tally.wasted, one)),
            deadlocks: sum(&|one| one.tally.deadlocks),
            lost: sum(&|one| one.verdict.lost),
            repeated: sum(&|one| one.verdict.repeated),
            overlaps: sum(&|one| one.verdict.overlaps),
            reordered: good.iter().map(|one| one.verdict.reordered).max().unwrap_or(0),
            failures: stuck.chain(broken).collect(),
        }
    }
}

/// One contestant under one stress: its rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StressRow {
    /// Which contestant.
    pub contestant: String,
    /// Which stress.
    pub stress: Stress,
    /// Milliseconds until the resource moved, the median. `None`: it did not, in any round.
    pub moved_ms: Option<f64>,
    /// Updates that were lost, in the worst round.
    pub lost: u64,
    /// Tasks that were executed twice, in the worst round.
    pub repeated: u64,
    /// Handlers that found another one running, in the worst round.
    pub overlaps: u64,
    /// Writes that the store refused, in the worst round.
    pub fenced_off: u64,
    /// Deadlocks, in the worst round.
    pub deadlocks: u64,
    /// Tasks that were not executed, in the worst round.
    pub missing: u64,
    /// Rounds.
    pub rounds: u32,
    /// What broke, if something did.
    pub failures: Vec<String>,
}

impl StressRow {
    /// These rounds in one.
    #[must_use]
    pub fn new(contestant: &str, stress: Stress, rounds: &[Result<Stressed, String>]) -> Self {
        let good: Vec<&Stressed> = rounds.iter().filter_map(|one| one.as_ref().ok()).collect();
        let worst =
            |value: &dyn Fn(&Stressed) -> u64| good.iter().map(|one| value(one)).max().unwrap_or(0);
        let moved: Vec<f64> = good.iter().filter_map(|one| one.moved_ms).collect();
        Self {
            contestant: contestant.to_owned(),
            stress,
            moved_ms: (!moved.is_empty()).then(|| median(moved)),
            lost: worst(&|one| one.verdict.lost),
            repeated: worst(&|one| one.repeated),
            overlaps: worst(&|one| one.verdict.overlaps),
            fenced_off: worst(&|one| one.tally.fenced_off),
            deadlocks: worst(&|one| one.tally.deadlocks),
            missing: worst(&|one| one.tasks - one.executed),
            rounds: rounds.len() as u32,
            failures: rounds.iter().filter_map(|one| one.as_ref().err().cloned()).collect(),
        }
    }
}

impl Report {
    fn find(&self, contestant: &str, workload: Workload, handler_ms: u64) -> Option<&Measured> {
        self.measured.iter().find(|one| {
            one.contestant == contestant && one.workload == workload && one.handler_ms == handler_ms
        })
    }

    fn stress(&self, contestant: &str, stress: Stress) -> Option<&StressRow> {
        self.stressed.iter().find(|one| one.contestant == contestant && one.stress == stress)
    }

    /// The times that handlers took, from the shortest.
    fn handler_times(&self) -> Vec<u64> {
        self.shape.tasks.keys().copied().collect()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// A number with as many digits as mean something.
fn number(value: f64) -> String {
    match value {
        value if value >= 1_000.0 => {
            let whole = value.round() as u64;
            format!("{},{:03}", whole / 1_000, whole % 1_000)
        }
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        0.0 => "0".to_owned(),
        value => format!("{value:.2}"),
    }
}

/// Milliseconds, or seconds where they are many.
fn time(ms: f64) -> String {
    if ms >= 1_000.0 { format!("{:.1} s", ms / 1e3) } else { format!("{} ms", number(ms)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.034, 1.5, 42.19, 512.4, 1_234.5].map(number);
        assert_eq!(shown, ["0", "0.03", "1.50", "42.2", "512", "1,235"]);
        assert_eq!([time(3.0), time(2_345.0)], ["3.00 ms", "2.3 s"]);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
