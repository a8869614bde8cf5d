//! Liveness after ordinary bad minutes: one broker, workers and routers as real processes,
//! and faults that leave a fleet as it was before. Every run ends the same way (`keylane
//! soak`, `src/cli/soak/finale.rs`): all workers end; the broker itself is asked, and has
//! neither a consumer nor an unsettled delivery on any partition; one fresh worker alone
//! executes everything that is left. Locks of the operating system tell what was executed.
//!
//! Ownership by consumer priority, which is what keylane had first, fails the runs with churn,
//! a replaced worker, poison and frozen routers on RabbitMQ 4.3: a dead consumer stays behind,
//! is handed a window of tasks, and the partition stands still for ever. It passes the runs on
//! 4.0, which leaves nobody behind, and the one of an untouched fleet.
//!
//! `KEYLANE_TEST_SEED` repeats a run as far as chance goes; the tests print it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// What all runs have in common. A short heartbeat makes short faults long enough: the
/// broker counts a silent client as lost after two or three of them.
const COMMON: [&str; 6] = ["--nodes", "1", "--heartbeat", "5s", "--finish-within", "60s"];

/// A broker and its fleet are enough for two processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a soak that has to end well, and gives its report.
fn soak(seed: &str, arguments: &[&str]) -> Value {
    // The other one may have failed.
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = std::env::var("KEYLANE_TEST_SEED").unwrap_or_else(|_| seed.to_owned());
    println!("KEYLANE_TEST_SEED={seed}");
    let output = Command::new(env!("CARGO_BIN_EXE_keylane"))
        .args(["soak", "--json", "--seed", &seed])
        .args(COMMON)
        .args(arguments)
        .env_remove("KEYLANE_LOG")
        .stdin(Stdio::null())
        .output()
        .expect("cargo test builds the binary");
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("no report: {error}; {said}"));
    println!("{:#}\n{:#}", report["faults"], report["finale"]);
    for fault in report["faults"].as_array().unwrap() {
        assert_eq!(fault["stuck"], Value::Array(Vec::new()), "after {}", fault["fault"]);
    }
    let finale = &report["finale"];
    for (count, what) in [
        ("with_consumers", "queues with a consumer, although nobody lives"),
        ("with_unacked", "queues with unsettled deliveries, although nobody lives"),
        ("left_after", "tasks that one fresh worker did not execute"),
    ] {
        assert_eq!(finale[count], 0, "{what}: {finale:#}");
    }
    assert_eq!(finale["remains"], serde_json::json!({}), "when the fresh worker had left");
    for kind in ["violations", "failures", "lost", "refused", "dead", "findings"] {
        let found = report[kind].as_array().unwrap();
        let first = &found[..found.len().min(5)];
        assert!(found.is_empty(), "{} {kind}: {first:?}; {said}", found.len());
    }
    assert!(output.status.success(), "{said}");
    // Otherwise the fresh worker had nothing to show.
    assert!(finale["left_before"].as_u64() >= Some(1), "{finale:#}");
    report
}

/// Workers and routers freeze, die, leave and join, several of them at once.
#[test]
fn a_fleet_that_comes_and_goes_leaves_nothing_behind() {
    let report = soak("1", &["--routers", "2", "--faults", "churn=40s"]);
    assert!(report["starts"].as_u64() >= Some(10), "{}", report["starts"]);
    assert!(report["redelivered"].as_u64() >= Some(1), "no worker has lost anything");
}

/// The same on the oldest version.
#[test]
fn a_fleet_that_comes_and_goes_leaves_nothing_behind_on_4_0() {
    let arguments = ["--broker-version", "4.0", "--routers", "2", "--faults", "churn=30s"];
    let report = soak("1", &arguments);
    assert_eq!(report["version"], "4.0");
    assert!(report["redelivered"].as_u64() >= Some(1), "no worker has lost anything");
}

/// One worker is frozen, another one started, the first killed, and the rest restarted.
#[test]
fn a_frozen_worker_is_replaced() {
    soak("2", &["--faults", "freeze-replace,rolling"]);
}

/// Nothing befalls the workers themselves.
#[test]
fn an_untouched_fleet_survives_its_broker() {
    // The restart comes first: it would have the broker forget what the others leave behind.
    let faults = "restart,stop-app,memory=6s,disk=6s,pause=7s,close,pause=15s,cut=16s";
    let report = soak("3", &["--faults", faults]);
    assert_eq!(report["faults"].as_array().unwrap().len(), 8);
    let reconnected = |worker: &Value| worker["end"]["reconnects"].as_u64() >= Some(1);
    let workers = report["workers"].as_array().unwrap();
    assert!(workers.iter().any(reconnected), "nobody noticed anything: {workers:?}");
}

/// Both routers are frozen for longer than the broker waits for them.
#[test]
fn frozen_routers_leave_the_inbox_to_others() {
    soak("4", &["--routers", "2", "--faults", "freeze-routers"]);
}

/// Tasks that kill whoever executes them, and supervisors that start that one again.
#[test]
fn poison_ends_in_the_dead_letters_and_takes_nobody_along() {
    let report = soak("5", &["--workers", "3", "--faults", "poison"]);
    let poison = &report["poison"];
    assert_eq!((&poison["published"], &poison["dead"]), (&3.into(), &3.into()), "{poison}");
    assert!(poison["crashes"].as_u64() >= Some(3), "no worker died of it: {poison}");
}
