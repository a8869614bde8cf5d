//! Workers as real processes join, drain and are killed at random under load.
//! What really happened is told by the operating system's file locks and by the
//! logs of the handlers, not by keylane.
//!
//! `KEYLANE_TEST_SEED` repeats a run as far as chance goes; the test prints it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_lite::{StreamExt, stream};
use keylane::testing::{Broker, Version};
use keylane::{Connect, Producer, ProducerOptions, Resource};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use support::{PATIENCE, broker, dead_letters, eventually, resources, soon, space, task};

/// Long enough for some forty changes of the fleet.
const CHAOS: Duration = Duration::from_secs(30);

/// Partitions. Several for each worker, so that most changes move some.
const PARTITIONS: u32 = 8;

/// Resources of each partition.
const PER_PARTITION: usize = 6;

/// Tasks for each resource and second: about half of what three workers do on
/// two cores, so that queues are neither empty nor endless.
const PACE: u64 = 10;

/// A number that seems random (Marsaglia, "Xorshift RNGs", 2003).
struct Chance(u64);

impl Chance {
    fn from_env() -> Self {
        let given = std::env::var("KEYLANE_TEST_SEED").ok();
        let seed = given.map_or_else(
            || u64::from(std::process::id()) ^ now(),
            |seed| seed.parse().expect("KEYLANE_TEST_SEED is a number"),
        );
        println!("KEYLANE_TEST_SEED={seed}");
        // Zero would stay zero.
        Self(seed | 1 << 63)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.unwrap().as_millis() as u64
}

/// The processes, and what was done to them.
struct Fleet {
    broker: &'static Broker,
    namespace: String,
    ledger: PathBuf,
    alive: Vec<Child>,
    draining: Vec<Child>,
    joins: usize,
    drains: usize,
    kills: usize,
}

impl Fleet {
    fn join(&mut self) {
        let test = std::env::current_exe().unwrap();
        // target/<profile>/deps/chaos-… → target/<profile>/examples/ledger_worker
        let profile = test.parent().and_then(Path::parent).unwrap();
        let child = Command::new(profile.join("examples/ledger_worker"))
            .arg(&self.ledger)
            .env("KEYLANE_AMQP_URL", self.broker.amqp_url())
            .env("KEYLANE_NAMESPACE", &self.namespace)
            .env("KEYLANE_WORKER", format!("worker-{}", self.joins))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("cargo test builds the example");
        self.alive.push(child);
        self.joins += 1;
    }

    async fn drain(&mut self, index: usize) {
        let child = self.alive.swap_remove(index);
        let pid = Pid::from_raw(child.id().unwrap() as i32).unwrap();
        eventually("a worker that listens", async || hears_of_its_end(pid).then_some(())).await;
        kill_process(pid, Signal::TERM).unwrap();
        self.draining.push(child);
        self.drains += 1;
    }

    async fn kill(&mut self, index: usize) {
        let mut child = self.alive.swap_remove(index);
        assert_eq!(child.try_wait().unwrap(), None, "a worker ended by itself");
        child.kill().await.unwrap();
        self.kills += 1;
    }

    /// Everybody drains, and ends well.
    async fn end(&mut self) {
        while !self.alive.is_empty() {
            self.drain(0).await;
        }
        for mut child in self.draining.drain(..) {
            let status = soon("the end of a worker", child.wait()).await.unwrap();
            assert!(status.success(), "a drained worker ended with {status}");
        }
    }
}

/// Whether a process handles SIGTERM yet. Before that, it does not drain, but dies of it.
fn hears_of_its_end(pid: Pid) -> bool {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let status = std::fs::read_to_string(path).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
    caught & 1 << (Signal::TERM.as_raw() - 1) != 0
}

/// What the logs say, of all workers together.
#[derive(Debug, Default)]
struct Verdict {
    executed: BTreeMap<String, u64>,
    overlaps: Vec<String>,
    disorder: Vec<String>,
    repeats: usize,
    hand_overs: usize,
}

/// One line of a log.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    at_ns: u128,
    worker: String,
    event: String,
    resource: String,
    sequence: u64,
}

fn read(ledger: &Path) -> Vec<Line> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(ledger).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let worker = path.file_stem().unwrap().to_str().unwrap();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let words: Vec<_> = line.split(' ').collect();
            let [at, event, resource, sequence] = words[..] else { panic!("{line:?}") };
            lines.push(Line {
                at_ns: at.parse().unwrap(),
                worker: worker.to_owned(),
                event: event.to_owned(),
                resource: resource.to_owned(),
                sequence: sequence.parse().unwrap(),
            });
        }
    }
    // Those of one resource are written under its lock, so their times are in order.
    lines.sort();
    lines
}

fn judge(lines: &[Line]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut last: HashMap<&str, &str> = HashMap::new();
    for Line { worker, event, resource, sequence, .. } in lines {
        let executed = verdict.executed.entry(resource.clone()).or_default();
        match event.as_str() {
            "start" => {
                // A repeat is what a crash costs; a task that comes early is not.
                if *sequence > *executed {
                    let missing = *executed;
                    let early = format!("{resource}/{sequence} before {missing} on {worker}");
                    verdict.disorder.push(early);
                }
                verdict.repeats += usize::from(*sequence < *executed);
                let before = last.insert(resource, worker);
                verdict.hand_overs += usize::from(before.is_some_and(|before| before != worker));
            }
            "end" => *executed = (*executed).max(sequence + 1),
            "overlap" => verdict.overlaps.push(format!("{resource}/{sequence} on {worker}")),
            _ => panic!("{event:?} is no event"),
        }
    }
    verdict
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_task_once_at_a_time_and_in_order() {
    let mut chance = Chance::from_env();
    let broker = broker(Version::default()).await;
    let (connect, topology) = space(broker, PARTITIONS).await;
    let resources = resources(&topology, PER_PARTITION).concat();
    let directory = tempfile::tempdir().unwrap();
    let mut fleet = Fleet {
        broker,
        namespace: connect.namespace().to_string(),
        ledger: directory.path().join("ledger"),
        alive: Vec::new(),
        draining: Vec::new(),
        joins: 0,
        drains: 0,
        kills: 0,
    };
    let load = tokio::spawn(load(connect.clone(), resources.clone()));
    let started = Instant::now();
    while fleet.alive.len() < 3 {
        fleet.join();
    }
    while started.elapsed() < CHAOS {
        tokio::time::sleep(Duration::from_millis(200 + chance.below(1_000))).await;
        let index = chance.below(fleet.alive.len() as u64) as usize;
        match (fleet.alive.len(), chance.below(3)) {
            (..=1, _) => fleet.join(),
            (6.., 0 | 1) => fleet.drain(index).await,
            (_, 0) => fleet.join(),
            (_, 1) => fleet.drain(index).await,
            _ => {
                fleet.kill(index).await;
                fleet.join();
            }
        }
    }
    let each = soon("the end of the load", load).await.unwrap();

    let done = |verdict: &Verdict| {
        let executed = |name| verdict.executed.get(name) == Some(&each);
        resources.iter().all(executed)
            || !(verdict.overlaps.is_empty() && verdict.disorder.is_empty())
    };
    let finished =
        eventually("all tasks", async || done(&judge(&read(&fleet.ledger))).then_some(()));
    // What is missing is told below, by partition.
    tokio::time::timeout(PATIENCE - Duration::from_secs(1), finished).await.ok();
    let verdict = judge(&read(&fleet.ledger));
    let mut missing = BTreeMap::new();
    for name in &resources {
        let partition = topology.partition_of(&Resource::new(name).unwrap()).number();
        let lost = each - verdict.executed.get(name).copied().unwrap_or_default();
        *missing.entry(partition).or_insert(0) += lost;
    }
    missing.retain(|_, lost| *lost > 0);
    fleet.end().await;
    let Fleet { joins, drains, kills, .. } = fleet;
    let total = each * resources.len() as u64;
    println!(
        "{total} tasks, {joins} workers joined, {drains} drained, {kills} killed; \
         {} hand-overs, {} repeats",
        verdict.hand_overs, verdict.repeats
    );
    assert_eq!(verdict.overlaps, Vec::<String>::new());
    assert_eq!(verdict.disorder, Vec::<String>::new());
    assert_eq!(missing, BTreeMap::new(), "not executed, by partition");
    let letters = dead_letters(&connect).await;
    assert!(letters.is_empty(), "{letters:?}");
    // Otherwise nothing was put to the test.
    assert!(joins > 8 && drains > 3 && kills > 3, "{joins}, {drains}, {kills}");
    assert!(verdict.hand_overs > 100, "{}", verdict.hand_overs);
    assert!(total > 5_000, "{total}");
}

/// Publishes at a steady pace for as long as the chaos lasts; gives the number
/// of tasks of each resource.
async fn load(connect: Connect, resources: Vec<String>) -> u64 {
    let producer = Producer::open(&connect, ProducerOptions::default()).await.unwrap();
    let started = Instant::now();
    let mut beat = tokio::time::interval(Duration::from_millis(1_000 / PACE));
    let mut sequence = 0;
    while started.elapsed() < CHAOS {
        beat.tick().await;
        let tasks = stream::iter(resources.iter().map(|resource| task(resource, sequence)));
        let outcomes = producer.publish_all(tasks);
        outcomes.for_each(|published| drop(published.outcome.unwrap())).await;
        sequence += 1;
    }
    producer.close().await;
    sequence
}
