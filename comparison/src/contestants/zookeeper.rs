//! One lock per task in ZooKeeper, as its recipes have it
//! (<https://zookeeper.apache.org/doc/current/recipes.html#sc_recipes_Locks>): create an ephemeral sequential node,
//! and wait for the one before it to go. No herd, and whoever came first goes first. The lock
//! ends with the session of its holder.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use zookeeper_client::{Acls, Client, CreateMode, Error, Stat};

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
    stands_still: false,
    transfers_only: false,
    meshed: false,
};

/// Until a lost connection is looked at again.
const AGAIN: Duration = Duration::from_millis(20);

/// The session that prepares a run holds nothing, so it may last as long as the server allows:
/// a client fails what is under way when no answer comes for two fifths of its session.
const PREPARING: Duration = Duration::from_secs(10);

/// A server that is there and still takes nobody for so long has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

async fn connect(plan: &Plan, session: Duration) -> anyhow::Result<Client> {
    let connector = Client::connector().with_session_timeout(session);
    let address = format!("127.0.0.1:{}", plan.endpoints.zookeeper);
    connector.connect(&address).await.context("cannot reach ZooKeeper")
}

/// Connects for the first time. A busy machine may take longer than a session lasts.
async fn connect_first(plan: &Plan, session: Duration) -> anyhow::Result<Client> {
    let since = Instant::now();
    loop {
        match connect(plan, session).await {
            Err(_) if since.elapsed() < CONNECT_TIMEOUT => tokio::time::sleep(AGAIN).await,
            connected => return connected,
        }
    }
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
        let client = connect_first(plan, PREPARING).await?;
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
        let session = connect_first(&worker.plan, worker.plan.lease()).await?;
        let session = Arc::new(RwLock::new(session));
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
        // Whoever does not hear of its node looks for it, or it would queue up behind itself.
        let (mark, mut tried) = (fastrand::u64(..), false);
        loop {
            let client = self.session.read().await.clone();
            match queue_up(&client, worker, resource, mark, tried).await {
                Ok(held) => return Ok(Acquired::Held(held)),
                Err(error) if may_go_on(&error) => self.renew(worker).await?,
                Err(error) => return Err(error.into()),
            }
            tried = true;
        }
    }

    async fn release(&self, worker: &Worker, held: Held) -> anyhow::Result<()> {
        loop {
            worker.counters.operations.add(1);
            let client = self.session.read().await.clone();
            match client.delete(&held.proof, None).await {
                // With its session, the lock was lost; or an earlier try was heard.
                Ok(()) | Err(Error::NoNode) => return Ok(()),
                // The session may live on, and its node with it.
                Err(error) if may_go_on(&error) => self.renew(worker).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Slot {
    /// Opens another session if this one is over, unless another slot has done so.
    async fn renew(&self, worker: &Worker) -> anyhow::Result<()> {
        let mut session = self.session.write().await;
        if session.state().is_terminated() {
            worker.counters.operations.add(1);
            // Whoever needs it tries again: a busy machine may take longer than the lease.
            if let Ok(another) = connect(&worker.plan, worker.plan.lease()).await {
                *session = another;
                return Ok(());
            }
        }
        tokio::time::sleep(AGAIN).await;
        Ok(())
    }
}

/// After a pause, the client may learn of the end of its session in any of these ways. After
/// some of them the session lives on, and nobody knows whether the request was heard.
fn may_go_on(error: &Error) -> bool {
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

/// Steps 1 to 6 of the recipe. `mark` tells the node of this request from all others; `tried`:
/// it may be there already.
async fn queue_up(
    client: &Client,
    worker: &Worker,
    resource: u32,
    mark: u64,
    tried: bool,
) -> Result<Held, Error> {
    let folder = folder(resource);
    // The node of a session that is over is not ours any more.
    let prefix = format!("n-{}-{mark:016x}-", client.session_id());
    let found = if tried { find(client, worker, &folder, &prefix).await? } else { None };
    let (stat, own) = match found {
        Some(found) => found,
        None => {
            let ephemeral = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
            worker.counters.operations.add(1);
            let path = format!("{folder}/{prefix}");
            let (stat, sequence) = client.create(&path, b"", &ephemeral).await?;
            (stat, format!("{prefix}{sequence}"))
        }
    };
    loop {
        worker.counters.operations.add(1);
        let mut nodes = client.list_children(&folder).await?;
        // Numbers of one width: their order is that of the text.
        nodes.sort_unstable_by(|a, b| number(a).cmp(number(b)));
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

/// The number that ZooKeeper gave a node, at the end of its name.
fn number(node: &str) -> &str {
    node.rsplit('-').next().unwrap_or_default()
}

/// The node of an earlier try.
async fn find(
    client: &Client,
    worker: &Worker,
    folder: &str,
    prefix: &str,
) -> Result<Option<(Stat, String)>, Error> {
    worker.counters.operations.add(1);
    let nodes = client.list_children(folder).await?;
    let Some(own) = nodes.into_iter().find(|node| node.starts_with(prefix)) else {
        return Ok(None);
    };
    worker.counters.operations.add(1);
    let stat = client.check_stat(&format!("{folder}/{own}")).await?;
    Ok(stat.map(|stat| (stat, own)))
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn who_came_first_is_the_number_at_the_end() {
        let mut nodes = ["n-1f-ff-0000000010", "n-2a-00-0000000002", "n-00-aa-0000000011"];
        nodes.sort_unstable_by(|a, b| number(a).cmp(number(b)));
        assert_eq!(nodes.map(number), ["0000000002", "0000000010", "0000000011"]);
    }
}
