//! A handler that keeps a pool of long-lived commands and talks JSON to them.

use std::ffi::OsString;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Semaphore;

use self::child::Child;
use self::protocol::{Answer, Breach};
use super::exec::{lacks_command, not_run, shell};
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
/// They are started when they are first needed. Their stderr is passed on to the
/// worker's; its end is added to the reason when a process breaks the protocol or the time is
/// up. Their environment is the worker's, without `KEYLANE_AMQP_URL`: it may hold a password.
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
/// before it has answered is killed, and the attempt failed; but one that cannot be started, or
/// that exits with 126 or 127, as shells do when there is no such command, has the task wait
/// ([`Failure::Unavailable`]). One that ended or
/// wrote something while it had no task is replaced before it gets the next.
///
/// # Cancel safety
/// Dropping the future while a process works on the task kills that process
/// with SIGKILL, and its process group with it: nobody knows its state. While
/// it waits for a process, nothing is lost. Dropping the `Pipe`, and the end of the
/// worker, whatever kills it, kill the idle ones the same way.
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
        Child::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
            .map_err(|error| not_run(SHELL, &self.command, &error))
    }

    fn pop(&self) -> Option<Child> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn check_in(&self, child: Child) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(child);
    }
}

/// A process that works on a task. Dropped, the time of the attempt is up, or the partition lost.
struct Unfinished<'a> {
    child: Option<Child>,
    attempt: &'a Attempt,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        let stderr = child.stderr().map_or_else(String::new, |lines| format!("; stderr: {lines}"));
        let words = format!(
            "the command has the task and has written no line since (does it flush its output \
             after each?){stderr}"
        );
        *self.attempt.last_words.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
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
        let mut unfinished = Unfinished { child: Some(self.checkout()?), attempt: &attempt };
        let Some(child) = &mut unfinished.child else { unreachable!("it has just been given") };
        let exchanged = child.exchange(&request).await;
        let Some(mut child) = unfinished.child.take() else { unreachable!("only drop takes it") };
        let verdict = match exchanged {
            Ok(line) => Answer::read(&line, &attempt.id).map(Answer::into_result),
            Err(breach) => Err(breach),
        };
        match verdict {
            Ok(result) => {
                self.check_in(child);
                result.map(|result| attempt.set_result(result))
            }
            Err(breach) => {
                if matches!(breach, Breach::Ended(_)) {
                    child.until_stderr_is_read().await;
                }
                let stderr = child.stderr().map_or_else(String::new, |e| format!("; stderr: {e}"));
                let reason = format!("`{}` {breach}{stderr}", self.command.display());
                Err(match breach {
                    Breach::Ended(status) if lacks_command(status) => Failure::unavailable(reason),
                    _ => Failure::failed(reason),
                })
            }
        }
    }
}
