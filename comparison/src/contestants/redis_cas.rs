//! Lock-free: the state itself is in Redis, and a script replaces it only if it is still what
//! was read. Whoever comes too late does its work again. Somebody always gets on, which is
//! what lock-free means (Herlihy, "Wait-Free Synchronization", 1991); how often *you* get on
//! is another question.

use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, Script};

use super::optimistic::{self, Store};
use super::redis_lock::{connect, first_port};
use super::{About, Contestant, Fence, competing};
use crate::plan::Plan;
use crate::servers::Server;
use crate::work::State;
use crate::worker::Worker;

/// Compare-and-swap in Redis.
pub(super) struct RedisCas;

const ABOUT: About = About {
    name: "redis-cas",
    pattern: "lock-free",
    on: "Redis, compare-and-swap script",
    needs: &[Server::Redis],
    exclusive: false,
    ordered: false,
    fence: Fence::Inherent("the comparison itself"),
    stands_still: false,
    transfers_only: false,
    meshed: false,
};

/// Replaces all values, if each is still the one that was read. Keys; then all old values,
/// then all new ones.
const SWAP: &str = "\
for i = 1, #KEYS do \
  if (redis.call('GET', KEYS[i]) or '') ~= ARGV[i] then return 0 end \
end \
for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[#KEYS + i]) end \
return 1";

#[async_trait]
impl Contestant for RedisCas {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    async fn prepare(&self, plan: &Plan) -> anyhow::Result<()> {
        let () = redis::cmd("FLUSHALL").query_async(&mut connect(first_port(plan)).await?).await?;
        competing::prepare(plan).await
    }

    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()> {
        let connection = connect(first_port(&worker.plan)).await?;
        let slots = (0..worker.plan.slots).map(|_| Slot { connection: connection.clone() });
        let slots = slots.collect();
        optimistic::run(worker, slots).await
    }

    async fn states(&self, plan: &Plan) -> anyhow::Result<Option<Vec<State>>> {
        let mut connection = connect(first_port(plan)).await?;
        let mut states = Vec::new();
        for resource in 0..plan.resources {
            let text: Option<String> = connection.get(key(resource)).await?;
            states.push(parse(&text.unwrap_or_default())?);
        }
        Ok(Some(states))
    }
}

fn key(resource: u32) -> String {
    format!("state:{resource}")
}

fn parse(text: &str) -> anyhow::Result<State> {
    State::from_text(text).context("not a state of ours")
}

struct Slot {
    connection: MultiplexedConnection,
}

#[async_trait]
impl Store for Slot {
    type Read = Vec<State>;

    async fn read(&mut self, resources: &[u32]) -> anyhow::Result<Vec<State>> {
        let keys: Vec<String> = resources.iter().copied().map(key).collect();
        let texts: Vec<Option<String>> = self.connection.mget(keys).await?;
        texts.into_iter().map(|text| parse(&text.unwrap_or_default())).collect()
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
        let script = Script::new(SWAP);
        let mut call = script.prepare_invoke();
        resources.iter().for_each(|resource| {
            call.key(key(*resource));
        });
        for state in read {
            // The first state is not there yet.
            call.arg(if state.sequence == 0 { String::new() } else { state.to_text() });
        }
        next.iter().for_each(|state| {
            call.arg(state.to_text());
        });
        worker.counters.operations.add(1);
        let swapped: i64 = call.invoke_async(&mut self.connection).await?;
        Ok(swapped == 1)
    }
}
