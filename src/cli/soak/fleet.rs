//! The workers and routers of a soak: processes that are started, frozen, drained and
//! killed. Those that end by themselves are the [supervisor](super::supervisor)'s.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};

use super::excuses::{Excuse, Span};
use super::supervisor::{self, Restart, TEND};
use super::watch::Watch;
use super::worker::now_us;
use crate::Connect;
use crate::cli::hand_over;
use crate::provision::Reaper;

/// A drain takes as long as the tasks that run, and what is left to record: more
/// than this means that a worker hangs.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Lets a frozen process go on, also when it is this process that ends.
const THAW: &str = "kill -s CONT \"$1\"";

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Worker,
    Router,
}

/// Where and how processes are started.
#[derive(Debug)]
pub(super) struct Launch {
    /// For each node, itself first.
    pub(super) connects: Vec<Connect>,
    /// For the ground truth and the logs.
    pub(super) directory: PathBuf,
    pub(super) task_time: Option<Duration>,
    /// See [`Truth::new`](super::truth::Truth::new).
    pub(super) excused_after: Duration,
}

/// All processes. Killed when it is dropped.
#[derive(Debug)]
pub(super) struct Fleet {
    shared: Arc<Shared>,
    supervisor: AbortHandle,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) launch: Launch,
    watch: Arc<Watch>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Tasks take as little time as there is.
    hurried: bool,
    pub(super) members: Vec<Member>,
    pub(super) leaving: Vec<Leaving>,
    pub(super) restarts: Vec<Restart>,
    /// How soon one that ended by itself is started again.
    pub(super) restart_after: Duration,
    /// Names that were given to workers and routers.
    named: [u32; 2],
    starts: usize,
    /// Those that were ever frozen, and their process numbers.
    frozen: Vec<(String, u32)>,
    /// How often a task killed its worker.
    pub(super) crashes: u64,
    /// What ended otherwise than it should.
    pub(super) failures: Vec<String>,
    readers: JoinSet<()>,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) child: Child,
    pid: u32,
    /// Lets it go on.
    thaw: Option<Reaper>,
}

/// A process that was told to end.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) name: String,
    pub(super) child: Child,
    /// It is to end well by then; `None` if it was killed.
    pub(super) deadline: Option<Instant>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process. Its log goes into a file of the directory.
    pub(super) fn start(&self, role: Role, name: Option<String>) -> anyhow::Result<String> {
        let mut state = self.state();
        let name = name.unwrap_or_else(|| state.new_name(role));
        let number = state.starts;
        state.starts += 1;
        let Launch { connects, directory, task_time, excused_after } = &self.launch;
        let connect = &connects[number % connects.len()];
        let log = File::create(directory.join(format!("{name}.{number}.log")))?;
        let binary = std::env::current_exe().context("cannot find the running program")?;
        let mut command = Command::new(binary);
        command
            .args(["soak-worker", "--id", &name, "--log", "info,lapin=off"])
            .args(["--namespace", connect.namespace().as_str(), "--directory"])
            .arg(directory)
            .args(["--excused-ms", &excused_after.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for us: we end them when everything is told.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(time) = task_time.filter(|_| !state.hurried) {
            command.args(["--task-ms", &time.as_millis().to_string()]);
        }
        if role == Role::Router {
            command.arg("--route");
        }
        hand_over(connect, &mut command);
        let mut child = command.spawn().context("cannot start a worker process")?;
        let stdout = child.stdout.take().context("the worker's output is piped")?;
        let watch = Arc::clone(&self.watch);
        state.readers.spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    Ok(said) => watch.note(said),
                    Err(error) => tracing::warn!(%error, line, "a worker says something else"),
                }
            }
        });
        let pid = child.id().context("a process that has just been started")?;
        state.members.push(Member { name: name.clone(), role, child, pid, thaw: None });
        Ok(name)
    }
}

impl State {
    fn new_name(&mut self, role: Role) -> String {
        let (prefix, number) = match role {
            Role::Worker => ("soak", &mut self.named[0]),
            Role::Router => ("router", &mut self.named[1]),
        };
        *number += 1;
        format!("{prefix}-{number}")
    }

    fn take(&mut self, name: &str) -> anyhow::Result<Member> {
        let index = self.members.iter().position(|member| member.name == name);
        let index = index.ok_or_else(|| anyhow!("there is no {name} any more"))?;
        Ok(self.members.swap_remove(index))
    }
}

impl Fleet {
    pub(super) fn new(launch: Launch, watch: Arc<Watch>) -> Self {
        let state = State { restart_after: supervisor::RESTART_AFTER, ..State::default() };
        let shared = Arc::new(Shared { launch, watch, state: Mutex::new(state) });
        let supervisor = tokio::spawn(supervisor::run(Arc::clone(&shared))).abort_handle();
        Self { shared, supervisor }
    }

    /// Starts a process of this name, or of a new one.
    pub(super) fn start(&self, role: Role, name: Option<String>) -> anyhow::Result<String> {
        self.shared.start(role, name)
    }

    /// Has later workers take no more time for a task than they must.
    pub(super) fn hurry(&self) {
        self.shared.state().hurried = true;
    }

    /// Notes for the workers that an excuse lasts from now on, or no longer.
    pub(super) fn note(&self, excuse: Excuse, lasts: bool) -> std::io::Result<()> {
        let directory = &self.shared.launch.directory;
        if lasts { excuse.begins(directory, now_us()) } else { excuse.ends(directory, now_us()) }
    }

    /// Those that neither end nor are frozen.
    pub(super) fn awake(&self, role: Role) -> Vec<String> {
        let state = self.shared.state();
        let awake = state.members.iter().filter(|m| m.role == role && m.thaw.is_none());
        awake.map(|member| member.name.clone()).collect()
    }

    /// Those that are frozen.
    pub(super) fn frozen(&self) -> Vec<String> {
        let state = self.shared.state();
        let frozen = state.members.iter().filter(|member| member.thaw.is_some());
        frozen.map(|member| member.name.clone()).collect()
    }

    pub(super) fn freeze(&self, name: &str) -> anyhow::Result<()> {
        let mut state = self.shared.state();
        let Some(member) = state.members.iter_mut().find(|member| member.name == name) else {
            return Ok(());
        };
        let raw = i32::try_from(member.pid).ok().and_then(Pid::from_raw);
        let pid = raw.context("a process number")?;
        member.thaw = Some(Reaper::new(THAW, &[&member.pid.to_string()])?);
        self.note(Excuse::Frozen(member.pid), true)?;
        kill_process(pid, Signal::STOP).with_context(|| format!("cannot freeze {name}"))?;
        let frozen = (member.name.clone(), member.pid);
        state.frozen.push(frozen);
        Ok(())
    }

    /// Lets a process go on. One that is gone, or was not frozen, is none of its business.
    pub(super) fn thaw(&self, name: &str) -> anyhow::Result<()> {
        let mut state = self.shared.state();
        let Some(member) = state.members.iter_mut().find(|member| member.name == name) else {
            return Ok(());
        };
        if let Some(mut thaw) = member.thaw.take() {
            thaw.reap().with_context(|| format!("cannot let {name} go on"))?;
            self.note(Excuse::Frozen(member.pid), false)?;
        }
        Ok(())
    }

    pub(super) fn kill(&self, name: &str) -> anyhow::Result<()> {
        let mut state = self.shared.state();
        let Member { name, mut child, thaw, pid, .. } = state.take(name)?;
        child.start_kill().with_context(|| format!("cannot kill {name}"))?;
        if thaw.is_some() {
            self.note(Excuse::Frozen(pid), false)?;
        }
        state.leaving.push(Leaving { name, child, deadline: None });
        Ok(())
    }

    /// Has a process drain, and does not wait until it has.
    pub(super) fn drain(&self, name: &str) -> anyhow::Result<()> {
        self.thaw(name)?;
        let mut state = self.shared.state();
        let Member { name, mut child, .. } = state.take(name)?;
        drop(child.stdin.take());
        let deadline = Some(Instant::now() + DRAIN_TIMEOUT);
        state.leaving.push(Leaving { name, child, deadline });
        Ok(())
    }

    /// Whether nobody is left of those that were told to end.
    pub(super) fn has_left(&self, name: &str) -> bool {
        self.shared.state().leaving.iter().all(|leaving| leaving.name != name)
    }

    /// Waits until those that were told to end have done so.
    pub(super) async fn all_left(&self) {
        while !self.shared.state().leaving.is_empty() {
            sleep(TEND).await;
        }
    }

    /// Ends everybody, each as `drains` says of its name; the others are killed. Nobody is
    /// started again.
    pub(super) async fn end(&self, mut drains: impl FnMut(&str) -> bool) -> anyhow::Result<()> {
        let names: Vec<String> = {
            let mut state = self.shared.state();
            state.restarts.clear();
            state.members.iter().map(|member| member.name.clone()).collect()
        };
        for name in names {
            match drains(&name) {
                true => self.drain(&name)?,
                false => self.kill(&name)?,
            }
        }
        self.all_left().await;
        let mut readers = std::mem::take(&mut self.shared.state().readers);
        while readers.join_next().await.is_some() {}
        Ok(())
    }

    /// How soon one that ends by itself is started again, from now on.
    pub(super) fn restart_after(&self, time: Duration) {
        self.shared.state().restart_after = time;
    }

    /// When workers were frozen, by their names.
    pub(super) fn freezes(&self) -> std::io::Result<Vec<(String, Vec<Span>)>> {
        let frozen = self.shared.state().frozen.clone();
        let spans = |(name, pid)| {
            let spans = Excuse::Frozen(pid).spans(&self.shared.launch.directory)?;
            Ok((name, spans))
        };
        frozen.into_iter().map(spans).collect()
    }

    /// How many processes were started.
    pub(super) fn starts(&self) -> usize {
        self.shared.state().starts
    }

    /// How often a task killed its worker.
    pub(super) fn crashes(&self) -> u64 {
        self.shared.state().crashes
    }

    /// What ended otherwise than it should.
    pub(super) fn failures(&self) -> Vec<String> {
        self.shared.state().failures.clone()
    }
}
