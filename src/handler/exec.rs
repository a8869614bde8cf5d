//! A handler that runs a shell command, one process per task.

use std::ffi::{OsStr, OsString};
use std::future::pending;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
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
mod tail;
#[cfg(test)]
pub(super) mod tests;

/// `EX_TEMPFAIL` of sysexits.h, which mail servers have read as "try again
/// later" for forty years.
const EXIT_RETRY: i32 = 75;
/// What a failed command wrote is in the pipe when it exits, so a pipe that is
/// still open after this long is held by something left in the background.
const STDERR_GRACE: Duration = Duration::from_millis(100);

/// Where the worker itself may have the broker's address from, with a password.
const URL_VARIABLE: &str = "KEYLANE_AMQP_URL";

/// Runs `sh -c COMMAND` for every task.
///
/// The payload is the command's stdin; a command that reads none of it is
/// fine. The facts are environment variables:
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
/// | exits otherwise, or is killed | failed: [`Failure::Failed`] |
/// | cannot take the facts (a NUL byte in one) | [`Failure::Dead`] |
///
/// The end of stderr (10 lines, 2 KiB) is the reason of a failure; the rest of
/// it is not kept. stdout is the worker's own: log there.
///
/// What a command leaves running in the background after it exited is neither
/// awaited nor killed, so it no longer holds the resource.
///
/// # Cancel safety
/// Dropping the future kills the command with SIGKILL, and every process that
/// it started in its process group. A process that left the group (`setsid`)
/// survives, and so does the command when the worker itself is killed.
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
        let (status, reason) = run(&mut command, attempt.task.payload)
            .await
            .map_err(|error| Failure::failed(not_run(self.shell, &self.command, &error)))?;
        match status.code() {
            Some(0) => Ok(()),
            Some(EXIT_RETRY) => Err(Failure::retry(None, reason)),
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

/// Why a command did not run, naming it.
pub(super) fn not_run(shell: &str, command: &OsStr, error: &io::Error) -> String {
    format!("cannot run `{shell} -c {}`: {error}", command.display())
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
) -> [(&'static str, Option<String>); 11] {
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
        ("KEYLANE_TIMEOUT_MS", attempt.timeout.map(|time| time.as_millis().to_string())),
        ("TRACEPARENT", trace.map(TraceContext::traceparent)),
        ("TRACESTATE", trace.and_then(TraceContext::tracestate).map(str::to_owned)),
    ]
}

/// Runs the command to its end; the text is the reason should it have failed.
async fn run(command: &mut Command, payload: Bytes) -> io::Result<(ExitStatus, String)> {
    let mut group = Group::spawn(command)?;
    let stdin = group.child().stdin.take();
    let mut stderr = group.child().stderr.take();
    let mut tail = Tail::default();
    // Both pipes at once: a command may fill one before it empties the other.
    let talk = async {
        tokio::join!(feed(stdin, &payload), tail.read(stderr.as_mut()));
        pending().await
    };
    let status = tokio::select! {
        status = group.child().wait() => status?,
        never = talk => never,
    };
    if !status.success() {
        // An elapsed grace only means that the end of the tail may be missing.
        timeout(STDERR_GRACE, tail.read(stderr.as_mut())).await.unwrap_or_default();
    }
    Ok((status, tail.lines().unwrap_or_else(|| ending(status))))
}

async fn feed(stdin: Option<ChildStdin>, payload: &[u8]) {
    if let Some(mut stdin) = stdin {
        // A command that stops reading has seen enough; its exit status tells.
        stdin.write_all(payload).await.unwrap_or_default();
    }
}
