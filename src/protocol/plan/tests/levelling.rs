//! Measured load: what moves, how far it helps, and that noise moves nothing.

use proptest::prelude::*;

use super::super::super::partition::{PartitionCount, Topology};
use super::super::super::task::Resource;
use super::super::*;
use super::fleet::{Random, assert_valid, busiest, fleet, levels, member, moves, names};

/// Moves of one plan because of load, at most.
const MOVES: usize = 4;

/// The most partitions that a member of this share may own because of load.
fn limit(share: f64) -> usize {
    let ceiling = share.ceil() as usize;
    ceiling + ceiling.div_ceil(2) + 1
}

/// Loads by 1,000 resources: each has its rank's part of that of the first.
fn zipf(salt: u64, partitions: u32) -> Vec<f64> {
    let count = PartitionCount::new(partitions).expect("a count");
    let topology = Topology::first(count);
    let mut loads = vec![0.0; partitions as usize];
    for rank in 1..=1_000u32 {
        let resource = Resource::new(format!("resource-{salt}-{rank}")).expect("a key");
        loads[topology.partition_of(&resource).number() as usize] += 1.0 / f64::from(rank);
    }
    loads
}

/// Plans until nothing changes. Returns that plan, the moves, and the number of
/// plans.
fn settled(mut plan: Plan, members: &[Member], loads: &[f64]) -> (Plan, usize, usize) {
    let mut moved = 0;
    for plans in 0..1_000 {
        let next = Plan::next(Some(&plan), members, loads.len(), loads);
        assert_valid(&next, members.len(), loads.len());
        let these = moves(&plan, &next);
        assert!(these <= MOVES, "{these} moves in one plan");
        if next.number == plan.number {
            assert_eq!(next, plan);
            return (plan, moved, plans);
        }
        moved += these;
        plan = next;
    }
    panic!("does not converge");
}

fn assert_within_limits(plan: &Plan, members: &[Member]) {
    let weights: f64 = members.iter().map(|m| f64::from(m.weight)).sum();
    let owned = names(plan);
    for m in members {
        let share = plan.lines.len() as f64 * f64::from(m.weight) / weights;
        assert!(owned[&m.worker] <= limit(share), "{} owns {}", m.worker, owned[&m.worker]);
    }
}

/// The level that no plan can go below: the hottest partition cannot be split.
fn hottest(loads: &[f64], members: usize) -> f64 {
    loads.iter().copied().fold(0.0, f64::max) / loads.iter().sum::<f64>() * members as f64
}

#[test]
fn a_zipf_load_is_levelled() {
    for size in [3, 5, 8, 16] {
        for salt in 0..5 {
            let loads = zipf(salt, 64);
            let members = fleet(size);
            let first = Plan::next(None, &members, 64, &[]);
            let before = busiest(&first, &members, &loads);
            let (plan, moved, plans) = settled(first, &members, &loads);
            let hottest = hottest(&loads, size);
            let after = busiest(&plan, &members, &loads);
            println!(
                "{size} members: {before:.2} to {after:.2} of the mean, hottest partition \
                 {hottest:.2}; {moved} moves in {plans} plans"
            );
            assert!(after <= 1.20 || after <= 1.02 * hottest, "{after} of the mean");
            assert_within_limits(&plan, &members);
        }
    }
}

#[test]
fn the_owner_of_a_hot_partition_sheds_light_ones() {
    // 64 partitions a member: none but the hot ones gains 0.02 of the mean.
    let (loads, members) = (zipf(1, 1_024), fleet(16));
    let first = Plan::next(None, &members, 1_024, &[]);
    let (plan, ..) = settled(first, &members, &loads);
    let (after, hottest) = (busiest(&plan, &members, &loads), hottest(&loads, 16));
    assert!(after <= 1.02 * hottest, "{after} of the mean, hottest {hottest}");
    assert_within_limits(&plan, &members);
}

/// Loads that are each up to 5 % higher or lower.
fn noisy(loads: &[f64], random: &mut Random) -> Vec<f64> {
    loads.iter().map(|load| load * (0.95 + 0.1 * random.unit())).collect()
}

/// Number of plans of 100 in which a settled plan moves under noise.
fn moved_by_noise(plan: &Plan, members: &[Member], loads: &[f64], seed: u64) -> usize {
    let mut random = Random(seed);
    let mut plan = plan.clone();
    let mut moved = 0;
    for _ in 0..100 {
        let next = Plan::next(Some(&plan), members, loads.len(), &noisy(loads, &mut random));
        moved += usize::from(next.number != plan.number);
        plan = next;
    }
    moved
}

#[test]
fn noise_moves_nothing() {
    for size in [3, 5, 8, 16] {
        for salt in 0..12 {
            let (loads, members) = (zipf(salt, 64), fleet(size));
            let first = Plan::next(None, &members, 64, &[]);
            let (plan, _, plans) = settled(first, &members, &loads);
            let changed = moved_by_noise(&plan, &members, &loads, salt);
            // A fleet that was never levelled may rest just below the start.
            // Noise then starts it, once.
            let below_start = plans == 0 && busiest(&plan, &members, &loads) > 1.12;
            assert!(changed <= if below_start { 2 } else { 0 }, "{changed} plans changed");
        }
    }
}

/// A plan of one partition for each load, and the loads by partition: `loads[m]`
/// are those of the partitions of member `m`.
fn with_loads(loads: &[&[f64]]) -> (Plan, Vec<f64>) {
    let count = loads.iter().map(|own| own.len()).sum();
    let plan = Plan::next(None, &fleet(loads.len()), count, &[]);
    let mut left: Vec<_> = loads.iter().map(|own| own.iter()).collect();
    let own = plan.lines.iter().map(|line| left[usize::from(line.owner)].next());
    let by_partition = own.map(|load| *load.expect("as many as it owns")).collect();
    (plan, by_partition)
}

fn sorted_levels(plan: &Plan, loads: &[f64]) -> Vec<f64> {
    let mut levels = levels(plan, &fleet(plan.members.len()), loads);
    levels.sort_by(f64::total_cmp);
    levels
}

#[test]
fn what_no_move_can_level_is_swapped() {
    // Any move makes the other member busier than this one was.
    let (plan, loads) = with_loads(&[&[7.0, 6.0], &[4.0, 4.0]]);
    let next = Plan::next(Some(&plan), &fleet(2), 4, &loads);
    assert_eq!((moves(&plan, &next), next.number), (2, 2));
    assert!(busiest(&next, &fleet(2), &loads) < 1.05);
}

#[test]
fn one_move_is_preferred_to_a_swap() {
    let (plan, loads) = with_loads(&[&[4.0, 4.0, 2.0], &[2.0, 2.0, 2.0]]);
    let next = Plan::next(Some(&plan), &fleet(2), 6, &loads);
    assert_eq!(moves(&plan, &next), 1);
    assert_eq!(sorted_levels(&next, &loads), [1.0, 1.0]);
}

#[test]
fn an_imbalance_below_the_start_is_left_alone() {
    let (plan, loads) = with_loads(&[&[1.19, 0.0, 0.0], &[0.61, 0.1, 0.1]]);
    assert_eq!(Plan::next(Some(&plan), &fleet(2), 6, &loads), plan);
    let (plan, loads) = with_loads(&[&[0.61, 0.5, 0.1], &[0.59, 0.1, 0.1]]);
    assert_ne!(Plan::next(Some(&plan), &fleet(2), 6, &loads).lines, plan.lines);
}

#[test]
fn levelling_goes_on_below_the_start() {
    // Each move levels a pair of members, so four moves are not enough.
    let loads: Vec<&[f64]> = [&[0.7, 0.6] as &[f64], &[0.35, 0.35]].repeat(6);
    let (plan, loads) = with_loads(&loads);
    let one = Plan::next(Some(&plan), &fleet(12), 24, &loads);
    assert!(one.levelling, "more to do");
    let (end, ..) = settled(plan, &fleet(12), &loads);
    assert!(busiest(&end, &fleet(12), &loads) <= 1.10 && !end.levelling);
}

#[test]
fn what_the_load_moved_stays_when_no_load_is_known() {
    let loads = zipf(3, 64);
    let first = Plan::next(None, &fleet(8), 64, &[]);
    let (plan, moved, _) = settled(first, &fleet(8), &loads);
    assert!(moved > 0 && names(&plan).values().any(|owned| *owned > 8));
    for unknown in [&[] as &[f64], &[0.0; 64], &[f64::NAN; 64], &[-1.0; 64], &[f64::INFINITY; 64]] {
        assert_eq!(Plan::next(Some(&plan), &fleet(8), 64, unknown), plan);
    }
    let huge: Vec<_> = loads.iter().map(|load| load * 1e307).collect();
    assert_eq!(Plan::next(Some(&plan), &fleet(8), 64, &huge), plan, "no overflow");
}

#[test]
fn a_leave_under_load_moves_orphans_only_and_fills_up_nobody() {
    let loads = zipf(3, 64);
    let (plan, ..) = settled(Plan::next(None, &fleet(16), 64, &[]), &fleet(16), &loads);
    let owned = names(&plan);
    let hot = plan.members.iter().find(|m| owned[m] == 1).expect("owner of the hot partition");
    let gone = plan.members.iter().rfind(|m| *m != hot && owned[m] >= 3).expect("another one");
    let left: Vec<_> = fleet(16).into_iter().filter(|m| m.worker != *gone).collect();
    let next = Plan::next(Some(&plan), &left, 64, &loads);
    assert!(moves(&plan, &next) <= owned[gone] + MOVES);
    assert_eq!(names(&next)[hot], 1);
    // Without loads all go back to their quota.
    let next = Plan::next(Some(&plan), &left, 64, &[]);
    assert!(names(&next).values().all(|owned| (4..=5).contains(owned)));
}

#[test]
fn a_newcomer_gets_its_share_of_the_load() {
    let loads = zipf(2, 64);
    let (plan, ..) = settled(Plan::next(None, &fleet(4), 64, &[]), &fleet(4), &loads);
    let next = Plan::next(Some(&plan), &fleet(5), 64, &loads);
    let newcomer = &fleet(5)[4].worker;
    assert!((12..=12 + MOVES).contains(&names(&next)[newcomer]));
    assert!((12..=12 + MOVES).contains(&moves(&plan, &next)));
    let level = levels(&next, &fleet(5), &loads)[4];
    assert!((0.8..1.2).contains(&level), "{level} of the mean");
}

#[test]
fn a_renamed_worker_under_load_takes_over_what_it_had() {
    let (mut members, loads) = (fleet(8), [1.0; 64]);
    let plan = Plan::next(None, &members, 64, &loads);
    members[3] = member(99, 1.0);
    let next = Plan::next(Some(&plan), &members, 64, &loads);
    assert_eq!(moves(&plan, &next), 8);
    assert!(names(&next).values().all(|owned| *owned == 8));
}

#[test]
fn a_heavier_member_carries_more() {
    let members: Vec<_> = [1.0, 1.0, 4.0].into_iter().zip(0..).map(|(w, i)| member(i, w)).collect();
    let loads = zipf(5, 256);
    let (plan, ..) = settled(Plan::next(None, &members, 256, &[]), &members, &loads);
    assert!(busiest(&plan, &members, &loads) <= 1.20);
    assert_within_limits(&plan, &members);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_load_and_fleet_converges_within_the_limits(
        seed: u64, count in 1usize..120, start in 1usize..12, skew in 0.0f64..6.0,
        weights in prop::sample::select(vec![&[1.0] as &[f64], &[1.0, 2.0, 0.25]]),
    ) {
        let mut random = Random(seed);
        let new = |random: &mut Random| {
            member(random.below(1_000), weights[random.below(weights.len())])
        };
        let mut members: Vec<_> = (0..start).map(|_| new(&mut random)).collect();
        members.sort_by(|a, b| a.worker.cmp(&b.worker));
        members.dedup_by(|a, b| a.worker == b.worker);
        let mut plan = Plan::next(None, &members, count, &[]);
        for _ in 0..6 {
            let loads: Vec<_> = (0..count).map(|_| random.unit().powf(skew)).collect();
            (plan, ..) = settled(plan, &members, &loads);
            assert_within_limits(&plan, &members);
            let gone = members.remove(random.below(members.len()));
            let new = new(&mut random);
            if members.is_empty() || members.iter().all(|m| m.worker != new.worker) {
                members.push(new);
            }
            let next = Plan::next(Some(&plan), &members, count, &loads);
            assert_valid(&next, members.len(), count);
            assert_within_limits(&next, &members);
            prop_assert!(next.members.contains(&gone.worker) || next.number > plan.number);
            plan = next;
        }
    }
}
