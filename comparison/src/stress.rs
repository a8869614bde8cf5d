//! What happens when the holder of a resource is killed, or paused for longer than its lease,
//! or when two transfers want each other's locks.

use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::{now_us, since};
use crate::contestants::{Contestant, Fence};
use crate::fleet::Fleet;
use crate::measure::{Record, Setting, Verdict};
use crate::plan::Plan;
use crate::work::{HOT, Job, Truth};
use crate::worker::{Tally, Told};

/// Tasks of a stress run, all on the hot resource.
const TASKS: u32 = 60;

/// Which of them is the trap: late enough that all workers have seen some, early enough that
/// many come behind it. These are published when somebody has stepped on it, since a pattern
/// without order may otherwise come to it last, and then there is nothing to take over.
const TRAP: u32 = 10;

/// How long the trap's handler takes by itself: time to find and hit its process, on a busy
/// machine too, and below every lease.
const HOLD_MS: u64 = 1_500;

/// A resource that has not moved by then does not, as long as its holder is paused. Many times
/// the leases, and the time that RabbitMQ takes to miss a worker of keylane here: a machine may
/// have much else to do.
const PATIENCE: Duration = Duration::from_secs(40);

/// The same, where nothing is expected to move. Several times the leases, so that what moves
/// all the same is seen.
const STILL: Duration = Duration::from_secs(10);

/// Executions of others before a paused holder goes on: it comes back to a state that has
/// moved on.
const OVERTAKEN_BY: u32 = 5;

/// The heartbeat of a worker of keylane, so that the broker misses a paused one after about
/// as long as the leases of the locks last: it waits for two of these.
const HEARTBEAT_S: u64 = 2;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stress {
    /// The holder is killed (SIGKILL).
    Kill,
    /// The holder is paused (SIGSTOP) until others have gone on; nothing is checked.
    Pause,
    /// The same, and the store checks the fencing token.
    PauseFenced,
    /// Two transfers take each other's second resource first.
    Opposite,
}

impl Stress {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Kill, Self::Pause, Self::PauseFenced, Self::Opposite];

    /// Whether it says something about this contestant.
    #[must_use]
    pub fn tries(self, contestant: &dyn Contestant) -> bool {
        let about = contestant.about();
        match self {
            Self::Opposite => about.transfers_only,
            Self::Kill => !about.transfers_only,
            Self::Pause => !about.transfers_only && !matches!(about.fence, Fence::Inherent(_)),
            Self::PauseFenced => !about.transfers_only && about.fence != Fence::None,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Stressed {
    /// Milliseconds until somebody else executed a task of the resource. `None`: nobody did
    /// while the holder was paused.
    pub moved_ms: Option<f64>,
    /// Tasks executed at least once, of how many.
    pub executed: u64,
    /// All tasks.
    pub tasks: u64,
    /// Tasks that were executed more than once.
    pub repeated: u64,
    /// What the final states show. Nobody expects publish order of most.
    pub verdict: Verdict,
    /// What the workers that were not killed counted.
    pub tally: Tally,
}

/// Does it.
///
/// # Errors
/// If something breaks that was not to break.
pub async fn run(
    setting: &Setting,
    contestant: &dyn Contestant,
    stress: Stress,
) -> anyhow::Result<Stressed> {
    let plan = Plan {
        hold_ms: if stress == Stress::Opposite { 0 } else { HOLD_MS },
        heartbeat_s: HEARTBEAT_S,
        fenced: stress == Stress::PauseFenced,
        ..setting.plan(contestant.about().name, 2)
    };
    let mut jobs = jobs(stress);
    let truth = Truth::new(&plan.truth);
    truth.clear()?;
    contestant.prepare(&plan).await.context("cannot prepare a run")?;
    let mut fleet = Fleet::start(&setting.program, &plan).await?;
    contestant.settle(&plan).await?;
    let mut record = Record::new(jobs.len());
    let mut moved_ms = None;
    match stress {
        Stress::Kill | Stress::Pause | Stress::PauseFenced => {
            let (before, behind) = jobs.split_at_mut(TRAP as usize + 1);
            contestant.publish(&plan, before).await.context("cannot publish")?;
            let hit = hit(&mut fleet, &mut record, stress).await?;
            contestant.publish(&plan, behind).await.context("cannot publish")?;
            let still = stress != Stress::Kill && contestant.about().stands_still;
            let patience = if still { STILL } else { PATIENCE };
            moved_ms = taken_over(&mut fleet, &mut record, stress, hit, patience).await?;
        }
        Stress::Opposite => {
            // The two that meet have the locks to themselves first.
            let (meeting, rest) = jobs.split_at_mut(2);
            contestant.publish(&plan, meeting).await.context("cannot publish")?;
            record.until(2, &mut fleet).await?;
            contestant.publish(&plan, rest).await.context("cannot publish")?;
        }
    }
    record.until(jobs.len(), &mut fleet).await?;
    let (tally, rest) = fleet.stop().await?;
    rest.into_iter().for_each(|told| record.note(&told));
    let found = match contestant.states(&plan).await? {
        Some(states) => states,
        None => truth.states(plan.resources)?,
    };
    contestant.clean(&plan).await.context("cannot clean up after a run")?;
    Ok(Stressed {
        moved_ms,
        executed: record.executed(),
        tasks: jobs.len() as u64,
        repeated: record.repeated(),
        verdict: record.verdict(&jobs, &found, tally.overlaps),
        tally,
    })
}

fn jobs(stress: Stress) -> Vec<Job> {
    let job = |number| match stress {
        Stress::Kill | Stress::Pause | Stress::PauseFenced => {
            Job { number, resource: HOT, other: None, trap: number == TRAP, published_us: 0 }
        }
        Stress::Opposite => {
            let (resource, other) = (number % 2, Some(1 - number % 2));
            Job { number, resource, other, trap: number < 2, published_us: 0 }
        }
    };
    (0..TASKS).map(job).collect()
}

/// Who was killed or paused, and when.
#[derive(Debug, Clone, Copy)]
struct Hit {
    victim: u32,
    at_us: u64,
}

/// Kills or pauses whoever steps on the trap.
async fn hit(fleet: &mut Fleet, record: &mut Record, stress: Stress) -> anyhow::Result<Hit> {
    let victim = loop {
        let told = fleet.next(Instant::now() + PATIENCE).await?;
        let (worker, told) = told.context("nobody steps on the trap")?;
        record.note(&told);
        if matches!(told, Told::Holding { .. }) {
            break worker;
        }
    };
    let at_us = now_us();
    if stress == Stress::Kill {
        fleet.kill(victim)?;
    } else {
        fleet.pause(victim)?;
    }
    Ok(Hit { victim, at_us })
}

/// Waits until others execute tasks of the resource, and lets a paused holder go on. The time
/// until the first of them started, in milliseconds.
async fn taken_over(
    fleet: &mut Fleet,
    record: &mut Record,
    stress: Stress,
    hit: Hit,
    patience: Duration,
) -> anyhow::Result<Option<f64>> {
    let (mut moved_ms, mut overtaken) = (None, 0);
    let enough = if stress == Stress::Kill { 1 } else { OVERTAKEN_BY };
    while overtaken < enough && since(hit.at_us) < patience {
        let left = patience.saturating_sub(since(hit.at_us));
        let Some((worker, told)) = fleet.next(Instant::now() + left).await? else { break };
        record.note(&told);
        let Told::Executed { start_us, .. } = told else { continue };
        if worker != hit.victim && start_us >= hit.at_us {
            moved_ms.get_or_insert((start_us - hit.at_us) as f64 / 1e3);
            overtaken += 1;
        }
    }
    if stress != Stress::Kill {
        fleet.resume(hit.victim)?;
    }
    Ok(moved_ms)
}
