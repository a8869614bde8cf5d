//! The broker restarts, or takes nothing any more, while people work.

use std::process::Stdio;

use keylane::testing::Broker;

use super::user::{Running, User};

#[tokio::test(flavor = "multi_thread")]
async fn publisher_and_worker_go_on_over_a_restart_and_nothing_confirmed_is_lost() {
    const TASKS: usize = 20_000;
    let broker = Broker::start().await.unwrap();
    let user = User::on(&broker);
    user.succeeds(&["init", "--partitions", "4"]);
    let handler = r#"while read -r line; do
        echo "$line" >>done.log; echo '{"status":"executed"}'
    done"#;
    let worker = user.starts(&["work", "--pipe", handler, "--slots", "1", "--log", "off"]);
    let mut command = user.command(&["publish", "--resource", "/r", "--json", "--log", "off"]);
    command.stdin(Stdio::piped());
    let mut publisher = Running(command.spawn().unwrap());
    for n in 0..TASKS {
        publisher.types(&format!("{{\"r\":{},\"n\":{n}}}\n", n % 50));
        if n == TASKS / 2 {
            user.waits_for("some work", || user.lines_of("done.log").len() > 100);
            broker.restart().await.unwrap();
        }
    }
    drop(publisher.0.stdin.take());
    let published = publisher.ends();
    assert_eq!(published.code, Some(0), "{published:?}");
    assert!(published.out.contains(&format!("\"published\":{TASKS}")), "{published:?}");
    user.waits_for_quiet();
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));

    let mut last = vec![None::<usize>; 50];
    let mut executed = std::collections::BTreeSet::new();
    for line in user.lines_of("done.log") {
        let task: serde_json::Value = serde_json::from_str(&line).unwrap();
        let payload = &task["payload"];
        let n = usize::try_from(payload["n"].as_u64().unwrap()).unwrap();
        // A task may run again after a lost connection; its first run is in order.
        if executed.insert(n) {
            let before = last[n % 50].replace(n);
            assert!(before.is_none_or(|before| before < n), "{n} after {before:?}");
        }
    }
    assert_eq!(executed.len(), TASKS, "nothing is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_waits_while_the_broker_takes_nothing_and_says_so() {
    let broker = Broker::start().await.unwrap();
    let user = User::on(&broker);
    user.succeeds(&["init", "--partitions", "4"]);
    let watermark = ["rabbitmqctl", "set_vm_memory_high_watermark"];
    broker.exec([watermark[0], watermark[1], "0.00001"]).await.unwrap();
    let input: String = (0..500).map(|n| format!("{{\"r\":{n}}}\n")).collect();
    let input = user.file("tasks.ndjson", input);
    let mut command = user.command(&["publish", input.to_str().unwrap(), "--resource", "/r"]);
    let log = user.folder.path().join("publisher.log");
    command.stderr(std::fs::File::create(&log).unwrap());
    let mut publisher = Running(command.spawn().unwrap());
    user.waits_for("a word about it", || {
        user.lines_of("publisher.log").iter().any(|line| line.contains("blocks publishing"))
    });
    assert!(publisher.0.try_wait().unwrap().is_none(), "it waits");
    broker.exec([watermark[0], watermark[1], "0.6"]).await.unwrap();
    let ran = publisher.ends();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("published 500 tasks"), "{ran:?}");
}
