//! The steps, and the states in which each is possible.

use keylane::protocol::settlement::DeliveryTag;
use stateright::{Model, Property};

use super::consumer::ConsumerKey;
use super::properties;
use super::scene::{Scene, WorkerNo};
use super::state::State;
use super::tenure::{Attempt, Link, Tenure};

/// The end of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Executed,
    Failed,
    Dead,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "the design's word for what a worker does")]
pub(crate) enum Step {
    /// The next task is published.
    Publish,
    /// A worker consumes: it joins, or comes back.
    Attach(WorkerNo),
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
    /// The queue is told that the channel of a consumer is gone.
    Down(ConsumerKey),
    /// A worker that holds something starts nothing more, and closes its channel
    /// when nothing runs: it gives up, passes on, or is drained.
    GiveUp(WorkerNo),
    /// A worker that holds nothing, as far as it knows, closes its channel.
    StepBack(WorkerNo),
    /// A worker dies.
    Crash(WorkerNo),
    /// The broker loses a worker, which does not know.
    Cut(WorkerNo),
    /// A worker that was cut off finds out, and aborts its handlers.
    Notice(WorkerNo),
}

impl Step {
    /// True of a step that comes of itself: no fault, no decision, and nobody from
    /// outside.
    fn is_progress(self) -> bool {
        match self {
            Self::Arrive(_)
            | Self::Start(_)
            | Self::Mint(_)
            | Self::Write(..)
            | Self::Finish(_, _, End::Executed)
            | Self::Retry(_)
            | Self::Bury(..)
            | Self::Flush(_)
            | Self::Down(_)
            | Self::Notice(_) => true,
            Self::Publish
            | Self::Attach(_)
            | Self::Finish(_, _, End::Failed | End::Dead)
            | Self::GiveUp(_)
            | Self::StepBack(_)
            | Self::Crash(_)
            | Self::Cut(_) => false,
        }
    }
}

/// True when nothing happens any more unless somebody publishes, attaches or
/// leaves, or something goes wrong.
pub(crate) fn is_quiescent(scene: &Scene, state: &State) -> bool {
    !steps(scene, state).into_iter().any(Step::is_progress)
}

/// Lists the steps that are possible.
fn steps(scene: &Scene, state: &State) -> Vec<Step> {
    let mut steps = Vec::new();
    if state.published < scene.tasks.len() {
        steps.push(Step::Publish);
    }
    steps.extend(state.broker.unreported().map(Step::Down));
    for number in 0..state.workers.len() {
        let worker = WorkerNo(number);
        match state.workers.get(number).and_then(Option::as_ref) {
            None if is_first_of_its_kind(scene, state, worker) => steps.push(Step::Attach(worker)),
            None => {}
            Some(tenure) => {
                work(scene, worker, tenure, &mut steps);
                end(state, worker, tenure, &mut steps);
                part(scene, state, worker, tenure, &mut steps);
                fail(state, worker, tenure, &mut steps);
            }
        }
    }
    steps
}

/// Workers that are not there differ in nothing but their arguments, so one of
/// them stands for all.
fn is_first_of_its_kind(scene: &Scene, state: &State, worker: WorkerNo) -> bool {
    let is_same = |earlier: WorkerNo| {
        state.workers.get(earlier.0).is_some_and(Option::is_none)
            && scene.kind(earlier) == scene.kind(worker)
            && state.kept_tokens.get(earlier.0) == state.kept_tokens.get(worker.0)
    };
    !(0..worker.0).map(WorkerNo).any(is_same)
}

/// The work on deliveries, whether the broker knows it or not.
fn work(scene: &Scene, worker: WorkerNo, tenure: &Tenure, steps: &mut Vec<Step>) {
    if !tenure.wire.is_empty() {
        steps.push(Step::Arrive(worker));
    }
    if tenure.lanes.wants_slot() {
        steps.push(Step::Start(worker));
    }
    let mints = !scene.breaks.no_guard && (tenure.is_attached() || scene.breaks.mint_elsewhere);
    if mints && tenure.token.is_none() && !tenure.held.is_empty() {
        steps.push(Step::Mint(worker));
    }
    for (tag, held) in &tenure.held {
        if held.attempt == Attempt::Running && (tenure.token.is_some() || scene.breaks.no_guard) {
            steps.push(Step::Write(worker, *tag));
        }
    }
    if tenure.lanes.next_tick().is_some() {
        steps.push(Step::Retry(worker));
    }
    if tenure.lanes.pending_acks() > 0 {
        steps.push(Step::Flush(worker));
    }
}

/// The ends of attempts.
fn end(state: &State, worker: WorkerNo, tenure: &Tenure, steps: &mut Vec<Step>) {
    let may_fail = tenure.is_attached() && state.budget.failures > 0;
    for (tag, held) in &tenure.held {
        match held.attempt {
            Attempt::Wrote => steps.push(Step::Finish(worker, *tag, End::Executed)),
            Attempt::Burying => steps.push(Step::Bury(worker, *tag)),
            Attempt::None | Attempt::Running | Attempt::Refused => {}
        }
        if may_fail && matches!(held.attempt, Attempt::Running | Attempt::Wrote) {
            steps.push(Step::Finish(worker, *tag, End::Failed));
            steps.push(Step::Finish(worker, *tag, End::Dead));
        }
    }
}

/// The ways in which a worker leaves its place.
fn part(scene: &Scene, state: &State, worker: WorkerNo, tenure: &Tenure, steps: &mut Vec<Step>) {
    if state.budget.moves == 0 || tenure.draining || !tenure.is_attached() {
        return;
    }
    if tenure.believes_empty() || scene.breaks.leave_unacked && tenure.held.is_empty() {
        steps.push(Step::StepBack(worker));
    }
    if !tenure.believes_empty() {
        steps.push(Step::GiveUp(worker));
    }
}

/// The faults.
fn fail(state: &State, worker: WorkerNo, tenure: &Tenure, steps: &mut Vec<Step>) {
    match tenure.link {
        Link::Open(_) => {
            if state.budget.crashes > 0 {
                steps.push(Step::Crash(worker));
            }
            // Without anything held, it would be a crash.
            if state.budget.cuts > 0 && !tenure.held.is_empty() {
                steps.push(Step::Cut(worker));
            }
        }
        Link::Cut => steps.push(Step::Notice(worker)),
        Link::Closed => {}
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
