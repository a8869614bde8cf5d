//! Spans for OpenTelemetry, by its semantic conventions for messaging. They go to the
//! process's global tracer provider; without one they cost next to nothing.

use std::error::Error;
use std::str::FromStr;

use opentelemetry::global::{self, BoxedTracer};
use opentelemetry::trace::{
    FutureExt, Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue};

use crate::handler::Attempt;
use crate::protocol::ownership::WorkerId;
use crate::protocol::partition::PartitionId;
use crate::protocol::task::{Task, TaskId};
use crate::protocol::trace_context::TraceContext;

/// Makes spans, for the provider that was the global one when it was made.
#[derive(Debug)]
pub(crate) struct Tracer(BoxedTracer);

impl Tracer {
    pub(crate) fn global() -> Self {
        Self(global::tracer(env!("CARGO_PKG_NAME")))
    }

    /// A task is sent to a partition by way of this exchange.
    pub(crate) fn send(
        &self,
        task: &Task,
        id: &TaskId,
        exchange: &str,
        partition: PartitionId,
    ) -> SendSpan {
        let span = self.begin("send", SpanKind::Producer, exchange, task.trace_context.as_ref());
        describe(&span, task, id, || {
            vec![
                KeyValue::new("messaging.operation.type", "send"),
                KeyValue::new("messaging.rabbitmq.destination.routing_key", partition.to_string()),
            ]
        });
        SendSpan(span)
    }

    /// An attempt at a task out of this queue.
    pub(super) fn process(&self, attempt: &Attempt, queue: &str, worker: &WorkerId) -> ProcessSpan {
        let parent = attempt.task.trace_context.as_ref();
        let span = self.begin("process", SpanKind::Consumer, queue, parent);
        describe(&span, &attempt.task, &attempt.id, || {
            vec![
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.destination.partition.id", attempt.partition.to_string()),
                KeyValue::new("messaging.client.id", worker.to_string()),
                KeyValue::new("keylane.attempt", i64::from(attempt.number)),
            ]
        });
        ProcessSpan(span)
    }

    fn begin(
        &self,
        operation: &'static str,
        kind: SpanKind,
        destination: &str,
        parent: Option<&TraceContext>,
    ) -> Context {
        let parent = match parent {
            Some(parent) => Context::new().with_remote_span_context(remote(parent)),
            None => Context::current(),
        };
        let builder = self.0.span_builder(operation).with_kind(kind);
        let mut span = self.0.build_with_context(builder, &parent);
        if span.is_recording() {
            span.update_name(format!("{operation} {destination}"));
            span.set_attribute(KeyValue::new("messaging.operation.name", operation));
            span.set_attribute(KeyValue::new("messaging.destination.name", destination.to_owned()));
        }
        parent.with_span(span)
    }
}

/// Adds what is known of the task, but not its payload.
fn describe(span: &Context, task: &Task, id: &TaskId, more: impl FnOnce() -> Vec<KeyValue>) {
    let span = span.span();
    if !span.is_recording() {
        return;
    }
    let bytes = i64::try_from(task.payload.len()).unwrap_or(i64::MAX);
    span.set_attributes(more());
    span.set_attributes([
        KeyValue::new("messaging.system", "rabbitmq"),
        KeyValue::new("messaging.message.id", id.to_string()),
        KeyValue::new("messaging.message.body.size", bytes),
        KeyValue::new("keylane.resource", task.resource.to_string()),
    ]);
}

/// A span in another process.
fn remote(context: &TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(context.trace_id()),
        SpanId::from_bytes(context.parent_id()),
        TraceFlags::new(context.flags()),
        true,
        // Both sides read it by the same rules.
        TraceState::from_str(context.tracestate().unwrap_or_default()).unwrap_or_default(),
    )
}

/// The span as others see it; `None` without a provider.
fn context(span: &Context) -> Option<TraceContext> {
    let span = span.span();
    let span = span.span_context();
    let (trace_id, span_id) = (span.trace_id().to_bytes(), span.span_id().to_bytes());
    let context = TraceContext::from_ids(trace_id, span_id, span.trace_flags().to_u8())?;
    Some(context.with_tracestate(&span.trace_state().header()))
}

fn end(span: &Context, error: Option<&str>) {
    let span = span.span();
    if let Some(error) = error {
        span.set_status(Status::error(error.to_owned()));
    }
    span.end();
}

/// From the sending of a task to the broker's answer.
#[derive(Debug)]
pub(crate) struct SendSpan(Context);

impl SendSpan {
    /// What the task carries on.
    pub(crate) fn context(&self) -> Option<TraceContext> {
        context(&self.0)
    }

    pub(crate) fn end(self, error: Option<&dyn Error>) {
        end(&self.0, error.map(ToString::to_string).as_deref());
    }
}

/// From the beginning of an attempt to its end; that of its handler's spans, too.
pub(super) struct ProcessSpan(Context);

impl ProcessSpan {
    /// What the attempt carries on.
    pub(super) fn context(&self) -> Option<TraceContext> {
        context(&self.0)
    }

    /// Spans that are made meanwhile are its children.
    pub(super) async fn around<F: Future>(&self, part: F) -> F::Output {
        part.with_context(self.0.clone()).await
    }

    pub(super) fn end(self, failure: Option<&String>) {
        end(&self.0, failure.map(String::as_str));
    }
}
