//! Holders that are killed and paused, and locks that are taken in opposite orders: the safe
//! patterns stay safe, and the unsafe ones show what happens.

#![allow(clippy::expect_used, reason = "clippy spares #[test] functions only")]

use std::path::Path;

use comparison::contestants;
use comparison::measure::Setting;
use comparison::servers::{Server, Servers};
use comparison::stress::{Stress, Stressed, run};

/// Locks that a lease ends, with a store that checks nothing: whoever was paused for longer
/// overwrites what others have done.
const UNSAFE_WHEN_PAUSED: [&str; 5] =
    ["redis-lock", "redlock", "zookeeper", "etcd-lock", "ownership"];

/// Those that nobody takes a resource from while they are paused.
const STANDING_STILL: [&str; 3] = ["postgres-advisory", "postgres-queue", "ricart-agrawala"];

fn wrong(name: &str, stress: Stress, seen: &Stressed) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut demand = |holds: bool, what: &str| {
        if !holds {
            wrong.push(format!("{name}, {stress:?}: {what}: {seen:?}"));
        }
    };
    demand(seen.executed == seen.tasks, "not all tasks were executed");
    let lost = seen.verdict.lost;
    match stress {
        Stress::Kill => {
            demand(seen.moved_ms.is_some(), "the resource did not move");
            demand(lost == 0, "a dead worker's write came later");
        }
        // Whether keylane's worker writes or is aborted first, when it comes back, is chance.
        Stress::Pause if name == "keylane" => demand(seen.moved_ms.is_some(), "it did not move"),
        Stress::Pause if UNSAFE_WHEN_PAUSED.contains(&name) => {
            demand(seen.moved_ms.is_some(), "the lease did not end");
            demand(lost > 0, "the stale write was no violation");
        }
        Stress::Pause => demand(lost == 0, "an update was lost"),
        Stress::PauseFenced => {
            demand(lost == 0, "the guard let a stale write pass");
            let refused = seen.tally.fenced_off > 0 || !UNSAFE_WHEN_PAUSED.contains(&name);
            demand(refused, "there was nothing to refuse");
        }
        Stress::Opposite => {
            let deadlocked = seen.tally.deadlocks > 0;
            demand(deadlocked == (name == "coupling-arrival"), "deadlocks, or none");
            demand(lost == 0, "an update was lost");
        }
    }
    if matches!(stress, Stress::Pause | Stress::PauseFenced) && STANDING_STILL.contains(&name) {
        demand(seen.moved_ms.is_none(), "somebody took it while its holder was paused");
    }
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_safe_stays_safe_and_what_is_not_shows_it() {
    let needed = Server::ALL.into_iter().collect();
    let servers = Servers::start(&needed, |line| println!("{line}")).await.expect("all servers");
    let program = Path::new(env!("CARGO_BIN_EXE_comparison"));
    let mut setting = Setting::new(program, servers.endpoints.clone()).expect("a setting");
    (setting.workers, setting.slots, setting.resources) = (3, 3, 10);
    let mut failures = Vec::new();
    for contestant in contestants::all() {
        let name = contestant.about().name;
        for stress in Stress::ALL {
            if !stress.tries(contestant.as_ref()) {
                continue;
            }
            match run(&setting, contestant.as_ref(), stress).await {
                Ok(seen) => failures.extend(wrong(name, stress, &seen)),
                Err(error) => failures.push(format!("{name}, {stress:?}: {error:#}")),
            }
        }
    }
    servers.stop().await.expect("nothing is left");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
