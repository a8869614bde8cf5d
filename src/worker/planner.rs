//! The planner: the one member of the fleet that the broker has elected to say who should stand
//! where. What it says is advice: a planner that is frozen, cut off or wrong costs balance only.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::session::Session;
use crate::backoff::Backoff;
use crate::protocol::fleet::Fleet;
use crate::protocol::lanes::Millis;
use crate::protocol::partition::PartitionId;
use crate::protocol::plan::Plan;
use crate::rabbit::control::Said;
use crate::rabbit::error::Error;
use crate::rabbit::planner::{MemberMessage, PlannerQueue};

/// Members that come or go at about the same time are planned together.
const GATHERING: Duration = Duration::from_millis(30);

/// A planner that knows an earlier plan waits so long for the reports of its members; without one,
/// everybody waits for the first plan.
const ROLL_CALL: Duration = Duration::from_secs(1);
const FIRST_ROLL_CALL: Duration = Duration::from_millis(200);

/// Least time between two plans.
const PACE: Duration = Duration::from_millis(250);

/// Time between two looks at the loads, and at what has changed in silence.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOAD_LOOKS: u32 = 10;

/// All partitions are looked at once in so many looks: is anybody there?
const ROUND: usize = 30;

/// Stands in the line of planners until it is aborted.
pub(super) async fn stand_by<E>(session: Arc<Session<E>>, queue: PlannerQueue) {
    let namespace = session.shared.connect.namespace();
    let mut backoff = Backoff::new(None);
    let mut opened = Ok(queue);
    loop {
        let error = match opened {
            Ok(queue) => {
                let Err(error) = plan(&session, queue).await;
                error
            }
            Err(error) => error,
        };
        if error.is_retryable() {
            tracing::debug!(%error, "cannot stand by as a planner, trying again");
        } else {
            tracing::warn!(%error, "cannot stand by as a planner, trying again");
        }
        sleep(backoff.next().unwrap_or_default()).await;
        opened = PlannerQueue::open(&session.side, namespace).await;
    }
}

async fn plan<E>(session: &Session<E>, mut queue: PlannerQueue) -> Result<Infallible, Error> {
    // Until the first message comes, somebody else is the planner.
    let first = queue.next().await?;
    tracing::debug!(worker = %session.shared.options.id, "plans for the fleet");
    let mut planner = Planner::new(session);
    planner.note(first);
    queue.say(&Said::Call).await?;
    let roll_call = if planner.plan.is_some() { ROLL_CALL } else { FIRST_ROLL_CALL };
    let mut due = Some(Instant::now() + roll_call);
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.tick().await;
    loop {
        tokio::select! {
            message = queue.next() => {
                if planner.note(message?) && due.is_none() {
                    due = Some((Instant::now() + GATHERING).max(planner.planned + PACE));
                }
            }
            () = sleep_until(due.unwrap_or(planner.planned)), if due.is_some() => {
                due = None;
                planner.next_plan(&queue).await?;
            }
            _ = looks.tick() => {
                if planner.look(&queue).await? && due.is_none() {
                    due = Some(Instant::now());
                }
                planner.attend(&mut queue).await?;
            }
        }
    }
}

struct Planner<'a, E> {
    session: &'a Session<E>,
    fleet: Fleet,
    plan: Option<Arc<Plan>>,
    /// When the last one was made.
    planned: Instant,
    looks: u32,
    /// Where nobody was when it was last looked.
    deserted: BTreeSet<PartitionId>,
    next_look: usize,
}

impl<'a, E> Planner<'a, E> {
    fn new(session: &'a Session<E>) -> Self {
        let plan = session.line.plan();
        let now = Millis::since(session.shared.started.elapsed());
        Self {
            session,
            fleet: Fleet::of_plan(plan.as_deref(), session.topology.partitions().len(), now),
            plan,
            planned: Instant::now(),
            looks: 0,
            deserted: BTreeSet::new(),
            next_look: 0,
        }
    }

    fn now(&self) -> Millis {
        Millis::since(self.session.shared.started.elapsed())
    }

    /// Takes a message in, and tells whether a new plan is needed.
    fn note(&mut self, message: MemberMessage) -> bool {
        match message {
            MemberMessage::Report { worker, weight, plan, loads } => {
                for (partition, busy) in loads {
                    self.fleet.load(partition as usize, busy);
                }
                let now = self.now();
                self.fleet.report(worker, weight, plan, now)
            }
            MemberMessage::Goodbye { worker } => self.fleet.leave(&worker),
        }
    }

    /// Plans anew, and tells the members if that has changed anything.
    async fn next_plan(&mut self, queue: &PlannerQueue) -> Result<(), Error> {
        self.planned = Instant::now();
        let members = self.fleet.members();
        if members.is_empty() {
            return Ok(());
        }
        // Another planner may have been at work meanwhile.
        let heard = self.session.line.plan();
        let number = |plan: &Option<Arc<Plan>>| plan.as_ref().map(|plan| plan.number);
        if number(&heard) > number(&self.plan) {
            self.plan = heard;
        }
        let partitions = self.session.topology.partitions().len();
        // What was measured for a moment only is chance.
        let loads = if self.looks < LOAD_LOOKS { &[] } else { self.fleet.loads() };
        let next = Plan::next(self.plan.as_deref(), &members, partitions, loads);
        if number(&self.plan) != Some(next.number) {
            tracing::debug!(number = next.number, members = members.len(), "a new plan");
            let next = Arc::new(next);
            self.plan = Some(Arc::clone(&next));
            queue.say(&Said::Plan(next)).await?;
        }
        Ok(())
    }

    /// Looks at what changes in silence, and tells whether a new plan is needed.
    async fn look(&mut self, queue: &PlannerQueue) -> Result<bool, Error> {
        self.looks += 1;
        let gone = self.fleet.forget_silent(self.now());
        if !gone.is_empty() {
            tracing::info!(?gone, "members that have fallen silent");
            return Ok(true);
        }
        if self.looks.is_multiple_of(LOAD_LOOKS) {
            self.next_plan(queue).await?;
        } else if let Some(plan) = self.plan.clone().filter(|plan| self.fleet.is_behind(plan))
            && self.looks.is_multiple_of(2)
        {
            queue.say(&Said::Plan(plan)).await?;
        }
        Ok(false)
    }

    /// Looks whether anybody stands in the line of some partitions, and tells the members where
    /// nobody did twice.
    async fn attend(&mut self, queue: &mut PlannerQueue) -> Result<(), Error> {
        let Session { shared, topology, side, .. } = self.session;
        let partitions = topology.partitions().len();
        let fresh = (0..partitions.div_ceil(ROUND)).map(|_| {
            let number = self.next_look;
            self.next_look = (number + 1) % partitions;
            // A partition's number has 32 bits.
            PartitionId::new(number as u32)
        });
        let mut again = std::mem::take(&mut self.deserted);
        let looks: BTreeSet<_> = again.iter().copied().chain(fresh).collect();
        let mut unattended = Vec::new();
        for partition in looks {
            let name = shared.connect.namespace().partition(topology, partition);
            if !queue.is_unattended(side, &name).await? {
                continue;
            }
            self.deserted.insert(partition);
            if again.remove(&partition) {
                unattended.push(partition);
            }
        }
        if !unattended.is_empty() && self.plan.is_some() {
            tracing::warn!(partitions = ?unattended, "nobody stands in the line of partitions");
            queue.say(&Said::Unattended { partitions: unattended }).await?;
        }
        Ok(())
    }
}
