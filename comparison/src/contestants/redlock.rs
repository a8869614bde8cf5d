//! One lock per task on five independent Redis processes: Redlock
//! (<https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/#the-redlock-algorithm>).
//! The lock is held if a majority gave it, and if less time has passed meanwhile than the
//! lease less the drift of the clocks. There is no leader, and there is no fencing token
//! either (Kleppmann, "How to do distributed locking", 2016): five counters that miss
//! messages of their own do not make one that only grows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::Script;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::lock_per_task::{self, Acquired, Held, Lock, Order};
use super::redis_lock::{RELEASE, connect, pause, proof};
use super::{About, Contestant, Fence, competing};
use crate::plan::Plan;
use crate::servers::Server;
use crate::worker::Worker;

/// Redlock.
pub(super) struct Redlock;

const ABOUT: About = About {
    name: "redlock",
    pattern: "lock per task, decentralized",
    on: "five independent Redis processes",
    needs: &[Server::Redis],
    exclusive: true,
    ordered: false,
    fence: Fence::None,
    stands_still: false,
    transfers_only: false,
    meshed: false,
};

/// An instance that does not answer in this time counts as one that refused. Small beside the
/// lease, as the algorithm asks for, and large beside a round trip on a busy machine.
const INSTANCE_TIMEOUT: Duration = Duration::from_millis(200);

#[async_trait]
impl Contestant for Redlock {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    async fn prepare(&self, plan: &Plan) -> anyhow::Result<()> {
        for port in &plan.endpoints.redis {
            let () = redis::cmd("FLUSHALL").query_async(&mut connect(*port).await?).await?;
        }
        competing::prepare(plan).await
    }

    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()> {
        let mut instances = Vec::new();
        for port in &worker.plan.endpoints.redis {
            instances.push(connect(*port).await?);
        }
        let slot = || -> Box<dyn Lock> { Box::new(Slot { instances: instances.clone() }) };
        let slots = (0..worker.plan.slots).map(|_| slot()).collect();
        lock_per_task::run(worker, slots, Order::Global).await
    }
}

struct Slot {
    instances: Vec<MultiplexedConnection>,
}

#[async_trait]
impl Lock for Slot {
    async fn acquire(&self, worker: &Worker, resource: u32) -> anyhow::Result<Acquired> {
        let (lease, proof) = (worker.plan.lease(), proof());
        // As the algorithm has it: a hundredth of the lease, and two milliseconds.
        let drift = lease / 100 + Duration::from_millis(2);
        loop {
            let began = Instant::now();
            let given = self.ask_all(worker, resource, &proof).await?;
            let in_time = began.elapsed() + drift < lease;
            let held = Held { resource, fence: None, proof: proof.clone() };
            if in_time && given > self.instances.len() / 2 {
                return Ok(Acquired::Held(held));
            }
            worker.counters.tries.add(1);
            // What a minority gave must not stay with us until the lease ends.
            self.release(worker, held).await?;
            tokio::time::sleep(pause()).await;
        }
    }

    async fn release(&self, worker: &Worker, held: Held) -> anyhow::Result<()> {
        worker.counters.operations.add(self.instances.len() as u64);
        let mut asked = JoinSet::new();
        for instance in &self.instances {
            let (mut instance, held) = (instance.clone(), held.clone());
            asked.spawn(async move {
                let script = Script::new(RELEASE);
                let mut call = script.key(format!("lock:{}", held.resource));
                call.arg(held.proof);
                // Refused or lost: the lease ends it.
                drop(timeout(INSTANCE_TIMEOUT, call.invoke_async::<i64>(&mut instance)).await);
            });
        }
        while let Some(answered) = asked.join_next().await {
            answered?;
        }
        Ok(())
    }
}

impl Slot {
    /// Asks all instances at once, and counts those that gave the lock.
    async fn ask_all(&self, worker: &Worker, resource: u32, proof: &str) -> anyhow::Result<usize> {
        worker.counters.operations.add(self.instances.len() as u64);
        let mut asked = JoinSet::new();
        for instance in &self.instances {
            let mut instance = instance.clone();
            let mut set = redis::cmd("SET");
            set.arg(format!("lock:{resource}")).arg(proof);
            set.arg("NX").arg("PX").arg(worker.plan.lease_ms);
            asked.spawn(async move {
                let answer = set.query_async::<Option<String>>(&mut instance);
                matches!(timeout(INSTANCE_TIMEOUT, answer).await, Ok(Ok(Some(_))))
            });
        }
        let mut given = 0;
        while let Some(answered) = asked.join_next().await {
            given += usize::from(answered?);
        }
        Ok(given)
    }
}
