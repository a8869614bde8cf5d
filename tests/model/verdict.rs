//! The result of checking a model.

use std::thread::available_parallelism;

use stateright::{Checker, CheckerBuilder, Expectation, HasDiscoveries, Model};

use super::scene::Scene;
use super::state::State;
use super::step::Step;

/// The length, in states, up to which [`refute`] looks for paths. The longest that
/// is needed has 20.
const LONGEST: usize = 30;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    /// The properties that do not hold, with the way there.
    pub(crate) fallen: Vec<(&'static str, Vec<Step>)>,
    /// The properties that were seen to be possible.
    pub(crate) seen: Vec<&'static str>,
}

/// Checks every path.
pub(crate) fn check(scene: Scene) -> Verdict {
    let threads = available_parallelism().map_or(1, Into::into);
    run(scene.checker().finish_when(HasDiscoveries::All).threads(threads))
}

/// Looks for a shortest path on which this property falls.
pub(crate) fn refute(scene: &Scene, property: &'static str) -> Option<Vec<Step>> {
    // The checker goes on for a while after a bad state, and reports a later one.
    (1..=LONGEST).find_map(|depth| {
        let until = HasDiscoveries::AnyOf([property].into());
        let checker = scene.clone().checker().target_max_depth(depth);
        let mut fallen = run(checker.finish_when(until)).fallen.into_iter();
        fallen.find(|(name, _)| *name == property).map(|(_, path)| path)
    })
}

fn run(builder: CheckerBuilder<Scene>) -> Verdict {
    let checker = builder.spawn_bfs().join();
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
