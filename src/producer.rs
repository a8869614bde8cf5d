//! Publishes tasks.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::{Stream, StreamExt, future, stream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use uuid::Uuid;

use crate::executions::{self, Executed, Executions, Moment, NotExecuted};
use crate::metrics::{Metrics, PublishFigures, Unanswered};
use crate::protocol::journal::Fingerprint;
use crate::protocol::partition::{PartitionId, Topology};
use crate::protocol::task::{Origin, Task, TaskId};
use crate::rabbit::connection::Connect;
use crate::rabbit::error::Error;
use crate::rabbit::publisher::{PublishError, Publisher, Route, Sent, SessionId};
use crate::rabbit::topology;
use crate::spans::{SendSpan, Tracer};

/// How a [`Producer`] publishes.
#[derive(Debug, Clone)]
pub struct ProducerOptions {
    /// Tasks that were sent and not confirmed, at the most; whoever publishes
    /// more waits. Default 1,000: a broker confirms within some 50 ms under
    /// load, so this is enough for 20,000 tasks/s.
    pub max_in_flight: usize,
    /// Largest payload, in bytes. Default 16 MiB, RabbitMQ's own default: the
    /// broker closes the channel over a larger one, neighbours included.
    pub max_payload: usize,
    /// How long a lost broker is waited for before publishing fails. Default
    /// `None`: for ever.
    pub patience: Option<Duration>,
    /// In [`Producer::publish_all`]: whether tasks whose outcome a lost
    /// connection left open are published again, with the same id and in the
    /// same order. Default true. They may then be executed twice; if false,
    /// they are reported as [`PublishError::Indeterminate`].
    pub republish: bool,
    /// Where it counts what it does, for others to read. Default `None`.
    pub metrics: Option<Metrics>,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self {
            max_in_flight: 1_000,
            max_payload: 16 << 20,
            patience: None,
            republish: true,
            metrics: None,
        }
    }
}

/// The broker has a task, on a majority of the nodes of its partition's queue.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Receipt {
    /// The task's id.
    pub id: TaskId,
    /// Its partition.
    pub partition: PartitionId,
    origin: Origin,
    published: executions::Published,
    executions: Arc<Executions>,
}

impl Receipt {
    /// Waits until the task is Executed, and gives what its handler said
    /// ([`Attempt::set_result`](crate::Attempt::set_result)).
    ///
    /// It waits for as long as that takes: put a time limit around it. It follows
    /// the journal, so it waits for ever if the workers write none
    /// ([`WorkerOptions::journal`](crate::WorkerOptions)), or if the record was
    /// removed before it was asked for. The producer may be closed by then.
    ///
    /// # Errors
    /// [`NotExecuted::DeadLettered`] when the task was given up;
    /// [`NotExecuted::Unknown`] when the journal cannot be read, because there is
    /// none or for want of the permission.
    ///
    /// # Cancel safety
    /// Nothing is lost: it can be called again.
    pub async fn executed(&self) -> Result<Executed, NotExecuted> {
        self.executions.wait(self.published).await
    }
}

impl PartialEq for Receipt {
    fn eq(&self, other: &Self) -> bool {
        (&self.id, &self.origin) == (&other.id, &other.origin)
    }
}

impl Eq for Receipt {}

/// A task that came out of [`Producer::publish_all`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Published {
    /// The task; it has its id by now.
    pub task: Task,
    /// What became of it.
    pub outcome: Result<Receipt, PublishError>,
    /// How often it was sent. More than once after a lost connection: then it
    /// may be executed more than once.
    pub sent: u32,
}

/// Publishes tasks to their partitions, each confirmed by the broker.
///
/// Tasks that are published one after another (by one caller, or each after
/// the other's [`Producer::send`] returned) are executed in that order if they
/// touch the same resource. The connection is opened again when it is lost.
/// Share it behind an [`Arc`].
#[derive(Debug)]
pub struct Producer {
    topology: Topology,
    routes: Vec<Route>,
    publisher: Publisher,
    permits: Arc<Semaphore>,
    /// Names this run of us in the tasks.
    name: Arc<str>,
    /// The number of the next task. Locked until it is sent: numbers rise in the
    /// order of the wire.
    sequence: Mutex<u64>,
    executions: Arc<Executions>,
    figures: Arc<PublishFigures>,
    tracer: Tracer,
    exchange: String,
    options: ProducerOptions,
}

/// A task that was sent. Await [`Pending::confirmed`] for its outcome.
#[derive(Debug)]
pub struct Pending {
    sent: Sent,
    receipt: Receipt,
    unanswered: Unanswered,
    span: SendSpan,
    /// Makes room for another task when this one is answered or dropped. `None`
    /// for one that is sent again, of which there are no more than had room.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Pending {
    /// Waits for the broker's answer.
    ///
    /// # Errors
    /// [`PublishError::Unroutable`], [`PublishError::Nacked`],
    /// [`PublishError::TooLarge`], [`PublishError::Indeterminate`].
    ///
    /// # Cancel safety
    /// The task stays sent; its outcome is forgotten.
    pub async fn confirmed(self) -> Result<Receipt, PublishError> {
        let outcome = self.sent.confirmed().await;
        self.unanswered.ended(outcome.as_ref().map(drop));
        self.span.end(outcome.as_ref().err().map(|error| error as _));
        outcome.map(|()| self.receipt)
    }
}

impl Producer {
    /// Connects and reads the topology.
    ///
    /// # Errors
    /// [`Error::TopologyMissing`] when the namespace was never set up, and the
    /// errors of connecting.
    pub async fn open(connect: &Connect, options: ProducerOptions) -> Result<Self, Error> {
        let connection = connect.open("producer").await?;
        let topology = topology::read(&connection, connect.namespace()).await?;
        let publisher = Publisher::new(connect.clone(), "producer", topology, options.patience)
            .with_connection(connection)
            .await?;
        let name: Arc<str> = Uuid::new_v4().simple().to_string()[..12].into();
        Ok(Self {
            topology,
            executions: Executions::new(connect.clone(), Arc::clone(&name)),
            routes: Route::partitions(connect.namespace(), &topology),
            publisher,
            permits: Arc::new(Semaphore::new(options.max_in_flight.max(1))),
            name,
            sequence: Mutex::new(0),
            figures: options
                .metrics
                .clone()
                .unwrap_or_default()
                .figures
                .publish(connect.namespace()),
            tracer: Tracer::global(),
            exchange: connect.namespace().exchange(&topology),
            options,
        })
    }

    /// The layout that the producer publishes to.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Why the broker takes no messages at the moment (memory or disk run low
    /// there), while that is so. Publishing waits meanwhile.
    #[must_use]
    pub fn blocked(&self) -> watch::Receiver<Option<String>> {
        self.publisher.blocked()
    }

    /// Publishes one task and waits for the broker's confirm.
    ///
    /// # Errors
    /// A [`PublishError`]; nothing is retried, so that the caller decides. The
    /// task may have been published only if it is
    /// [`PublishError::Indeterminate`].
    ///
    /// # Cancel safety
    /// The task may or may not be published.
    pub async fn publish(&self, task: Task) -> Result<Receipt, PublishError> {
        self.send(&task).await?.confirmed().await
    }

    /// Sends one task, without waiting for its confirm. Waits while
    /// [`ProducerOptions::max_in_flight`] tasks are unconfirmed, while the
    /// broker takes no messages, and while the connection is lost.
    ///
    /// # Errors
    /// A [`PublishError`] if it cannot be sent.
    ///
    /// # Cancel safety
    /// The task may or may not be published.
    pub async fn send(&self, task: &Task) -> Result<Pending, PublishError> {
        let permit = self.permit().await;
        self.send_with(permit, task, None, None).await
    }

    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }

    async fn send_with(
        &self,
        permit: Option<OwnedSemaphorePermit>,
        task: &Task,
        again: Option<Origin>,
        only_on: Option<SessionId>,
    ) -> Result<Pending, PublishError> {
        let id = task.id.clone().unwrap_or_else(|| Uuid::now_v7().into());
        let partition = self.topology.partition_of(&task.resource);
        let unanswered = Unanswered::begin(&self.figures);
        let span = self.tracer.send(task, &id, &self.exchange, partition);
        let traced = |context| Box::new(task.clone().with_trace_context(context));
        let traced = span.context().map(traced);
        let task = traced.as_deref().unwrap_or(task);
        match self.write(task, id, partition, again, only_on).await {
            Ok((sent, receipt)) => Ok(Pending { sent, receipt, unanswered, span, _permit: permit }),
            Err(error) => {
                unanswered.ended(Err(&error));
                span.end(Some(&error));
                Err(error)
            }
        }
    }

    async fn write(
        &self,
        task: &Task,
        id: TaskId,
        partition: PartitionId,
        again: Option<Origin>,
        only_on: Option<SessionId>,
    ) -> Result<(Sent, Receipt), PublishError> {
        let (bytes, limit) = (task.payload.len(), self.options.max_payload);
        if bytes > limit {
            return Err(PublishError::TooLarge { bytes, limit });
        }
        let route = &self.routes[partition.number() as usize];
        let mut next = self.sequence.lock().await;
        let origin = match again {
            Some(origin) => Origin { republished: true, ..origin },
            None => {
                let sequence = *next;
                *next += 1;
                Origin { producer: Arc::clone(&self.name), sequence, republished: false }
            }
        };
        let sent = self.publisher.send_task(route, task, &id, Some(&origin), only_on).await?;
        drop(next);
        let task = Fingerprint::new(&id, &task.resource, &origin);
        let (sequence, at) = (origin.sequence, Moment::now());
        let published = executions::Published { task, sequence, at };
        let executions = Arc::clone(&self.executions);
        Ok((sent, Receipt { id, partition, origin, published, executions }))
    }

    /// Publishes a stream of tasks, many in flight, and gives each back with
    /// its outcome, in the order in which they came. A lost connection is
    /// opened again and what it left open is published again
    /// ([`ProducerOptions::republish`]).
    ///
    /// A task that was refused is reported and not retried; the ones behind it
    /// were sent already.
    ///
    /// # Cancel safety
    /// Dropping the stream forgets the outcomes of what was sent.
    pub fn publish_all<'a, S>(&'a self, tasks: S) -> impl Stream<Item = Published> + 'a
    where
        S: Stream<Item = Task> + 'a,
    {
        let state = Publishing {
            producer: self,
            tasks: Some(Box::pin(tasks)),
            window: VecDeque::new(),
            session: None,
            done: VecDeque::new(),
        };
        stream::unfold(state, |mut state| async move {
            let published = state.next().await?;
            Some((published, state))
        })
    }

    /// Closes the connection. What is not confirmed by then is indeterminate.
    pub async fn close(self) {
        self.publisher.close().await;
    }
}

/// The state of [`Producer::publish_all`].
struct Publishing<'a, S> {
    producer: &'a Producer,
    /// `None` when it has ended.
    tasks: Option<Pin<Box<S>>>,
    window: VecDeque<InFlight>,
    /// Over which connection the last of them went.
    session: Option<SessionId>,
    done: VecDeque<Published>,
}

struct InFlight {
    task: Task,
    sent: u32,
    /// It is not sent once more, whatever becomes of it.
    given_up: bool,
    confirmed: Pin<Box<dyn Future<Output = Result<Receipt, PublishError>> + Send>>,
}

/// What happens first.
enum Next {
    Answer(Result<Receipt, PublishError>),
    Task(Option<Task>, Option<OwnedSemaphorePermit>),
}

impl<S: Stream<Item = Task>> Publishing<'_, S> {
    async fn next(&mut self) -> Option<Published> {
        loop {
            if let Some(published) = self.done.pop_front() {
                return Some(published);
            }
            // Room for a task comes before the task, and answers are taken
            // meanwhile: they are what makes room.
            let producer = self.producer;
            let next_task = async |tasks: &mut Pin<Box<S>>| {
                let permit = producer.permit().await;
                Next::Task(tasks.next().await, permit)
            };
            let next = match (self.window.front_mut(), self.tasks.as_mut()) {
                (None, None) => return None,
                (Some(first), None) => Next::Answer(first.confirmed.as_mut().await),
                (None, Some(tasks)) => next_task(tasks).await,
                (Some(first), Some(tasks)) => {
                    let answer = async { Next::Answer(first.confirmed.as_mut().await) };
                    future::or(answer, next_task(tasks)).await
                }
            };
            match next {
                Next::Task(None, _) => self.tasks = None,
                Next::Task(Some(mut task), permit) => {
                    task.id.get_or_insert_with(|| Uuid::now_v7().into());
                    self.send(permit, task, 1).await;
                }
                Next::Answer(outcome) => {
                    let Some(InFlight { task, sent, given_up, .. }) = self.window.pop_front()
                    else {
                        continue;
                    };
                    let published = Published { task, outcome: after(sent, outcome), sent };
                    match given_up {
                        true => self.done.push_back(published),
                        false => self.answered(published).await,
                    }
                }
            }
        }
    }

    async fn send(&mut self, permit: Option<OwnedSemaphorePermit>, mut task: Task, sent: u32) {
        // The same number again, if it had one.
        let again = if sent > 1 { task.origin.take() } else { None };
        // While something is unanswered, only its own connection will do: over a
        // new one this task would overtake it.
        let only_on = if self.window.is_empty() { None } else { self.session };
        match self.producer.send_with(permit, &task, again, only_on).await {
            Ok(pending) => {
                self.session = Some(pending.sent.session());
                task.origin = Some(pending.receipt.origin.clone());
                let confirmed = Box::pin(pending.confirmed());
                self.window.push_back(InFlight { task, sent, given_up: false, confirmed });
            }
            // Behind what is in flight, so that the outcomes keep their order.
            Err(error) => {
                // The broker was waited for, and did not come.
                let given_up = matches!(error, PublishError::NotSent(_));
                self.answer_later(task, sent, given_up, Err(error));
            }
        }
    }

    fn answer_later(
        &mut self,
        task: Task,
        sent: u32,
        given_up: bool,
        outcome: Result<Receipt, PublishError>,
    ) {
        let confirmed = Box::pin(std::future::ready(outcome));
        self.window.push_back(InFlight { task, sent, given_up, confirmed });
    }

    async fn answered(&mut self, published: Published) {
        let open = |published: &Published| {
            published.outcome.as_ref().is_err_and(PublishError::is_indeterminate)
        };
        if !self.producer.options.republish || !open(&published) {
            self.done.push_back(published);
            return;
        }
        // The channel is gone, so everything in flight is answered at once. What
        // it left open goes out again in the old order, before anything new.
        let mut again = vec![published];
        while let Some(InFlight { task, sent, confirmed, .. }) = self.window.pop_front() {
            again.push(Published { task, outcome: after(sent, confirmed.await), sent });
        }
        let count = again.iter().filter(|p| open(p)).count();
        tracing::warn!(
            tasks = count,
            "the connection was lost: publishing again what it left open"
        );
        let mut given_up = false;
        for published in again {
            if open(&published) && !given_up {
                // Answered and sent again: it has its room without a new permit.
                self.send(None, published.task, published.sent + 1).await;
                // Nor will the broker be there for the others.
                given_up = self.window.back().is_some_and(|last| last.given_up);
            } else {
                let Published { task, outcome, sent } = published;
                self.answer_later(task, sent, given_up, outcome);
            }
        }
    }
}

/// The outcome of a task that was sent so often. What became of it the last time says
/// nothing of the times before, of which it may have been published.
fn after(sent: u32, outcome: Result<Receipt, PublishError>) -> Result<Receipt, PublishError> {
    outcome.map_err(|error| match sent {
        0 | 1 => error,
        _ if error.is_indeterminate() => error,
        _ => PublishError::Indeterminate { reason: format!("sent again, {error}") },
    })
}
