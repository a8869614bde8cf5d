//! Time that a plan takes, printed.

use std::time::Instant;

use super::super::*;
use super::fleet::fleet;

#[test]
fn print_the_time_of_large_plans() {
    for (members, partitions) in [(40, 1_024), (1_000, 16_384)] {
        let timed = |what: &str, previous: Option<&Plan>, fleet: &[Member], loads: &[f64]| {
            let start = Instant::now();
            let plan = Plan::next(previous, fleet, partitions, loads);
            let took = start.elapsed();
            println!("{members} x {partitions}, {what}: {took:.1?}");
            // A debug build on a busy machine has room, a quadratic loop has not.
            assert!(took.as_secs() < 20, "{what} took {took:?}");
            plan
        };
        let loads: Vec<f64> =
            (0..partitions).map(|p| 1.0 / (1 + p * 7919 % partitions) as f64).collect();
        let (all, fewer) = (fleet(members), fleet(members - 1));
        let first = timed("from nothing", None, &all, &[]);
        timed("nothing changed", Some(&first), &all, &[]);
        let after = timed("one leaves", Some(&first), &fewer, &[]);
        timed("one joins", Some(&after), &all, &[]);
        let half: Vec<_> = all.iter().step_by(2).cloned().collect();
        let after = timed("half leave", Some(&first), &half, &[]);
        timed("half join", Some(&after), &all, &[]);
        timed("load", Some(&first), &all, &loads);
        timed("one leaves, with load", Some(&first), &fewer, &loads);
        let after = timed("half leave, with load", Some(&first), &half, &loads);
        timed("half join, with load", Some(&after), &all, &loads);
    }
}
