//! Which task kills its worker?
//!
//! When a worker dies, the broker raises the delivery count of everything that
//! it held: of the task that killed it, of the ones that ran beside it, and of
//! hundreds that had not started. The same happens at every hand-over. So the
//! count only says how often a delivery was *lost*, never whose fault it was,
//! and dead-lettering by it would take the neighbours along.
//!
//! keylane therefore collects evidence. Of the tasks of a resource that come back only the first
//! one can have been running ([`Returned`]). If it was lost often enough to be suspect, it is run
//! only after a *claim* on it is stored; if the worker dies, the claim stays. A task that left
//! claims behind twice is run *alone* on its worker, again after a claim that says so. If the
//! worker dies even then, there is nobody else who could have done it, and the task is guilty.
//!
//! Twice, since running alone is expensive: an operator who kills a worker
//! leaves a claim of every suspect that ran there. The same bystander is seldom
//! there again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::task::{Resource, TaskId};

/// After how many lost executions a task is dead-lettered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxCrashes(u32);

impl MaxCrashes {
    /// Nothing is ever dead-lettered for crashes.
    pub const OFF: Self = Self(0);

    /// Checks a number: 0 switches off, 1 is raised to the least that can be
    /// told apart, 2: the first execution of a task is never claimed, so that
    /// the usual case costs nothing.
    #[must_use]
    pub const fn new(crashes: u32) -> Self {
        Self(if crashes == 1 { 2 } else { crashes })
    }

    /// The number; 0 is off.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for MaxCrashes {
    /// Five: twice unseen, since one hand-over must cost nothing, twice beside
    /// others, once alone.
    fn default() -> Self {
        Self(5)
    }
}

/// What is known of a task's earlier executions that never ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub struct Evidence {
    /// Executions that were claimed and lost.
    pub lost: u32,
    /// The last of them ran alone on its worker.
    pub alone: bool,
}

/// How a delivery is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// Like any other.
    None,
    /// After its claim is stored.
    Claim,
    /// After its claim is stored, with nothing beside it on this worker.
    Alone,
    /// Not at all: it goes to the dead letters.
    Guilty,
}

/// Decides how to run a delivery that was lost `losses` times before.
#[must_use]
pub fn judge(max: MaxCrashes, losses: u32, evidence: Option<Evidence>) -> Suspicion {
    let max = max.get();
    if max == 0 || losses == 0 {
        return Suspicion::None;
    }
    let claimed = evidence.unwrap_or_default();
    // Of `max` executions the last is alone, up to two are claimed before it,
    // and at least one is seen by nobody.
    let beside = max.saturating_sub(2).min(2);
    if claimed.alone {
        Suspicion::Guilty
    } else if losses < max.saturating_sub(1 + beside) {
        Suspicion::None
    } else if claimed.lost >= beside {
        Suspicion::Alone
    } else {
        Suspicion::Claim
    }
}

/// The resources of the deliveries that came back to an owner from the ones before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Returned(BTreeSet<Resource>);

impl Returned {
    /// Notes a delivery in the order in which the broker hands it out, and tells whether its task
    /// may have been running when an earlier owner was lost. A resource runs one task at a time, so
    /// those behind its first one are innocent: most of a window.
    pub fn may_have_run(&mut self, resource: &Resource, losses: u32) -> bool {
        losses > 0 && self.0.insert(resource.clone())
    }
}

/// The claims of one partition: small, since only running suspects are in it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Claims(BTreeMap<TaskId, Evidence>);

impl Claims {
    /// What is known of a task.
    #[must_use]
    pub fn evidence(&self, id: &TaskId) -> Option<Evidence> {
        self.0.get(id).copied()
    }

    /// A task is about to run.
    pub fn claim(&mut self, id: TaskId, alone: bool) {
        let evidence = self.0.entry(id).or_default();
        evidence.lost = evidence.lost.saturating_add(1);
        evidence.alone = alone;
    }

    /// An execution ended, whatever came of it: its worker survived. Returns
    /// whether there was anything to forget.
    pub fn clear(&mut self, id: &TaskId) -> bool {
        self.0.remove(id).is_some()
    }

    /// Takes over what another record knows.
    pub fn merge(&mut self, other: Self) {
        for (id, theirs) in other.0 {
            let ours = self.0.entry(id).or_default();
            ours.lost = ours.lost.max(theirs.lost);
            ours.alone |= theirs.alone;
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs one killer task and an innocent neighbour that is always delivered
    /// with it; every execution of the killer kills the worker.
    fn executions_until_guilty(max: u32) -> (u32, Claims) {
        let max = MaxCrashes::new(max);
        let (killer, neighbour) = (TaskId::new("k").expect("id"), TaskId::new("n").expect("id"));
        let mut claims = Claims::default();
        for losses in 0..100 {
            // The neighbour runs first and survives only if it may run beside the killer.
            let beside = match judge(max, losses, claims.evidence(&neighbour)) {
                Suspicion::None => false,
                Suspicion::Claim => {
                    claims.claim(neighbour.clone(), false);
                    true
                }
                Suspicion::Alone => {
                    claims.claim(neighbour.clone(), true);
                    claims.clear(&neighbour);
                    false
                }
                Suspicion::Guilty => panic!("the neighbour was condemned"),
            };
            match judge(max, losses, claims.evidence(&killer)) {
                Suspicion::None => {}
                Suspicion::Claim => claims.claim(killer.clone(), false),
                Suspicion::Alone => {
                    if beside {
                        claims.clear(&neighbour);
                    }
                    claims.claim(killer.clone(), true);
                }
                Suspicion::Guilty => return (losses, claims),
            }
        }
        panic!("never condemned")
    }

    #[test]
    fn only_the_first_of_a_resource_that_comes_back_can_have_been_running() {
        let resource = |key: &str| Resource::new(key).expect("a resource");
        let mut returned = Returned::default();
        let seen = [("a", 1), ("a", 1), ("b", 3), ("a", 2), ("c", 0), ("c", 1), ("b", 1)];
        let may = seen.map(|(key, losses)| returned.may_have_run(&resource(key), losses));
        assert_eq!(may, [true, false, true, false, false, true, false]);
    }

    #[test]
    fn a_killer_runs_exactly_max_crashes_times_and_takes_nobody_along() {
        for max in 2..10 {
            assert_eq!(executions_until_guilty(max).0, max, "max {max}");
        }
        assert_eq!(executions_until_guilty(1).0, 2, "one cannot be told apart");
    }

    #[test]
    fn being_handed_over_often_is_no_evidence() {
        let max = MaxCrashes::default();
        assert_eq!(judge(max, 0, None), Suspicion::None);
        assert_eq!(judge(max, 1, None), Suspicion::None, "one hand-over costs nothing");
        assert_eq!(judge(max, 1_000_000, None), Suspicion::Claim);
        assert_eq!(judge(MaxCrashes::OFF, 1_000_000, None), Suspicion::None);
    }

    #[test]
    fn a_bystander_of_one_crash_runs_beside_others() {
        let judged = |lost| judge(MaxCrashes::default(), 3, Some(Evidence { lost, alone: false }));
        assert_eq!([1, 2].map(judged), [Suspicion::Claim, Suspicion::Alone]);
    }

    #[test]
    fn records_of_two_owners_add_up() {
        let id = TaskId::new("t").expect("id");
        let (mut a, mut b) = (Claims::default(), Claims::default());
        a.claim(id.clone(), false);
        a.claim(id.clone(), false);
        b.claim(id.clone(), true);
        a.merge(b);
        assert_eq!(a.evidence(&id), Some(Evidence { lost: 2, alone: true }));
        assert!(a.clear(&id) && !a.clear(&id) && a.is_empty());
    }
}
