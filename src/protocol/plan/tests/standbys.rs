//! Spread and stickiness of standbys.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::*;
use super::fleet::{Random, assert_valid, fleet, member, moves, names, standby_moves};

fn partitions(plan: &Plan) -> impl Iterator<Item = PartitionId> + use<> {
    (0..plan.lines.len() as u32).map(PartitionId::new)
}

/// Number of partitions in which each member stands at `rank`.
fn standing(plan: &Plan, rank: usize) -> BTreeMap<&WorkerId, usize> {
    let mut standing: BTreeMap<_, _> = plan.members.iter().map(|m| (m, 0)).collect();
    for standby in partitions(plan).filter_map(|p| plan.line(p).nth(rank)) {
        *standing.get_mut(standby).expect("a member") += 1;
    }
    standing
}

/// The most and the fewest partitions of one owner for which another member
/// stands at `rank`.
fn extremes(plan: &Plan, owner: &WorkerId, rank: usize) -> (usize, usize) {
    let mut counts: BTreeMap<_, _> =
        plan.members.iter().filter(|m| *m != owner).map(|m| (m, 0)).collect();
    for p in partitions(plan).filter(|p| plan.owner(*p) == Some(owner)) {
        *counts.get_mut(plan.line(p).nth(rank).expect("a standby")).expect("a member") += 1;
    }
    let counts = || counts.values().copied();
    (counts().max().unwrap_or(0), counts().min().unwrap_or(0))
}

/// Checks the spread of both ranks, to within `tolerance` partitions.
fn assert_spread(plan: &Plan, tolerance: usize) {
    for rank in 1..=Plan::STANDBYS {
        let mean = plan.lines.len() as f64 / plan.members.len() as f64;
        for (member, count) in standing(plan, rank) {
            let off = (count as f64 - mean).abs();
            assert!(off < tolerance as f64 + 1.2, "{member} is standby {rank} of {count}");
        }
        for owner in &plan.members {
            let (most, fewest) = extremes(plan, owner, rank);
            assert!(most - fewest <= tolerance.max(1), "{owner}: {most} to {fewest} at {rank}");
        }
    }
}

#[test]
fn the_partitions_of_a_dead_worker_fall_to_many() {
    let members = fleet(8);
    let plan = Plan::next(None, &members, 64, &[]);
    for dead in 0..8 {
        let mut left = members.clone();
        let dead = left.remove(dead).worker;
        let orphans: Vec<_> = partitions(&plan).filter(|p| plan.owner(*p) == Some(&dead)).collect();
        let heirs: BTreeSet<_> = orphans.iter().map(|p| plan.line(*p).nth(1)).collect();
        assert!(heirs.len() >= 5, "{} heirs", heirs.len());
        let next = Plan::next(Some(&plan), &left, 64, &[]);
        assert_eq!(moves(&plan, &next), orphans.len());
        assert!(orphans.iter().all(|p| next.owner(*p) == plan.line(*p).nth(1)));
    }
}

#[test]
fn a_fresh_plan_is_spread_to_one() {
    for (members, partitions) in [(3, 64), (8, 64), (16, 64), (40, 1_024), (100, 64), (65, 64)] {
        assert_spread(&Plan::next(None, &fleet(members), partitions, &[]), 1);
    }
}

#[test]
fn a_newcomer_becomes_standby_of_its_share() {
    let before = Plan::next(None, &fleet(7), 64, &[]);
    let after = Plan::next(Some(&before), &fleet(8), 64, &[]);
    for rank in 1..=Plan::STANDBYS {
        let standing = standing(&after, rank)[&after.members[7]];
        assert!((6..=10).contains(&standing), "{standing} at rank {rank}");
    }
}

#[test]
fn a_standby_that_left_is_replaced_and_the_others_move_up() {
    let members = fleet(12);
    let before = Plan::next(None, &members, 48, &[]);
    let after = Plan::next(Some(&before), &members[1..], 48, &[]);
    let gone = &members[0].worker;
    let lost = partitions(&before).filter(|p| before.line(*p).any(|m| m == gone)).count();
    assert_eq!(standby_moves(&before, &after), lost, "only lines that lost a member differ");
    let firsts = partitions(&before).filter(|p| before.line(*p).nth(1) == Some(gone));
    let moved_up = |p: PartitionId| after.line(p).nth(1) == before.line(p).nth(2);
    assert!(firsts.into_iter().all(moved_up));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn joins_and_leaves_keep_the_spread(seed: u64, count in 16usize..200, start in 5usize..24) {
        let mut random = Random(seed);
        let mut members = fleet(start);
        let mut plan = Plan::next(None, &members, count, &[]);
        for _ in 0..30 {
            if random.below(2) == 0 && members.len() > 4 {
                members.remove(random.below(members.len()));
            } else {
                let new = member(random.below(1_000), 1.0);
                if members.iter().all(|m| m.worker != new.worker) {
                    members.push(new);
                }
            }
            plan = Plan::next(Some(&plan), &members, count, &[]);
            assert_valid(&plan, members.len(), count);
            assert_spread(&plan, 2);
        }
    }
}

#[test]
fn print_the_standby_moves_of_joins_and_leaves() {
    for (count, start) in [(64, 8), (1_024, 40)] {
        let mut random = Random(3);
        let mut members = fleet(start);
        let mut plan = Plan::next(None, &members, count, &[]);
        let (mut replaced, mut lost) = (0, 0);
        for step in 0..40 {
            if step % 2 == 0 {
                let gone = members.remove(random.below(members.len())).worker;
                lost += partitions(&plan).filter(|p| plan.line(*p).any(|m| *m == gone)).count();
            } else {
                members.push(member(500 + step, 1.0));
                lost += 2 * count / members.len() + count / members.len();
            }
            let next = Plan::next(Some(&plan), &members, count, &[]);
            replaced += standby_moves(&plan, &next);
            plan = next;
        }
        println!(
            "{count} on {start}: lines with other standbys {replaced}, unavoidable about {lost}"
        );
        assert!(names(&plan).len() == start);
    }
}
