//! A handler that runs a shell command, one process per task.

use std::ffi::{OsStr, OsString};
use std::future::pending;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStdin, Command};
use tokio::time::timeout;

use self::group::Group;
use self::tail::Tail;
use super::{Attempt, Failure, Handler, fencing};
use crate::protocol::fence::FencingToken;
use crate::protocol::trace_context::TraceContext;

pub(super) mod group;
mod guardian;
pub(super) mod tail;
#[cfg(test)]
pub(super) mod tests;

/// `EX_TEMPFAIL` of sysexits.h, which mail servers have read as "try again
/// later" for forty years.
const EXIT_RETRY: i32 = 75;
/// What shells exit with when a command cannot be executed, or is not there.
const EXIT_NO_COMMAND: std::ops::RangeInclusive<i32> = 126..=127;
/// What a failed command wrote is in the pipe when it exits, so a pipe that is
/// still open after this long is held by something left in the background.
pub(super) const STDERR_GRACE: Duration = Duration::from_millis(100);

/// Where the worker itself may have the broker's address from, with a password.
const URL_VARIABLE: &str = "KEYLANE_AMQP_URL";

/// Runs `sh -c COMMAND` for every task.
///
/// The payload is the command's stdin; a command that reads none of it is
/// fine. If the worker is killed half-way, stdin ends early: a command that must
/// not act on half a payload compares its length with `KEYLANE_PAYLOAD_BYTES`. The facts are environment variables:
///
/// | variable | holds | |
/// |---|---|---|
/// | `KEYLANE_TASK_ID` | the task's id | |
/// | `KEYLANE_RESOURCE` | the resource key | |
/// | `KEYLANE_PARTITION` | number of the partition | |
/// | `KEYLANE_ATTEMPT` | number of the attempt, from 1 | |
/// | `KEYLANE_REDELIVERED` | `1` if the task may have been executed before, else `0` | |
/// | `KEYLANE_FENCING_TOKEN` | the fencing token, a whole number | unset with `--no-fencing` |
/// | `KEYLANE_KIND` | the kind | unset if none |
/// | `KEYLANE_CONTENT_TYPE` | MIME type of the payload | unset if none |
/// | `KEYLANE_PAYLOAD_BYTES` | length of the payload | |
/// | `KEYLANE_TIMEOUT_MS` | time for this attempt | unset if unlimited |
/// | `TRACEPARENT`, `TRACESTATE` | W3C trace context | unset if none |
///
/// The rest of the environment is the worker's, without `KEYLANE_AMQP_URL`: it
/// may hold a password.
///
/// | the command | the task |
/// |---|---|
/// | exits with 0 | is Executed |
/// | exits with 75 (`EX_TEMPFAIL`) | is to be retried: [`Failure::Retry`] |
/// | exits with 126 or 127, as shells do when there is no such command | waits: [`Failure::Unavailable`] |
/// | cannot be started | waits: [`Failure::Unavailable`] |
/// | exits otherwise, or is killed | failed: [`Failure::Failed`] |
/// | cannot take the facts (a NUL byte in one) | [`Failure::Dead`] |
///
/// The end of stderr (10 lines, 2 KiB) is the reason of a failure, and is added to that of a
/// time-out; the rest of it is not kept. stdout is the worker's own: log there.
///
/// What a command leaves running in the background after it exited is neither
/// awaited nor killed, so it no longer holds the resource.
///
/// # Cancel safety
/// Dropping the future kills the command with SIGKILL, and every process that
/// it started in its process group. So does the end of the worker, whatever kills
/// it: a guardian, a small `/bin/sh` beside the worker, sees to that within
/// milliseconds. A process that left the group (`setsid`) survives.
#[derive(Debug, Clone)]
pub struct Exec {
    shell: &'static str,
    command: OsString,
}

impl Exec {
    /// A handler that runs this shell command.
    #[must_use]
    pub fn new(command: impl Into<OsString>) -> Self {
        Self { shell: "sh", command: command.into() }
    }

    fn command(&self, attempt: &Attempt, token: Option<FencingToken>) -> Result<Command, Failure> {
        let mut command = shell(self.shell, &self.command);
        command.stderr(Stdio::piped());
        for (name, value) in environment(attempt, token) {
            match value {
                Some(value) if value.contains('\0') => {
                    return Err(Failure::dead(format!(
                        "{name} would hold a NUL byte, which an environment variable cannot"
                    )));
                }
                Some(value) => command.env(name, value),
                // The worker's own environment must not pass for the task's.
                None => command.env_remove(name),
            };
        }
        Ok(command)
    }
}

impl Handler for Exec {
    async fn handle(&self, attempt: Attempt) -> Result<(), Failure> {
        let token = fencing::token(&attempt).await?;
        let mut command = self.command(&attempt, token)?;
        let not_run = |error| not_run(self.shell, &self.command, &error);
        let group = Group::spawn(&mut command).map_err(not_run)?;
        let (status, reason) = run(group, attempt.task.payload, attempt.last_words)
            .await
            .map_err(|error| Failure::failed(format!("cannot wait for the command: {error}")))?;
        match status.code() {
            Some(0) => Ok(()),
            Some(EXIT_RETRY) => Err(Failure::retry(None, reason)),
            Some(_) if lacks_command(status) => Err(Failure::unavailable(reason)),
            Some(_) | None => Err(Failure::failed(reason)),
        }
    }
}

/// `sh -c COMMAND` that reads its stdin from us, and does not inherit the
/// broker's password.
pub(super) fn shell(shell: &str, command: &OsStr) -> Command {
    let mut shell = Command::new(shell);
    shell.arg("-c").arg(command).stdin(Stdio::piped()).env_remove(URL_VARIABLE);
    shell
}

/// Why a command could not be started, naming it. That is the task's fault only where its facts are
/// too long.
pub(super) fn not_run(shell: &str, command: &OsStr, error: &io::Error) -> Failure {
    let reason = format!("cannot run `{shell} -c {}`: {error}", command.display());
    match error.kind() {
        io::ErrorKind::ArgumentListTooLong => Failure::failed(reason),
        _ => Failure::unavailable(reason),
    }
}

/// Whether a shell has found no command to execute.
pub(super) fn lacks_command(status: ExitStatus) -> bool {
    status.code().is_some_and(|code| EXIT_NO_COMMAND.contains(&code))
}

/// How a command ended, in words.
pub(super) fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn environment(
    attempt: &Attempt,
    token: Option<FencingToken>,
) -> [(&'static str, Option<String>); 12] {
    let task = &attempt.task;
    let trace = attempt.trace_context();
    [
        ("KEYLANE_TASK_ID", Some(attempt.id.to_string())),
        ("KEYLANE_RESOURCE", Some(task.resource.to_string())),
        ("KEYLANE_PARTITION", Some(attempt.partition.to_string())),
        ("KEYLANE_ATTEMPT", Some(attempt.number.to_string())),
        ("KEYLANE_REDELIVERED", Some(u8::from(attempt.redelivered).to_string())),
        ("KEYLANE_FENCING_TOKEN", token.map(|token| token.to_string())),
        ("KEYLANE_KIND", task.kind.clone()),
        ("KEYLANE_CONTENT_TYPE", task.content_type.clone()),
        ("KEYLANE_PAYLOAD_BYTES", Some(task.payload.len().to_string())),
        ("KEYLANE_TIMEOUT_MS", attempt.timeout.map(|time| time.as_millis().to_string())),
        ("TRACEPARENT", trace.map(TraceContext::traceparent)),
        ("TRACESTATE", trace.and_then(TraceContext::tracestate).map(str::to_owned)),
    ]
}

/// Runs the command to its end; the text is the reason should it have failed.
async fn run(
    mut group: Group,
    payload: Bytes,
    last_words: Arc<Mutex<Option<String>>>,
) -> io::Result<(ExitStatus, String)> {
    let stdin = group.child().stdin.take();
    let mut stderr = group.child().stderr.take();
    let mut tail = Unfinished { tail: Tail::default(), last_words };
    // Both pipes at once: a command may fill one before it empties the other.
    let talk = async {
        tokio::join!(feed(stdin, &payload), tail.tail.read(stderr.as_mut()));
        pending().await
    };
    let status = tokio::select! {
        status = group.child().wait() => status?,
        never = talk => never,
    };
    if !status.success() {
        // An elapsed grace only means that the end of the tail may be missing.
        timeout(STDERR_GRACE, tail.tail.read(stderr.as_mut())).await.unwrap_or_default();
    }
    Ok((status, tail.tail.lines().unwrap_or_else(|| ending(status))))
}

/// What a command wrote that may not come to its end.
struct Unfinished {
    tail: Tail,
    last_words: Arc<Mutex<Option<String>>>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        *words = self.tail.lines();
    }
}

async fn feed(stdin: Option<ChildStdin>, payload: &[u8]) {
    if let Some(mut stdin) = stdin {
        // A command that stops reading has seen enough; its exit status tells.
        stdin.write_all(payload).await.unwrap_or_default();
    }
}
