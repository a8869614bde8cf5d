//! Optimistic in etcd: a transaction that writes if the keys are still at the revision at
//! which they were read.

use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;

use super::etcd::{Compare, Etcd, Outcome, PutRequest};
use super::optimistic::{self, Store};
use super::{About, Contestant, Fence, competing};
use crate::plan::Plan;
use crate::servers::Server;
use crate::work::State;
use crate::worker::Worker;

/// Conditional writes in etcd.
pub(super) struct EtcdOptimistic;

const ABOUT: About = About {
    name: "etcd-optimistic",
    pattern: "optimistic",
    on: "etcd (Raft), conditional writes",
    needs: &[Server::Etcd],
    exclusive: false,
    ordered: false,
    fence: Fence::Inherent("the revision check itself"),
    stands_still: false,
    transfers_only: false,
    meshed: false,
};

const PREFIX: &str = "state/";

fn key(resource: u32) -> String {
    format!("{PREFIX}{resource}")
}

fn parse(value: &[u8]) -> anyhow::Result<State> {
    State::from_text(std::str::from_utf8(value)?).context("not a state of ours")
}

#[async_trait]
impl Contestant for EtcdOptimistic {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    async fn prepare(&self, plan: &Plan) -> anyhow::Result<()> {
        Etcd::connect(plan.endpoints.etcd).await?.delete_prefix(PREFIX).await?;
        competing::prepare(plan).await
    }

    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()> {
        let etcd = Etcd::connect(worker.plan.endpoints.etcd).await?;
        let slots = (0..worker.plan.slots).map(|_| Slot(etcd.clone())).collect();
        optimistic::run(worker, slots).await
    }

    async fn states(&self, plan: &Plan) -> anyhow::Result<Option<Vec<State>>> {
        let mut states = vec![State::default(); plan.resources as usize];
        let etcd = Etcd::connect(plan.endpoints.etcd).await?;
        for there in etcd.with_prefix(PREFIX).await? {
            let number =
                std::str::from_utf8(&there.key)?.trim_start_matches(PREFIX).parse::<usize>();
            let state = states.get_mut(number?).context("a resource that there is not")?;
            *state = parse(&there.value)?;
        }
        Ok(Some(states))
    }
}

struct Slot(Etcd);

#[async_trait]
impl Store for Slot {
    /// With the revision of each; 0 if it is not there yet.
    type Read = Vec<(State, i64)>;

    async fn read(&mut self, resources: &[u32]) -> anyhow::Result<Self::Read> {
        let mut states = Vec::with_capacity(resources.len());
        for resource in resources {
            states.push(match self.0.get(&key(*resource)).await? {
                Some(there) => (parse(&there.value)?, there.mod_revision),
                None => (State::default(), 0),
            });
        }
        Ok(states)
    }

    fn next(read: &Self::Read, number: u32) -> Vec<State> {
        read.iter().map(|(state, _)| state.after(number)).collect()
    }

    async fn swap(
        &mut self,
        worker: &Worker,
        resources: &[u32],
        read: &Self::Read,
        next: &[State],
    ) -> anyhow::Result<bool> {
        let keys = || resources.iter().map(|resource| key(*resource).into_bytes());
        let compare = keys().zip(read).map(|(key, (_, at))| Compare::changed_at(key, *at));
        let writes = keys().zip(next).map(|(key, state)| {
            let value = state.to_text().into_bytes();
            PutRequest { key, value, lease: 0 }
        });
        worker.counters.operations.add(1);
        let outcome = self.0.write_if(compare.collect(), writes.collect()).await?;
        Ok(matches!(outcome, Outcome::Written(_)))
    }
}
