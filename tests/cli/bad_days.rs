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
    let worker = user.starts(&["work", "--exec", "true"]);
    user.waits_for("a worker", || !user.status()["workers"].as_array().unwrap().is_empty());
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
    // Nobody can be asked; that is not the same as nobody being there.
    let seen = user.succeeds(&["status"]);
    assert!(seen.out.contains("low on memory or disk"), "{seen:?}");
    assert_eq!(user.status()["blocked"], true);
    // It is on its way all the same.
    user.fails(1, &["pause", "--all"], &["low on memory or disk", "once it recovers"]);
    broker.exec([watermark[0], watermark[1], "0.6"]).await.unwrap();
    let ran = publisher.ends();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("published 500 tasks"), "{ran:?}");
    assert_eq!(user.status()["blocked"], false);
    user.succeeds(&["resume", "--all"]);
    user.waits_for_quiet();
    worker.signal("TERM");
    let ran = worker.ends();
    // The alarm lasted for longer than a broker may be silent: that is no silence.
    assert!(ran.code == Some(0) && !ran.err.contains("lost the broker"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_ends_though_its_broker_is_gone() {
    let broker = Broker::start().await.unwrap();
    let user = User::on(&broker);
    user.succeeds(&["init", "--partitions", "2"]);
    let input = user.file("tasks.ndjson", "{\"r\":1}\n{\"r\":2}\n");
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r"]);
    let worker = user.starts(&["work", "--exec", "echo x >>ran; sleep 600", "--log", "off"]);
    user.waits_for("both run", || user.lines_of("ran").len() == 2);
    broker.kill().await.unwrap();
    // What was aborted is to be recorded, and there is nobody who would take it.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    worker.signal("TERM");
    worker.ends();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_publish_says_so_and_is_no_success() {
    let user = User::new().await;
    user.succeeds(&["init", "--partitions", "2"]);
    let mut command = user.command(&["publish", "--resource", "/r", "--log", "off"]);
    command.stdin(Stdio::piped());
    let mut publisher = Running(command.spawn().unwrap());
    publisher.types("{\"r\":1}\n");
    let ready = |p: &serde_json::Value| p["ready"].as_u64().unwrap();
    user.waits_for("the first task", || {
        user.status()["partitions"].as_array().unwrap().iter().map(ready).sum::<u64>() == 1
    });
    publisher.signal("TERM");
    let ran = publisher.ends();
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(ran.out.contains("published 1 task in") && ran.out.contains("interrupted"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_printed_is_no_success() {
    let user = User::with_partitions(2).await;
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran = user.command(&["status"]).stdout(full()).output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("cannot write to standard output").count(), 1, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_stands_still_is_named() {
    let user = User::with_partitions(2).await;
    let properties = lapin::ConnectionProperties::default();
    let stranger = lapin::Connection::connect(&user.url, properties).await.unwrap();
    // It holds a task of each, and does nothing.
    let channel = stranger.create_channel().await.unwrap();
    channel.basic_qos(1, lapin::options::BasicQosOptions::default()).await.unwrap();
    let mut held = Vec::new();
    for partition in 0..2 {
        let queue = format!("{}.g1.p{partition}", user.namespace);
        let options = lapin::options::BasicConsumeOptions::default();
        let arguments = lapin::types::FieldTable::default();
        let consume = channel.basic_consume(queue.into(), "".into(), options, arguments);
        held.push(consume.await.unwrap());
    }
    let input: String = (0..50).map(|n| format!("{{\"r\":{n}}}\n")).collect();
    let input = user.file("tasks.ndjson", input);
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r"]);
    let worker = user.starts(&["work", "--exec", "true", "--log", "off"]);
    user.waits_for("a word of it", || {
        let said = user.succeeds(&["status"]).out;
        said.contains("partitions that stand still") && said.contains(": 0, 1 (")
    });
    stranger.close(200, "done".into()).await.unwrap();
    user.waits_for_quiet();
    let said = user.succeeds(&["status"]).out;
    assert!(!said.contains("stand still"), "{said}");
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));
}
