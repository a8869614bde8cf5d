//! `keylane top` in a real terminal, and in a pipe.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

#[path = "cli/user.rs"]
#[allow(dead_code, reason = "no test binary uses all of it")]
mod user;

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use serde_json::Value;
use user::User;
use vt100::Parser;

/// Nothing that is waited for takes longer, on a slow machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal with `keylane top` in it.
struct Screen {
    master: Box<dyn MasterPty + Send>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    seen: Arc<Mutex<Parser>>,
}

impl Screen {
    fn open(user: &User, rows: u16, cols: u16) -> Self {
        let size = PtySize { rows, cols, ..PtySize::default() };
        let pair = native_pty_system().openpty(size).unwrap();
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_keylane"));
        command.arg("top");
        command.env("KEYLANE_AMQP_URL", &user.url);
        command.env("KEYLANE_NAMESPACE", &user.namespace);
        command.env("TERM", "xterm-256color");
        let child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let mut output = pair.master.try_clone_reader().unwrap();
        let keys = pair.master.take_writer().unwrap();
        let seen = Arc::new(Mutex::new(Parser::new(rows, cols, 0)));
        let parser = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(count) = output.read(&mut bytes)
                && count > 0
            {
                parser.lock().unwrap().process(&bytes[..count]);
            }
        });
        Self { master: pair.master, keys, child, seen }
    }

    fn text(&self) -> String {
        self.seen.lock().unwrap().screen().contents()
    }

    fn shows(&self, words: &[&str]) {
        self.until(&format!("{words:?}"), || {
            let text = self.text();
            words.iter().all(|word| text.contains(word))
        });
    }

    fn until(&self, what: &str, mut seen: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !seen() {
            assert!(Instant::now() < deadline, "{what}: not on the screen:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, rows: u16, cols: u16) {
        self.seen.lock().unwrap().screen_mut().set_size(rows, cols);
        self.master.resize(PtySize { rows, cols, ..PtySize::default() }).unwrap();
    }

    /// It has ended by itself, and the terminal is as it was.
    fn has_left(mut self) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(status.success(), "{status:?}");
        self.until("the screen before", || !self.seen.lock().unwrap().screen().alternate_screen());
        assert!(!self.seen.lock().unwrap().screen().hide_cursor(), "no cursor");
        let modes = self.master.get_termios().unwrap();
        let flags = format!("{:?}", modes.local_flags);
        assert!(["ICANON", "ECHO", "ISIG"].iter().all(|flag| flags.contains(flag)), "raw: {flags}");
    }
}

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
    let worker = user.starts(&["work", "--exec", "sleep 0.05", "--id", "porto"]);
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
    let said = user.succeeds(&["top"]);
    for words in ["namespace", "worker porto: running 0/16, owns 8, executed 40", "dead letters 0"]
    {
        assert!(said.out.contains(words), "{words}: {said:?}");
    }
    assert!(!said.out.contains('\x1b'), "{said:?}");
    let json: Value = serde_json::from_str(&user.succeeds(&["top", "--json"]).out).unwrap();
    assert_eq!(json["workers"][0]["executed"], 40);
    assert_eq!(json["partitions"]["owner"], serde_json::json!([0, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(json["recent"].as_array().unwrap().len(), 40, "the journal is read, too");
    worker.signal("TERM");
    worker.ends();
}
