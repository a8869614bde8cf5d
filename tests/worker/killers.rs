//! Tasks that kill their worker, in workers that are processes.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use keylane::testing::Broker;
use keylane::{Connect, MaxCrashes, Namespace, Task, TaskId, handler_fn, work};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::support::{dead_letters, eventually, named, open_dead_letters, publish, space, tasks};
use crate::{names, shared};

/// Makes this test binary be a worker: url, namespace, and the file to write to.
const CHILD: &str = "KEYLANE_TEST_WORKER_CHILD";

/// Not a test of its own: the worker process of the next one.
#[tokio::test]
async fn child_dies_of_its_killer() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let words: Vec<_> = told.split(' ').collect();
    let [url, namespace, log] = words[..] else { panic!("{told:?}") };
    let connect = Connect::new(url).unwrap();
    let connect = connect.with_namespace(Namespace::new(namespace).unwrap());
    let log = std::sync::Arc::new(OpenOptions::new().append(true).open(log).unwrap());
    let handler = handler_fn(move |attempt| {
        let log = log.clone();
        async move {
            let name = attempt.task.resource.to_string();
            let note = |event| {
                let line = format!("{event} {name} {}\n", attempt.id);
                (&*log).write_all(line.as_bytes()).unwrap();
            };
            note("start");
            // Beside others, whose executions it takes along.
            tokio::time::sleep(Duration::from_millis(20)).await;
            if name.starts_with("killer") && attempt.task.payload == "kill" {
                std::process::exit(9);
            }
            note("end");
            Ok(())
        }
    });
    let mut options = named("child");
    options.slots = 4;
    options.max_crashes = MaxCrashes::new(4);
    work(&connect, options, handler, CancellationToken::new()).await.unwrap();
}

/// Starts such a worker again whenever it has died, until something is seen; counts the deaths.
struct Supervisor {
    told: String,
    children: Vec<tokio::process::Child>,
    deaths: u32,
}

impl Supervisor {
    fn of(count: usize, broker: &Broker, connect: &Connect, log: &Path) -> Self {
        std::fs::File::create(log).unwrap();
        let told = format!("{} {} {}", broker.amqp_url(), connect.namespace(), log.display());
        let children = (0..count).map(|_| Self::start(&told)).collect();
        Self { told, children, deaths: 0 }
    }

    fn start(told: &str) -> tokio::process::Child {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "killers::child_dies_of_its_killer", "--nocapture"])
            .env(CHILD, told);
        child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        child.kill_on_drop(true).spawn().unwrap()
    }

    async fn until(&mut self, what: &str, mut seen: impl AsyncFnMut() -> bool) {
        eventually(what, async || {
            for child in &mut self.children {
                if let Some(status) = child.try_wait().unwrap() {
                    assert_eq!(status.code(), Some(9), "it dies of nothing else");
                    self.deaths += 1;
                    *child = Self::start(&self.told);
                }
            }
            seen().await.then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn several_killers_are_found_out_though_their_workers_come_back_at_once() {
    let broker = shared().await;
    let (connect, _) = space(broker, 2).await;
    let killers = names(["killer-a", "killer-b", "killer-c"]);
    let kill = |name: &String| Task::new(name, "kill").unwrap();
    let innocent = tasks(&names(["a", "b", "c", "d"]), 3);
    let all = killers.iter().map(kill).chain(innocent).chain(tasks(&killers, 1));
    let ids = publish(&connect, all).await;
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut workers = Supervisor::of(2, broker, &connect, &log);
    let rest = ids.len() - killers.len();
    workers.until("all but the killers", async || count_of(&log, "end").len() == rest).await;
    let dead = async || dead_letters(&connect).await.len() >= killers.len();
    workers.until("the killers", dead).await;
    let mut dead: Vec<_> =
        dead_letters(&connect).await.into_iter().map(|letter| letter.resource.unwrap()).collect();
    dead.sort();
    // Another killer may strike between a letter and its ack: then there are two.
    dead.dedup();
    assert_eq!(dead, killers, "and no neighbour");
}

#[tokio::test]
async fn a_task_that_kills_its_worker_ends_alone_in_the_dead_letters() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    let neighbours = names(["a", "b", "c", "d", "e", "f"]);
    let before = tasks(&neighbours, 3);
    let kill = Task::new("killer", "kill").unwrap().with_id(TaskId::new("the-killer").unwrap());
    let behind = Task::new("killer", "1").unwrap();
    let after = tasks(&neighbours, 3);
    let all: Vec<_> = before.into_iter().chain([kill, behind]).chain(after).collect();
    let ids: Vec<_> = publish(&connect, all).await.into_iter().map(|r| r.id.to_string()).collect();

    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut worker = Supervisor::of(1, broker, &connect, &log);
    let rest = ids.len() - 1;
    worker.until("all but the killer", async || count_of(&log, "end").len() == rest).await;
    let dead = async || dead_letters(&connect).await.len() == 1;
    worker.until("its end", dead).await;
    let letters = dead_letters(&connect).await;
    let dead: Vec<_> = letters.iter().map(|letter| letter.id.as_deref()).collect();
    assert_eq!(dead, [Some("the-killer")], "and no neighbour");
    assert!(letters[0].reason.contains("its worker was lost"), "{}", letters[0].reason);
    let begun = || count_of(&log, "start")["the-killer"];
    assert_eq!((begun(), worker.deaths), (4, 4), "max_crashes");

    // What is replayed is judged anew.
    let mut dead = open_dead_letters(&connect, 1).await;
    let letter = dead.next().await.unwrap().unwrap();
    dead.replay(letter).await.unwrap();
    dead.close().await;
    worker.until("its first start", async || begun() > 4).await;
    worker.until("its end", async || dead_letters(&connect).await.len() == 1).await;
    assert_eq!((begun(), worker.deaths), (8, 8), "max_crashes, once more");
}

/// How often each id stands behind this event.
fn count_of(log: &Path, event: &str) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        let words: Vec<_> = line.split(' ').collect();
        if words[0] == event {
            *count.entry(words[2].to_owned()).or_default() += 1;
        }
    }
    count
}
