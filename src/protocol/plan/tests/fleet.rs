//! Fleets, and what is counted in their plans.

use std::collections::BTreeMap;

use super::super::*;

/// `members` workers of weight 1, `w000` and so on.
pub(super) fn fleet(members: usize) -> Vec<Member> {
    (0..members).map(|i| member(i, 1.0)).collect()
}

pub(super) fn member(number: usize, weight: f64) -> Member {
    let worker = WorkerId::new(format!("w{number:03}")).expect("a name");
    Member { worker, weight: Weight::new(weight).expect("a weight") }
}

fn partitions(plan: &Plan) -> impl Iterator<Item = PartitionId> + use<> {
    (0..plan.lines.len() as u32).map(PartitionId::new)
}

/// Number of partitions that each member owns, members without one included.
pub(super) fn names(plan: &Plan) -> BTreeMap<&WorkerId, usize> {
    let mut owned: BTreeMap<_, _> = plan.members.iter().map(|m| (m, 0)).collect();
    for owner in partitions(plan).filter_map(|p| plan.owner(p)) {
        *owned.get_mut(owner).expect("a member") += 1;
    }
    owned
}

/// Number of partitions of `before` that have another owner in `after`.
pub(super) fn moves(before: &Plan, after: &Plan) -> usize {
    let both = before.lines.len().min(after.lines.len());
    partitions(before).take(both).filter(|p| before.owner(*p) != after.owner(*p)).count()
}

/// Number of partitions of which a standby is another one, or of another rank.
pub(super) fn standby_moves(before: &Plan, after: &Plan) -> usize {
    let differ = |p: &PartitionId| !before.line(*p).skip(1).eq(after.line(*p).skip(1));
    partitions(before).filter(differ).count()
}

/// Load of each member, as a multiple of the mean by its weight.
pub(super) fn levels(plan: &Plan, members: &[Member], loads: &[f64]) -> Vec<f64> {
    let mut levels: BTreeMap<_, _> = plan.members.iter().map(|m| (m, 0.0)).collect();
    for (p, load) in partitions(plan).zip(loads) {
        *levels.get_mut(plan.owner(p).expect("an owner")).expect("a member") += load;
    }
    let total: f64 = loads.iter().take(plan.lines.len()).sum();
    let weights: f64 = members.iter().map(|m| f64::from(m.weight)).sum();
    let level = |m: &Member| levels[&m.worker] / total * weights / f64::from(m.weight);
    members.iter().map(level).collect()
}

pub(super) fn busiest(plan: &Plan, members: &[Member], loads: &[f64]) -> f64 {
    levels(plan, members, loads).into_iter().fold(0.0, f64::max)
}

/// Checks that all partitions are planned, with the standbys that there can be,
/// and none twice in a line. The check of received plans does the rest.
pub(super) fn assert_valid(plan: &Plan, members: usize, count: usize) {
    assert_eq!(plan.members.len(), members);
    assert_eq!(plan.lines.len(), if members == 0 { 0 } else { count });
    for p in partitions(plan) {
        assert_eq!(plan.line(p).count(), members.min(Plan::STANDBYS + 1), "partition {p}");
    }
    assert_eq!(plan.everyone, members * count <= Plan::EVERYONE_UP_TO);
    let text = serde_json::to_string(plan).expect("serialises");
    assert_eq!(serde_json::from_str::<Plan>(&text).expect("a valid plan"), *plan);
}

/// A random sequence that is the same in each run.
pub(super) struct Random(pub(super) u64);

impl Random {
    /// A number from 0 up to 1.
    pub(super) fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (super::super::board::mixed(self.0) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }
}
