//! Copies of tasks that were executed. A node that was frozen, or cut off, sends on late what it
//! had taken from a producer, which has published it anew meanwhile and gone on:
//! `t1' t2' t3' t4 t1 t2 t3`, where `'` is what is marked as sent again. To execute the last three
//! would leave the resource in the state of `t3`.
//!
//! A delivery is *superseded* if it is one of several copies, another one is known to have been
//! executed, and nobody has held *this* one. Then nothing of it was done, and whatever comes
//! before it on its resource is executed, or was: acking it leaves the resource as it is. One
//! that was held before may have been begun, and is executed to its end. What was put back from
//! the dead letters is wanted, and never superseded.
//!
//! A worker remembers its own executions of what was sent again, [`Copies::MOST`] of them: that
//! there may be other copies is known of these only, and producers send little again.

use std::collections::HashSet;

use super::journal::Fingerprint;
use super::task::Task;

/// What was executed, of all that was sent again. See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct Copies {
    /// Two generations, of which the older one is forgotten when the younger one is full.
    young: HashSet<Fingerprint>,
    old: HashSet<Fingerprint>,
}

impl Copies {
    /// So many are remembered, at the least: what a thousand producers have in flight.
    pub const MOST: usize = 1 << 16;

    /// This task was executed.
    pub fn executed(&mut self, task: &Task) {
        if !task.origin.as_ref().is_some_and(|origin| origin.republished) {
            return;
        }
        let Some(copy) = Fingerprint::of_task(task) else { return };
        if self.young.len() == Self::MOST {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(copy);
    }

    /// Whether a delivery need not be executed, since another copy of it was. `times_held`
    /// counts the owners that held it before, or more.
    #[must_use]
    pub fn supersede(&self, task: &Task, times_held: u32) -> bool {
        let known = |copy| self.young.contains(&copy) || self.old.contains(&copy);
        times_held == 0 && !task.replayed && Fingerprint::of_task(task).is_some_and(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::task::{Origin, Resource, TaskId};

    fn task(sequence: u64, republished: bool) -> Task {
        let mut task = Task::on(Resource::new("r").expect("a key"), "");
        task.id = Some(TaskId::new("t").expect("an id"));
        task.origin = Some(Origin { producer: "p".into(), sequence, republished });
        task
    }

    #[test]
    fn a_copy_of_what_was_sent_again_and_executed_is_superseded() {
        let mut copies = Copies::default();
        copies.executed(&task(1, true));
        copies.executed(&task(2, false));
        assert!(copies.supersede(&task(1, false), 0));
        assert!(copies.supersede(&task(1, true), 0), "it was sent twice again");
        assert!(!copies.supersede(&task(1, false), 1), "it may have been begun");
        assert!(!copies.supersede(&task(2, false), 0), "there is one of it");
        assert!(!copies.supersede(&task(3, true), 0), "it was not executed");
        assert!(!copies.supersede(&Task { replayed: true, ..task(1, true) }, 0));
        assert!(!copies.supersede(&Task { id: None, ..task(1, false) }, 0));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut copies = Copies::default();
        let most = Copies::MOST as u64;
        (0..3 * most).for_each(|sequence| copies.executed(&task(sequence, true)));
        assert!(copies.young.len() + copies.old.len() <= 2 * Copies::MOST);
        assert!(copies.supersede(&task(2 * most, false), 0));
        assert!(!copies.supersede(&task(0, false), 0));
    }
}
