//! The spans around publishing and executing: for log lines always, for OpenTelemetry
//! with the feature `otel`.

#[cfg_attr(feature = "otel", path = "otel.rs")]
#[cfg_attr(not(feature = "otel"), path = "off.rs")]
mod export;

use tracing::Instrument;
use tracing::field::Empty;

use self::export::ProcessSpan;
pub(crate) use self::export::{SendSpan, Tracer};
use crate::handler::Attempt;
use crate::protocol::lanes::Outcome;
use crate::protocol::ownership::WorkerId;

/// The spans of one attempt.
pub(crate) struct AttemptSpans {
    log: tracing::Span,
    process: ProcessSpan,
}

impl AttemptSpans {
    /// The attempt begins, and is told of its spans.
    pub(crate) fn begin(
        tracer: &Tracer,
        attempt: &mut Attempt,
        queue: &str,
        worker: &WorkerId,
    ) -> Self {
        let log = tracing::info_span!(
            "attempt",
            task = %attempt.id,
            resource = %attempt.task.resource,
            partition = attempt.partition.number(),
            attempt = attempt.number,
            epoch = Empty,
            %worker,
        );
        let process = tracer.process(attempt, queue, worker);
        attempt.span = log.clone();
        attempt.trace = process.context();
        Self { log, process }
    }

    /// Runs a part of it.
    pub(crate) async fn around<F: Future>(&self, part: F) -> F::Output {
        self.process.around(part).instrument(self.log.clone()).await
    }

    /// The attempt ended like this.
    pub(crate) fn end(self, outcome: &Outcome) {
        self.process.end(match outcome {
            Outcome::Executed => None,
            Outcome::Failed { reason, .. }
            | Outcome::Dead { reason }
            | Outcome::Refused { reason } => Some(reason),
        });
    }
}
