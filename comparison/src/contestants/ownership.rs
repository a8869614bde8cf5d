//! Ownership per resource: a worker claims a resource with the first task of it that it gets,
//! and keeps it for as long as it lives; the others send it their tasks of that resource. What
//! actor systems with a directory do (Bykov et al., "Orleans: Cloud Computing for Everyone", 2011),
//! with the directory in etcd: a key per resource, under the lease of its owner.
//!
//! One decision per resource and worker's life, not per task. What it needs instead is
//! routing: here, whoever got a task from the queue calls the owner and waits for its answer.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::competing::Deliveries;
use super::etcd::{Compare, Etcd, Outcome, PutRequest, Session};
use super::{About, Contestant, Fence, competing};
use crate::plan::Plan;
use crate::servers::Server;
use crate::work::{Guard, Job};
use crate::worker::{Executed, Incoming, Worker, started};

/// Ownership per resource.
pub(super) struct Ownership;

const ABOUT: About = About {
    name: "ownership",
    pattern: "ownership per resource",
    on: "etcd (Raft), a claim per resource, tasks are sent to the owner",
    needs: &[Server::Etcd],
    exclusive: true,
    ordered: false,
    fence: Fence::Token("the revision of the claim"),
    stands_still: false,
    transfers_only: false,
    meshed: true,
};

const PREFIX: &str = "owner/";

/// Until the claim of a worker that has gone is looked at again.
const AGAIN: Duration = Duration::from_millis(50);

/// Tasks that a worker has in hand for each slot: those that wait for their owner's answer
/// occupy no slot there.
const IN_HAND: u32 = 8;

#[async_trait]
impl Contestant for Ownership {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    async fn prepare(&self, plan: &Plan) -> anyhow::Result<()> {
        Etcd::connect(plan.endpoints.etcd).await?.delete_prefix(PREFIX).await?;
        competing::prepare(plan).await
    }

    async fn work(&self, worker: Arc<Worker>) -> anyhow::Result<()> {
        let etcd = Etcd::connect(worker.plan.endpoints.etcd).await?;
        let session = Session::open(&worker, etcd).await?;
        let mut incoming = worker.mesh.incoming()?;
        let owner = Owner::new(Arc::clone(&worker), session);
        let answering = tokio::spawn({
            let owner = Arc::clone(&owner);
            async move {
                while let Some(message) = incoming.recv().await {
                    owner.receive(message);
                }
            }
        });
        let deliveries = Arc::new(Deliveries::consume(&worker, worker.plan.slots * IN_HAND).await?);
        started()?;
        let mut running: JoinSet<anyhow::Result<()>> = JoinSet::new();
        while let Some(taken) = deliveries.next().await? {
            let (owner, deliveries) = (Arc::clone(&owner), Arc::clone(&deliveries));
            running.spawn(async move {
                owner.see_to(&taken.job).await?;
                deliveries.ack(taken).await
            });
            while let Some(ended) = running.try_join_next() {
                ended??;
            }
        }
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        answering.abort();
        owner.session.close(&worker).await?;
        if let Some(deliveries) = Arc::into_inner(deliveries) {
            deliveries.close().await?;
        }
        Ok(())
    }
}

/// Who owns a resource, as far as this worker knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    owner: u32,
    /// The revision at which the claim was made.
    revision: u64,
    /// The lease of this worker when it learned that: with another one, it knows nothing.
    lease: i64,
}

/// A request to the owner, or its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    /// Numbered by the caller.
    number: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Execute this leg; it touches the job's resource.
    Execute {
        job: Job,
        last: bool,
    },
    Executed,
    /// It does not own the resource.
    NotMine,
}

impl Call {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.number.to_le_bytes().to_vec();
        match self.kind {
            Kind::Execute { job, last } => {
                bytes.extend([0, u8::from(last)]);
                bytes.extend(job.to_payload());
            }
            Kind::Executed => bytes.push(1),
            Kind::NotMine => bytes.push(2),
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        let kind = match bytes.get(8)? {
            0 => Kind::Execute { last: *bytes.get(9)? != 0, job: Job::from_payload(&bytes[10..])? },
            1 => Kind::Executed,
            2 => Kind::NotMine,
            _ => return None,
        };
        Some(Self { number, kind })
    }
}

/// Turns on each resource; fair.
type Turns = Mutex<HashMap<u32, Arc<tokio::sync::Mutex<()>>>>;

struct Owner {
    worker: Arc<Worker>,
    session: Session,
    slots: tokio::sync::Semaphore,
    claims: Mutex<HashMap<u32, Claim>>,
    /// Of executing.
    lanes: Turns,
    /// Of claiming, so that one asks and all know.
    doors: Turns,
    /// Calls that wait for their answer, with whom they were made to.
    calls: Mutex<HashMap<u64, (u32, oneshot::Sender<Kind>)>>,
    numbers: AtomicU64,
    /// The workers that have ended.
    gone: Mutex<BTreeSet<u32>>,
    /// Hands calls of others to tasks of their own.
    this: std::sync::Weak<Self>,
}

impl Owner {
    fn new(worker: Arc<Worker>, session: Session) -> Arc<Self> {
        let slots = tokio::sync::Semaphore::new(worker.plan.slots as usize);
        Arc::new_cyclic(|this| Self {
            worker,
            session,
            slots,
            claims: Mutex::default(),
            lanes: Mutex::default(),
            doors: Mutex::default(),
            gone: Mutex::default(),
            calls: Mutex::default(),
            numbers: AtomicU64::new(0),
            this: this.clone(),
        })
    }

    /// Has a task executed, wherever: leg by leg, if it touches two resources.
    async fn see_to(&self, job: &Job) -> anyhow::Result<()> {
        let touches = job.touches();
        for (place, resource) in touches.iter().enumerate() {
            let leg = Job { resource: *resource, other: None, ..*job };
            self.leg(leg, place + 1 == touches.len()).await?;
        }
        Ok(())
    }

    async fn leg(&self, job: Job, last: bool) -> anyhow::Result<()> {
        loop {
            let claim = self.claim(job.resource).await?;
            let executed = if claim.owner == self.worker.plan.worker {
                self.execute(&job, last, claim).await? == Executed::Done
            } else {
                self.call(&job, last, claim).await?
            };
            if executed {
                return Ok(());
            }
            lock(&self.claims).remove(&job.resource);
        }
    }

    async fn execute(&self, job: &Job, last: bool, claim: Claim) -> anyhow::Result<Executed> {
        let _turn = turn(&self.lanes, job.resource).await;
        let _slot = self.slots.acquire().await?;
        let touched = [(job.resource, Guard::Token(claim.revision))];
        self.worker.execute(job, &touched, last).await
    }

    /// Who owns a resource; this worker, if nobody else does.
    async fn claim(&self, resource: u32) -> anyhow::Result<Claim> {
        let _turn = turn(&self.doors, resource).await;
        if let Some(known) = self.known(resource) {
            return Ok(known);
        }
        let began = Instant::now();
        let claim = self.claim_at_etcd(resource).await?;
        self.worker.counters.waited(began);
        lock(&self.claims).insert(resource, claim);
        Ok(claim)
    }

    fn known(&self, resource: u32) -> Option<Claim> {
        let known = lock(&self.claims).get(&resource).copied()?;
        (known.lease == self.session.lease()).then_some(known)
    }

    async fn claim_at_etcd(&self, resource: u32) -> anyhow::Result<Claim> {
        let (key, lease) = (format!("{PREFIX}{resource}").into_bytes(), self.session.lease());
        let own = self.worker.plan.worker;
        loop {
            let value = own.to_string().into_bytes();
            let (compare, put) = (
                Compare::created_at(key.clone(), 0),
                PutRequest { key: key.clone(), value, lease },
            );
            self.worker.counters.operations.add(1);
            match self.session.etcd.write_if(vec![compare], vec![put]).await? {
                Outcome::Written(revision) => {
                    return Ok(Claim { owner: own, revision: revision.unsigned_abs(), lease });
                }
                Outcome::Found(found) => {
                    // Gone again, between the comparison and the read? They are one step.
                    let there = found.first().context("a claim that is not there")?;
                    let owner = std::str::from_utf8(&there.value)?.parse()?;
                    let revision = there.create_revision.unsigned_abs();
                    if !lock(&self.gone).contains(&owner) {
                        return Ok(Claim { owner, revision, lease });
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Has the owner execute it. False: it is not the owner any more.
    async fn call(&self, job: &Job, last: bool, claim: Claim) -> anyhow::Result<bool> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (sender, mut answer) = oneshot::channel();
        lock(&self.calls).insert(number, (claim.owner, sender));
        let kind = Kind::Execute { job: *job, last };
        self.say(claim.owner, Call { number, kind });
        loop {
            match tokio::time::timeout(self.worker.plan.lease(), &mut answer).await {
                Ok(answer) => return Ok(answer.context("a call was forgotten")? == Kind::Executed),
                // Slow, paused, or no owner any more: the directory knows.
                Err(_) if self.claim_at_etcd(job.resource).await? == claim => {}
                Err(_) => return Ok(false),
            }
        }
    }

    fn say(&self, peer: u32, call: Call) {
        self.worker.counters.messages.add(1);
        self.worker.mesh.send(peer, call.to_bytes());
    }

    fn receive(&self, incoming: Incoming) {
        match incoming {
            Incoming::Gone(peer) => {
                lock(&self.gone).insert(peer);
                lock(&self.claims).retain(|_, claim| claim.owner != peer);
                let mut calls = lock(&self.calls);
                for (_, (_, sender)) in calls.extract_if(|_, (owner, _)| *owner == peer) {
                    // Who waits no more has ended with this worker.
                    sender.send(Kind::NotMine).ok();
                }
            }
            Incoming::Message(peer, bytes) => match Call::from_bytes(&bytes) {
                None => {}
                Some(Call { number, kind: Kind::Execute { job, last } }) => {
                    let Some(this) = self.this.upgrade() else { return };
                    tokio::spawn(async move { this.answer(peer, number, job, last).await });
                }
                Some(Call { number, kind }) => {
                    if let Some((_, sender)) = lock(&self.calls).remove(&number) {
                        sender.send(kind).ok();
                    }
                }
            },
        }
    }

    /// Executes what another worker asks for, if the resource is ours.
    async fn answer(&self, peer: u32, number: u64, job: Job, last: bool) {
        let own = self.worker.plan.worker;
        let kind = match self.claim(job.resource).await {
            Ok(claim) if claim.owner == own => match self.execute(&job, last, claim).await {
                Ok(Executed::Done) => Kind::Executed,
                Ok(Executed::Refused) | Err(_) => {
                    lock(&self.claims).remove(&job.resource);
                    Kind::NotMine
                }
            },
            Ok(_) | Err(_) => Kind::NotMine,
        };
        self.say(peer, Call { number, kind });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn turn(turns: &Turns, resource: u32) -> tokio::sync::OwnedMutexGuard<()> {
    let turn = Arc::clone(lock(turns).entry(resource).or_default());
    turn.lock_owned().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_survives_its_bytes() {
        let job = Job { number: 1, resource: 2, other: None, trap: true, published_us: 3 };
        for kind in [Kind::Execute { job, last: true }, Kind::Executed, Kind::NotMine] {
            let call = Call { number: 1 << 40, kind };
            assert_eq!(Call::from_bytes(&call.to_bytes()), Some(call));
        }
        assert_eq!(Call::from_bytes(b"short"), None);
    }
}
