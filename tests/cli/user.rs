//! Somebody at a terminal.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use keylane::testing::Broker;
use serde_json::Value;

/// Nothing that is waited for takes longer, on a slow machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

/// A user with a namespace and a folder of their own.
pub(crate) struct User {
    pub(crate) url: String,
    pub(crate) namespace: String,
    pub(crate) folder: tempfile::TempDir,
}

impl User {
    /// On the broker that all tests of this process share.
    pub(crate) async fn new() -> Self {
        Self::on(Broker::shared().await.expect("a broker"))
    }

    pub(crate) fn on(broker: &Broker) -> Self {
        Self::at(&broker.amqp_url(), &broker.namespace().to_string())
    }

    /// There may be no broker at this address.
    pub(crate) fn at(url: &str, namespace: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { url: url.to_owned(), namespace: namespace.to_owned(), folder }
    }

    /// With a topology of so many partitions.
    pub(crate) async fn with_partitions(partitions: u32) -> Self {
        let user = Self::new().await;
        user.succeeds(&["init", "--partitions", &partitions.to_string()]);
        user
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keylane"));
        command
            .args(args)
            .env("KEYLANE_AMQP_URL", &self.url)
            .env("KEYLANE_NAMESPACE", &self.namespace)
            .env_remove("KEYLANE_LOG")
            .env_remove("TRACEPARENT")
            .env_remove("KEYLANE_TLS_CA")
            .env_remove("KEYLANE_TLS_CERT")
            .env_remove("KEYLANE_TLS_KEY")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().expect("keylane runs"))
    }

    pub(crate) fn succeeds(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        ran
    }

    /// Fails with that code, one line on standard error that says all of
    /// `words`, and no panic.
    pub(crate) fn fails(&self, code: i32, args: &[&str], words: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(code), "{args:?}: {ran:?}");
        assert!(!ran.err.contains("panicked"), "{args:?}: {ran:?}");
        if code == 1 {
            assert_eq!(ran.err.lines().count(), 1, "one clear line: {ran:?}");
        }
        for word in words {
            assert!(ran.err.contains(word), "{args:?} does not say {word:?}: {ran:?}");
        }
        ran
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path
    }

    pub(crate) fn starts(&self, args: &[&str]) -> Running {
        Running(self.command(args).spawn().expect("keylane starts"))
    }

    /// Asked again if need be: a broker that has just been restarted, and everybody who waits for
    /// something, may need another look.
    pub(crate) fn status(&self) -> Value {
        let mut seen = None;
        self.waits_for("a status", || {
            let ran = self.run(&["status", "--json"]);
            assert!(!ran.err.contains("panicked"), "{ran:?}");
            seen = (ran.code == Some(0)).then_some(ran.out);
            seen.is_some()
        });
        serde_json::from_str(&seen.expect("it was waited for")).expect("JSON")
    }

    /// Waits until no task is ready or unsettled. One look is not enough: what
    /// is on its way to a worker is neither.
    pub(crate) fn waits_for_quiet(&self) {
        let mut quiet = 0;
        self.waits_for("an empty namespace", || {
            let status = self.status();
            let left = |p: &Value| p["ready"].as_u64().unwrap() + p["unsettled"].as_u64().unwrap();
            let left: u64 = status["partitions"].as_array().unwrap().iter().map(left).sum();
            let is_quiet = left == 0 && !status["workers"].as_array().unwrap().is_empty();
            quiet = if is_quiet { quiet + 1 } else { 0 };
            quiet == 3
        });
    }

    pub(crate) fn waits_for(&self, what: &str, mut seen: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !seen() {
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The lines that handlers wrote into a file.
    pub(crate) fn lines_of(&self, name: &str) -> Vec<String> {
        let path = self.folder.path().join(name);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}

/// A command that runs; killed when the test is over.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn signal(&self, name: &str) {
        let signal = format!("-{name}");
        let sent = Command::new("kill").args([&signal, &self.0.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    pub(crate) fn types(&mut self, text: &str) {
        let stdin = self.0.stdin.as_mut().expect("an open standard input");
        stdin.write_all(text.as_bytes()).expect("it reads");
    }

    pub(crate) fn ends(mut self) -> Ran {
        // Read all the while, or it would wait for room in a full pipe, and never end.
        let (out, err) = (read(self.0.stdout.take()), read(self.0.stderr.take()));
        let deadline = Instant::now() + PATIENCE;
        while self.0.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let code = self.0.wait().expect("it has ended").code();
        let text = |read: JoinHandle<String>| read.join().expect("UTF-8");
        Ran { code, out: text(out), err: text(err) }
    }
}

/// Reads a pipe to its end; one that is taken, or was never made, is empty.
fn read(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_string(&mut text).expect("UTF-8");
        }
        text
    })
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
