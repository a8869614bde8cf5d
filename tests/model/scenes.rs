//! The models that are checked: those that keep all rules, and those that break
//! one.

use keylane::protocol::task::Resource;

use super::properties::{ADMITTED, EXCLUSIVE, FENCED, GHOSTLESS, ORDERED};
use super::scene::{Breaks, Budget, Scene};

/// No crash, no cut, no drain, no failure.
const NONE: Budget = Budget { crashes: 0, cuts: 0, drains: 0, failures: 0 };

/// Each letter of `tasks` is a task on the resource of that name.
fn scene(name: &'static str, windows: &[usize], tasks: &str, budget: Budget) -> Scene {
    let letter = |letter: char| Resource::new(letter.to_string()).ok();
    let tasks = tasks.chars().filter_map(letter).collect();
    Scene { name, windows: windows.to_vec(), tasks, budget, breaks: Breaks::default() }
}

/// All rules kept.
pub(crate) fn safe() -> Vec<Scene> {
    vec![
        scene("a-crash-and-a-failure", &[2, 2], "aba", Budget { crashes: 1, failures: 1, ..NONE }),
        scene("two-crashes", &[2, 2], "aaab", Budget { crashes: 2, ..NONE }),
        scene("a-crash-and-a-drain", &[2, 2], "aaaa", Budget { crashes: 1, drains: 1, ..NONE }),
        scene("a-cut", &[2, 2], "aab", Budget { cuts: 1, ..NONE }),
        scene("a-cut-and-a-failure", &[2, 2], "aa", Budget { cuts: 1, failures: 1, ..NONE }),
        scene("two-cuts", &[2, 2], "aa", Budget { cuts: 2, ..NONE }),
        scene("one-of-each", &[2, 2], "aa", Budget { crashes: 1, cuts: 1, drains: 1, failures: 1 }),
        scene("three-workers", &[2, 2, 2], "aaa", Budget { crashes: 1, drains: 1, ..NONE }),
        scene("three-workers-and-a-cut", &[2, 2, 2], "aa", Budget { cuts: 1, crashes: 1, ..NONE }),
    ]
}

/// One rule broken, and the property that falls with it.
pub(crate) fn broken() -> Vec<(Scene, &'static str)> {
    let none = Breaks::default();
    let drain = Budget { drains: 1, ..NONE };
    let dies = Budget { crashes: 1, ..drain };
    let cut = Budget { cuts: 1, ..NONE };
    let failure = Budget { failures: 1, ..NONE };
    let breaks =
        |name, tasks, budget, breaks| Scene { breaks, ..scene(name, &[2, 2], tasks, budget) };
    vec![
        (breaks("cancel", "aa", drain, Breaks { cancel: true, ..none }), EXCLUSIVE),
        (breaks("requeue", "aa", failure, Breaks { requeue: true, ..none }), ORDERED),
        (scene("unequal-windows", &[2, 1], "aa", Budget { crashes: 2, ..NONE }), ORDERED),
        (breaks("no-deputy", "aa", drain, Breaks { no_deputy: true, ..none }), ORDERED),
        (breaks("no-wait", "aa", dies, Breaks { no_wait: true, ..none }), ORDERED),
        (breaks("leave-unread", "ab", drain, Breaks { leave_unread: true, ..none }), GHOSTLESS),
        (breaks("no-guard", "a", cut, Breaks { no_guard: true, ..none }), FENCED),
        (breaks("mint-elsewhere", "a", cut, Breaks { mint_elsewhere: true, ..none }), FENCED),
        (breaks("mint-once", "aaa", drain, Breaks { mint_once: true, ..none }), ADMITTED),
    ]
}

/// The same scene with the rule kept.
pub(crate) fn mended(broken: &Scene) -> Scene {
    let widest = broken.windows.iter().copied().max().unwrap_or_default();
    let windows = vec![widest; broken.windows.len()];
    Scene { windows, breaks: Breaks::default(), ..broken.clone() }
}
