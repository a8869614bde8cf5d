//! The servers that the contestants need: started from the installed binaries, on free ports
//! of 127.0.0.1, in temporary folders, and gone with this process. The machine's own services
//! are neither used nor touched.

mod etcd;
mod postgres;
mod redis;
mod zookeeper;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use keylane::provision::{Choice, RunningBroker, ensure_broker};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::plan::Endpoints;

/// A server that takes longer than this has failed: ZooKeeper, the slowest, takes 2 s on two
/// idle cores.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A server that has not ended by then is killed.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two looks whether a server answers.
const POLL: Duration = Duration::from_millis(50);

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    /// Five independent processes of redis-server.
    Redis,
    /// One Postgres.
    Postgres,
    /// One etcd.
    Etcd,
    /// One ZooKeeper.
    Zookeeper,
}

impl Server {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Redis, Self::Postgres, Self::Etcd, Self::Zookeeper];

    /// The package that has it, on Debian.
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Postgres => "postgresql",
            Self::Etcd => "etcd-server",
            Self::Zookeeper => "zookeeper",
        }
    }

    /// How to install it.
    #[must_use]
    pub fn install_line(self) -> String {
        format!("apt-get install --no-install-recommends {}", self.package())
    }

    /// Its name, as on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Postgres => "postgres",
            Self::Etcd => "etcd",
            Self::Zookeeper => "zookeeper",
        }
    }

    /// Whether its binaries are there.
    #[must_use]
    pub fn is_installed(self) -> bool {
        match self {
            Self::Redis => redis::binary().is_some(),
            Self::Postgres => postgres::binaries().is_some(),
            Self::Etcd => etcd::binary().is_some(),
            Self::Zookeeper => zookeeper::jar().is_some() && find_program("java").is_some(),
        }
    }

    async fn start(self, endpoints: &mut Endpoints) -> anyhow::Result<Vec<Running>> {
        match self {
            Self::Redis => redis::start(endpoints).await,
            Self::Postgres => postgres::start(endpoints).await.map(|one| vec![one]),
            Self::Etcd => etcd::start(endpoints).await.map(|one| vec![one]),
            Self::Zookeeper => zookeeper::start(endpoints).await.map(|one| vec![one]),
        }
    }
}

/// All servers of a run.
#[derive(Debug)]
pub struct Servers {
    /// Where they are.
    pub endpoints: Endpoints,
    /// The kinds that run.
    pub there: BTreeSet<Server>,
    /// What they are, with their versions.
    pub versions: Vec<String>,
    broker: RunningBroker,
    running: Vec<Running>,
}

impl Servers {
    /// Starts the broker and these servers, and waits until they serve.
    ///
    /// # Errors
    /// If one does not start; the message has the end of its log.
    ///
    /// # Cancel safety
    /// Dropping the future ends whatever was started.
    pub async fn start(wanted: &BTreeSet<Server>, progress: impl Fn(&str)) -> anyhow::Result<Self> {
        let broker = ensure_broker(Choice::Auto, &progress).await?;
        let mut endpoints = Endpoints { amqp: broker.amqp_url(), ..Endpoints::default() };
        let (mut running, mut versions) = (Vec::new(), Vec::new());
        versions.push(broker.description().rsplit(' ').next().unwrap_or_default().to_owned());
        for server in wanted {
            progress(&format!("starting {}", server.name()));
            let started = server.start(&mut endpoints).await;
            let started = started.with_context(|| format!("{} does not start", server.name()))?;
            versions.extend(started.first().map(|one| one.version.clone()));
            running.extend(started);
        }
        Ok(Self { endpoints, there: wanted.clone(), versions, broker, running })
    }

    /// Ends all of them and removes their folders.
    ///
    /// # Errors
    /// If something is left.
    pub async fn stop(self) -> anyhow::Result<()> {
        drop(self.running);
        Ok(self.broker.stop().await?)
    }
}

/// One process of a server. Dropping it ends the process and removes its folder, which blocks
/// for some milliseconds.
#[derive(Debug)]
struct Running {
    version: String,
    child: Child,
    /// What ends it without a trace: Postgres has memory to give back.
    end: Signal,
    /// Removed after the process has ended.
    _folder: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if pid.is_none_or(|pid| kill_process(pid, self.end).is_err()) {
            return;
        }
        let since = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && since.elapsed() < END_TIMEOUT {
            std::thread::sleep(Duration::from_millis(5));
        }
        // What is left of it gets the kernel's own signal, by `kill_on_drop`.
    }
}

/// A program on the PATH.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A port of 127.0.0.1 that nothing listens on. Not one that the kernel would give to an outgoing
/// connection (32768 and up), which might have it before the server does.
fn free_port() -> anyhow::Result<u16> {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..100).map(|_| fastrand::u16(20_000..32_000)).find(free).context("no free port")
}

fn new_folder(server: &str) -> anyhow::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix(&format!("comparison-{server}-")).tempdir();
    folder.context("cannot make a temporary folder")
}

/// A command that the kernel sends `end` when this process ends, however it ends; with the user of
/// `user`, if there is one. `setpriv` is a part of util-linux, so it is on every Linux.
fn bound_to_us(program: &Path, end: Signal, user: Option<&User>) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig").arg(if end == Signal::QUIT { "QUIT" } else { "KILL" });
    if let Some(User { uid, gid }) = user {
        command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups");
    }
    command.arg("--").arg(program).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Whose rights a server gets.
#[derive(Debug, Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

/// Starts it with a log in its folder, and waits until it listens on `port`.
async fn spawn(
    mut command: Command,
    end: Signal,
    folder: TempDir,
    port: u16,
    version: String,
) -> anyhow::Result<Running> {
    let path = folder.path().join("log");
    let log = File::create(&path)?;
    command.stdout(log.try_clone()?).stderr(log).current_dir(folder.path());
    let child = command.spawn().context("cannot run it")?;
    let mut running = Running { version, child, end, _folder: folder };
    let since = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        let ended = running.child.try_wait()?;
        if ended.is_some() || since.elapsed() > READY_TIMEOUT {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(8)..].join("\n");
            anyhow::bail!("it does not listen ({ended:?}); the end of its log:\n{end}");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(running)
}

/// The first line that a program prints about its version.
async fn version_of(program: &Path, argument: &str) -> anyhow::Result<String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}
