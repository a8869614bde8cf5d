//! What must hold, and what must be possible.

use std::collections::BTreeSet;

use stateright::Property;

use super::broker::Channel;
use super::scene::{Scene, TaskNo, WorkerNo};
use super::state::State;
use super::tenure::{Attempt, Tenure};

pub(crate) const EXCLUSIVE: &str = "a resource has one running task";
pub(crate) const ORDERED: &str = "the tasks of a resource run in publish order";
pub(crate) const KEPT: &str = "no task is lost";
pub(crate) const FENCED: &str = "no stale write is admitted";
pub(crate) const ADMITTED: &str = "no owner is refused";
pub(crate) const GHOSTLESS: &str = "nobody leaves while being replaced";
pub(crate) const SETTLED: &str = "every task is settled";

const TAKEN_OVER: &str = "a partition is taken over from a worker that still runs";
const HANDED_OVER: &str = "a partition is handed over to one that waits";
const REFUSED: &str = "a stale write is refused";

pub(crate) fn all() -> Vec<Property<Scene>> {
    vec![
        Property::always(EXCLUSIVE, exclusive),
        Property::always(ORDERED, ordered),
        Property::always(KEPT, kept),
        Property::always(FENCED, fenced),
        Property::always(ADMITTED, admitted),
        Property::always(GHOSTLESS, ghostless),
        Property::eventually(SETTLED, settled),
        Property::sometimes(TAKEN_OVER, taken_over),
        Property::sometimes(HANDED_OVER, handed_over),
        Property::sometimes(REFUSED, stale_refused),
    ]
}

/// The workers that the broker knows. One that was cut off is no owner, though
/// it may run: that is what the guard is for.
fn owners(state: &State) -> impl Iterator<Item = (WorkerNo, &Tenure)> {
    state.tenures().filter(|(worker, _)| state.is_connected(*worker))
}

fn refused(tenure: &Tenure) -> bool {
    tenure.held.values().any(|held| held.attempt == Attempt::Refused)
}

fn exclusive(scene: &Scene, state: &State) -> bool {
    let mut busy = BTreeSet::new();
    let mut running = owners(state).flat_map(|(_, owner)| owner.running());
    running.all(|task| scene.resource(task).is_some_and(|resource| busy.insert(resource)))
}

/// A task runs only when those before it are over: they are settled, or their
/// owner has done them and holds them with this one, so that they cannot come
/// back without it.
fn ordered(scene: &Scene, state: &State) -> bool {
    owners(state).all(|(worker, owner)| {
        let unsettled: BTreeSet<_> =
            state.broker.unsettled(Channel::Owner(worker)).map(|(_, task)| task).collect();
        let over = |task: TaskNo| {
            state.broker.settled.contains(&task) || unsettled.contains(&task) && !owner.holds(task)
        };
        owner.running().all(|task| scene.before(task).all(over))
    })
}

/// Every published task is in one place, and settled only after it was done.
fn kept(_: &Scene, state: &State) -> bool {
    let mut published = (0..state.published).map(TaskNo);
    published.all(|task| state.broker.places(task) == 1)
        && state.broker.settled.is_subset(&state.store.done)
}

fn fenced(_: &Scene, state: &State) -> bool {
    !state.store.stale_admitted
}

fn admitted(_: &Scene, state: &State) -> bool {
    !owners(state).any(|(_, owner)| refused(owner))
}

fn ghostless(_: &Scene, state: &State) -> bool {
    !state.broker.ghost
}

fn settled(scene: &Scene, state: &State) -> bool {
    state.broker.settled.len() == scene.tasks.len()
}

/// A task runs twice at once: where the broker says, and where it was before.
fn taken_over(_: &Scene, state: &State) -> bool {
    let running: Vec<_> = state.tenures().flat_map(|(_, tenure)| tenure.running()).collect();
    running.iter().collect::<BTreeSet<_>>().len() < running.len()
}

fn handed_over(_: &Scene, state: &State) -> bool {
    let mut workers = (0..state.workers.len()).map(WorkerNo);
    let deputy_holds =
        workers.any(|worker| state.broker.unsettled(Channel::Deputy(worker)).next().is_some());
    deputy_holds && owners(state).count() > 1
}

fn stale_refused(_: &Scene, state: &State) -> bool {
    state.tenures().any(|(worker, tenure)| !state.is_connected(worker) && refused(tenure))
}
