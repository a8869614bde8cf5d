//! Without the feature `otel` there are no spans for others.

use crate::handler::Attempt;
use crate::protocol::ownership::WorkerId;
use crate::protocol::partition::PartitionId;
use crate::protocol::task::{Task, TaskId};
use crate::protocol::trace_context::TraceContext;

#[derive(Debug)]
pub(crate) struct Tracer;

impl Tracer {
    pub(crate) fn global() -> Self {
        Self
    }

    pub(crate) fn send(&self, _: &Task, _: &TaskId, _: &str, _: PartitionId) -> SendSpan {
        SendSpan
    }

    pub(super) fn process(&self, _: &Attempt, _: &str, _: &WorkerId) -> ProcessSpan {
        ProcessSpan
    }
}

#[derive(Debug)]
pub(crate) struct SendSpan;

impl SendSpan {
    pub(crate) fn context(&self) -> Option<TraceContext> {
        None
    }

    pub(crate) fn end(self, _: Option<&dyn std::error::Error>) {}
}

pub(super) struct ProcessSpan;

impl ProcessSpan {
    pub(super) fn context(&self) -> Option<TraceContext> {
        None
    }

    pub(super) async fn around<F: Future>(&self, part: F) -> F::Output {
        part.await
    }

    pub(super) fn end(self, _: Option<&String>) {}
}
