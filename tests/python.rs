//! The examples in Python: a producer that hashes for itself, and a handler.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

#[path = "cli/user.rs"]
#[allow(dead_code, reason = "no test binary uses all of it")]
mod user;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use keylane::testing::Broker;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use user::{Ran, Running, User};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python");

/// A Python with what the examples need, made once and kept beside the build.
async fn python() -> &'static Path {
    static PYTHON: OnceCell<PathBuf> = OnceCell::const_new();
    PYTHON
        .get_or_init(|| async {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
            let python = folder.join("bin/python3");
            let has = |python: &Path| {
                let imported = Command::new(python).args(["-c", "import pika, xxhash"]).output();
                imported.is_ok_and(|output| output.status.success())
            };
            if !has(&python) {
                let run = |command: &mut Command| {
                    let output = command.stdin(Stdio::null()).output();
                    let output = output.expect("it runs");
                    assert!(output.status.success(), "{command:?}: {output:?}");
                };
                let venv = |python: &str| {
                    let mut command = Command::new(python);
                    command.args(["-m", "venv", "--clear"]).arg(&folder).stdin(Stdio::null());
                    command.output().is_ok_and(|output| output.status.success())
                };
                if !venv("python3") {
                    // Debian has it in a package of its own.
                    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers.sh");
                    run(Command::new(script).arg("python3-venv"));
                    assert!(venv("/usr/bin/python3"), "python3 has no venv");
                }
                let requirements = format!("{EXAMPLES}/requirements.txt");
                run(Command::new(&python).args([
                    "-m",
                    "pip",
                    "install",
                    "-q",
                    "-r",
                    &requirements,
                ]));
            }
            python
        })
        .await
}

async fn producer(user: &User) -> Running {
    let child = Command::new(python().await)
        .args([&format!("{EXAMPLES}/producer.py"), "--resource", "account"])
        .env("KEYLANE_AMQP_URL", &user.url)
        .env("KEYLANE_NAMESPACE", &user.namespace)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    Running(child.unwrap())
}

fn ends(mut producer: Running) -> Ran {
    drop(producer.0.stdin.take());
    producer.ends()
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_those_of_the_golden_vectors() {
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/partitions.json");
    let script = format!(
        "import json, sys; sys.path.insert(0, {EXAMPLES:?})
from producer import partition_of
file = json.load(open({vectors:?}))
for v in file['vectors']:
    found = [partition_of(v['resource'], count) for count in file['counts']]
    assert found == v['partitions'], v
print(len(file['vectors']))"
    );
    let output = Command::new(python().await).args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let count: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!(count > 10, "{count} vectors");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_go_from_python_to_python_in_order() {
    const TASKS: usize = 120;
    let user = User::with_partitions(8).await;
    let mut publishing = producer(&user).await;
    let mut lines = String::new();
    for n in 0..TASKS {
        let mut order = json!({ "account": format!("konto/ä-{}", n % 5), "n": n });
        match n {
            7 => order["fails"] = "no such account".into(),
            9 => order["not_before"] = 3.into(),
            _ => {}
        }
        writeln!(lines, "{order}").unwrap();
    }
    publishing.types(&lines);
    let published = ends(publishing);
    assert_eq!(published.out, format!("published {TASKS}\n"), "{published:?}");

    let log = user.folder.path().join("done.ndjson");
    let handler = format!("{} {EXAMPLES}/worker.py {}", python().await.display(), log.display());
    let worker = user.starts(&["work", "--pipe", &handler, "--slots", "3"]);
    user.waits_for_quiet();
    worker.signal("TERM");
    let ended = worker.ends();
    assert_eq!(ended.code, Some(0), "{ended:?}");

    let mut executed = BTreeMap::<String, Vec<usize>>::new();
    for line in user.lines_of("done.ndjson") {
        let (account, n): (String, usize) = serde_json::from_str(&line).unwrap();
        executed.entry(account).or_default().push(n);
    }
    for account in 0..5 {
        let expected: Vec<_> = (0..TASKS).filter(|n| n % 5 == account && *n != 7).collect();
        assert_eq!(executed[&format!("konto/ä-{account}")], expected);
    }
    let dead = user.succeeds(&["dead", "list", "--json"]);
    assert!(dead.out.contains("no such account") && dead.out.lines().count() == 1, "{dead:?}");
    let verified = user.succeeds(&["verify", "--json"]);
    let verified: Value = serde_json::from_str(&verified.out).unwrap();
    assert_eq!(verified["report"]["executed"], TASKS - 1);
    let history = user.succeeds(&["history", "--resource", "konto/ä-4", "--json", "--last", "1"]);
    let last: Value = serde_json::from_str(&history.out).unwrap();
    assert_eq!([&last["result"], &last["sequence"]], [&json!("order 119"), &json!(119)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_in_python_outlives_its_broker() {
    let broker = Broker::start().await.unwrap();
    let user = User::on(&broker);
    user.succeeds(&["init", "--partitions", "4"]);
    let mut publishing = producer(&user).await;
    let line = |n: usize| format!("{{\"account\":\"a\",\"n\":{n}}}\n");
    publishing.types(&line(0));
    user.waits_for("the first task", || {
        let status = user.status();
        status["partitions"].as_array().unwrap().iter().any(|p| p["ready"] == 1)
    });
    broker.restart().await.unwrap();
    (1..50).for_each(|n| publishing.types(&line(n)));
    let published = ends(publishing);
    assert_eq!(published.out, "published 50\n", "{published:?}");
    let worker = user.starts(&["work", "--exec", "cat >>done.ndjson; echo >>done.ndjson"]);
    user.waits_for_quiet();
    worker.signal("TERM");
    worker.ends();
    let mut executed: Vec<Value> =
        user.lines_of("done.ndjson").iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    executed.dedup();
    let expected: Vec<Value> = (0..50).map(|n| json!({ "account": "a", "n": n })).collect();
    assert_eq!(executed, expected, "in order, and nothing is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_not_set_up_is_named() {
    let user = User::new().await;
    let said = ends(producer(&user).await);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains(&format!("{}.topology", user.namespace)), "{said:?}");
}
