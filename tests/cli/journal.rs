//! `keylane verify`, `task` and `history`; and workers that are killed between a
//! record and its ack.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use keylane::testing::Broker;
use serde_json::Value;

use super::user::{Ran, User};

const TASKS: usize = 40;

fn publish(user: &User) {
    let lines: String =
        (0..TASKS).map(|n| format!("{{\"r\":\"r{}\",\"id\":\"t{n}\"}}\n", n % 4)).collect();
    let input = user.file("tasks.ndjson", lines);
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r", "--id", "/id"]);
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn recorded(user: &User) -> u64 {
    json(&user.succeeds(&["verify", "--json"]))["report"]["executions"].as_u64().unwrap()
}

const EXEC: &str = r#"echo "$KEYLANE_TASK_ID" >>done.log"#;

/// Executes all tasks, and is killed when nothing of that is acked. Returns what
/// the next worker then did.
fn killed_before_its_acks(user: &User, journal: &[&str]) -> Value {
    publish(user);
    // Acks wait for one another, for an hour.
    let late = [&["work", "--exec", EXEC, "--ack-delay", "1h", "--id", "one"], journal].concat();
    let worker = user.starts(&late);
    user.waits_for("all executions", || user.lines_of("done.log").len() == TASKS);
    if journal.is_empty() {
        user.waits_for("all records", || recorded(user) == TASKS as u64);
    }
    worker.signal("KILL");
    worker.ends();
    let next = [&["work", "--exec", EXEC, "--json", "--id", "two"], journal].concat();
    let worker = user.starts(&next);
    user.waits_for_quiet();
    worker.signal("TERM");
    let ran = worker.ends();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    json(&ran)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_recorded_is_not_executed_again() {
    let user = User::with_partitions(4).await;
    let next = killed_before_its_acks(&user, &[]);
    assert_eq!(user.lines_of("done.log").len(), TASKS, "executed again");
    let tasks = Value::from(TASKS);
    assert_eq!([&next["redelivered"], &next["suppressed"]], [&tasks, &tasks]);
    assert_eq!(next["executed"], 0);
    assert_eq!(recorded(&user), TASKS as u64);
}

/// Nobody looks far back in the journal without need: there is one if acks came late, and
/// the worker was heard of just before it was lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_long_for_its_ack_is_not_executed_again() {
    const LATE: u64 = 5;
    let user = User::with_partitions(1).await;
    let publish = |n: u64| {
        let input = user.file("task.ndjson", format!("{{\"r\":\"r{n}\"}}\n"));
        user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r"]);
    };
    let late = ["work", "--exec", EXEC, "--ack-delay", "1h", "--id", "one"];
    let worker = user.starts(&late);
    // Whoever comes first owns the only partition.
    user.waits_for("the first", || user.status()["partitions"][0]["owner"] == "one");
    let next = user.starts(&["work", "--exec", EXEC, "--json", "--id", "two"]);
    user.waits_for("two workers", || user.status()["workers"].as_array().unwrap().len() == 2);
    // A task a second, for longer than what is read first.
    for n in 1..=LATE {
        publish(n);
        user.waits_for("an execution", || user.lines_of("done.log").len() as u64 == n);
        user.waits_for("its record", || recorded(&user) == n);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    publish(LATE + 1);
    user.waits_for("its record", || recorded(&user) == LATE + 1);
    assert_eq!(user.status()["partitions"][0]["owner"], "one");
    worker.signal("KILL");
    user.waits_for_quiet();
    assert_eq!(user.lines_of("done.log").len() as u64, LATE + 1, "executed again");
    next.signal("TERM");
    let next = json(&next.ends());
    assert_eq!([&next["suppressed"], &next["executed"]], [&Value::from(LATE + 1), &Value::from(0)]);
}

/// Which the test above would not notice if nothing was redelivered at all.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_journal_it_is() {
    let user = User::with_partitions(4).await;
    let next = killed_before_its_acks(&user, &["--no-journal"]);
    assert_eq!(user.lines_of("done.log").len(), 2 * TASKS);
    assert_eq!([&next["suppressed"], &next["executed"]], [&Value::from(0), &Value::from(TASKS)]);
    assert_eq!(recorded(&user), 0);
}

/// Whoever takes over what a lost worker held looks into the journal, and gives up after
/// a while. All partitions share that, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_gone_holds_up_a_take_over_once() {
    const PARTITIONS: u32 = 32;
    const MANY: u64 = 320;
    let broker = Broker::shared().await.unwrap();
    let user = User::with_partitions(PARTITIONS).await;
    let lines: String = (0..MANY).map(|n| format!("{{\"r\":\"r{n}\"}}\n")).collect();
    let input = user.file("many.ndjson", lines);
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r"]);
    let hold = user.file("hold", "");
    let holds = "while [ -e hold ]; do sleep 0.05; done";
    let lost = user.starts(&["work", "--exec", holds, "--id", "lost"]);
    user.waits_for("all tasks at one worker", || {
        let status = user.status();
        let partitions = status["partitions"].as_array().unwrap();
        partitions.iter().map(|p| p["unsettled"].as_u64().unwrap()).sum::<u64>() == MANY
    });
    let heir = user.starts(&["work", "--exec", EXEC, "--id", "heir"]);
    user.waits_for("the heir", || user.status()["workers"].as_array().unwrap().len() == 2);
    let journal = format!("{}.journal", user.namespace);
    let deleted = broker.exec(["rabbitmqctl", "--quiet", "delete_queue", &journal]).await;
    assert!(deleted.unwrap().status.success());

    lost.signal("KILL");
    user.waits_for("all executions", || user.lines_of("done.log").len() as u64 == MANY);
    heir.signal("KILL");
    let said = heir.ends().err;
    let looks = said.matches("executed again").count();
    assert!((1..PARTITIONS as usize / 4).contains(&looks), "{looks} looks: {said}");
    std::fs::remove_file(hold).unwrap();
}

/// The broker hands out nothing then, and says nothing either.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_which_nothing_is_new_is_read_at_once() {
    let user = User::with_partitions(2).await;
    for since in ["1h", "1s"] {
        user.succeeds(&["verify", "--since", since]);
    }
    let input = user.file("task.ndjson", "{\"r\":\"r1\"}\n");
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r"]);
    let worker = user.starts(&["work", "--exec", EXEC, "--log", "off"]);
    user.waits_for("an execution", || recorded(&user) == 1);
    worker.signal("TERM");
    worker.ends();
    // The broker counts in whole seconds, and gives what is a little older, too.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    for (since, executed) in [("1s", 0), ("1h", 1)] {
        let said = json(&user.starts(&["verify", "--since", since, "--json"]).ends());
        assert_eq!(said["report"]["executed"], executed, "{since}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_and_histories_are_shown() {
    let user = User::with_partitions(4).await;
    let said = user.run(&["task", "t5"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("never published"), "{said:?}");
    let said = user.succeeds(&["history", "--resource", "r1"]);
    assert!(said.out.is_empty() && said.err.contains("\"r1\""), "{said:?}");
    publish(&user);
    let script = r#"[ "$KEYLANE_TASK_ID" = t5 ] && { echo "no such account" >&2; exit 1; }; true"#;
    let worker =
        user.starts(&["work", "--exec", script, "--attempts", "2", "--retry-delay", "1ms"]);
    user.waits_for_quiet();
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));

    let said = user.succeeds(&["task", "t5"]);
    for words in ["t5: dead-lettered", "resource r1", "no such account", "failed"] {
        assert!(said.out.contains(words), "{words}: {said:?}");
    }
    let task = json(&user.succeeds(&["task", "t5", "--json"]));
    assert_eq!(task["state"], "dead_lettered");
    let outcomes: Vec<_> = task["attempts"].as_array().unwrap().iter().collect();
    assert_eq!(
        outcomes.iter().map(|a| &a["outcome"]).collect::<Vec<_>>(),
        ["failed", "failed", "dead_lettered"]
    );
    assert_eq!(json(&user.succeeds(&["task", "t6", "--json"]))["state"], "executed");

    let said = user.succeeds(&["history", "--resource", "r1", "--json"]);
    let lines = said.out.lines().map(|line| serde_json::from_str(line).unwrap());
    let executed = |record: &Value| record["outcome"] == "executed";
    let ids: Vec<String> = lines
        .filter(executed)
        .map(|record: Value| record["task"].as_str().unwrap().to_owned())
        .collect();
    let expected = (0..TASKS).filter(|n| n % 4 == 1 && *n != 5).map(|n| format!("t{n}"));
    assert_eq!(ids, expected.collect::<Vec<_>>(), "in order");
    let last = user.succeeds(&["history", "--resource", "r1", "--last", "2"]);
    assert_eq!(last.out.lines().count(), 3, "a heading and two lines: {last:?}");

    let said = user.succeeds(&["verify"]);
    for words in ["39 tasks executed, 1 dead-lettered, 0 still open", "0 violations"] {
        assert!(said.out.contains(words), "{words}: {said:?}");
    }
    let said = json(&user.succeeds(&["verify", "--json", "--resource", "r1"]));
    assert_eq!(said["report"]["executed"], 9);
    user.fails(2, &["verify", "--since", "yesterday"], &["--since", "2h"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_executed_is_followed() {
    let user = User::with_partitions(4).await;
    let follower = user.starts(&["verify", "--follow", "--json"]);
    publish(&user);
    let worker = user.starts(&["work", "--exec", "true"]);
    user.waits_for("all records", || recorded(&user) == TASKS as u64);
    worker.signal("TERM");
    worker.ends();
    // It has read what we have read, a moment later.
    std::thread::sleep(std::time::Duration::from_secs(1));
    follower.signal("INT");
    let ran = follower.ends();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(json(&ran)["report"]["executed"], TASKS);
}

/// Whoever takes over what was lost twice asks who kills workers. If nobody can tell, that is no
/// reason to ask for every task.
#[tokio::test(flavor = "multi_thread")]
async fn claims_that_cannot_be_read_hold_up_a_take_over_once() {
    const MANY: u64 = 20;
    let broker = Broker::shared().await.unwrap();
    let user = User::with_partitions(1).await;
    let lines: String = (0..MANY).map(|n| format!("{{\"r\":\"r{n}\"}}\n")).collect();
    let input = user.file("many.ndjson", lines);
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r"]);
    let claims = format!("{}.g1.p0.claims", user.namespace);
    // Not the queue that it should be.
    let declare = format!(
        "rabbit_amqqueue:declare(rabbit_misc:r(<<\"/\">>, queue, <<\"{claims}\">>), true, false, \
         [], none, <<\"test\">>)."
    );
    let declared = broker.exec(["rabbitmqctl", "--quiet", "eval", &declare]).await.unwrap();
    assert!(declared.status.success(), "{declared:?}");
    let hold = user.file("hold", "");
    let holds = "while [ -e hold ]; do sleep 0.05; done";
    for name in ["one", "two"] {
        let lost = user.starts(&["work", "--exec", holds, "--id", name]);
        user.waits_for("all of them", || {
            let status = user.status();
            let partition = &status["partitions"][0];
            (&partition["owner"], &partition["unsettled"]) == (&name.into(), &MANY.into())
        });
        lost.signal("KILL");
    }
    let heir = user.starts(&["work", "--exec", EXEC, "--id", "heir"]);
    user.waits_for("all executions", || user.lines_of("done.log").len() as u64 == MANY);
    heir.signal("KILL");
    let said = heir.ends().err;
    std::fs::remove_file(hold).unwrap();
    assert_eq!(said.matches("cannot tell who kills workers").count(), 1, "{said}");
}
