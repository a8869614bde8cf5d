//! What a worker calls to do the work.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::fencing::TokenSource;
use crate::protocol::partition::PartitionId;
use crate::protocol::result::TaskResult;
use crate::protocol::task::{Task, TaskId};
use crate::protocol::trace_context::TraceContext;

#[cfg(feature = "exec")]
pub mod exec;
pub(crate) mod fencing;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "cli")]
pub(crate) use http::is_loopback;
#[cfg(feature = "exec")]
pub mod pipe;

/// Executes tasks.
///
/// The worker calls [`Handler::handle`] for at most one task of a resource at
/// a time, across the whole fleet, in publish order. It may call it for many
/// resources at once.
///
/// # Cancel safety
/// The returned future is dropped when the task's time is up or when the
/// worker loses the partition. Whatever a handler holds (a child process, a
/// transaction) must end with it. A task may be handed over again after that,
/// so a handler is idempotent, or checks what it finds.
pub trait Handler: Send + Sync + 'static {
    /// Executes one task. `Ok` marks it Executed.
    ///
    /// # Errors
    /// A [`Failure`] says what is to become of the task. A panic counts as
    /// [`Failure::Failed`].
    fn handle(&self, attempt: Attempt) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// One try at a task.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Attempt {
    /// Which task. Made from the delivery if the publisher gave none.
    pub id: TaskId,
    /// The task itself.
    pub task: Task,
    /// 1 for the first try of this worker. Starts anew when the partition
    /// changes its owner.
    pub number: u32,
    /// An earlier delivery of this task was lost (its worker died, or gave the
    /// partition away): it may have been executed, in part or whole.
    pub redelivered: bool,
    /// The partition of the task's resource.
    pub partition: PartitionId,
    /// Time that this attempt has before it is aborted; `None` if unlimited.
    pub timeout: Option<Duration>,
    pub(crate) result: Arc<Mutex<TaskResult>>,
    /// What is known of it should its time run out.
    pub(crate) last_words: Arc<Mutex<Option<String>>>,
    /// See [`Attempt::fencing_token`].
    pub(crate) fencing: TokenSource,
    /// The worker's own span, as others see it.
    pub(crate) trace: Option<TraceContext>,
    /// What log lines are a part of.
    pub(crate) span: tracing::Span,
}

impl Attempt {
    /// An attempt made by hand, for tests of a handler. It has no fencing token
    /// unless it is [given](Attempt::with_fencing_token) one.
    #[must_use]
    pub fn new(id: TaskId, task: Task) -> Self {
        Self {
            id,
            task,
            number: 1,
            redelivered: false,
            partition: PartitionId::new(0),
            timeout: None,
            result: Arc::default(),
            last_words: Arc::default(),
            fencing: TokenSource::default(),
            trace: None,
            span: tracing::Span::none(),
        }
    }

    /// The trace that the attempt is a part of, to be carried on to whatever it calls.
    /// What the task came with, or the worker's own span with the feature `otel`.
    #[must_use]
    pub fn trace_context(&self) -> Option<&TraceContext> {
        self.trace.as_ref().or(self.task.trace_context.as_ref())
    }

    /// Leaves a few words for whoever published the task and waits for it
    /// ([`Receipt::executed`](crate::Receipt::executed)). They count if the
    /// handler then executes the task; the last ones win.
    pub fn set_result(&self, result: impl Into<TaskResult>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = result.into();
    }

    /// What [`Attempt::set_result`] has left.
    #[must_use]
    pub fn result(&self) -> TaskResult {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why an attempt did not execute its task. The reason ends up in the logs and,
/// if it is the last attempt, in the dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Not now: the handler asks for another try, after `after` if given, else
    /// after the retry policy's delay. Counts as an attempt.
    Retry {
        /// Wait at least this long before the next attempt; a day at most.
        after: Option<Duration>,
        /// Why.
        reason: String,
    },
    /// The attempt failed. Tried again by the retry policy.
    Failed {
        /// Why.
        reason: String,
    },
    /// The task can never be executed: dead-lettered at once.
    Dead {
        /// Why.
        reason: String,
    },
    /// The task was not begun, since something that executes every task is out of reach. Counts as
    /// no attempt. Until it is back the worker starts one task at a time, at intervals that grow
    /// to 30 s, and is [not ready](crate::Metrics::readiness).
    Unavailable {
        /// What is out of reach.
        what: Lacking,
        /// Why.
        reason: String,
    },
}

/// What every task needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lacking {
    /// Whatever executes the tasks of this worker.
    Handler,
    /// The fencing token of a partition, whose tasks alone wait for it.
    FencingToken,
}

impl Failure {
    /// The attempt failed for this reason.
    #[must_use]
    pub fn failed(reason: impl Into<String>) -> Self {
        Self::Failed { reason: reason.into() }
    }

    /// The task can never be executed, for this reason.
    #[must_use]
    pub fn dead(reason: impl Into<String>) -> Self {
        Self::Dead { reason: reason.into() }
    }

    /// Nothing can be executed at the moment, for this reason.
    #[must_use]
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { what: Lacking::Handler, reason: reason.into() }
    }

    /// Try again later, for this reason.
    #[must_use]
    pub fn retry(after: Option<Duration>, reason: impl Into<String>) -> Self {
        Self::Retry { after, reason: reason.into() }
    }

    /// The reason.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Retry { reason, .. }
            | Self::Failed { reason }
            | Self::Dead { reason }
            | Self::Unavailable { reason, .. } => reason,
        }
    }
}

/// A handler from an async function or closure.
///
/// ```
/// use keylane::{Attempt, handler_fn};
/// let handler = handler_fn(|attempt: Attempt| async move {
///     println!("{}: {} bytes", attempt.task.resource, attempt.task.payload.len());
///     Ok(())
/// });
/// # let _ = handler;
/// ```
pub fn handler_fn<F, Fut>(function: F) -> impl Handler
where
    F: Fn(Attempt) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send,
{
    HandlerFn(function)
}

struct HandlerFn<F>(F);

impl<F, Fut> Handler for HandlerFn<F>
where
    F: Fn(Attempt) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send,
{
    fn handle(&self, attempt: Attempt) -> impl Future<Output = Result<(), Failure>> + Send {
        (self.0)(attempt)
    }
}
