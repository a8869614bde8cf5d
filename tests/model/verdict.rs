//! What became of a model.

use std::thread::available_parallelism;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use super::scene::Scene;
use super::state::State;
use super::step::Step;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    /// The properties that do not hold, with the way there.
    pub(crate) fallen: Vec<(&'static str, Vec<Step>)>,
    /// What was seen to be possible.
    pub(crate) seen: Vec<&'static str>,
}

/// Checks every path.
pub(crate) fn check(scene: Scene) -> Verdict {
    run(scene, HasDiscoveries::All, available_parallelism().map_or(1, Into::into))
}

/// Looks for a path, a short one, on which this property falls.
pub(crate) fn refute(scene: Scene, property: &'static str) -> Option<Vec<Step>> {
    // One thread goes by length of the path.
    let mut fallen = run(scene, HasDiscoveries::AnyOf([property].into()), 1).fallen.into_iter();
    fallen.find(|(name, _)| *name == property).map(|(_, path)| path)
}

fn run(scene: Scene, until: HasDiscoveries, threads: usize) -> Verdict {
    let checker = scene.checker().finish_when(until).threads(threads).spawn_bfs().join();
    let mut verdict = Verdict {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        fallen: Vec::new(),
        seen: Vec::new(),
    };
    for property in checker.model().properties() {
        let Some(path) = checker.discovery(property.name) else { continue };
        let path = path.into_vec().into_iter();
        let holds = |state: &State| (property.condition)(checker.model(), state);
        let steps = match property.expectation {
            // The checker may go on a little after the first bad state.
            Expectation::Always => path.take_while(|(state, _)| holds(state)).collect(),
            Expectation::Eventually => path.collect::<Vec<_>>(),
            Expectation::Sometimes => {
                verdict.seen.push(property.name);
                continue;
            }
        };
        let steps = steps.into_iter().filter_map(|(_, step)| step).collect();
        verdict.fallen.push((property.name, steps));
    }
    verdict
}
