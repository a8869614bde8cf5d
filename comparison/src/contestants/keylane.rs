//! Partitioned ownership: keylane itself. A partition of resources is one queue with a single
//! active consumer, and inside of its owner every resource has a lane. No lock per task.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_lite::{StreamExt, stream};
use keylane::{
    Attempt, Connect, Failure, Namespace, PartitionCount, Producer, ProducerOptions, Resource,
    Task, WorkerId, WorkerOptions, handler_fn,
};

use super::{About, Contestant, Fence};
use crate::clock::now_us;
use crate::plan::{PARTITIONS, Plan};
use crate::work::{Guard, Job};
use crate::worker::{Executed, Worker, started};

/// keylane, with its defaults.
pub(super) struct Keylane;

const ABOUT: About = About {
    name: "keylane",
    pattern: "partitioned ownership",
    on: "RabbitMQ, 64 partitions with a single active consumer each",
    needs: &[],
    exclusive: true,
    ordered: true,
    fence: Fence::Token("the epoch of the partition's owner"),
    stands_still: false,
    transfers_only: false,
    meshed: false,
};

/// A fleet that does not come together by then is not going to.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(plan: &Plan, heartbeat_s: u64) -> anyhow::Result<Connect> {
    let url = format!("{}?heartbeat={heartbeat_s}", plan.endpoints.amqp);
    Ok(Connect::new(url)?.with_namespace(Namespace::new("comparison")?))
}

fn task(job: &Job) -> anyhow::Result<Task> {
    let resource = Resource::new(format!("resource-{}", job.resource))?;
    Ok(Task::on(resource, job.to_payload()))
}

#[async_trait]
impl Contestant for Keylane {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    async fn prepare(&self, plan: &Plan) -> anyhow::Result<()> {
        keylane::init(&connect(plan, 10)?, PartitionCount::new(PARTITIONS)?).await?;
        Ok(())
    }

    async fn settle(&self, plan: &Plan) -> anyhow::Result<()> {
        let connect = connect(plan, 10)?;
        let since = Instant::now();
        loop {
            let status = keylane::status(&connect).await?;
            let all_there = status.workers.len() == plan.workers as usize
                && status.partitions.iter().all(|partition| partition.consumed);
            if all_there {
                return Ok(());
            }
            anyhow::ensure!(since.elapsed() < PATIENCE, "keylane's workers do not come together");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn publish(&self, plan: &Plan, jobs: &mut [Job]) -> anyhow::Result<()> {
        let producer = Producer::open(&connect(plan, 10)?, ProducerOptions::default()).await?;
        let mut failure = None;
        // The resource's name is the only thing that could be wrong with a task.
        let tasks = jobs.iter_mut().map_while(|job| {
            job.published_us = now_us();
            task(job).map_err(|error| failure = Some(error)).ok()
        });
        let mut published = Box::pin(producer.publish_all(stream::iter(tasks)));
        while let Some(done) = published.next().await {
            done.outcome?;
        }
        drop(published);
        producer.close().await;
        failure.map_or(Ok(()), Err)
    }

    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()> {
        let plan = &worker.plan;
        let connect = connect(plan, plan.heartbeat_s)?;
        let partitions = keylane::topology(&connect).await?.partitions().len();
        // A consumer on each queue: what ownership costs at the start.
        worker.counters.operations.add(partitions as u64);
        let id = WorkerId::new(format!("{}-{}", plan.run, plan.worker))?;
        let options = WorkerOptions { id, slots: plan.slots, ..WorkerOptions::default() };
        let producer = Arc::new(Producer::open(&connect, ProducerOptions::default()).await?);
        let legs = Arc::new(Legs {
            worker: Arc::clone(&worker),
            producer,
            owned: Mutex::default(),
            tokens: Mutex::default(),
        });
        let handler = handler_fn(move |attempt| {
            let legs = Arc::clone(&legs);
            async move { legs.execute(attempt).await }
        });
        started()?;
        keylane::work(&connect, options, handler, worker.stop.clone()).await?;
        Ok(())
    }

    async fn clean(&self, plan: &Plan) -> anyhow::Result<()> {
        let dead = keylane::status(&connect(plan, 10)?).await?.dead;
        anyhow::ensure!(dead == 0, "{dead} tasks ended in the dead letters");
        Ok(())
    }
}

struct Legs {
    worker: Arc<Worker>,
    producer: Arc<Producer>,
    /// The partitions that have fallen to this worker.
    owned: Mutex<HashSet<u32>>,
    /// The tokens that it has, by partition.
    tokens: Mutex<HashMap<u32, u64>>,
}

impl Legs {
    /// A task of keylane names one resource. So a transfer is two of them: the first changes
    /// its resource and publishes the second before it is acked. Each happens, in this order,
    /// but not at one instant (Garcia-Molina & Salem, "Sagas", 1987).
    async fn execute(&self, attempt: Attempt) -> Result<(), Failure> {
        let failed = |error: anyhow::Error| Failure::failed(format!("{error:#}"));
        let dead = || Failure::dead("not one of our messages");
        let job = Job::from_payload(&attempt.task.payload).ok_or_else(dead)?;
        let partition = attempt.partition.number();
        let newly = self.owned.lock().unwrap_or_else(PoisonError::into_inner).insert(partition);
        self.worker.counters.operations.add(u64::from(newly));

        let guard = if self.worker.plan.fenced {
            let token = attempt.fencing_token().await?.number().unsigned_abs();
            // A new epoch was counted.
            let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            let known = tokens.insert(partition, token) == Some(token);
            self.worker.counters.operations.add(u64::from(!known));
            drop(tokens);
            Guard::Token(token)
        } else {
            Guard::Nothing
        };
        let touched = [(job.resource, guard)];
        let last = job.other.is_none();
        if self.worker.execute(&job, &touched, last).await.map_err(failed)? == Executed::Refused {
            return Err(Failure::retry(None, "a later owner has been there"));
        }
        if let Some(other) = job.other {
            let second = Job { resource: other, other: None, ..job };
            let second = task(&second).map_err(failed)?;
            let sent = self.producer.publish(second).await;
            sent.map_err(|error| Failure::failed(error.to_string()))?;
        }
        Ok(())
    }
}
