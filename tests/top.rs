//! `keylane top` in a real terminal, and in a pipe.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

#[path = "cli/user.rs"]
#[allow(dead_code, reason = "no test binary uses all of it")]
mod user;

#[path = "support/screen.rs"]
#[allow(dead_code, reason = "no test binary uses all of it")]
mod screen;

use screen::Screen;
use serde_json::Value;
use user::User;

fn publish(user: &User) {
    let lines: String = (0..40).map(|n| format!("{{\"r\":\"account-{}\"}}\n", n % 3)).collect();
    let input = user.file("tasks.ndjson", lines);
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_shows_what_goes_on() {
    let user = User::with_partitions(8).await;
    let mut screen = Screen::open(&user, 24, 80);
    screen.shows(&["Idle", "8 partitions", "Workers (0)", "q leave"]);
    let worker = user.starts(&["work", "--exec", "sleep 0.3", "--id", "porto"]);
    publish(&user);
    screen.shows(&["Flowing", "porto", "Workers (1)"]);
    screen.press("3");
    screen.shows(&["Busiest resources (3)", "account-0", "account-1", "account-2"]);
    screen.press("?");
    screen.shows(&["another list"]);
    screen.press("q");
    screen.until("no help", || !screen.text().contains("another list"));
    screen.resize(60, 200);
    screen.shows(&["Workers (1)", "porto", "Busiest resources (3)", "Retrying (0)"]);
    screen.press("q");
    screen.has_left();
    worker.signal("TERM");
    worker.ends();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_ends_it_the_terminal_is_restored() {
    let user = User::with_partitions(1).await;
    for end in ["\x03", "\x1b", "TERM", "INT"] {
        let mut screen = Screen::open(&user, 24, 80);
        screen.shows(&["Idle"]);
        if end.len() == 1 {
            screen.press(end);
        } else {
            let id = screen.child.process_id().unwrap().to_string();
            let sent = std::process::Command::new("kill").args([&format!("-{end}"), &id]).status();
            assert!(sent.unwrap().success());
        }
        screen.has_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_gets_one_picture() {
    let user = User::with_partitions(8).await;
    let worker = user.starts(&["work", "--exec", "true", "--id", "porto"]);
    publish(&user);
    user.waits_for_quiet();
    // A worker that is busy otherwise is not in the picture.
    user.waits_for("what it has done", || {
        let said = user.succeeds(&["top"]);
        assert!(!said.out.contains('\x1b'), "{said:?}");
        let done = "worker porto: running 0/16, owns 8, executed 40";
        ["namespace", done, "dead letters 0"].iter().all(|words| said.out.contains(words))
    });
    user.waits_for("the same as JSON, with what the journal says", || {
        let json: Value = serde_json::from_str(&user.succeeds(&["top", "--json"]).out).unwrap();
        json["workers"][0]["executed"] == 40
            && json["partitions"]["owner"] == serde_json::json!([0, 0, 0, 0, 0, 0, 0, 0])
            && json["recent"].as_array().unwrap().len() == 40
    });
    worker.signal("TERM");
    worker.ends();
}
