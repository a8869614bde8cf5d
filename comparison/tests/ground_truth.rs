//! Every contestant, for a short time, on the real servers: what it promises holds by the final
//! states. Without a server, this fails: it never skips.

#![allow(clippy::expect_used, reason = "clippy spares #[test] functions only")]

use std::path::Path;

use comparison::contestants::{self, About};
use comparison::measure::{Outcome, Setting, Verdict, run};
use comparison::plan::PARTITIONS;
use comparison::servers::{Server, Servers};
use comparison::work::Workload;

/// Enough that every worker gets some, and that the hot resource is always wanted by several.
const TASKS: u32 = 120;

/// What is wrong with a run, if something is.
fn wrong(about: &About, workload: Workload, workers: u32, outcome: &Outcome) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut demand = |holds: bool, what: &str| {
        if !holds {
            wrong.push(format!("{} on {}: {what}: {outcome:?}", about.name, workload.title()));
        }
    };
    let Verdict { lost, repeated, overlaps, .. } = outcome.verdict;
    demand(outcome.executed == outcome.tasks, "not all tasks were executed");
    demand(lost == 0 && repeated == 0, "the states are not those of all tasks, once each");
    demand(!about.exclusive || overlaps == 0, "two handlers of a resource overlapped");
    // A transfer is two tasks for some, so only one of them is in publish order.
    if about.ordered && workload != Workload::Transfers {
        demand(outcome.verdict.ordered(), "the order was not kept");
    }
    let counted = outcome.tally.operations + outcome.tally.messages;
    match about.name {
        "keylane" => {
            // A consumer for each partition and worker, and owners; nothing for a task.
            let at_most = u64::from(PARTITIONS * workers * 2);
            demand(counted > 0 && counted <= at_most, "ownership was not counted as it is");
        }
        "ownership" => demand(counted > 0, "claims were not counted"),
        _ if about.exclusive => demand(counted >= 2 * outcome.tasks, "a lock is two operations"),
        _ => demand(counted >= outcome.tasks, "a conditional write is one operation"),
    }
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn every_contestant_executes_every_task_once() {
    let needed = Server::ALL.into_iter().collect();
    let servers = Servers::start(&needed, |line| println!("{line}")).await.expect("all servers");
    let program = Path::new(env!("CARGO_BIN_EXE_comparison"));
    let mut setting = Setting::new(program, servers.endpoints.clone()).expect("a setting");
    (setting.workers, setting.slots, setting.resources) = (3, 3, 50);
    let mut failures = Vec::new();
    for contestant in contestants::all() {
        let about = contestant.about();
        for workload in [Workload::Hot90, Workload::Transfers] {
            if !about.runs(workload) {
                continue;
            }
            match run(&setting, contestant.as_ref(), workload, 1, TASKS).await {
                Ok(outcome) => failures.extend(wrong(about, workload, setting.workers, &outcome)),
                Err(error) => {
                    failures.push(format!("{} on {}: {error:#}", about.name, workload.title()));
                }
            }
        }
    }
    servers.stop().await.expect("nothing is left");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
