#![doc = include_str!("../README.md")]

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "dashboard")]
#[doc(hidden)]
pub mod dashboard;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod demo;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
#[cfg(any(feature = "guard-postgres", feature = "guard-redis"))]
pub mod guard;
pub mod handler;
pub mod protocol;
#[cfg(feature = "provision")]
pub mod provision;
#[cfg(feature = "testing")]
pub mod testing;

mod backoff;
mod executions;
mod journal;
mod metrics;
mod producer;
mod rabbit;
mod router;
mod spans;
mod spill;
mod steering;
mod worker;

pub use executions::{Executed, NotExecuted};
pub use handler::fencing::FencingError;
pub use handler::{Attempt, Failure, Handler, Lacking, handler_fn};
pub use journal::{JournalReader, KEPT_FINDINGS, TaskState, TaskTrace, find_task, running, verify};
#[cfg(feature = "metrics")]
pub use metrics::MetricsError;
pub use metrics::{Metrics, NotReady};
pub use producer::{Pending, Producer, ProducerOptions, Published, Receipt};
pub use protocol::crashes::MaxCrashes;
pub use protocol::fence::{Epoch, FencingToken};
pub use protocol::names::Namespace;
pub use protocol::ownership::{Weight, WorkerId};
pub use protocol::partition::{PartitionCount, PartitionId, Topology};
pub use protocol::result::TaskResult;
pub use protocol::retry::RetryPolicy;
pub use protocol::steering::{Scope, Steering};
pub use protocol::task::{Resource, Task, TaskId};
pub use protocol::trace_context::{TraceContext, TraceContextError};
pub use rabbit::connection::Connect;
pub use rabbit::control::{
    Crowded, HandlerOutage, HeldPartition, HotResource, RecentLoad, WorkerReport,
};
pub use rabbit::dead_letters::{DeadLetter, DeadLetters, ReplayError};
pub use rabbit::error::Error;
pub use rabbit::publisher::PublishError;
pub use rabbit::running::{Found, LongRunning, RunningTask};
pub use rabbit::status::{PartitionStatus, ResourceShare, Status, status};
pub use rabbit::steering::steering;
pub use rabbit::topology::{Retention, init, init_with, topology};
pub use router::{RouterOptions, route};
pub use steering::{
    CANCELLATION_KEPT, CancelError, Drained, Steered, abort, cancel, drain_worker, pause,
    reinstate, resume,
};
pub use worker::{WorkerOptions, WorkerSummary, work};
