//! One lock per task on one Redis: `SET key proof NX PX lease`, and a release that checks the
//! proof, as Redis documents it for a single instance (<https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/>).
//! Who finds it taken tries again after a random while: the protocol has no queue.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Script};

use super::lock_per_task::{self, Acquired, Held, Lock, Order};
use super::{About, Contestant, Fence, competing};
use crate::plan::Plan;
use crate::servers::Server;
use crate::worker::Worker;

/// The lock of a single Redis.
pub(super) struct RedisLock;

const ABOUT: About = About {
    name: "redis-lock",
    pattern: "lock per task, centralized",
    on: "Redis, SET NX PX, token-checked release",
    needs: &[Server::Redis],
    exclusive: true,
    ordered: false,
    fence: Fence::Token("a counter beside the lock, raised in the same script"),
    stands_still: false,
    transfers_only: false,
    meshed: false,
};

/// Between two tries. Random, so that those who wait do not come at once again and again.
pub(super) fn pause() -> Duration {
    Duration::from_micros(fastrand::u64(500..5_000))
}

/// Deletes the lock only if it is still ours: it may have expired, and be another's now.
pub(super) const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// Takes the lock, and raises the fencing counter of its resource in the same step. Gives the
/// counter, or 0 if the lock is taken.
const ACQUIRE: &str = "if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then \
                       return redis.call('INCR', KEYS[2]) end return 0";

pub(super) async fn connect(port: u16) -> anyhow::Result<MultiplexedConnection> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/"))?;
    // The client's own limit is 500 ms, after which a worker that was paused would find itself
    // in an error instead of in its handler.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

/// A proof that nobody else has.
pub(super) fn proof() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

pub(super) fn first_port(plan: &Plan) -> u16 {
    plan.endpoints.redis.first().copied().unwrap_or_default()
}

#[async_trait]
impl Contestant for RedisLock {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    async fn prepare(&self, plan: &Plan) -> anyhow::Result<()> {
        let () = redis::cmd("FLUSHALL").query_async(&mut connect(first_port(plan)).await?).await?;
        competing::prepare(plan).await
    }

    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()> {
        let connection = connect(first_port(&worker.plan)).await?;
        let slot = || -> Box<dyn Lock> { Box::new(Slot { connection: connection.clone() }) };
        let slots = (0..worker.plan.slots).map(|_| slot()).collect();
        lock_per_task::run(worker, slots, Order::Global).await
    }
}

struct Slot {
    connection: MultiplexedConnection,
}

#[async_trait]
impl Lock for Slot {
    async fn acquire(&self, worker: &Worker, resource: u32) -> anyhow::Result<Acquired> {
        let (script, proof) = (Script::new(ACQUIRE), proof());
        let mut connection = self.connection.clone();
        loop {
            let mut call = script.key(format!("lock:{resource}"));
            call.key(format!("fence:{resource}")).arg(&proof).arg(worker.plan.lease_ms);
            worker.counters.operations.add(1);
            let fence: u64 = call.invoke_async(&mut connection).await?;
            if fence > 0 {
                return Ok(Acquired::Held(Held { resource, fence: Some(fence), proof }));
            }
            worker.counters.tries.add(1);
            tokio::time::sleep(pause()).await;
        }
    }

    async fn release(&self, worker: &Worker, held: Held) -> anyhow::Result<()> {
        worker.counters.operations.add(1);
        let script = Script::new(RELEASE);
        let mut call = script.key(format!("lock:{}", held.resource));
        let _: i64 = call.arg(held.proof).invoke_async(&mut self.connection.clone()).await?;
        Ok(())
    }
}
