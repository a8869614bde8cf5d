//! Optimistic in Postgres: `UPDATE … WHERE version = what I read`. No row is locked while the
//! handler works.

use std::sync::Arc;

use async_trait::async_trait;
use tokio_postgres::{Client, GenericClient, Statement};

use super::optimistic::{self, Store};
use super::postgres_advisory::connect;
use super::postgres_queue::{as_int, fill, state_at, states};
use super::{About, Contestant, Fence, competing};
use crate::plan::Plan;
use crate::servers::Server;
use crate::work::State;
use crate::worker::Worker;

/// Version checks in Postgres.
pub(super) struct PostgresOptimistic;

const ABOUT: About = About {
    name: "postgres-optimistic",
    pattern: "optimistic",
    on: "Postgres, UPDATE … WHERE version =",
    needs: &[Server::Postgres],
    exclusive: false,
    ordered: false,
    fence: Fence::Inherent("the version check itself"),
    stands_still: false,
    transfers_only: false,
    meshed: false,
};

#[async_trait]
impl Contestant for PostgresOptimistic {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    async fn prepare(&self, plan: &Plan) -> anyhow::Result<()> {
        let client = connect(plan.endpoints.postgres).await?;
        let table = "DROP TABLE IF EXISTS versioned;
             CREATE TABLE versioned (id int PRIMARY KEY, version bigint NOT NULL, hash bigint NOT NULL)";
        client.batch_execute(table).await?;
        fill(&client, "versioned", plan.resources).await?;
        competing::prepare(plan).await
    }

    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()> {
        let mut slots = Vec::new();
        for _ in 0..worker.plan.slots {
            slots.push(Slot::open(worker.plan.endpoints.postgres).await?);
        }
        optimistic::run(worker, slots).await
    }

    async fn states(&self, plan: &Plan) -> anyhow::Result<Option<Vec<State>>> {
        let client = connect(plan.endpoints.postgres).await?;
        states(&client, "SELECT version, hash FROM versioned ORDER BY id").await.map(Some)
    }
}

struct Slot {
    client: Client,
    read: Statement,
    write: Statement,
}

impl Slot {
    async fn open(port: u16) -> anyhow::Result<Self> {
        let client = connect(port).await?;
        let read = client.prepare("SELECT version, hash FROM versioned WHERE id = $1").await?;
        let write = "UPDATE versioned SET version = version + 1, hash = $3
                     WHERE id = $1 AND version = $2";
        let write = client.prepare(write).await?;
        Ok(Self { client, read, write })
    }
}

#[async_trait]
impl Store for Slot {
    /// The sequence number is the version.
    type Read = Vec<State>;

    async fn read(&mut self, resources: &[u32]) -> anyhow::Result<Vec<State>> {
        let mut states = Vec::with_capacity(resources.len());
        for resource in resources {
            let row = self.client.query_one(&self.read, &[&as_int(*resource)?]).await?;
            states.push(state_at(&row, 0));
        }
        Ok(states)
    }

    fn next(read: &Vec<State>, number: u32) -> Vec<State> {
        read.iter().map(|state| state.after(number)).collect()
    }

    async fn swap(
        &mut self,
        worker: &Worker,
        resources: &[u32],
        read: &Vec<State>,
        next: &[State],
    ) -> anyhow::Result<bool> {
        if let ([resource], [read], [next]) = (resources, read.as_slice(), next) {
            worker.counters.operations.add(1);
            return update(&self.client, &self.write, *resource, *read, *next).await;
        }
        // Dropped without a commit, the transaction takes everything back.
        let transaction = self.client.transaction().await?;
        for ((resource, read), next) in resources.iter().zip(read).zip(next) {
            worker.counters.operations.add(1);
            if !update(&transaction, &self.write, *resource, *read, *next).await? {
                return Ok(false);
            }
        }
        worker.counters.operations.add(1);
        transaction.commit().await?;
        Ok(true)
    }
}

async fn update(
    client: &impl GenericClient,
    write: &Statement,
    resource: u32,
    read: State,
    next: State,
) -> anyhow::Result<bool> {
    let (id, version) = (as_int(resource)?, read.sequence.cast_signed());
    let hash = next.hash.cast_signed();
    Ok(client.execute(write, &[&id, &version, &hash]).await? == 1)
}
