//! The models that are checked: those that keep all rules, and those that break
//! one.

use keylane::protocol::task::Resource;

use super::properties::{ADMITTED, EXCLUSIVE, FENCED, GHOSTLESS, KEPT, ONCE, ORDERED, PROGRESS};
use super::scene::{Breaks, Budget, Kind, Scene};

/// No move, no crash, no cut, no failure.
const NONE: Budget = Budget { moves: 0, crashes: 0, cuts: 0, failures: 0 };

/// A worker that keeps the rules: the prefetch is the namespace's, the priority
/// nobody's.
const WORKER: Kind = Kind { window: 2, priority: 0 };

/// Each letter of `tasks` is a task on the resource of that name.
fn scene(name: &'static str, workers: &[Kind], tasks: &str, budget: Budget) -> Scene {
    let letter = |letter: char| Resource::new(letter.to_string()).ok();
    let tasks = tasks.chars().filter_map(letter).collect();
    Scene { name, workers: workers.to_vec(), tasks, budget, breaks: Breaks::default() }
}

/// All rules kept.
pub(crate) fn safe() -> Vec<Scene> {
    let (two, three) = ([WORKER; 2], [WORKER; 3]);
    let narrow = [Kind { window: 1, ..WORKER }; 2];
    let crash = Budget { moves: 2, crashes: 1, ..NONE };
    let cut = Budget { moves: 2, cuts: 1, ..NONE };
    vec![
        scene("moves", &two, "aaba", Budget { moves: 3, ..NONE }),
        scene("moves-and-a-failure", &two, "aba", Budget { moves: 2, failures: 1, ..NONE }),
        scene("moves-and-a-crash", &two, "aba", crash),
        scene("moves-and-a-cut", &two, "aa", cut),
        scene("a-window-of-one", &narrow, "aab", crash),
        scene("two-crashes", &two, "aaab", Budget { crashes: 2, ..NONE }),
        scene("a-cut", &two, "aab", Budget { cuts: 1, ..NONE }),
        scene("two-cuts", &two, "aa", Budget { cuts: 2, ..NONE }),
        scene("one-of-each", &two, "aa", Budget { moves: 1, crashes: 1, cuts: 1, failures: 1 }),
        scene("three-workers", &three, "aab", Budget { moves: 3, ..NONE }),
        scene("three-workers-and-a-crash", &three, "aaa", crash),
        scene("three-workers-and-a-cut", &three, "aa", cut),
    ]
}

/// One rule broken, and the property that falls with it.
pub(crate) fn broken() -> Vec<(Scene, &'static str)> {
    let none = Breaks::default();
    let [one, two] = [1, 2].map(|moves| Budget { moves, ..NONE });
    let cut = Budget { cuts: 1, ..NONE };
    let failure = Budget { failures: 1, ..NONE };
    let breaks =
        |name, tasks, budget, breaks| Scene { breaks, ..scene(name, &[WORKER; 2], tasks, budget) };
    let ranks = [WORKER, Kind { priority: 1, ..WORKER }];
    let sizes = [WORKER, Kind { window: 1, ..WORKER }];
    let crash = Budget { crashes: 1, ..NONE };
    let dies_and_leaves = Budget { crashes: 1, ..one };
    vec![
        (scene("priorities", &ranks, "a", crash), GHOSTLESS),
        (scene("priorities-and-a-leave", &ranks, "a", dies_and_leaves), PROGRESS),
        (scene("priorities-without-a-fault", &ranks, "a", two), PROGRESS),
        (scene("unequal-windows", &sizes, "aa", two), ORDERED),
        (breaks("cancel", "aa", one, Breaks { cancel: true, ..none }), EXCLUSIVE),
        (breaks("leave-running", "aa", one, Breaks { leave_running: true, ..none }), EXCLUSIVE),
        (breaks("leave-unacked", "a", one, Breaks { leave_unacked: true, ..none }), ONCE),
        (breaks("requeue", "aa", failure, Breaks { requeue: true, ..none }), ORDERED),
        (breaks("ack-early", "a", NONE, Breaks { ack_early: true, ..none }), KEPT),
        (breaks("no-guard", "a", cut, Breaks { no_guard: true, ..none }), FENCED),
        (breaks("mint-elsewhere", "a", cut, Breaks { mint_elsewhere: true, ..none }), FENCED),
        (breaks("keep-token", "aa", two, Breaks { keep_token: true, ..none }), ADMITTED),
    ]
}

/// The same scene with the rule kept.
pub(crate) fn mended(broken: &Scene) -> Scene {
    let workers = vec![WORKER; broken.workers.len()];
    Scene { workers, breaks: Breaks::default(), ..broken.clone() }
}
