//! `keylane work`, `route` and `dead`, with handlers that people write.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use serde_json::Value;

use super::user::{Ran, User};

/// Publishes these lines, with `/r` as the resource and `/id` as the id.
fn publish(user: &User, lines: &str) {
    let input = user.file("tasks.ndjson", lines);
    let input = input.to_str().unwrap();
    user.succeeds(&["publish", input, "--resource", "/r", "--id", "/id", "--kind-name", "test"]);
}

/// Works until nothing is left, then stops cleanly.
fn work(user: &User, args: &[&str]) -> Ran {
    let worker = user.starts(&[&["work", "--json", "--retry-delay", "10ms"], args].concat());
    user.waits_for_quiet();
    worker.signal("TERM");
    worker.ends()
}

fn dead_letters(user: &User) -> Vec<Value> {
    let listed = user.succeeds(&["dead", "list", "--json"]);
    listed.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_executes_in_order_and_its_exit_code_decides() {
    let user = User::with_partitions(4).await;
    let mut lines = String::new();
    for n in 0..60 {
        lines += &format!("{{\"r\":\"r{}\",\"id\":\"t{n}\",\"n\":{n}}}\n", n % 3);
    }
    lines += "{\"r\":\"bad\",\"id\":\"fails\"}\n{\"r\":\"bad\",\"id\":\"after\"}\n";
    lines += "{\"r\":\"later\",\"id\":\"retries\"}\n";
    publish(&user, &lines);
    let script = r#"
        case $KEYLANE_TASK_ID in
            fails) echo "no such account" >&2; exit 3 ;;
            retries) [ "$KEYLANE_ATTEMPT" = 3 ] || exit 75 ;;
        esac
        read -r payload
        echo "$KEYLANE_TASK_ID $KEYLANE_KIND $payload" >>"$KEYLANE_RESOURCE.log"
    "#;
    let ran = work(&user, &["--exec", script, "--attempts", "4"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let summary: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&summary["executed"], &summary["dead_lettered"]), (&62.into(), &1.into()));
    for r in 0..3 {
        let expected: Vec<String> = (0..60)
            .filter(|n| n % 3 == r)
            .map(|n| format!("t{n} test {{\"r\":\"r{r}\",\"id\":\"t{n}\",\"n\":{n}}}"))
            .collect();
        assert_eq!(user.lines_of(&format!("r{r}.log")), expected, "order of r{r}");
    }
    assert_eq!(user.lines_of("bad.log").len(), 1, "a dead letter makes way for the next");
    assert_eq!(user.lines_of("later.log").len(), 1);
    let dead = dead_letters(&user);
    assert_eq!(dead.len(), 1);
    let letter = &dead[0];
    assert_eq!((&letter["id"], &letter["resource"]), (&"fails".into(), &"bad".into()));
    assert_eq!((&letter["attempts"], &letter["kind"]), (&4.into(), &"test".into()));
    assert!(letter["reason"].as_str().unwrap().contains("no such account"), "{letter}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_shown_replayed_and_discarded() {
    let user = User::with_partitions(4).await;
    publish(
        &user,
        "{\"r\":\"a\",\"id\":\"a1\"}\n{\"r\":\"a\",\"id\":\"a2\"}\n{\"r\":\"b\",\"id\":\"b1\"}\n",
    );
    work(&user, &["--exec", "exit 1", "--attempts", "1"]);
    let ids = |letters: &[Value]| letters.iter().map(|l| l["id"].clone()).collect::<Vec<_>>();
    let dead = dead_letters(&user);
    assert_eq!(dead.len(), 3);
    assert_eq!(ids(&dead), ids(&dead_letters(&user)), "looking changes nothing");
    let shown = user.succeeds(&["dead", "show", "a1"]);
    assert!(shown.out.contains("exit status 1") && shown.out.contains(r#"{"r":"a","id":"a1"}"#));
    let json = user.succeeds(&["dead", "show", "a1", "--json"]);
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["payload"], r#"{"r":"a","id":"a1"}"#);

    assert_eq!(user.succeeds(&["dead", "discard", "b1"]).out, "discarded 1\n");
    user.fails(1, &["dead", "discard", "b1"], &["no dead letter has the task id \"b1\""]);
    assert_eq!(user.succeeds(&["dead", "replay", "--resource", "a"]).out, "replayed 2\n");
    assert_eq!(dead_letters(&user), Vec::<Value>::new());
    work(&user, &["--exec", "echo $KEYLANE_TASK_ID >>done.log"]);
    assert_eq!(user.lines_of("done.log"), ["a1", "a2"], "in their old order");
    user.fails(2, &["dead", "discard"], &["--all"]);
    assert_eq!(user.succeeds(&["dead", "discard", "--all"]).out, "discarded 0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_publishers_and_handlers_write_forges_no_line_and_steers_no_terminal() {
    let user = User::with_partitions(1).await;
    let evil = "a\\n2026-01-01 INFO forged\\u001b[2J\\u009b1m";
    publish(&user, &format!("{{\"r\":\"{evil}\",\"id\":\"{evil}\"}}\n"));
    let script = "printf 'no\\n2026-01-01 ERROR forged\\033[2J' >&2; exit 1";
    let worked = work(&user, &["--exec", script, "--attempts", "1"]);
    let named: String = serde_json::from_str(&format!("\"{evil}\"")).unwrap();
    let commands = [
        user.succeeds(&["dead", "list"]),
        user.succeeds(&["dead", "list", "--json"]),
        user.succeeds(&["history", "--resource", &named]),
        user.succeeds(&["task", &named]),
        user.succeeds(&["verify"]),
        user.succeeds(&["pause", "--resource", &named]),
        user.succeeds(&["status"]),
        user.succeeds(&["resume", "--resource", &named]),
    ];
    assert!(worked.err.contains("to the dead letters"), "{worked:?}");
    for ran in commands.iter().chain([&worked]) {
        let text = format!("{}{}", ran.out, ran.err);
        let hidden = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(hidden), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("2026-01-01")), "{text}");
    }
    assert!(commands[0].out.lines().count() == 1, "{}", commands[0].out);
}

#[tokio::test(flavor = "multi_thread")]
async fn pipe_keeps_its_children_and_their_answers_decide() {
    let user = User::with_partitions(4).await;
    let mut lines = String::new();
    for n in 0..100 {
        lines += &format!("{{\"r\":\"r{}\",\"id\":\"t{n}\"}}\n", n % 5);
    }
    lines += "{\"r\":\"x\",\"id\":\"dead\"}\n";
    publish(&user, &lines);
    let script = r#"
        echo $$ >>children.log
        while read -r line; do
            case $line in
                *'"id":"dead"'*) echo '{"status":"dead","reason":"never"}' ;;
                *) echo "$line" >>tasks.log; echo '{"status":"executed"}' ;;
            esac
        done
    "#;
    let ran = work(&user, &["--pipe", script, "--slots", "3"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let tasks = user.lines_of("tasks.log");
    assert_eq!(tasks.len(), 100);
    let token = |line: &String| {
        let task: Value = serde_json::from_str(line).unwrap();
        task["fencing_token"].as_i64()
    };
    assert!(tasks.iter().all(|line| token(line) > Some(1 << 40)), "{tasks:?}");
    assert!(user.lines_of("children.log").len() <= 3, "a child per slot");
    assert_eq!(dead_letters(&user)[0]["reason"], "never");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_posts_and_the_status_decides() {
    let user = User::with_partitions(4).await;
    publish(
        &user,
        "{\"r\":\"a\",\"id\":\"ok\"}\n{\"r\":\"b\",\"id\":\"busy\"}\n{\"r\":\"c\",\"id\":\"gone\"}\n",
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/tasks", listener.local_addr().unwrap());
    let (seen_sender, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut busy = 0;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
                    break;
                }
                let lower = line.to_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head += &lower;
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let status = if head.contains("keylane-task-id: busy") {
                busy += 1;
                if busy < 3 { "503 Busy" } else { "200 OK" }
            } else if head.contains("keylane-task-id: gone") {
                "410 Gone"
            } else {
                "200 OK"
            };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
            seen_sender.send((head, String::from_utf8(body).unwrap())).ok();
        }
    });
    let ran = work(&user, &["--http", &url]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let seen: Vec<_> = seen.try_iter().collect();
    assert_eq!(seen.len(), 5, "once, three times, once: {seen:?}");
    assert!(seen.iter().all(|(head, _)| head.contains("keylane-fencing-token: ")), "{seen:?}");
    assert!(seen.iter().any(|(_, body)| body == r#"{"r":"a","id":"ok"}"#));
    let dead = dead_letters(&user);
    assert_eq!(dead.len(), 1);
    assert!(dead[0]["reason"].as_str().unwrap().contains("410"), "{dead:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_hands_on_tokens_that_rise_unless_told_not_to() {
    let user = User::with_partitions(1).await;
    let script = r#"echo "${KEYLANE_FENCING_TOKEN-none}" >>tokens"#;
    for args in [&[][..], &[], &["--no-fencing"]] {
        publish(&user, "{\"r\":\"a\",\"id\":\"1\"}\n{\"r\":\"b\",\"id\":\"2\"}\n");
        let ran = work(&user, &[&["--exec", script], args].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    let seen = user.lines_of("tokens");
    let tokens: Vec<i64> = seen.iter().filter_map(|line| line.parse().ok()).collect();
    assert!(tokens.len() == 4 && tokens.is_sorted() && tokens[1] < tokens[2], "{seen:?}");
    assert_eq!(seen[4..], ["none", "none"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_finishes_what_runs_and_repeats_nothing() {
    let user = User::with_partitions(2).await;
    let lines: String = (0..20).map(|n| format!("{{\"r\":\"r{n}\",\"id\":\"t{n}\"}}\n")).collect();
    publish(&user, &lines);
    let script = "echo start $KEYLANE_TASK_ID >>log; sleep 1; echo end $KEYLANE_TASK_ID >>log";
    let worker = user.starts(&["work", "--exec", script, "--slots", "4"]);
    user.waits_for("a running task", || !user.lines_of("log").is_empty());
    worker.signal("TERM");
    let ran = worker.ends();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let (starts, ends): (Vec<_>, Vec<_>) =
        user.lines_of("log").into_iter().partition(|line| line.starts_with("start"));
    assert_eq!(starts.len(), ends.len(), "what ran has finished");
    assert!(starts.len() < 20, "and nothing else was started");
    work(&user, &["--exec", script, "--slots", "20"]);
    let starts = user.lines_of("log").iter().filter(|l| l.starts_with("start")).count();
    assert_eq!(starts, 20, "the rest is executed, nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_leaves_at_once_and_takes_its_children_along() {
    let user = User::with_partitions(2).await;
    publish(&user, "{\"r\":\"a\",\"id\":\"slow\"}\n");
    let worker = user.starts(&["work", "--exec", "echo $$ >pid; sleep 600"]);
    user.waits_for("a running task", || !user.lines_of("pid").is_empty());
    worker.signal("INT");
    std::thread::sleep(std::time::Duration::from_millis(500));
    worker.signal("INT");
    let ran = worker.ends();
    assert_eq!(ran.code, Some(130), "{ran:?}");
    let child = user.lines_of("pid").remove(0);
    user.waits_for("the end of the child", || {
        !std::path::Path::new(&format!("/proc/{child}")).exists()
    });
    work(&user, &["--exec", "echo again >>log"]);
    assert_eq!(user.lines_of("log"), ["again"], "what ran is executed again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_hangs_is_named_with_its_age() {
    let user = User::with_partitions(2).await;
    let input = user.file("tasks.ndjson", "{\"r\":\"door\",\"id\":\"t1\"}\n");
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r", "--id", "/id"]);
    let worker = user.starts(&["work", "--exec", "sleep 12", "--task-timeout", "20s", "--id", "w"]);
    user.waits_for("a task that runs", || {
        user.status()["workers"][0]["longest"][0]["for_ms"].as_u64() > Some(2_000)
    });
    let longest = user.status()["workers"][0]["longest"][0].clone();
    assert_eq!((&longest["task"], &longest["timeout_ms"]), (&"t1".into(), &20_000.into()));
    let seen = user.succeeds(&["status"]);
    assert!(!seen.out.contains("running longest"), "it has hardly begun: {seen:?}");
    user.waits_for("its row", || {
        let seen = user.succeeds(&["status"]);
        let row = seen.out.lines().find(|line| line.contains("t1"));
        row.is_some_and(|row| row.contains("door") && row.contains("20s"))
    });
    user.waits_for_quiet();
    assert_eq!(user.status()["workers"][0]["longest"], serde_json::json!([]));
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));
}
