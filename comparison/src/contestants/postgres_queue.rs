//! The queue in Postgres: the tasks are rows, and `SELECT … FOR UPDATE SKIP LOCKED` gives
//! every worker one that nobody works on
//! (<https://www.postgresql.org/docs/current/sql-select.html#SQL-FOR-UPDATE-SHARE>). To keep tasks of a resource
//! apart, what is locked is the *resource's* row. A second look, once it is locked, finds its
//! oldest task: the first one may have seen a task that has been executed meanwhile.
//!
//! The state is a row too, so task, state and lock change in one transaction: this contestant
//! executes every task exactly once, whatever happens to its workers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use super::postgres_advisory::connect;
use super::{About, Contestant, Fence};
use crate::clock::now_us;
use crate::plan::Plan;
use crate::servers::Server;
use crate::work::{Job, State};
use crate::worker::{Worker, started};

/// The queue in Postgres.
pub(super) struct PostgresQueue;

const ABOUT: About = About {
    name: "postgres-queue",
    pattern: "lock per task, centralized",
    on: "Postgres, its own queue, FOR UPDATE SKIP LOCKED on the resource",
    needs: &[Server::Postgres],
    exclusive: true,
    ordered: true,
    fence: Fence::Inherent("one transaction for lock, state and task"),
    stands_still: true,
    transfers_only: false,
    meshed: false,
};

/// Between two looks into a queue in which there was nothing to take: random, and longer than
/// for a lock, since a look goes past all tasks whose resource is taken.
fn pause() -> Duration {
    Duration::from_micros(fastrand::u64(2_000..20_000))
}

/// Tasks that are inserted with one commit: what is in flight over a connection that
/// confirms, for the others.
const BATCH: usize = 100;

#[async_trait]
impl Contestant for PostgresQueue {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    async fn prepare(&self, plan: &Plan) -> anyhow::Result<()> {
        let client = connect(plan.endpoints.postgres).await?;
        let tables = "DROP TABLE IF EXISTS task, resource;
             CREATE TABLE resource (id int PRIMARY KEY, sequence bigint NOT NULL, hash bigint NOT NULL);
             CREATE TABLE task (id int PRIMARY KEY, resource int NOT NULL, payload bytea NOT NULL);
             CREATE INDEX ON task (resource, id)";
        client.batch_execute(tables).await?;
        fill(&client, "resource", plan.resources).await
    }

    async fn publish(&self, plan: &Plan, jobs: &mut [Job]) -> anyhow::Result<()> {
        let mut client = connect(plan.endpoints.postgres).await?;
        let insert =
            client.prepare("INSERT INTO task (id, resource, payload) VALUES ($1, $2, $3)").await?;
        for batch in jobs.chunks_mut(BATCH) {
            let transaction = client.transaction().await?;
            for job in batch {
                job.published_us = now_us();
                let (number, resource) = (as_int(job.number)?, as_int(job.resource)?);
                transaction.execute(&insert, &[&number, &resource, &job.to_payload()]).await?;
            }
            transaction.commit().await?;
        }
        Ok(())
    }

    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()> {
        let mut slots = JoinSet::new();
        for _ in 0..worker.plan.slots {
            let mut slot = Slot::open(worker.plan.endpoints.postgres).await?;
            let worker = Arc::clone(&worker);
            slots.spawn(async move {
                // Since when it looks for a task in vain; not before its first one.
                let (mut vain, mut busy) = (None, false);
                while !worker.stop.is_cancelled() {
                    if slot.take(&worker).await? {
                        vain.take().into_iter().for_each(|since| worker.counters.waited(since));
                        busy = true;
                    } else {
                        vain = vain.or_else(|| busy.then(Instant::now));
                        tokio::time::sleep(pause()).await;
                    }
                }
                anyhow::Ok(())
            });
        }
        started()?;
        while let Some(ended) = slots.join_next().await {
            ended??;
        }
        Ok(())
    }

    async fn states(&self, plan: &Plan) -> anyhow::Result<Option<Vec<State>>> {
        let client = connect(plan.endpoints.postgres).await?;
        states(&client, "SELECT sequence, hash FROM resource ORDER BY id").await.map(Some)
    }

    async fn clean(&self, plan: &Plan) -> anyhow::Result<()> {
        let client = connect(plan.endpoints.postgres).await?;
        Ok(client.batch_execute("DROP TABLE task, resource").await?)
    }
}

pub(super) fn as_int(number: u32) -> anyhow::Result<i32> {
    i32::try_from(number).context("a number beyond Postgres' int")
}

/// Gives every resource a row with the first state.
pub(super) async fn fill(client: &Client, table: &str, resources: u32) -> anyhow::Result<()> {
    let rows =
        format!("INSERT INTO {table} SELECT n, 0, 0 FROM generate_series(0, {}) n", resources - 1);
    client.batch_execute(&rows).await?;
    // As a table that has been in use for a while: the planner knows it.
    Ok(client.batch_execute(&format!("ANALYZE {table}")).await?)
}

pub(super) async fn states(client: &Client, query: &str) -> anyhow::Result<Vec<State>> {
    Ok(client.query(query, &[]).await?.iter().map(|row| state_at(row, 0)).collect())
}

/// The state whose two columns start there.
pub(super) fn state_at(row: &Row, column: usize) -> State {
    let (sequence, hash): (i64, i64) = (row.get(column), row.get(column + 1));
    State { sequence: sequence.cast_unsigned(), hash: hash.cast_unsigned() }
}

struct Slot {
    client: Client,
    /// Locks the resource of the first task whose resource is free.
    pick: Statement,
    /// The oldest task of a resource that is locked.
    oldest: Statement,
    /// Locks one more resource, if it is free.
    also: Statement,
    write: Statement,
    done: Statement,
}

impl Slot {
    async fn open(port: u16) -> anyhow::Result<Self> {
        let client = connect(port).await?;
        // The tables are small when the statements are planned, and without statistics: no
        // sort of the whole queue for one task.
        client.batch_execute("SET enable_sort = off; SET enable_hashjoin = off").await?;
        let pick =
            "SELECT r.id, r.sequence, r.hash FROM task t JOIN resource r ON r.id = t.resource
                    ORDER BY t.id LIMIT 1 FOR UPDATE OF r SKIP LOCKED";
        let oldest = "SELECT payload FROM task WHERE resource = $1 ORDER BY id LIMIT 1";
        let also = "SELECT id, sequence, hash FROM resource WHERE id = $1 FOR UPDATE SKIP LOCKED";
        let write = "UPDATE resource SET sequence = $2, hash = $3 WHERE id = $1";
        Ok(Self {
            pick: client.prepare(pick).await?,
            oldest: client.prepare(oldest).await?,
            also: client.prepare(also).await?,
            write: client.prepare(write).await?,
            done: client.prepare("DELETE FROM task WHERE id = $1").await?,
            client,
        })
    }

    /// Executes a task, if there is one that can be taken.
    async fn take(&mut self, worker: &Worker) -> anyhow::Result<bool> {
        let transaction = self.client.transaction().await?;
        worker.counters.operations.add(1);
        let Some(picked) = transaction.query_opt(&self.pick, &[]).await? else {
            worker.counters.tries.add(1);
            return Ok(false);
        };
        let resource: i32 = picked.get(0);
        worker.counters.operations.add(1);
        let Some(task) = transaction.query_opt(&self.oldest, &[&resource]).await? else {
            worker.counters.tries.add(1);
            return Ok(false);
        };
        let job = Job::from_payload(task.get(0)).context("not one of our tasks")?;
        let mut touched = vec![(resource, state_at(&picked, 1))];
        if let Some(other) = job.other {
            let other = as_int(other)?;
            worker.counters.operations.add(1);
            let Some(row) = transaction.query_opt(&self.also, &[&other]).await? else {
                worker.counters.tries.add(1);
                return Ok(false);
            };
            touched.push((other, state_at(&row, 1)));
        }
        let start_us = now_us();
        worker.dwell(&job).await?;
        for (resource, state) in touched {
            let next = state.after(job.number);
            let (sequence, hash) = (next.sequence.cast_signed(), next.hash.cast_signed());
            let values: [&(dyn ToSql + Sync); 3] = [&resource, &sequence, &hash];
            transaction.execute(&self.write, &values).await?;
        }
        transaction.execute(&self.done, &[&as_int(job.number)?]).await?;
        worker.counters.operations.add(1);
        transaction.commit().await?;
        worker.tell_executed(&job, start_us)?;
        Ok(true)
    }
}
