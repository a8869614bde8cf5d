//! Attempts that have ended.

use tokio::task::{Id, JoinError};

use super::Tenure;
use crate::protocol::journal::{self, Record};
use crate::protocol::lanes::{Input, Outcome};
use crate::protocol::text::cut_reason;
use crate::rabbit::error::Error;
use crate::worker::Execute;
use crate::worker::attempt::Ended;

impl<E: Execute> Tenure<'_, E> {
    /// Takes note of all attempts that have ended and were not looked at yet.
    pub(super) fn take_ended(&mut self) {
        while let Some(ended) = self.running.try_join_next_with_id() {
            // The lanes contradict only if they are given up for it already.
            if let Err(error) = self.ended(ended) {
                tracing::debug!(queue = self.queue, %error, "an attempt that ended late");
            }
        }
    }

    /// Tells the lanes, the journal and the figures how an attempt ended.
    pub(super) fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) -> Result<(), Error> {
        let (id, Ended { outcome, result, lacking, failed_before }) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                let id = error.id();
                let mut reason = match error.try_into_panic() {
                    Ok(panic) => format!("the handler panicked: {}", message(panic.as_ref())),
                    Err(error) => format!("the handler was stopped: {error}"),
                };
                cut_reason(&mut reason);
                (id, Outcome::Failed { not_before: None, reason }.into())
            }
        };
        let Some(tag) = self.running_tags.remove(&id) else { return Ok(()) };
        let outcome = self.pass_judged(tag, outcome, lacking);
        let outcome = self.unless_cancelled(tag, outcome);
        if failed_before > 0 {
            self.apply(Input::Tried { tag, before: failed_before })?;
        }
        if let Some(held) = self.deliveries.get_mut(&tag) {
            held.attempt = held.attempt.saturating_add(failed_before);
            match outcome {
                Outcome::Refused { .. } => self.counting.refused(),
                _ => self.counting.ended(held, matches!(outcome, Outcome::Executed)),
            }
        }
        match &outcome {
            Outcome::Refused { .. } => {}
            Outcome::Executed => {
                self.session.held[self.index].note_settled();
                if let Some(held) = self.deliveries.remove(&tag) {
                    if let Some((_, task)) = &held.task {
                        self.session.shared.copies().executed(task);
                    }
                    let record = self.record_of(&held, journal::Outcome::Executed);
                    let result = held.kept(result);
                    self.append(record.map(|record| Record { result, ..record }));
                }
            }
            Outcome::Failed { reason, .. } | Outcome::Dead { reason } => {
                self.record(tag, journal::Outcome::Failed, Some(reason));
                let held = self.deliveries.get(&tag);
                if let Some((held, (id, task))) = held.and_then(|h| Some((h, h.task.as_ref()?))) {
                    let epoch = self.mint.token().map(|token| token.epoch().get());
                    tracing::warn!(
                        task = %id, resource = %task.resource,
                        partition = self.session.topology.partition_of(&task.resource).number(),
                        attempt = held.attempt, epoch, worker = %self.session.shared.options.id,
                        reason, "an attempt failed"
                    );
                }
            }
        }
        self.apply(Input::Finished { tag, outcome })
    }
}

/// What a panic said.
fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
