//! Joins, leaves and weights: balance, and the least number of moves.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::*;
use super::fleet::{Random, assert_valid, fleet, member, moves, names};

/// The fewest moves to a plan in which each member owns its share, rounded down
/// or up. Counted apart from the code under test: rounding up is given to
/// the members one by one, for as long as it saves a move.
fn fewest_moves(before: &Plan, members: &[Member], partitions: usize) -> usize {
    let total: f64 = members.iter().map(|m| f64::from(m.weight)).sum();
    let owned = names(before);
    let share = |m: &Member| partitions as f64 * f64::from(m.weight) / total;
    let whole = |share: f64| (share - share.round()).abs() < 1e-9;
    let floor = |m: &Member| {
        let share = share(m);
        if whole(share) { share.round() as usize } else { share as usize }
    };
    let owned = |m: &Member| owned.get(&m.worker).copied().unwrap_or(0);
    let kept: usize = members.iter().map(|m| owned(m).min(floor(m))).sum();
    let over = members.iter().filter(|m| owned(m) > floor(m) && !whole(share(m))).count();
    let extra = partitions - members.iter().map(floor).sum::<usize>();
    before.lines.len() - kept - over.min(extra)
}

fn assert_balanced(plan: &Plan, members: &[Member]) {
    let total: f64 = members.iter().map(|m| f64::from(m.weight)).sum();
    let owned = names(plan);
    for m in members {
        let share = plan.lines.len() as f64 * f64::from(m.weight) / total;
        let off = owned[&m.worker] as f64 - share;
        assert!(off.abs() < 1.0, "{} owns {} of {share}", m.worker, owned[&m.worker]);
    }
}

/// A fleet that one worker has joined or left, or in which one has another
/// weight, at random.
fn changed(members: &[Member], random: &mut Random, weights: &[f64]) -> Vec<Member> {
    let mut members = members.to_vec();
    let weight = weights[random.below(weights.len())];
    let at = random.below(members.len());
    match random.below(5) {
        0 | 1 if members.len() > 1 => drop(members.remove(at)),
        2 if weights.len() > 1 => members[at].weight = Weight::new(weight).expect("a weight"),
        _ => {
            let new = member(random.below(1_000), weight);
            if members.iter().all(|m| m.worker != new.worker) {
                members.push(new);
            }
        }
    }
    members
}

/// Plans a random sequence of fleets and checks each step.
fn walk(seed: u64, partitions: usize, start: usize, weights: &[f64], steps: usize) {
    let mut random = Random(seed);
    let mut members = fleet(start);
    let mut plan = Plan::next(None, &members, partitions, &[]);
    for _ in 0..steps {
        assert_valid(&plan, members.len(), partitions);
        assert_balanced(&plan, &members);
        assert_eq!(Plan::next(Some(&plan), &members, partitions, &[]), plan, "not at rest");
        members = changed(&members, &mut random, weights);
        let next = Plan::next(Some(&plan), &members, partitions, &[]);
        assert_eq!(moves(&plan, &next), fewest_moves(&plan, &members, partitions));
        members.reverse();
        assert_eq!(Plan::next(Some(&plan), &members, partitions, &[]), next, "another order");
        let same = Plan { number: plan.number, ..next.clone() } == plan;
        assert_eq!(next.number, plan.number + u64::from(!same));
        plan = next;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn equal_members_own_the_same_to_one_partition(
        seed: u64, partitions in 0usize..200, start in 1usize..20,
    ) {
        walk(seed, partitions, start, &[1.0], 30);
    }

    #[test]
    fn weights_are_honoured_to_one_partition(
        seed: u64, partitions in 0usize..200, start in 1usize..20,
    ) {
        walk(seed, partitions, start, &[1.0, 2.0, 0.5, 0.333, 7.25, 1000.0, 0.001], 30);
    }

    #[test]
    fn many_leave_and_join_at_once(
        seed: u64, partitions in 1usize..200,
        before in prop::collection::btree_set(0usize..40, 1..30),
        after in prop::collection::btree_set(0usize..40, 1..30),
    ) {
        let mut random = Random(seed);
        let mut members = |set: &BTreeSet<usize>| -> Vec<_> {
            set.iter().map(|i| member(*i, [1.0, 2.0, 3.5][random.below(3)])).collect()
        };
        let (before, after) = (members(&before), members(&after));
        let plan = Plan::next(None, &before, partitions, &[]);
        let next = Plan::next(Some(&plan), &after, partitions, &[]);
        assert_valid(&next, after.len(), partitions);
        assert_balanced(&next, &after);
        prop_assert_eq!(moves(&plan, &next), fewest_moves(&plan, &after, partitions));
        prop_assert_eq!(Plan::next(Some(&next), &after, partitions, &[]), next);
    }
}

#[test]
fn orphans_go_to_many_members() {
    // Nobody stands by: only the room decides, and it is equal.
    let before = Plan::next(None, &fleet(1), 64, &[]);
    let after: Vec<_> = (1..65).map(|i| member(i, 1.0)).collect();
    let plan = Plan::next(Some(&before), &after, 64, &[]);
    assert!(names(&plan).values().all(|owned| *owned == 1));
    let in_order = plan.lines.windows(2).filter(|w| w[0].owner < w[1].owner).count();
    assert!((20..45).contains(&in_order), "{in_order} of 63 in the order of the names");
}

#[test]
fn a_renamed_worker_takes_over_what_it_had_and_nothing_else_moves() {
    let before = Plan::next(None, &fleet(8), 64, &[]);
    let mut members = fleet(8);
    members[3] = member(99, 1.0);
    let after = Plan::next(Some(&before), &members, 64, &[]);
    assert_eq!(moves(&before, &after), 8);
}

#[test]
fn print_the_moves_of_forty_joins_and_leaves() {
    for (partitions, start) in [(64, 8), (1_024, 50)] {
        let mut random = Random(7);
        let mut members = fleet(start);
        let mut plan = Plan::next(None, &members, partitions, &[]);
        let (mut moved, mut fewest, mut most) = (0, 0, 0.0f64);
        for _ in 0..40 {
            members = changed(&members, &mut random, &[1.0]);
            fewest += fewest_moves(&plan, &members, partitions);
            let next = Plan::next(Some(&plan), &members, partitions, &[]);
            moved += moves(&plan, &next);
            let mean = partitions as f64 / members.len() as f64;
            let largest = names(&next).values().copied().max().unwrap_or(0);
            most = most.max(largest as f64 / mean);
            plan = next;
        }
        println!("{partitions} on {start}: {moved} moves, {fewest} needed, max/mean {most:.2}");
        assert_eq!(moved, fewest);
    }
}
