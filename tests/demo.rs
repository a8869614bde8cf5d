//! `keylane demo`, as a user runs it: real processes on a real broker.
// What clippy.toml allows in tests covers functions marked as tests only.
#![allow(clippy::expect_used)]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use keylane::demo::{Plan, generate};
use keylane::testing::Broker;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// The demo of 200 commits takes some seconds; this is a machine that is twenty
/// times as busy.
const PATIENCE: Duration = Duration::from_secs(180);

const PLAN: Plan = Plan { commits: 200, files: 30, seed: 7 };

/// So long that even the fastest machine is interrupted in the middle.
const LONG: Plan = Plan { commits: 20_000, ..PLAN };

/// A repository, and a directory for everything that the demo writes.
struct Place {
    repository: tempfile::TempDir,
    temporary: tempfile::TempDir,
}

impl Place {
    fn new(plan: &Plan) -> Self {
        let directory = || tempfile::tempdir().expect("a directory");
        let place = Self { repository: directory(), temporary: directory() };
        generate(place.repository.path(), plan).expect("a repository");
        place
    }

    fn demo(&self, amqp_url: &str) -> Command {
        let mut demo = keylane();
        demo.args(["demo", "--amqp-url", amqp_url, "--repo"]).arg(self.repository.path());
        demo.env("TMPDIR", self.temporary.path());
        demo
    }

    fn is_clean(&self) -> bool {
        std::fs::read_dir(&self.temporary).expect("a directory").next().is_none()
    }
}

fn keylane() -> Command {
    let mut keylane = Command::new(env!("CARGO_BIN_EXE_keylane"));
    keylane.env_remove("KEYLANE_AMQP_URL").stdin(Stdio::null()).kill_on_drop(true);
    keylane
}

/// Runs to the end: whether it succeeded, standard output and standard error.
async fn run(command: &mut Command) -> (bool, String, String) {
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.expect("ends in time").expect("runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.success(), text(output.stdout), text(output.stderr))
}

async fn report(command: &mut Command) -> Value {
    let (succeeded, stdout, stderr) = run(command.arg("--json")).await;
    assert!(succeeded, "{stdout}{stderr}");
    serde_json::from_str(&stdout).expect("one JSON object")
}

async fn demo_queues(broker: &Broker) -> Vec<String> {
    let listed = broker.exec(["rabbitmqctl", "--quiet", "list_queues", "name"]).await;
    let listed = String::from_utf8(listed.expect("lists").stdout).expect("UTF-8");
    listed.lines().filter(|line| line.starts_with("demo-")).map(str::to_owned).collect()
}

#[tokio::test]
async fn every_file_is_rebuilt_while_workers_die() {
    let broker = Broker::shared().await.expect("a broker");
    let place = Place::new(&PLAN);
    let kept = tempfile::tempdir().expect("a directory");
    let mut demo = place.demo(&broker.amqp_url());
    let report = report(demo.arg("--keep").arg(kept.path())).await;

    assert_eq!(report["ok"], true, "{report}");
    assert_eq!(report["executed"], report["tasks"], "{report}");
    assert_eq!(report["files_identical"], report["files"], "{report}");
    let none = ["violations", "overlaps", "order_violations", "mismatches", "dead_letters"];
    for count in none {
        assert_eq!(report[count], 0, "{count} in {report}");
    }
    let workers = &report["workers"];
    let happened = ["started", "killed", "drained", "joined"].map(|what| workers[what].as_u64());
    assert_eq!(happened, [Some(4), Some(1), Some(1), Some(2)], "{report}");
    assert!(report["hand_overs"].as_u64() > Some(0), "{report}");
    assert!(kept.path().join("ledger/hot.csv").is_file());
    assert!(place.is_clean());
}

#[tokio::test]
async fn competing_consumers_corrupt_files() {
    let broker = Broker::shared().await.expect("a broker");
    let place = Place::new(&PLAN);
    // Whether two of them meet is chance, and less likely on a machine that gives them little.
    let mut report = Value::Null;
    for _ in 0..5 {
        let mut demo = place.demo(&broker.amqp_url());
        report = self::report(demo.arg("--naive")).await;
        assert_eq!(report["mode"], "naive", "{report}");
        if report["violations"].as_u64() > Some(0) {
            break;
        }
    }
    assert!(report["violations"].as_u64() > Some(0), "{report}");
    let first = report["corruptions"][0].as_str().expect("a corruption");
    assert!(first.contains("expected"), "{first}");
    assert!(place.is_clean());
}

#[tokio::test]
async fn ctrl_c_leaves_nothing() {
    // Not shared: the others' queues come and go.
    let broker = Broker::start().await.expect("a broker");
    let place = Place::new(&LONG);
    let mut demo = place.demo(&broker.amqp_url());
    let mut demo = demo.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("starts");
    let mut lines = BufReader::new(demo.stderr.take().expect("a pipe")).lines();
    let killed = async {
        while let Some(line) = lines.next_line().await.expect("UTF-8") {
            if line.contains("was killed") {
                return;
            }
        }
        panic!("no worker was killed");
    };
    tokio::time::timeout(PATIENCE, killed).await.expect("in time");
    assert!(!demo_queues(&broker).await.is_empty(), "so that the end of it is seen");

    let id = demo.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    kill_process(id.expect("it runs"), Signal::INT).expect("a signal");
    let status = tokio::time::timeout(PATIENCE, demo.wait()).await.expect("ends in time");
    assert_eq!(status.expect("a status").code(), Some(130));
    // Those of killed workers expire.
    let left = demo_queues(&broker).await;
    assert!(left.iter().all(|queue| queue.contains(".pulse.")), "{left:?}");
    let expired = async {
        while !demo_queues(&broker).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(PATIENCE, expired).await.expect("nothing is left in the end");
    assert!(place.is_clean());
    assert_eq!(processes_on(place.repository.path()), 0, "workers are left");
}

/// How many processes name this path in their arguments.
fn processes_on(path: &Path) -> usize {
    let named = |process: &std::fs::DirEntry| {
        let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(&*path.to_string_lossy())
    };
    std::fs::read_dir("/proc").expect("Linux").flatten().filter(named).count()
}

#[tokio::test]
async fn what_cannot_work_is_said_before_a_broker_is_asked() {
    let (empty, full) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    std::fs::write(full.path().join("file"), "").expect("a file");
    let said = async |arguments: &[&str]| {
        let mut demo = keylane();
        demo.args(["demo", "--amqp-url", "amqp://127.0.0.1:1"]).args(arguments);
        let (succeeded, _, stderr) = run(&mut demo).await;
        assert!(!succeeded, "{stderr}");
        stderr
    };
    let (empty, full) = (empty.path().to_string_lossy(), full.path().to_string_lossy());
    let no_repository = said(&["--repo", &empty]).await;
    assert!(no_repository.contains("is not in a git repository"), "{no_repository}");
    let occupied = said(&["--keep", &full]).await;
    assert!(occupied.contains("is not empty"), "{occupied}");
    let alone = said(&["--workers", "1"]).await;
    assert!(alone.contains("2..=64"), "{alone}");
    let no_broker = said(&[]).await;
    assert!(no_broker.contains("no broker answers"), "{no_broker}");
}
