//! Takes tasks from the inbox, where anything that speaks AMQP can publish,
//! and forwards them to their partitions.
//!
//! A router is a worker whose handler publishes: the inbox is its only
//! partition, the broker's confirm is the end of a task, and every rule of
//! ownership holds. So order per resource survives retries and take-overs, and
//! several routers stand by for one another. A resource has one task under way
//! at a time, which bounds it to one task per confirm; whoever needs more for
//! one resource hashes in the producer.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::handler::{Attempt, Failure};
use crate::metrics::{Metrics, PublishFigures, Unanswered};
use crate::protocol::crashes::MaxCrashes;
use crate::protocol::envelope::Forbidden;
use crate::protocol::ownership::WorkerId;
use crate::protocol::partition::Topology;
use crate::protocol::retry::RetryPolicy;
use crate::rabbit::connection::Connect;
use crate::rabbit::consumer::Delivery;
use crate::rabbit::error::Error;
use crate::rabbit::publisher::{PublishError, Publisher, Route};
use crate::rabbit::topology::topology;
use crate::worker::{Execute, Source, WorkerOptions, WorkerSummary, run};

/// How a router forwards.
#[derive(Debug, Clone)]
pub struct RouterOptions {
    /// Its name. Default: a random one.
    pub id: WorkerId,
    /// Tasks that are being forwarded at once, at the most. Default 1,000.
    pub max_in_flight: u16,
    /// When shut down: time for the broker to confirm what is being forwarded.
    /// Default 30 s; the rest is forwarded by another router.
    pub drain_timeout: Duration,
    /// At the start: how long to wait for a broker that is out of reach; see
    /// [`WorkerOptions::wait_for_broker`]. Default `None`: without end.
    pub wait_for_broker: Option<Duration>,
    /// Where it counts what it does, for others to read. Default `None`; see
    /// [`WorkerOptions::metrics`](crate::WorkerOptions::metrics).
    pub metrics: Option<Metrics>,
}

impl Default for RouterOptions {
    fn default() -> Self {
        Self {
            id: WorkerId::random(),
            max_in_flight: 1_000,
            drain_timeout: Duration::from_secs(30),
            wait_for_broker: None,
            metrics: None,
        }
    }
}

/// Forwards tasks until `shutdown`, or stands by for another router.
///
/// A message without a usable resource goes to the dead letters. What cannot
/// be published is tried again for ever, in order.
///
/// # Errors
/// As [`crate::work`].
///
/// # Cancel safety
/// Nothing is lost; what was under way may be forwarded twice.
pub async fn route(
    connect: &Connect,
    options: RouterOptions,
    shutdown: CancellationToken,
) -> Result<WorkerSummary, Error> {
    let wanted = first_topology(connect, options.wait_for_broker);
    let topology = tokio::select! {
        topology = wanted => topology?,
        () = shutdown.cancelled() => return Ok(WorkerSummary::default()),
    };
    let forward = Forward {
        routes: Route::partitions(connect.namespace(), &topology),
        publisher: Publisher::new(connect.clone(), "router", topology, None),
        figures: options.metrics.clone().unwrap_or_default().figures.publish(connect.namespace()),
        stripped: Mutex::default(),
    };
    let retry = RetryPolicy {
        attempts: 0,
        first_delay: Duration::from_millis(100),
        max_delay: Duration::from_secs(5),
    };
    let worker = WorkerOptions {
        id: options.id,
        slots: u32::from(options.max_in_flight),
        task_timeout: None,
        retry,
        max_crashes: MaxCrashes::OFF,
        drain_timeout: options.drain_timeout,
        fencing: false,
        metrics: options.metrics,
        ..WorkerOptions::default()
    };
    run(connect, worker, Source::Inbox, forward, shutdown).await
}

async fn first_topology(connect: &Connect, patience: Option<Duration>) -> Result<Topology, Error> {
    let mut backoff = Backoff::new(patience);
    loop {
        let error = match topology(connect).await {
            Err(error) if error.is_retryable() => error,
            result => return result,
        };
        let Some(retry_in) = backoff.next() else { return Err(error) };
        tracing::warn!(%error, ?retry_in, "waiting for the broker");
        tokio::time::sleep(retry_in).await;
    }
}

/// Publishes a message to the partition of its resource.
struct Forward {
    publisher: Publisher,
    routes: Vec<Route>,
    figures: Arc<PublishFigures>,
    stripped: Mutex<Stripped>,
}

/// Log lines about properties that were taken off: a publisher that sets them does so always.
const STRIPPED_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Tasks that had a property that none may have.
#[derive(Default)]
struct Stripped {
    tasks: u64,
    logged: Option<Instant>,
}

impl Forward {
    /// Says that a task is forwarded without a property, once a minute at the most.
    fn note_stripped(&self, attempt: &Attempt, forbidden: Forbidden) {
        let mut stripped = self.stripped.lock().unwrap_or_else(PoisonError::into_inner);
        stripped.tasks += 1;
        if stripped.logged.is_some_and(|at| at.elapsed() < STRIPPED_LOG_INTERVAL) {
            return;
        }
        stripped.logged = Some(Instant::now());
        tracing::warn!(
            task = %attempt.id, resource = %attempt.task.resource, tasks = stripped.tasks,
            "forwarded without a property that no task may have: {forbidden}"
        );
    }
}

impl Execute for Forward {
    async fn execute(&self, attempt: Attempt, delivery: Arc<Delivery>) -> Result<(), Failure> {
        let route = &self.routes[attempt.partition.number() as usize];
        let unanswered = Unanswered::begin(&self.figures);
        let context = attempt.trace.as_ref();
        if let Some(forbidden) = delivery.forbidden() {
            self.note_stripped(&attempt, forbidden);
        }
        let forwarded = match self.publisher.forward(route, &delivery, context).await {
            Ok(sent) => sent.confirmed().await,
            Err(error) => Err(error),
        };
        unanswered.ended(forwarded.as_ref().map(drop));
        if forwarded.as_ref().is_err_and(PublishError::is_indeterminate) {
            delivery.forwarding.unsure.store(true, Ordering::Relaxed);
        }
        forwarded.map_err(|error| match error {
            PublishError::Invalid { .. }
            | PublishError::TooLarge { .. }
            | PublishError::HeadersTooLarge { .. } => Failure::dead(error.to_string()),
            PublishError::Unroutable { .. }
            | PublishError::Nacked { .. }
            | PublishError::Indeterminate { .. }
            | PublishError::NotSent(_) => Failure::retry(None, error.to_string()),
        })
    }
}
