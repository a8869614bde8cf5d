//! The patterns, one file each, behind one trait.

mod competing;
mod etcd;
mod etcd_lock;
mod etcd_optimistic;
mod keylane;
mod lock_per_task;
mod optimistic;
mod ownership;
mod postgres_advisory;
mod postgres_optimistic;
mod postgres_queue;
mod redis_cas;
mod redis_lock;
mod redlock;
mod ricart_agrawala;
mod zookeeper;

use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use serde::Serialize;

use crate::plan::Plan;
use crate::servers::Server;
use crate::work::{Job, State, Workload};
use crate::worker::Worker;

/// What stops the write of a worker that does not know yet that it has lost its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "what", rename_all = "kebab-case")]
pub enum Fence {
    /// Nothing.
    None,
    /// This, if the store checks it.
    Token(&'static str),
    /// This, which is a part of the pattern.
    Inherent(&'static str),
}

/// What a contestant is.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct About {
    /// Its name in commands, tables and JSON.
    pub name: &'static str,
    /// The pattern that it stands for.
    pub pattern: &'static str,
    /// The system that it runs on, and how.
    pub on: &'static str,
    /// What it needs besides the broker.
    pub needs: &'static [Server],
    /// Two handlers of a resource never run at once, as long as nobody is paused. False where
    /// attempts may overlap and the loser throws its result away.
    pub exclusive: bool,
    /// Tasks of a resource are executed in publish order, by design.
    pub ordered: bool,
    /// What stops a stale write, if there is something.
    pub fence: Fence,
    /// Nobody takes a resource from a holder that is paused, however long that lasts.
    #[serde(skip)]
    pub stands_still: bool,
    /// Runs the transfers only; on all else it is the same as another one.
    pub transfers_only: bool,
    /// Workers talk to each other.
    pub meshed: bool,
}

impl About {
    /// Whether it takes part in a workload.
    #[must_use]
    pub fn runs(&self, workload: Workload) -> bool {
        !self.transfers_only || workload == Workload::Transfers
    }
}

/// One way to have tasks of a resource executed one at a time, or as if they were.
#[async_trait]
pub trait Contestant: Send + Sync {
    /// What it is.
    fn about(&self) -> &'static About;

    /// Makes everything ready for a run; in the coordinator, before the workers start.
    async fn prepare(&self, plan: &Plan) -> anyhow::Result<()> {
        competing::prepare(plan).await
    }

    /// Waits until all workers take tasks, as far as `started` does not say it.
    async fn settle(&self, plan: &Plan) -> anyhow::Result<()> {
        let _: &Plan = plan;
        Ok(())
    }

    /// Publishes the tasks in order, each durably, as fast as possible. Writes down when.
    async fn publish(&self, plan: &Plan, jobs: &mut [Job]) -> anyhow::Result<()> {
        competing::publish(plan, jobs).await
    }

    /// Executes tasks until `worker.stop`; in a worker process.
    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()>;

    /// The final states, if they are in the contestant's own store.
    async fn states(&self, plan: &Plan) -> anyhow::Result<Option<Vec<State>>> {
        let _: &Plan = plan;
        Ok(None)
    }

    /// Removes what the run has left; in the coordinator.
    async fn clean(&self, plan: &Plan) -> anyhow::Result<()> {
        competing::clean(plan).await
    }
}

/// All contestants, in the order of the report.
#[must_use]
pub fn all() -> Vec<Box<dyn Contestant>> {
    vec![
        Box::new(keylane::Keylane),
        Box::new(redis_lock::RedisLock),
        Box::new(postgres_advisory::PostgresAdvisory::PerTask),
        Box::new(postgres_queue::PostgresQueue),
        Box::new(zookeeper::ZooKeeper),
        Box::new(etcd_lock::EtcdLock),
        Box::new(redlock::Redlock),
        Box::new(ricart_agrawala::RicartAgrawala),
        Box::new(postgres_optimistic::PostgresOptimistic),
        Box::new(etcd_optimistic::EtcdOptimistic),
        Box::new(redis_cas::RedisCas),
        Box::new(postgres_advisory::PostgresAdvisory::ArrivalOrder),
        Box::new(postgres_advisory::PostgresAdvisory::GlobalOrder),
        Box::new(ownership::Ownership),
    ]
}

/// The contestant of this name.
///
/// # Errors
/// If there is none; the message names them all.
pub fn find(name: &str) -> anyhow::Result<Box<dyn Contestant>> {
    let found = all().into_iter().find(|contestant| contestant.about().name == name);
    found.with_context(|| {
        let names: Vec<_> = all().iter().map(|c| c.about().name).collect();
        format!("no contestant {name:?}; there are: {}", names.join(", "))
    })
}
