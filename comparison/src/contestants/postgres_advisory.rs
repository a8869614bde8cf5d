//! One lock per task in Postgres: session-level advisory locks, which belong to a connection
//! and end with it. They queue, and Postgres looks for deadlocks
//! (<https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS>).
//!
//! Two more contestants are made of them for tasks that need two locks at once (lock coupling:
//! Bayer & Schkolnick, "Concurrency of Operations on B-Trees", 1977): in the order in which
//! the task names its resources, which deadlocks, and in one order for all, which does not.

use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, Statement};

use super::lock_per_task::{self, Acquired, Held, Lock, Order};
use super::{About, Contestant, Fence};
use crate::servers::Server;
use crate::worker::Worker;

/// Advisory locks, used in three ways.
pub(super) enum PostgresAdvisory {
    /// A lock per task.
    PerTask,
    /// Two locks per transfer, as they come.
    ArrivalOrder,
    /// Two locks per transfer, the lower one first.
    GlobalOrder,
}

const PER_TASK: About = About {
    name: "postgres-advisory",
    pattern: "lock per task, centralized",
    on: "Postgres, session advisory locks",
    needs: &[Server::Postgres],
    exclusive: true,
    ordered: false,
    fence: Fence::None,
    stands_still: true,
    transfers_only: false,
    meshed: false,
};

const ARRIVAL_ORDER: About = About {
    name: "coupling-arrival",
    pattern: "lock coupling, arrival order",
    on: "Postgres, session advisory locks, its deadlock detector",
    transfers_only: true,
    ..PER_TASK
};

const GLOBAL_ORDER: About = About {
    name: "coupling-global",
    pattern: "lock coupling, global order",
    on: "Postgres, session advisory locks",
    transfers_only: true,
    ..PER_TASK
};

pub(super) async fn connect(port: u16) -> anyhow::Result<Client> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user("postgres").dbname("postgres");
    let (client, connection) = config.connect(NoTls).await.context("cannot reach Postgres")?;
    // Its error is that of the statement which waits for it.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

#[async_trait]
impl Contestant for PostgresAdvisory {
    fn about(&self) -> &'static About {
        match self {
            Self::PerTask => &PER_TASK,
            Self::ArrivalOrder => &ARRIVAL_ORDER,
            Self::GlobalOrder => &GLOBAL_ORDER,
        }
    }

    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()> {
        let order = match self {
            Self::PerTask | Self::GlobalOrder => Order::Global,
            Self::ArrivalOrder => Order::Arrival,
        };
        let mut slots: Vec<Box<dyn Lock>> = Vec::new();
        for _ in 0..worker.plan.slots {
            slots.push(Box::new(Slot::open(worker.plan.endpoints.postgres).await?));
        }
        lock_per_task::run(worker, slots, order).await
    }
}

/// The locks belong to a session, so every slot has one.
struct Slot {
    client: Client,
    lock: Statement,
    unlock: Statement,
}

impl Slot {
    async fn open(port: u16) -> anyhow::Result<Self> {
        let client = connect(port).await?;
        let lock = client.prepare("SELECT pg_advisory_lock($1)").await?;
        let unlock = client.prepare("SELECT pg_advisory_unlock($1)").await?;
        Ok(Self { client, lock, unlock })
    }
}

#[async_trait]
impl Lock for Slot {
    async fn acquire(&self, worker: &Worker, resource: u32) -> anyhow::Result<Acquired> {
        worker.counters.operations.add(1);
        match self.client.query_one(&self.lock, &[&i64::from(resource)]).await {
            Ok(_) => {
                let held = Held { resource, fence: None, proof: String::new() };
                Ok(Acquired::Held(held))
            }
            Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => {
                Ok(Acquired::Deadlock)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn release(&self, worker: &Worker, held: Held) -> anyhow::Result<()> {
        worker.counters.operations.add(1);
        self.client.query_one(&self.unlock, &[&i64::from(held.resource)]).await?;
        Ok(())
    }
}
