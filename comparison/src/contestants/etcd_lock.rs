//! One lock per task by consensus: etcd's own lock service, on a lease that is kept alive
//! (<https://etcd.io/docs/v3.4/dev-guide/api_concurrency_reference_v3/>). The waiters queue in
//! the order of the revisions of their keys, and the revision is the fencing token.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::etcd::{Etcd, Session};
use super::lock_per_task::{self, Acquired, Held, Lock, Order};
use super::{About, Contestant, Fence, competing};
use crate::plan::Plan;
use crate::servers::Server;
use crate::worker::Worker;

/// The lock service of etcd.
pub(super) struct EtcdLock;

const ABOUT: About = About {
    name: "etcd-lock",
    pattern: "lock per task, consensus",
    on: "etcd (Raft), lease and lock service",
    needs: &[Server::Etcd],
    exclusive: true,
    ordered: false,
    fence: Fence::Token("the revision of the lock's key"),
    stands_still: false,
    transfers_only: false,
    meshed: false,
};

const PREFIX: &str = "lock/";

/// Until a lost lease is replaced by [`Session`], or a full queue at etcd has drained.
const AGAIN: Duration = Duration::from_millis(20);

#[async_trait]
impl Contestant for EtcdLock {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    async fn prepare(&self, plan: &Plan) -> anyhow::Result<()> {
        Etcd::connect(plan.endpoints.etcd).await?.delete_prefix(PREFIX).await?;
        competing::prepare(plan).await
    }

    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()> {
        let etcd = Etcd::connect(worker.plan.endpoints.etcd).await?;
        let mut slots: Vec<Box<dyn Lock>> = Vec::new();
        let mut sessions = Vec::new();
        for _ in 0..worker.plan.slots {
            // A lease for each slot: etcd takes two requests with one lease for the same.
            let session = Arc::new(Session::open(&worker, etcd.clone()).await?);
            slots.push(Box::new(Slot { session: Arc::clone(&session) }));
            sessions.push(session);
        }
        lock_per_task::run(Arc::clone(&worker), slots, Order::Global).await?;
        for session in sessions {
            session.close(&worker).await?;
        }
        Ok(())
    }
}

struct Slot {
    session: Arc<Session>,
}

#[async_trait]
impl Lock for Slot {
    async fn acquire(&self, worker: &Worker, resource: u32) -> anyhow::Result<Acquired> {
        loop {
            worker.counters.operations.add(1);
            let (lease, name) = (self.session.lease(), format!("{PREFIX}{resource}"));
            match self.session.etcd.lock(name, lease).await {
                Ok((key, _)) => {
                    // What etcd answers is the revision of that moment. The queue is ordered
                    // by the one at which the key was created, which is asked for.
                    let proof = String::from_utf8(key)?;
                    let mut fence = None;
                    if worker.plan.fenced {
                        worker.counters.operations.add(1);
                        let Some(there) = self.session.etcd.get(&proof).await? else { continue };
                        fence = Some(there.create_revision.unsigned_abs());
                    }
                    return Ok(Acquired::Held(Held { resource, fence, proof }));
                }
                // The lease, or its session on the server, was lost while we waited.
                Err(error) => {
                    let code = error.code();
                    let lost = matches!(
                        code,
                        tonic::Code::NotFound | tonic::Code::Unknown | tonic::Code::Unavailable
                    );
                    if !lost {
                        return Err(error.into());
                    }
                    worker.counters.tries.add(1);
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn release(&self, worker: &Worker, held: Held) -> anyhow::Result<()> {
        worker.counters.operations.add(1);
        Ok(self.session.etcd.unlock(held.proof.into_bytes()).await?)
    }
}
