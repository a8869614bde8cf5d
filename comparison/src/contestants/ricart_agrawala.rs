//! Decentralized and without a leader: Ricart & Agrawala, "An Optimal Algorithm for Mutual
//! Exclusion in Computer Networks" (1981), among the workers themselves, with Lamport's
//! logical clocks ("Time, Clocks, and the Ordering of Events in a Distributed System", 1978).
//! Who wants a resource asks all the others, and waits for the answer of each; who holds it,
//! or has asked earlier, answers later. 2 (N − 1) messages a task, and no server at all.
//!
//! The paper's answer to a failed node is to take it for one that answers. A closed
//! connection is that here, which is sound on one machine only: across a network, nobody can
//! tell a dead peer from a slow one. A *paused* peer answers nobody.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use async_trait::async_trait;
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::lock_per_task::{self, Acquired, Held, Lock, Order};
use super::{About, Contestant, Fence};
use crate::worker::{Incoming, Worker};

/// The algorithm.
pub(super) struct RicartAgrawala;

const ABOUT: About = About {
    name: "ricart-agrawala",
    pattern: "lock per task, decentralized",
    on: "the workers themselves, Lamport clocks, TCP",
    needs: &[],
    exclusive: true,
    ordered: false,
    fence: Fence::None,
    stands_still: true,
    transfers_only: false,
    meshed: true,
};

#[async_trait]
impl Contestant for RicartAgrawala {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()> {
        let node = Arc::new(Node::new(Arc::clone(&worker)));
        let mut incoming = worker.mesh.incoming()?;
        let answering = tokio::spawn({
            let node = Arc::clone(&node);
            async move {
                while let Some(message) = incoming.recv().await {
                    node.receive(message);
                }
            }
        });
        let slot = || -> Box<dyn Lock> {
            Box::new(Slot { node: Arc::clone(&node), local: Mutex::default() })
        };
        let slots = (0..worker.plan.slots).map(|_| slot()).collect();
        lock_per_task::run(Arc::clone(&worker), slots, Order::Global).await?;
        answering.abort();
        Ok(())
    }
}

/// A message: a request with its time, or a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Request { resource: u32, time: u64 },
    Reply { resource: u32 },
}

impl Said {
    fn to_bytes(self) -> Vec<u8> {
        let (kind, resource, time) = match self {
            Self::Request { resource, time } => (0, resource, time),
            Self::Reply { resource } => (1, resource, 0),
        };
        let mut bytes = vec![kind];
        bytes.extend(resource.to_le_bytes());
        bytes.extend(time.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let resource = u32::from_le_bytes(bytes.get(1..5)?.try_into().ok()?);
        let time = u64::from_le_bytes(bytes.get(5..13)?.try_into().ok()?);
        match bytes.first()? {
            0 => Some(Self::Request { resource, time }),
            1 => Some(Self::Reply { resource }),
            _ => None,
        }
    }
}

/// One process of the algorithm: a worker. Its slots take turns before they ask.
struct Node {
    worker: Arc<Worker>,
    state: Mutex<State>,
    turns: Mutex<HashMap<u32, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct State {
    /// The highest time seen.
    clock: u64,
    /// The peers that run.
    peers: BTreeSet<u32>,
    /// What this process wants or holds.
    claims: HashMap<u32, Claim>,
}

struct Claim {
    time: u64,
    /// Who has not answered yet. Empty: the resource is ours.
    missing: BTreeSet<u32>,
    /// Whom we answer when we are done.
    deferred: Vec<u32>,
    /// Told when nobody is missing any more.
    granted: Option<oneshot::Sender<()>>,
}

impl Claim {
    fn answered(&mut self, peer: u32) {
        let last = self.missing.remove(&peer) && self.missing.is_empty();
        if let Some(granted) = self.granted.take_if(|_| last) {
            // A slot that waits no more has ended with its worker.
            granted.send(()).ok();
        }
    }
}

impl Node {
    fn new(worker: Arc<Worker>) -> Self {
        let peers = worker.mesh.peers().into_iter().collect();
        let state = Mutex::new(State { peers, ..State::default() });
        Self { worker, state, turns: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, peer: u32, said: Said) {
        self.worker.counters.messages.add(1);
        self.worker.mesh.send(peer, said.to_bytes());
    }

    fn receive(&self, incoming: Incoming) {
        let own = self.worker.plan.worker;
        let mut state = self.state();
        match incoming {
            Incoming::Gone(peer) => {
                state.peers.remove(&peer);
                state.claims.values_mut().for_each(|claim| claim.answered(peer));
            }
            Incoming::Message(peer, bytes) => match Said::from_bytes(&bytes) {
                None => {}
                Some(Said::Reply { resource }) => {
                    if let Some(claim) = state.claims.get_mut(&resource) {
                        claim.answered(peer);
                    }
                }
                Some(Said::Request { resource, time }) => {
                    state.clock = state.clock.max(time);
                    match state.claims.get_mut(&resource) {
                        // Ours already, or asked for earlier: the number breaks the tie.
                        Some(claim)
                            if claim.missing.is_empty() || (claim.time, own) < (time, peer) =>
                        {
                            claim.deferred.push(peer);
                        }
                        _ => self.say(peer, Said::Reply { resource }),
                    }
                }
            },
        }
    }

    async fn claim(&self, resource: u32) -> anyhow::Result<()> {
        let (granted, answer) = oneshot::channel();
        {
            let mut state = self.state();
            state.clock += 1;
            let (time, missing) = (state.clock, state.peers.clone());
            if missing.is_empty() {
                granted.send(()).ok();
                let claim = Claim { time, missing, deferred: Vec::new(), granted: None };
                state.claims.insert(resource, claim);
            } else {
                let asked = missing.clone();
                let granted = Some(granted);
                state
                    .claims
                    .insert(resource, Claim { time, missing, deferred: Vec::new(), granted });
                for peer in asked {
                    self.say(peer, Said::Request { resource, time });
                }
            }
        }
        answer.await.context("the claim was dropped")
    }

    fn release(&self, resource: u32) {
        let claim = self.state().claims.remove(&resource);
        for peer in claim.map(|claim| claim.deferred).unwrap_or_default() {
            self.say(peer, Said::Reply { resource });
        }
    }
}

struct Slot {
    node: Arc<Node>,
    /// The turns that this slot has.
    local: Mutex<HashMap<u32, OwnedMutexGuard<()>>>,
}

impl Slot {
    fn local(&self) -> MutexGuard<'_, HashMap<u32, OwnedMutexGuard<()>>> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Lock for Slot {
    async fn acquire(&self, _: &Worker, resource: u32) -> anyhow::Result<Acquired> {
        let turns = {
            let mut turns = self.node.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(resource).or_default())
        };
        let turn = turns.lock_owned().await;
        self.node.claim(resource).await?;
        self.local().insert(resource, turn);
        Ok(Acquired::Held(Held { resource, fence: None, proof: String::new() }))
    }

    async fn release(&self, _: &Worker, held: Held) -> anyhow::Result<()> {
        self.node.release(held.resource);
        self.local().remove(&held.resource);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_survives_its_bytes() {
        for said in [Said::Request { resource: 1, time: 1 << 40 }, Said::Reply { resource: 2 }] {
            assert_eq!(Said::from_bytes(&said.to_bytes()), Some(said));
        }
        assert_eq!(Said::from_bytes(&[7; 13]), None);
    }
}
