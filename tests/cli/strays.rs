//! What the management interface lets `keylane` say: tasks that are delivered to nobody, and policies
//! that are in the way.

use futures_lite::StreamExt;
use keylane::testing::Broker;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};

use super::user::User;

const HELD: u16 = 5;

/// A stranger takes five tasks and stops consuming, as a dead consumer of a cluster does: the worker
/// goes on with the others.
#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_belong_to_nobody_are_named_with_their_number() {
    let broker = Broker::shared().await.unwrap();
    let user = User::on(broker);
    user.succeeds(&["init", "--partitions", "1"]);
    let lines: String = (0..20).map(|n| format!("{{\"r\":{n}}}\n")).collect();
    let input = user.file("tasks.ndjson", lines);
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r"]);

    let connection = Connection::connect(&user.url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.basic_qos(HELD, BasicQosOptions::default()).await.unwrap();
    let queue = format!("{}.g1.p0", user.namespace);
    let options = BasicConsumeOptions::default();
    let consuming = channel.basic_consume(
        queue.as_str().into(),
        "stranger".into(),
        options,
        FieldTable::default(),
    );
    let mut consumer = consuming.await.unwrap();
    for _ in 0..HELD {
        consumer.next().await.unwrap().unwrap();
    }
    channel.basic_cancel("stranger".into(), BasicCancelOptions::default()).await.unwrap();

    let worker = user.starts(&["work", "--exec", "cat >>done.log"]);
    user.waits_for("the others", || {
        let status = user.status();
        let partition = &status["partitions"][0];
        partition["ready"] == 0 && partition["unsettled"] == 0
    });
    let seen = user.succeeds(&["status"]);
    assert!(seen.out.contains("belong to nobody: 0 (some of its tasks"), "{seen:?}");
    assert!(!seen.out.contains("stand still"), "{seen:?}");
    let management = broker.management_url();
    user.waits_for("the broker's count", || {
        let seen = user.succeeds(&["status", "--management-url", &management]);
        seen.out.contains("belong to nobody: 0 (5 of its tasks")
    });
    let json = user.succeeds(&["status", "--json", "--management-url", &management]);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["partitions"][0]["stray"], serde_json::json!({"consumers": 1, "tasks": 5}));

    let nowhere = ["status", "--management-url", "http://127.0.0.1:9"];
    user.fails(1, &nowhere, &["management interface at 127.0.0.1"]);
    let stranger = management.replace("http://", "http://nobody:wrong@");
    let refused = ["status", "--management-url", &stranger];
    let refused = user.fails(1, &refused, &["refuses user", "nobody", "monitoring"]);
    assert!(!refused.err.contains("wrong"), "{refused:?}");

    connection.close(200, "gone".into()).await.unwrap();
    user.waits_for("all tasks", || user.status()["partitions"][0]["stray"].is_null());
    user.waits_for_quiet();
    assert!(!user.succeeds(&["status"]).out.contains("belong to nobody"));
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_are_in_the_way_are_named() {
    let broker = Broker::shared().await.unwrap();
    let user = User::on(broker);
    let name = format!("{}-house", user.namespace);
    let logs = format!("{}-logs", user.namespace);
    // One that sets what a kind of queue does not know is without any effect on it.
    for (name, queues, definition) in [
        (&name, "(g1|inbox|dead)", r#"{"message-ttl": 60000}"#),
        (&logs, "(topology|steering)", r#"{"max-age": "7D"}"#),
    ] {
        let pattern = format!("^{}[.]{queues}", user.namespace);
        let set = ["rabbitmqctl", "set_policy", name, &pattern, definition];
        let set = broker.exec(set).await.unwrap();
        assert!(set.status.success(), "{set:?}");
    }
    let management = broker.management_url();
    // No proxy can reach this machine.
    let asks = |args: &[&str]| {
        let mut command = user.command(&[args, &["--management-url", &management]].concat());
        command.env("HTTP_PROXY", "http://127.0.0.1:9").env("http_proxy", "http://127.0.0.1:9");
        super::user::Running(command.spawn().unwrap())
    };
    let said = asks(&["init", "--partitions", "2"]).ends();
    let named = [
        format!("policy {name:?}"),
        format!("policy {logs:?}"),
        "message-ttl 60000".to_owned(),
        format!("{}.g1.p0 and 2 more: ", user.namespace),
        "max-age \"7D\"".to_owned(),
    ];
    assert!(said.code == Some(0) && named.iter().all(|name| said.err.contains(name)), "{said:?}");
    let seen = asks(&["status"]).ends();
    assert!(named.iter().all(|name| seen.out.contains(name)), "{seen:?}");
    let watch = asks(&["watch", "--json"]);
    let seen: serde_json::Value =
        serde_json::from_str(&asks(&["status", "--json"]).ends().out).unwrap();
    let first = &seen["policies"][0];
    assert_eq!(first["policy"], name.as_str());
    assert!(!first["queues"].as_array().unwrap().is_empty(), "{first}");
    for name in [&name, &logs] {
        let cleared = broker.exec(["rabbitmqctl", "clear_policy", name]);
        assert!(cleared.await.unwrap().status.success());
    }
    user.waits_for("a way that is free", || {
        let seen = asks(&["status"]).ends();
        seen.code == Some(0) && !seen.out.contains("in the way")
    });
    watch.signal("TERM");
    let told = watch.ends().out;
    assert!(told.contains(r#""event":"policies""#) && told.contains("message-ttl"), "{told}");
}
