//! One lock per task in ZooKeeper, as its recipes have it
//! (<https://zookeeper.apache.org/doc/current/recipes.html#sc_recipes_Locks>): create an ephemeral sequential node,
//! and wait for the one before it to go. No herd, and whoever came first goes first. The lock
//! ends with the session of its holder.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use zookeeper_client::{Acls, Client, CreateMode, Error};

use super::lock_per_task::{self, Acquired, Held, Lock, Order};
use super::{About, Contestant, Fence, competing};
use crate::plan::Plan;
use crate::servers::Server;
use crate::worker::Worker;

/// The recipe.
pub(super) struct ZooKeeper;

const ABOUT: About = About {
    name: "zookeeper",
    pattern: "lock per task, centralized",
    on: "ZooKeeper, ephemeral sequential nodes",
    needs: &[Server::Zookeeper],
    exclusive: true,
    ordered: false,
    fence: Fence::Token("the transaction number of the lock's node"),
    transfers_only: false,
    meshed: false,
};

/// Until a lost connection is looked at again.
const AGAIN: Duration = Duration::from_millis(20);

async fn connect(plan: &Plan) -> anyhow::Result<Client> {
    let connector = Client::connector().with_session_timeout(plan.lease());
    let address = format!("127.0.0.1:{}", plan.endpoints.zookeeper);
    connector.connect(&address).await.context("cannot reach ZooKeeper")
}

fn folder(resource: u32) -> String {
    format!("/locks/{resource}")
}

#[async_trait]
impl Contestant for ZooKeeper {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    async fn prepare(&self, plan: &Plan) -> anyhow::Result<()> {
        let client = connect(plan).await?;
        let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
        match client.create("/locks", b"", &persistent).await {
            Ok(_) | Err(Error::NodeExists) => {}
            Err(error) => return Err(error.into()),
        }
        if client.list_children("/locks").await?.len() < plan.resources as usize {
            let mut created = JoinSet::new();
            for resource in 0..plan.resources {
                let client = client.clone();
                created.spawn(async move {
                    let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
                    client.create(&folder(resource), b"", &persistent).await
                });
            }
            while let Some(node) = created.join_next().await {
                match node? {
                    Ok(_) | Err(Error::NodeExists) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        competing::prepare(plan).await
    }

    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()> {
        let session = Arc::new(RwLock::new(connect(&worker.plan).await?));
        let slot = || -> Box<dyn Lock> { Box::new(Slot { session: Arc::clone(&session) }) };
        let slots = (0..worker.plan.slots).map(|_| slot()).collect();
        lock_per_task::run(worker, slots, Order::Global).await
    }
}

struct Slot {
    /// Of the worker. Another one, once it has expired.
    session: Arc<RwLock<Client>>,
}

#[async_trait]
impl Lock for Slot {
    async fn acquire(&self, worker: &Worker, resource: u32) -> anyhow::Result<Acquired> {
        loop {
            let client = self.session.read().await.clone();
            match queue_up(&client, worker, resource).await {
                Ok(held) => return Ok(Acquired::Held(held)),
                Err(error) if session_is_over(&error) => self.renew(worker).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn release(&self, worker: &Worker, held: Held) -> anyhow::Result<()> {
        worker.counters.operations.add(1);
        let client = self.session.read().await.clone();
        match client.delete(&held.proof, None).await {
            // With its session, the lock was lost.
            Ok(()) | Err(Error::NoNode) => Ok(()),
            Err(error) if session_is_over(&error) => self.renew(worker).await,
            Err(error) => Err(error.into()),
        }
    }
}

impl Slot {
    /// Opens another session, unless another slot has done so.
    async fn renew(&self, worker: &Worker) -> anyhow::Result<()> {
        let mut session = self.session.write().await;
        if session.state().is_terminated() {
            worker.counters.operations.add(1);
            // Whoever needs it tries again: a busy machine may take longer than the lease.
            if let Ok(another) = connect(&worker.plan).await {
                *session = another;
                return Ok(());
            }
        }
        tokio::time::sleep(AGAIN).await;
        Ok(())
    }
}

/// After a pause, the client may learn of the end of its session in any of these ways.
fn session_is_over(error: &Error) -> bool {
    matches!(
        error,
        Error::SessionExpired
            | Error::SessionMoved
            | Error::ConnectionLoss
            | Error::ClientClosed
            | Error::Timeout
            | Error::NoHosts
            // The server did not answer in time.
            | Error::Custom(_)
    )
}

/// Steps 1 to 6 of the recipe.
async fn queue_up(client: &Client, worker: &Worker, resource: u32) -> Result<Held, Error> {
    let folder = folder(resource);
    let ephemeral = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    worker.counters.operations.add(1);
    let (stat, sequence) = client.create(&format!("{folder}/n-"), b"", &ephemeral).await?;
    let own = format!("n-{sequence}");
    loop {
        worker.counters.operations.add(1);
        let mut nodes = client.list_children(&folder).await?;
        // Numbers of one width: their order is that of the names.
        nodes.sort_unstable();
        let place = nodes.iter().position(|node| *node == own).ok_or(Error::SessionExpired)?;
        let Some(before) = place.checked_sub(1).map(|place| &nodes[place]) else {
            let proof = format!("{folder}/{own}");
            return Ok(Held { resource, fence: Some(stat.czxid.unsigned_abs()), proof });
        };
        worker.counters.operations.add(1);
        worker.counters.tries.add(1);
        let watched = client.check_and_watch_stat(&format!("{folder}/{before}")).await?;
        let (still_there, watcher) = watched;
        if still_there.is_some() {
            drop(watcher.changed().await);
        }
    }
}
