//! A handler that keeps a pool of long-lived commands and talks JSON to them.

use std::ffi::OsString;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Semaphore;

use self::child::Child;
use self::protocol::Answer;
use super::exec::{not_run, shell};
use super::{Attempt, Failure, Handler, fencing};

mod child;
mod protocol;
#[cfg(feature = "fuzzing")]
pub(crate) use protocol::fuzz;
#[cfg(test)]
mod tests;

const SHELL: &str = "sh";

/// Hands every task to one of several long-lived `sh -c COMMAND` processes: a
/// line of JSON to its stdin per task, a line of JSON from its stdout per
/// answer. A process works on one task at a time; `slots` of them work at once.
/// They are started when they are first needed. Their stderr is the worker's, and
/// so is their environment, without `KEYLANE_AMQP_URL`: it may hold a password.
///
/// The task, in one line:
///
/// | field | holds | |
/// |---|---|---|
/// | `id` | the task's id | |
/// | `resource` | the resource key | |
/// | `kind` | the kind | `null` if none |
/// | `content_type` | MIME type of the payload | `null` if none |
/// | `partition` | number of the partition | |
/// | `attempt` | number of the attempt, from 1 | |
/// | `redelivered` | `true` if the task may have been executed before | |
/// | `fencing_token` | the fencing token, a whole number below 2⁵³ | `null` with `--no-fencing` |
/// | `timeout_ms` | time for this attempt | `null` if unlimited |
/// | `traceparent`, `tracestate` | W3C trace context | `null` if none |
/// | `payload_encoding` | `"json"`, `"text"` or `"base64"` | |
/// | `payload` | the payload | |
///
/// The payload is
/// - `json`: the JSON value itself, digit for digit, if the payload is valid
///   JSON and the content type says JSON or is missing;
/// - `text`: else a string, if the payload is UTF-8;
/// - `base64`: else a string in base64 (standard alphabet, padded).
///
/// The answer, in one line of at most 1 MiB:
///
/// | answer | the task |
/// |---|---|
/// | `{"status":"executed","result":"…"}` | is Executed; the text is its [result](Attempt::set_result) |
/// | `{"status":"retry","after_ms":500,"reason":"…"}` | is to be retried: [`Failure::Retry`] |
/// | `{"status":"failed","reason":"…"}` | failed: [`Failure::Failed`] |
/// | `{"status":"dead","reason":"…"}` | can never be executed: [`Failure::Dead`] |
///
/// `result`, `reason` and `after_ms` may be missing. An answer may repeat the task's
/// `id`, and should: then it can never be taken for the answer to another task.
/// Unknown fields are ignored.
///
/// A process that answers anything else, answers for another task, or ends
/// before it has answered is killed, and the attempt failed. One that ended or
/// wrote something while it had no task is replaced before it gets the next.
///
/// # Cancel safety
/// Dropping the future while a process works on the task kills that process
/// with SIGKILL, and its process group with it: nobody knows its state. While
/// it waits for a process, nothing is lost. Dropping the `Pipe` kills the idle
/// ones the same way.
#[derive(Debug)]
pub struct Pipe {
    command: OsString,
    /// One permit per process that may work. Whoever holds one may take an idle
    /// process or start one, so there are never more than `slots`.
    slots: Semaphore,
    /// The last one used comes first, so that few stay warm.
    idle: Mutex<Vec<Child>>,
}

impl Pipe {
    /// A handler that keeps at most this many processes of a shell command; at
    /// least one.
    #[must_use]
    pub fn new(command: impl Into<OsString>, slots: usize) -> Self {
        Self {
            command: command.into(),
            slots: Semaphore::new(slots.clamp(1, Semaphore::MAX_PERMITS)),
            idle: Mutex::default(),
        }
    }

    /// An idle process that is fit for a task, else a new one.
    fn checkout(&self) -> Result<Child, Failure> {
        // Each statement locks anew: a process that is unfit is killed unlocked.
        while let Some(child) = self.pop() {
            if child.is_quiet() {
                return Ok(child);
            }
            tracing::debug!(command = %self.command.display(), "an idle process is replaced");
        }
        let mut command = shell(SHELL, &self.command);
        Child::spawn(command.stdout(Stdio::piped()))
            .map_err(|error| Failure::failed(not_run(SHELL, &self.command, &error)))
    }

    fn pop(&self) -> Option<Child> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn check_in(&self, child: Child) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(child);
    }
}

impl Handler for Pipe {
    async fn handle(&self, attempt: Attempt) -> Result<(), Failure> {
        let Ok(_slot) = self.slots.acquire().await else {
            unreachable!("the semaphore is never closed")
        };
        let token = fencing::token(&attempt).await?;
        let request = protocol::request(&attempt, token)
            .map_err(|error| Failure::dead(format!("no line of JSON can hold it: {error}")))?;
        let mut child = self.checkout()?;
        let verdict = match child.exchange(&request).await {
            Ok(line) => Answer::read(&line, &attempt.id).map(Answer::into_result),
            Err(breach) => Err(breach),
        };
        match verdict {
            Ok(result) => {
                self.check_in(child);
                result.map(|result| attempt.set_result(result))
            }
            Err(breach) => Err(Failure::failed(format!("`{}` {breach}", self.command.display()))),
        }
    }
}
