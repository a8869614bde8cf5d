//! What may happen next.

use keylane::protocol::settlement::DeliveryTag;
use stateright::{Model, Property};

use super::broker::Channel;
use super::properties;
use super::scene::{Scene, WorkerNo};
use super::state::State;
use super::tenure::{Attempt, Stage, Tenure};

/// How an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Executed,
    Failed,
    Dead,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The next task is published.
    Publish,
    /// A worker consumes, and greets the fleet.
    Join(WorkerNo),
    /// A delivery reaches its worker.
    Arrive(WorkerNo),
    /// A worker has a slot for this partition.
    Start(WorkerNo),
    /// A worker gets its fencing token.
    Mint(WorkerNo),
    /// A handler writes to the store.
    Write(WorkerNo, DeliveryTag),
    /// A handler ends.
    Finish(WorkerNo, DeliveryTag, End),
    /// The wait before the next attempt is over.
    Retry(WorkerNo),
    /// A dead letter is confirmed.
    Bury(WorkerNo, DeliveryTag),
    /// Acks are sent.
    Flush(WorkerNo),
    /// An owner heeds a greeting.
    Outbid(WorkerNo),
    /// A worker is told to leave; it may come again.
    Drain(WorkerNo),
    /// Hand-over: the deputy consumes.
    OpenDeputy(WorkerNo),
    /// Hand-over: what has arrived is given back.
    GiveBack(WorkerNo),
    /// Hand-over: the deputy has got something, the owner closes its channel.
    CloseOwner(WorkerNo),
    /// Hand-over: the deputy closes its channel.
    CloseDeputy(WorkerNo),
    /// A worker dies. The broker sees the end of this channel first.
    Crash(WorkerNo, Channel),
    /// The broker loses a worker, which does not know.
    Cut(WorkerNo),
    /// A worker that was cut off finds out, and aborts its handlers.
    Notice(WorkerNo),
}

/// Lists the steps that are possible.
fn steps(scene: &Scene, state: &State) -> Vec<Step> {
    let mut steps = Vec::new();
    if state.published < scene.tasks.len() {
        steps.push(Step::Publish);
    }
    for (number, tenure) in state.workers.iter().enumerate() {
        let worker = WorkerNo(number);
        match tenure {
            None => steps.push(Step::Join(worker)),
            Some(tenure) => {
                work(scene, state, worker, tenure, &mut steps);
                part(scene, state, worker, tenure, &mut steps);
                fail(state, worker, tenure, &mut steps);
            }
        }
    }
    steps
}

/// What a worker does with its deliveries, whether the broker knows it or not.
fn work(scene: &Scene, state: &State, worker: WorkerNo, tenure: &Tenure, steps: &mut Vec<Step>) {
    let connected = state.is_connected(worker);
    if !tenure.wire.is_empty() {
        steps.push(Step::Arrive(worker));
    }
    if tenure.lanes.wants_slot() {
        steps.push(Step::Start(worker));
    }
    let mints = !scene.breaks.no_guard && (connected || scene.breaks.mint_elsewhere);
    if mints && tenure.token.is_none() && !tenure.held.is_empty() {
        steps.push(Step::Mint(worker));
    }
    for (tag, held) in &tenure.held {
        match held.attempt {
            Attempt::Running if tenure.token.is_some() || scene.breaks.no_guard => {
                steps.push(Step::Write(worker, *tag));
            }
            Attempt::Wrote => steps.push(Step::Finish(worker, *tag, End::Executed)),
            Attempt::Burying => steps.push(Step::Bury(worker, *tag)),
            Attempt::None | Attempt::Running | Attempt::Refused => {}
        }
        let fails = matches!(held.attempt, Attempt::Running | Attempt::Wrote);
        if fails && connected && state.budget.failures > 0 {
            steps.push(Step::Finish(worker, *tag, End::Failed));
            steps.push(Step::Finish(worker, *tag, End::Dead));
        }
    }
    if tenure.lanes.next_tick().is_some() {
        steps.push(Step::Retry(worker));
    }
    if tenure.lanes.pending_acks() > 0 {
        steps.push(Step::Flush(worker));
    }
}

/// How a worker gives the partition up.
fn part(scene: &Scene, state: &State, worker: WorkerNo, tenure: &Tenure, steps: &mut Vec<Step>) {
    let has_deputy = state.broker.is_open(Channel::Deputy(worker));
    match tenure.stage {
        Stage::Working if state.is_connected(worker) => {
            if tenure.outbid && tenure.lanes.unsettled() > 0 {
                steps.push(Step::Outbid(worker));
            }
            if state.budget.drains > 0 {
                steps.push(Step::Drain(worker));
            }
        }
        Stage::Working | Stage::Draining => {}
        Stage::HandingBack if !has_deputy && !scene.breaks.no_deputy => {
            steps.push(Step::OpenDeputy(worker))
        }
        Stage::HandingBack => {
            // Without a deputy, more may be sent meanwhile.
            let waits = !scene.breaks.no_wait && !scene.breaks.no_deputy;
            let waited = tenure.wire.is_empty() || !waits;
            if waited && !state.arrived(worker).is_empty() {
                steps.push(Step::GiveBack(worker));
            }
            let gave_all = state.broker.unsettled(Channel::Owner(worker)).next().is_none();
            if gave_all || scene.breaks.no_deputy && state.arrived(worker).is_empty() {
                steps.push(Step::CloseOwner(worker));
            }
        }
        Stage::Parting => steps.push(Step::CloseDeputy(worker)),
    }
}

/// What can go wrong.
fn fail(state: &State, worker: WorkerNo, tenure: &Tenure, steps: &mut Vec<Step>) {
    if state.budget.crashes > 0 {
        let [owner, deputy] = [Channel::Owner(worker), Channel::Deputy(worker)];
        let open = |channel| state.broker.is_open(channel);
        if open(owner) || open(deputy) {
            steps.push(Step::Crash(worker, owner));
        }
        if open(owner) && open(deputy) {
            steps.push(Step::Crash(worker, deputy));
        }
    }
    if matches!(tenure.stage, Stage::Working | Stage::Draining) {
        if !state.is_connected(worker) {
            steps.push(Step::Notice(worker));
        } else if state.budget.cuts > 0 && !tenure.held.is_empty() {
            // Without anything held, it would be a crash.
            steps.push(Step::Cut(worker));
        }
    }
}

impl Model for Scene {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        actions.extend(steps(self, state));
    }

    fn next_state(&self, last_state: &State, step: Step) -> Option<State> {
        let mut state = last_state.clone();
        state.apply(self, step)?;
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
