//! The zombie: a worker is stopped in the middle of a task, its partition moves,
//! others work on, and then it goes on where it was. With a guard the store
//! refuses what it writes; without one the store takes it, and has a wrong value.
//!
//! keylane ends the handlers of a worker that was cut off as soon as it runs
//! again (`src/rabbit/pulse.rs`). So the zombies here are those that this cannot
//! reach: code that blocks its thread, and a child that wakes up before its
//! worker. Both write within milliseconds of waking up; nothing else is helped.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use keylane::guard::StaleToken;
use keylane::guard::postgres::{ADMIT_SQL, PostgresGuardError, TABLE_SQL, admit, create_table};
use keylane::guard::redis::{ADMIT_LUA, GuardedScript, RedisGuardError, SET_LUA, fence_key, set};
use keylane::testing::Version;
use keylane::{Connect, Epoch, FencingToken};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};
use tokio_postgres::{Client, IsolationLevel, NoTls};

use support::stores::{Store, postgres, program, redis};
use support::{broker, eventually, publish, space, task};

/// The page for users of other languages.
const MANUAL: &str = include_str!("../docs/fencing.md");

/// The broker gives a silent connection up after two of these. The workers of
/// these tests notice sooner than with the default, 10 s, and nothing else.
const HEARTBEAT: &str = "?heartbeat=2";

fn token(epoch: u64) -> FencingToken {
    FencingToken::new(1, Epoch::new(epoch)).unwrap()
}

/// A namespace, a folder, and where to write to.
struct Scene {
    url: String,
    connect: Connect,
    folder: tempfile::TempDir,
}

/// A worker, as a process of its own.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Scene {
    async fn new() -> Self {
        let broker = broker(Version::default()).await;
        let (connect, _) = space(broker, 1).await;
        let url = format!("{}{HEARTBEAT}", broker.amqp_url());
        Self { url, connect, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts `command` as the worker `name`, its standard output in a file.
    fn start(&self, name: &str, command: &mut Command) -> Process {
        let log = self.path(name);
        let child = command
            .env("KEYLANE_AMQP_URL", &self.url)
            .env("KEYLANE_AMQP_URL", &self.url)
            .env("KEYLANE_NAMESPACE", self.connect.namespace().as_str())
            .env("KEYLANE_WORKER", name)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .expect("cargo test builds it");
        Process { child, log }
    }

    /// A program of ours that writes what it is told to write.
    fn fenced_worker(&self, name: &str, address: &str, guarded: bool, zombie: bool) -> Process {
        let test = std::env::current_exe().unwrap();
        // target/<profile>/deps/fencing-… → target/<profile>/examples/fenced_worker
        let profile = test.parent().and_then(Path::parent).unwrap();
        let mut command = Command::new(profile.join("examples/fenced_worker"));
        command.arg(address);
        if !guarded {
            command.env("UNGUARDED", "1");
        }
        if zombie {
            command.env("PAUSE_UNTIL", self.path("go"));
        }
        self.start(name, &mut command)
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// The line that begins so, as soon as it is there.
    async fn says(&self, start: &str) -> String {
        eventually(start, async || {
            let log = fs::read_to_string(&self.log).unwrap();
            let line = log.lines().find(|line| line.starts_with(start)).map(str::to_owned);
            line.filter(|_| log.ends_with('\n'))
        })
        .await
    }
}

/// Plays the scene; gives what became of the zombie's write.
async fn zombie(address: &str, guarded: bool, read: impl AsyncFn() -> String) -> String {
    let scene = Scene::new().await;
    let zombie = scene.fenced_worker("zombie", address, guarded, true);
    publish(&scene.connect, [task("account-7", 1), task("account-7", 2)]).await;
    zombie.says("started account-7=1").await;
    zombie.signal(Signal::STOP);
    let successor = scene.fenced_worker("successor", address, guarded, false);
    // The task that the zombie had comes again, and then the next one.
    successor.says("written account-7=1").await;
    successor.says("written account-7=2").await;
    assert_eq!(read().await, "2");
    fs::write(scene.path("go"), "").unwrap();
    zombie.signal(Signal::CONT);
    let said = eventually("the zombie's write", async || {
        let log = fs::read_to_string(&zombie.log).unwrap();
        let ends = ["written ", "refused ", "failed "];
        log.lines().find(|line| ends.iter().any(|end| line.starts_with(end))).map(str::to_owned)
    });
    said.await
}

async fn with_and_without_guard(address: &str, read: impl AsyncFn() -> String) {
    let said = zombie(address, false, &read).await;
    assert_eq!(said, "written account-7=1");
    assert_eq!(read().await, "1", "without a guard: task 2 is undone by a late task 1");
    let said = zombie(address, true, &read).await;
    let refused = "refused account-7=1: a stale write on \"account-7\" was refused: fencing token ";
    assert!(said.starts_with(refused), "{said}");
    assert_eq!(read().await, "2", "with the guard");
}

async fn client(store: &Store) -> Client {
    let (client, connection) = tokio_postgres::connect(&store.address, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_refuses_what_a_zombie_writes() {
    let store = postgres().await;
    let client = client(&store).await;
    let read = async || {
        let row = client.query_one("SELECT value FROM balance", &[]).await.unwrap();
        row.get::<_, String>(0)
    };
    with_and_without_guard(&store.address, read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_refuses_what_a_zombie_writes() {
    let store = redis().await;
    let client = redis::Client::open(store.address.as_str()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let read = async || {
        let mut connection = connection.clone();
        redis::cmd("GET").arg("balance:{account-7}").query_async(&mut connection).await.unwrap()
    };
    with_and_without_guard(&store.address, read).await;
}

/// The same with `keylane work --exec`, `redis-cli` and the script of the
/// manual. All processes of a machine are paused, and the handler's is the first
/// that goes on: a worker that still sleeps cannot kill it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_wakes_up_before_its_worker_is_refused() {
    let store = redis().await;
    let port = store.address.trim_end_matches('/').rsplit(':').next().unwrap().to_owned();
    let scene = Scene::new().await;
    let client = program("redis-cli", "redis-tools");
    let lua = scene.path("guarded.lua");
    fs::write(&lua, format!("{ADMIT_LUA}{SET_LUA}")).unwrap();
    let writes = format!(
        "payload=$(cat); said=$({} -p {port} --eval {} \
         \"keylane:fence:{{$KEYLANE_RESOURCE}}\" \"balance:{{$KEYLANE_RESOURCE}}\" , \
         \"$KEYLANE_FENCING_TOKEN\" \"$payload\" 2>&1); echo \"$payload: $said\"; [ \"$said\" = OK ]",
        client.display(),
        lua.display(),
    );
    let (go, pid) = (scene.path("go"), scene.path("pid"));
    let waits = format!(
        "echo $$ >{0}.new; mv {0}.new {0}; while [ ! -e {1} ]; do sleep 0.02; done; {writes}",
        pid.display(),
        go.display(),
    );
    let work = |name: &str, script: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keylane"));
        command.args(["work", "--id", name, "--exec", script]);
        scene.start(name, &mut command)
    };
    let zombie = work("zombie", &waits);
    publish(&scene.connect, [task("account-7", 1), task("account-7", 2)]).await;
    let group = eventually("the child", async || fs::read_to_string(&pid).ok()).await;
    let group = Pid::from_raw(group.trim().parse().unwrap()).unwrap();
    zombie.signal(Signal::STOP);
    kill_process_group(group, Signal::STOP).unwrap();
    let successor = work("successor", &writes);
    successor.says("1: OK").await;
    successor.says("2: OK").await;
    fs::write(&go, "").unwrap();
    kill_process_group(group, Signal::CONT).unwrap();
    let said = zombie.says("1: ").await;
    assert!(said.contains("STALETOKEN"), "{said}");
    zombie.signal(Signal::CONT);
    let client = redis::Client::open(store.address.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let value: String =
        redis::cmd("GET").arg("balance:{account-7}").query_async(&mut connection).await.unwrap();
    assert_eq!(value, "2");
}

#[tokio::test]
async fn postgres_admits_and_refuses() {
    let store = postgres().await;
    let mut client = client(&store).await;
    create_table(&client).await.unwrap();
    create_table(&client).await.unwrap();
    for isolation in [
        IsolationLevel::ReadCommitted,
        IsolationLevel::RepeatableRead,
        IsolationLevel::Serializable,
    ] {
        client.batch_execute("DELETE FROM keylane_fence").await.unwrap();
        let mut asks = async |resource: &str, epoch: u64, commits: bool| {
            let transaction = client.build_transaction().isolation_level(isolation);
            let transaction = transaction.start().await.unwrap();
            let admitted = admit(&transaction, resource, token(epoch)).await;
            if commits && admitted.is_ok() {
                transaction.commit().await.unwrap();
            }
            admitted
        };
        asks("a", 5, true).await.unwrap();
        asks("a", 5, true).await.unwrap();
        asks("b", 1, true).await.unwrap();
        asks("a", 9, false).await.unwrap();
        let error = asks("a", 4, true).await.unwrap_err();
        let PostgresGuardError::Stale(stale) = error else { panic!("{error:?}") };
        let expected = StaleToken { resource: "a".to_owned(), token: token(4), highest: token(5) };
        assert_eq!(stale, expected, "what was rolled back was never seen");
        asks("a", 6, true).await.unwrap();
        assert!(asks("a", 5, true).await.is_err());
    }
}

/// Who is admitted holds the resource until its transaction ends: a later owner
/// waits, and sees what was written.
#[tokio::test]
async fn postgres_makes_a_later_owner_wait() {
    let store = postgres().await;
    let (mut old, mut new) = (client(&store).await, client(&store).await);
    create_table(&old).await.unwrap();
    old.batch_execute("CREATE TABLE t (v int); INSERT INTO t VALUES (0)").await.unwrap();
    for commits in [true, false] {
        let first = old.transaction().await.unwrap();
        let base = if commits { 1 } else { 11 };
        admit(&first, "a", token(base)).await.unwrap();
        first.execute("UPDATE t SET v = v + 1", &[]).await.unwrap();
        let second = new.transaction().await.unwrap();
        let mut admitted = Box::pin(admit(&second, "a", token(base + 1)));
        let waits = tokio::time::timeout(std::time::Duration::from_millis(300), &mut admitted);
        assert!(waits.await.is_err(), "the row is locked");
        if commits {
            first.commit().await.unwrap();
        } else {
            first.rollback().await.unwrap();
        }
        admitted.await.unwrap();
        let row = second.query_one("SELECT v FROM t", &[]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), 1);
        second.commit().await.unwrap();
        let late = old.transaction().await.unwrap();
        let late = admit(&late, "a", token(base)).await;
        assert!(matches!(late, Err(PostgresGuardError::Stale(_))), "{late:?}");
    }
}

#[tokio::test]
async fn redis_admits_and_refuses() {
    let store = redis().await;
    let client = redis::Client::open(store.address.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let last = FencingToken::new(FencingToken::MAX_GENERATION, FencingToken::MAX_EPOCH).unwrap();
    let before = FencingToken::try_from(last.number() - 1).unwrap();
    set(&mut connection, "a", before, "k", "1").await.unwrap();
    set(&mut connection, "a", before, "k", "2").await.unwrap();
    set(&mut connection, "b", token(1), "k", "3").await.unwrap();
    set(&mut connection, "a", last, "k", "4").await.unwrap();
    let error = set(&mut connection, "a", before, "k", "5").await.unwrap_err();
    let RedisGuardError::Stale(stale) = error else { panic!("{error:?}") };
    assert_eq!(stale, StaleToken { resource: "a".to_owned(), token: before, highest: last });
    let append = GuardedScript::new("return redis.call('APPEND', KEYS[2], ARGV[2])");
    let length: usize = append.run(&mut connection, "a", last, &["k"], &["56"]).await.unwrap();
    assert_eq!(length, 3);
    let refused = append.run::<usize>(&mut connection, "a", before, &["k"], &["7"]).await;
    assert!(matches!(refused, Err(RedisGuardError::Stale(_))), "{refused:?}");
    let value: String = redis::cmd("GET").arg("k").query_async(&mut connection).await.unwrap();
    assert_eq!(value, "456");
    assert_eq!(fence_key("a"), "keylane:fence:{a}");
}

/// What the manual shows is what the guards run.
#[test]
fn the_manual_has_the_very_text() {
    for text in [TABLE_SQL, ADMIT_SQL, ADMIT_LUA, SET_LUA] {
        assert!(MANUAL.contains(text.trim_end()), "docs/fencing.md lacks:\n{text}");
    }
}
