//! Operators at a terminal: pause, resume, cancel, drain, watch, and dead letters
//! by what they have in common.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use keylane::testing::Broker;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};
use url::Url;

use super::proxy::Proxy;
use super::user::{Ran, Running, User};

const EXEC: &str = r#"echo "$KEYLANE_TASK_ID" >>ran"#;

fn publish(user: &User, tasks: &[(&str, &str)]) {
    let lines: String =
        tasks.iter().map(|(r, id)| format!("{{\"r\":\"{r}\",\"id\":\"{id}\"}}\n")).collect();
    let input = user.file("tasks.ndjson", lines);
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r", "--id", "/id"]);
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

/// The lines that a command prints, as they come.
fn lines(running: &mut Running) -> impl Iterator<Item = String> + use<> {
    let stdout = running.0.stdout.take().unwrap();
    BufReader::new(stdout).lines().map(Result::unwrap)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_is_paused_and_resumed() {
    let user = User::with_partitions(2).await;
    let said = user.succeeds(&["pause", "--resource", "a", "--by", "anna"]);
    assert_eq!(said.out, "paused resource a; no worker answered: it holds for whoever connects\n");
    let again = json(&user.succeeds(&["pause", "--resource", "a", "--json"]));
    assert_eq!(again["changed"], false);
    assert_eq!(again["steering"]["resources"]["a"]["by"], "anna");
    user.fails(1, &["pause", "--partition", "2"], &["partition 2", "0 to 1"]);
    user.fails(2, &["pause"], &["--resource", "--partition", "--all"]);
    user.fails(2, &["pause", "--all", "--resource", "a"], &["cannot be used with"]);

    publish(&user, &[("a", "a1"), ("b", "b1"), ("a", "a2"), ("b", "b2")]);
    let worker = user.starts(&["work", "--exec", EXEC, "--id", "w1", "--log", "off"]);
    user.waits_for("what is not paused", || user.lines_of("ran") == ["b1", "b2"]);
    user.waits_for("a word of it", || {
        let said = user.succeeds(&["status"]).out;
        said.contains("paused: resources a")
            && said.contains("stand still")
            && said.contains("w1 holds 2 tasks of paused resources")
    });
    user.succeeds(&["pause", "--all"]);
    let resumed = user.succeeds(&["resume", "--resource", "a"]);
    assert!(resumed.out.starts_with("resumed resource a; w1 follows\nstill paused: everything"));
    user.succeeds(&["resume", "--all"]);
    user.waits_for("the rest", || user.lines_of("ran") == ["b1", "b2", "a1", "a2"]);
    let drained = user.succeeds(&["drain", "w1"]);
    assert_eq!(drained.out, "w1: it has left\n");
    assert_eq!(worker.ends().code, Some(0));
    user.fails(1, &["drain", "w1"], &["w1", "no worker of this name", "status"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_listed_and_can_be_aborted() {
    let user = User::with_partitions(1).await;
    publish(&user, &[("a", "t1")]);
    let worker = user.starts(&["work", "--exec", "sleep 600", "--log", "off", "--id", "w1"]);
    let listed = || user.succeeds(&["running"]).out;
    user.waits_for("a task that runs", || listed().contains("w1  slot 0  partition 0"));
    let line = listed();
    assert!(line.contains("attempt 1  t1  a\n") && line.lines().count() == 1, "{line}");
    assert_eq!(user.succeeds(&["running", "--over", "1h"]).out, "");
    let json: serde_json::Value =
        serde_json::from_str(&user.succeeds(&["running", "--json"]).out).unwrap();
    assert_eq!((&json["worker"], &json["task"]), (&"w1".into(), &"t1".into()));
    let said = user.succeeds(&["abort", "t1", "--by", "anna"]);
    assert!(said.out.starts_with("task t1 is aborted; w1 follows"), "{said:?}");
    assert_eq!(listed(), "");
    let letters = user.succeeds(&["dead", "list"]).out;
    assert!(letters.contains("cancelled by anna, while it ran: aborted by an operator"));
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_cancelled_or_it_is_too_late() {
    let user = User::with_partitions(1).await;
    publish(&user, &[("a", "t1"), ("a", "t2"), ("a", "t3")]);
    let said = user.succeeds(&["cancel", "t2", "--by", "anna"]);
    assert!(said.out.starts_with("task t2 is cancelled; no worker answered"), "{said:?}");
    let worker = user.starts(&["work", "--exec", EXEC, "--log", "off"]);
    user.waits_for("the others", || user.lines_of("ran") == ["t1", "t3"]);
    user.waits_for_quiet();
    user.fails(1, &["cancel", "t1"], &["t1", "not cancelled", "Executed"]);
    let task = user.succeeds(&["task", "t2"]);
    assert!(task.out.contains("dead-lettered") && task.out.contains("cancelled by anna"));
    user.succeeds(&["verify"]);

    // Too old, of another reason: not these.
    for other in [["--before", "1h"], ["--reason", "exit"], ["--resource", "b"]] {
        let none = user.succeeds(&[&["dead", "list", "--json"], &other[..]].concat());
        assert_eq!(none.out, "", "{other:?}");
        let none = user.run(&[&["dead", "replay"], &other[..]].concat());
        assert_eq!((none.code, none.out.as_str()), (Some(1), "replayed 0\n"), "{other:?}");
        assert!(none.err.contains("no dead letter is like that"), "{none:?}");
    }
    user.fails(2, &["dead", "replay", "t2", "--reason", "x"], &["cannot be used with"]);
    user.fails(2, &["dead", "replay", "--all", "--reason", "x"], &["cannot be used with"]);
    user.fails(2, &["dead", "replay"], &["--all"]);
    let these = ["--reason", "cancelled by", "--since", "1h", "--resource", "a"];
    assert_eq!(
        user.succeeds(&[&["dead", "list", "--json"], &these[..]].concat()).out.lines().count(),
        1
    );
    let replayed = user.succeeds(&[&["dead", "replay"], &these[..]].concat());
    assert_eq!(replayed.out, "replayed 1\n");
    user.waits_for("the one that was reinstated", || user.lines_of("ran") == ["t1", "t3", "t2"]);
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));
}

/// Replays keep the order in which the tasks were given up.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_replayed_comes_in_the_order_in_which_it_died() {
    let user = User::with_partitions(1).await;
    let ids: Vec<_> = (0..20).map(|n| format!("t{n}")).collect();
    let tasks: Vec<_> = ids.iter().enumerate().map(|(n, id)| (["a", "b"][n % 2], &**id)).collect();
    publish(&user, &tasks);
    let fails = r#"test -e mended && echo "$KEYLANE_TASK_ID" >>ran"#;
    let args = ["work", "--exec", fails, "--attempts", "1", "--slots", "1", "--log", "off"];
    let worker = user.starts(&args);
    user.waits_for("dead letters", || user.status()["dead"] == 20);
    user.file("mended", "");
    assert_eq!(user.succeeds(&["dead", "replay", "--resource", "a"]).out, "replayed 10\n");
    let of_a: Vec<_> = ids.iter().step_by(2).cloned().collect();
    user.waits_for("all of a", || user.lines_of("ran") == of_a);
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));
    user.succeeds(&["verify"]);
}

/// It wakes up to find slots that became free, and an order that it has not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_slept_reads_what_it_missed_before_it_starts_anything() {
    sleeps_through_a_pause(async |worker, user| {
        worker.signal("STOP");
        pause_all(user);
        worker.signal("CONT");
    })
    .await;
}

/// And a question to the broker whose time is over, though it did answer. That it cannot
/// read any orders must not be its first thought.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_slept_over_a_question_starts_nothing_either() {
    let broker = Broker::shared().await.unwrap();
    let mut url = Url::parse(&broker.amqp_url()).unwrap();
    let wire = Proxy::to(url.port().unwrap()).await;
    url.set_port(Some(wire.port)).unwrap();
    sleeps_through_a_pause_at(url.as_str(), async |worker, user| {
        // It asks every second, and waits for two.
        loop {
            wire.fall_silent();
            let silent = Instant::now();
            tokio::time::sleep(Duration::from_millis(1_300)).await;
            worker.signal("STOP");
            if silent.elapsed() < Duration::from_millis(1_900) {
                break;
            }
            wire.speak_again();
            worker.signal("CONT");
            answers(user, &["status"]);
        }
        pause_all(user);
        worker.signal("CONT");
        // It finds the time over before the answer.
        tokio::time::sleep(Duration::from_secs(1)).await;
        wire.speak_again();
    })
    .await;
}

/// Pauses everything, and lets what runs end, while the only worker sleeps.
fn pause_all(user: &User) {
    user.file("go", "");
    let said = json(&user.succeeds(&["pause", "--all", "--json"]));
    assert_eq!(said["workers"], Value::Array(Vec::new()), "it sleeps");
    // Longer than others wait for it, shorter than the broker does.
    std::thread::sleep(Duration::from_secs(7));
}

/// Waits until a worker answers this command.
fn answers(user: &User, command: &[&str]) {
    user.waits_for("an answer", || {
        let said = json(&user.succeeds(&[command, &["--json"]].concat()));
        said["workers"].as_array().is_some_and(|workers| workers.len() == 1)
    });
}

async fn sleeps_through_a_pause(sleep: impl AsyncFnOnce(&Running, &User)) {
    let broker = Broker::shared().await.unwrap();
    sleeps_through_a_pause_at(&broker.amqp_url(), sleep).await;
}

/// A worker that is connected there holds tasks behind those that run, is put to sleep
/// while these end and all is paused, and wakes up.
async fn sleeps_through_a_pause_at(url: &str, sleep: impl AsyncFnOnce(&Running, &User)) {
    const RESOURCES: usize = 8;
    let user = User::with_partitions(8).await;
    let waits = r#"echo "$KEYLANE_TASK_ID" >>ran; until test -e go; do sleep 0.05; done"#;
    // It may sleep long on a busy machine, and must not take its broker for lost.
    let url = format!("{url}?heartbeat=60");
    let args = ["work", "--exec", waits, "--id", "w", "--log", "off", "--amqp-url", &url];
    let worker = user.starts(&args);
    let ids: Vec<_> = (0..2 * RESOURCES).map(|n| format!("t{n}")).collect();
    let resources: Vec<_> = (0..RESOURCES).map(|n| format!("r{n}")).collect();
    let tasks = ids.iter().enumerate().map(|(n, id)| (&*resources[n % RESOURCES], &**id));
    publish(&user, &tasks.collect::<Vec<_>>());
    user.waits_for("one of each", || user.lines_of("ran").len() == RESOURCES);
    let held = |p: &Value| p["unsettled"].as_u64().unwrap();
    user.waits_for("the others are held", || {
        user.status()["partitions"].as_array().unwrap().iter().map(held).sum::<u64>() == 16
    });
    sleep(&worker, &user).await;
    answers(&user, &["pause", "--all"]);
    assert_eq!(user.lines_of("ran").len(), RESOURCES, "nothing was started");
    user.succeeds(&["resume", "--all"]);
    user.waits_for("the rest", || user.lines_of("ran").len() == 2 * RESOURCES);
    user.waits_for_quiet();
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));
    user.succeeds(&["verify"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_still_is_told_as_it_happens() {
    let user = User::new().await;
    user.succeeds(&["init", "--partitions", "2", "--prefetch", "2"]);
    publish(&user, &[("a", "a1")]);
    let mut watch = user.starts(&["watch", "--json", "--after", "1s", "--interval", "200ms"]);
    let mut said = lines(&mut watch).map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let event = said.next().unwrap();
    assert_eq!((&event["event"], &event["cause"]), (&"stalled".into(), &"not_consumed".into()));
    assert_eq!((&event["ready"], event["at_ms"].is_u64()), (&1.into(), true), "{event}");
    user.succeeds(&["pause", "--resource", "a"]);
    assert_eq!(said.next().unwrap()["event"], "steering");
    let worker = user.starts(&["work", "--exec", EXEC, "--id", "w1", "--log", "off"]);
    let event = said.find(|event| event["cause"] == "resources_paused").unwrap();
    assert_eq!((&event["worker"], &event["tasks"]), (&"w1".into(), &1.into()), "{event}");
    user.succeeds(&["resume", "--all"]);
    let event = said.find(|event| event["event"] == "moves").unwrap();
    assert!(event["stalled_ms"].as_u64().unwrap() >= 1_000, "{event}");
    watch.signal("INT");
    let ran = watch.ends();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));

    // A worker that is stopped.
    publish(&user, &[("a", "a2"), ("a", "a3")]);
    let sleeper = user.starts(&["work", "--exec", "sleep 60", "--id", "w2", "--log", "off"]);
    user.waits_for("it runs", || {
        user.status()["partitions"].to_string().contains(r#""running":1"#)
    });
    let mut watch = user.starts(&["watch", "--after", "1s", "--interval", "200ms"]);
    let mut said = lines(&mut watch);
    // It holds as many as it may. When it falls silent, nobody is handed the next one.
    publish(&user, &[("a", "a4")]);
    sleeper.signal("STOP");
    let line = said.find(|line| line.contains("stands still")).unwrap();
    assert!(line.contains("does not answer") || line.contains("no worker answers"), "{line}");
}
