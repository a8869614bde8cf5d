//! The members of a fleet, as the planner knows them from their own reports.

use std::collections::BTreeMap;

use super::lanes::Millis;
use super::ownership::{Weight, WorkerId};
use super::plan::{Member, Plan};

/// How often a member reports.
pub const REPORT_EVERY_MS: u64 = 2_000;

/// A member that has missed five reports is planned without. Its partitions do not wait for that:
/// the broker hands them on as soon as it has lost the connection.
pub const SILENT_MS: u64 = 5 * REPORT_EVERY_MS;

/// Who has heard nobody for so long, not even himself, hears badly: a broker that runs low on
/// memory takes no reports. The members are not to blame.
const DEAF_MS: u64 = SILENT_MS / 2;

/// A worker weighs the same for as long as it runs. One that was restarted with another weight is
/// planned for with the old one for so long at the most.
pub const REWEIGH_MS: u64 = 30_000;

/// The weight of the newest report in the mean of a load: a change is followed within some twenty
/// seconds, and what happens by chance within two is not.
const NEWEST: f64 = 0.15;

/// See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    members: BTreeMap<WorkerId, Known>,
    /// Nobody was heard when it was last looked.
    deaf: bool,
    /// Mean busy time of each partition: handlers that run at once.
    loads: Vec<f64>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    weight: Weight,
    /// Since when it weighs that; `None` if it has not said so itself.
    weighed: Option<Millis>,
    heard: Millis,
    /// The plan that it follows.
    plan: Option<u64>,
}

impl Fleet {
    /// The members of a plan, as if all of them had just reported: whoever plans next gives them
    /// time to do so.
    #[must_use]
    pub fn of_plan(plan: Option<&Plan>, partitions: usize, now: Millis) -> Self {
        let weight = Weight::ONE;
        let number = plan.map(|plan| plan.number);
        let known = |worker: &WorkerId| {
            (worker.clone(), Known { weight, weighed: None, heard: now, plan: number })
        };
        let members = plan.into_iter().flat_map(|plan| plan.members.iter().map(known)).collect();
        Self { members, deaf: false, loads: vec![0.0; partitions] }
    }

    /// A member reports. Returns whether a new plan is needed for it: it is new, or its weight is
    /// another one. That is believed once in [`REWEIGH_MS`]: it moves partitions, and two workers
    /// of one name, or one that lies, would have them move for ever.
    pub fn report(
        &mut self,
        worker: WorkerId,
        weight: Weight,
        plan: Option<u64>,
        now: Millis,
    ) -> bool {
        let Some(known) = self.members.get_mut(&worker) else {
            self.members.insert(worker, Known { weight, weighed: Some(now), heard: now, plan });
            return true;
        };
        (known.heard, known.plan) = (now, plan);
        let is_late = known.weighed.is_none_or(|at| now.0.saturating_sub(at.0) >= REWEIGH_MS);
        let reweighs = known.weight != weight && is_late;
        if reweighs || known.weighed.is_none() {
            (known.weight, known.weighed) = (weight, Some(now));
        }
        reweighs
    }

    /// The owner of a partition tells how busy it was with it: handlers that ran at once, in the
    /// mean since its last report.
    pub fn load(&mut self, partition: usize, busy: f64) {
        if let Some(load) = self.loads.get_mut(partition).filter(|_| busy.is_finite()) {
            *load += (busy.clamp(0.0, 1e6) - *load) * NEWEST;
        }
    }

    /// A member says goodbye. Returns whether it was one.
    pub fn leave(&mut self, worker: &WorkerId) -> bool {
        self.members.remove(worker).is_some()
    }

    /// Forgets those that have been silent for [`SILENT_MS`] while others were heard, and returns
    /// them. The planner is a member, and hears itself.
    pub fn forget_silent(&mut self, now: Millis) -> Vec<WorkerId> {
        let newest = self.members.values().map(|known| known.heard).max();
        let was_deaf = std::mem::replace(
            &mut self.deaf,
            newest.is_none_or(|newest| now.0.saturating_sub(newest.0) > DEAF_MS),
        );
        if self.deaf {
            return Vec::new();
        }
        if was_deaf {
            self.members.values_mut().for_each(|known| known.heard = now);
        }
        let silent = |known: &Known| now.0.saturating_sub(known.heard.0) > SILENT_MS;
        let gone = self.members.iter().filter(|(_, known)| silent(known));
        let gone: Vec<_> = gone.map(|(worker, _)| worker.clone()).collect();
        self.members.retain(|worker, _| !gone.contains(worker));
        gone
    }

    /// Whether a member follows another plan than this one: it has not heard of it.
    #[must_use]
    pub fn is_behind(&self, plan: &Plan) -> bool {
        self.members.values().any(|known| known.plan != Some(plan.number))
    }

    /// The members to plan for.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let member = |(worker, known): (&WorkerId, &Known)| Member {
            worker: worker.clone(),
            weight: known.weight,
        };
        self.members.iter().map(member).collect()
    }

    /// The mean busy time of each partition.
    #[must_use]
    pub fn loads(&self) -> &[f64] {
        &self.loads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str) -> WorkerId {
        WorkerId::new(name).expect("a name")
    }

    #[test]
    fn a_member_is_one_until_it_leaves_or_is_silent() {
        let mut fleet = Fleet::of_plan(None, 2, Millis(0));
        assert!(fleet.report(worker("a"), Weight::ONE, None, Millis(0)));
        assert!(fleet.report(worker("b"), Weight::ONE, None, Millis(0)));
        assert!(!fleet.report(worker("a"), Weight::ONE, None, Millis(SILENT_MS)));
        assert_eq!(fleet.forget_silent(Millis(SILENT_MS)), []);
        assert_eq!(fleet.forget_silent(Millis(SILENT_MS + 1)), [worker("b")]);
        assert_eq!(fleet.members(), [Member { worker: worker("a"), weight: Weight::ONE }]);
        assert!(fleet.leave(&worker("a")) && !fleet.leave(&worker("a")));
    }

    #[test]
    fn a_weight_changes_no_more_than_twice_a_minute() {
        let heavy = Weight::new(2.0).expect("a weight");
        let mut fleet = Fleet::of_plan(None, 2, Millis(0));
        fleet.report(worker("a"), Weight::ONE, None, Millis(0));
        let mut changes = 0;
        for second in 1..=120 {
            let weight = if second % 2 == 0 { Weight::ONE } else { heavy };
            changes += u32::from(fleet.report(worker("a"), weight, None, Millis(second * 1_000)));
        }
        assert_eq!(changes, 3);
        // A member of an earlier plan has not said yet how much it weighs.
        let plan = Plan::next(None, &fleet.members(), 2, &[]);
        let mut fleet = Fleet::of_plan(Some(&plan), 2, Millis(0));
        assert!(fleet.report(worker("a"), heavy, None, Millis(1)));
        assert!(!fleet.report(worker("a"), Weight::ONE, None, Millis(2)));
    }

    #[test]
    fn whoever_plans_next_gives_the_planned_ones_time_to_report() {
        let member = |name| Member { worker: worker(name), weight: Weight::ONE };
        let plan = Plan::next(None, &[member("a"), member("b")], 4, &[]);
        let mut fleet = Fleet::of_plan(Some(&plan), 4, Millis(50));
        assert_eq!(fleet.members().len(), 2);
        assert!(!fleet.is_behind(&plan));
        assert!(!fleet.report(worker("a"), Weight::ONE, None, Millis(60)));
        assert!(fleet.is_behind(&plan), "it knows none");
        fleet.report(worker("a"), Weight::ONE, None, Millis(51 + SILENT_MS));
        assert_eq!(fleet.forget_silent(Millis(51 + SILENT_MS)), [worker("b")]);
    }

    #[test]
    fn who_hears_nobody_forgets_nobody() {
        let mut fleet = Fleet::of_plan(None, 4, Millis(0));
        for name in ["a", "b", "us"] {
            fleet.report(worker(name), Weight::ONE, None, Millis(0));
        }
        // The broker takes nothing for a minute.
        for now in (1_000..60_000).step_by(1_000) {
            let gone = fleet.forget_silent(Millis(now));
            assert_eq!(gone, [], "after {now} ms");
        }
        let goes_on = |fleet: &mut Fleet, now| {
            for name in ["a", "us"] {
                fleet.report(worker(name), Weight::ONE, None, Millis(now));
            }
            fleet.forget_silent(Millis(now))
        };
        // One that does not come back is missed from then on.
        assert_eq!(goes_on(&mut fleet, 60_000), []);
        assert_eq!(goes_on(&mut fleet, 60_000 + SILENT_MS), []);
        assert_eq!(goes_on(&mut fleet, 60_001 + SILENT_MS), [worker("b")]);
    }

    #[test]
    fn a_load_is_a_mean_that_forgets() {
        let mut fleet = Fleet::of_plan(None, 1, Millis(0));
        fleet.load(0, f64::NAN);
        fleet.load(7, 1.0);
        assert_eq!(fleet.loads(), [0.0]);
        (0..30).for_each(|_| fleet.load(0, 2.0));
        assert!((1.9..=2.0).contains(&fleet.loads()[0]), "{:?}", fleet.loads());
        fleet.load(0, 0.0);
        assert!((1.6..1.8).contains(&fleet.loads()[0]), "{:?}", fleet.loads());
    }
}
