//! The promises, and what must be possible so that they are not empty.

use std::collections::BTreeSet;

use stateright::Property;

use super::consumer::Channel;
use super::scene::{Scene, TaskNo};
use super::state::{Event, State};
use super::step::is_quiescent;
use super::tenure::{Attempt, Link, Tenure};

pub(crate) const EXCLUSIVE: &str = "a resource has one running task";
pub(crate) const ORDERED: &str = "the tasks of a resource run in publish order";
pub(crate) const KEPT: &str = "no task is lost, and none is settled before it is done";
pub(crate) const ONCE: &str = "no task is executed again unless a worker was lost";
pub(crate) const FENCED: &str = "no stale write is admitted";
pub(crate) const ADMITTED: &str = "no owner is refused";
pub(crate) const GHOSTLESS: &str = "no consumer outlives its channel for ever";
pub(crate) const PROGRESS: &str = "where a worker is attached, work ends only when none is left";
pub(crate) const SETTLED: &str = "every task is settled";

const TAKEN_OVER: &str = "a partition is taken over from a worker that still runs";
const HANDED_OVER: &str = "an owner hands what it has not started to the next in line";
const PASSED_ON: &str = "an owner passes everything on without starting anything";
const STEPPED_BACK: &str = "a worker steps back with deliveries on the wire";
const BACK_EARLY: &str = "a worker is back before the queue knows that it left";
const HEIR_LEAVES: &str = "the next in line leaves while the owner gives up";
const DESERTED: &str = "work is left, and everybody who was there has left";
const REFUSED: &str = "a stale write is refused";

pub(crate) fn all() -> Vec<Property<Scene>> {
    vec![
        Property::always(EXCLUSIVE, exclusive),
        Property::always(ORDERED, ordered),
        Property::always(KEPT, kept),
        Property::always(ONCE, |_, state: &State| !state.store.executed_again),
        Property::always(FENCED, |_, state: &State| !state.store.stale_admitted),
        Property::always(ADMITTED, |_, state: &State| !owners(state).any(refused)),
        Property::always(GHOSTLESS, ghostless),
        Property::always(PROGRESS, progress),
        Property::eventually(SETTLED, settled),
        Property::sometimes(TAKEN_OVER, taken_over),
        Property::sometimes(HANDED_OVER, |_, state: &State| state.event == Some(Event::HandedOver)),
        Property::sometimes(PASSED_ON, |_, state: &State| state.event == Some(Event::PassedOn)),
        Property::sometimes(STEPPED_BACK, |_, state: &State| {
            state.event == Some(Event::SteppedBack)
        }),
        Property::sometimes(BACK_EARLY, back_early),
        Property::sometimes(HEIR_LEAVES, heir_leaves),
        Property::sometimes(DESERTED, deserted),
        Property::sometimes(REFUSED, stale_refused),
    ]
}

/// The workers that were not cut off. One that was is no owner, though it may
/// run: that is what the guard is for.
fn owners(state: &State) -> impl Iterator<Item = &Tenure> {
    state.tenures().map(|(_, tenure)| tenure).filter(|tenure| tenure.link != Link::Cut)
}

fn refused(tenure: &Tenure) -> bool {
    tenure.held.values().any(|held| held.attempt == Attempt::Refused)
}

fn exclusive(scene: &Scene, state: &State) -> bool {
    let mut busy = BTreeSet::new();
    let mut running = owners(state).flat_map(Tenure::running);
    running.all(|task| scene.resource(task).is_some_and(|resource| busy.insert(resource)))
}

/// A task runs only when those before it are over: they are settled, or their
/// owner has done them and holds them with this one, so that they cannot come
/// back without it.
fn ordered(scene: &Scene, state: &State) -> bool {
    owners(state).all(|owner| {
        let consumer = owner.consumer().and_then(|key| state.broker.get(key));
        let unsettled: BTreeSet<TaskNo> =
            consumer.into_iter().flat_map(|c| c.checked_out.values().copied()).collect();
        let over = |task: TaskNo| {
            state.broker.settled.contains(&task) || unsettled.contains(&task) && !owner.holds(task)
        };
        owner.running().all(|task| scene.before(task).all(over))
    })
}

/// Every published task is in one place.
fn kept(_: &Scene, state: &State) -> bool {
    let mut published = (0..state.published).map(TaskNo);
    published.all(|task| state.broker.places(task) == 1)
        && state.broker.settled.is_subset(&state.store.done)
}

fn ghostless(_: &Scene, state: &State) -> bool {
    state.broker.all().all(|(_, consumer)| consumer.channel != Channel::Ghost)
}

fn has_work(state: &State) -> bool {
    state.broker.settled.len() < state.published
}

/// No standstill: while there is work and somebody who is attached, something
/// happens of itself.
fn progress(scene: &Scene, state: &State) -> bool {
    let attached = state.tenures().any(|(_, tenure)| tenure.is_attached());
    !(attached && has_work(state) && is_quiescent(scene, state))
}

/// Once true it stays true, so the end of a path decides; that makes stateright's
/// check exact, which forgets by which path it came to a state.
fn settled(scene: &Scene, state: &State) -> bool {
    state.broker.settled.len() == scene.tasks.len()
}

/// A task runs twice at once: where the broker says, and where it was before.
fn taken_over(_: &Scene, state: &State) -> bool {
    let running: Vec<_> = state.tenures().flat_map(|(_, tenure)| tenure.running()).collect();
    running.iter().collect::<BTreeSet<_>>().len() < running.len()
}

/// More channels than workers.
fn back_early(_: &Scene, state: &State) -> bool {
    state.broker.all().count() > state.workers.len()
}

fn heir_leaves(_: &Scene, state: &State) -> bool {
    let heir_is_gone = state.broker.next_in_line().is_some_and(|c| c.channel == Channel::Gone);
    heir_is_gone && owners(state).any(|owner| owner.draining && owner.lanes.running() > 0)
}

fn deserted(scene: &Scene, state: &State) -> bool {
    let moved = state.budget.moves < scene.budget.moves;
    moved && has_work(state) && state.broker.all().next().is_none()
}

fn stale_refused(_: &Scene, state: &State) -> bool {
    state.tenures().any(|(_, tenure)| tenure.link == Link::Cut && refused(tenure))
}
