//! Which deliveries that come back are acked instead of executed: those that the journal has as
//! settled by the owner before. *Settled* is executed, or in the dead letters.
//!
//! That must not leave a resource in the state of an older task. A delivery is suppressed only if
//!
//! 1. it was **held once**, so by one owner, the last one of its resource;
//! 2. its record can be **of no other message**: its publisher has named and numbered it, and it
//!    was neither sent again nor put back from the dead letters;
//! 3. what was read of the journal **goes back far enough** and has it as settled;
//! 4. **nothing before it on its resource was not suppressed** in this ownership.
//!
//! *Why that is enough.* The broker hands back what was held in order, all of it to the next owner
//! (windows are equal), and before anything new; an owner settles the deliveries of a resource in
//! their order. By 1, only one owner can have
//! started the delivery; by 2, the record is that owner's and of this very delivery. So everything
//! before it on its resource was settled before it, and nobody has started anything of the
//! resource since: a later owner would have been handed this delivery as well, which would have
//! been held twice then. Hence the state of the resource is that of this task, or of one behind
//! it, and acking it changes nothing. By 4, what is suppressed is the front of a resource's
//! deliveries: whatever is executed again is followed by everything behind it, up to the newest.
//!
//! Each rule is needed (`tests.rs` breaks them one by one). Without 1, an owner that had executed
//! an older task again and died before its record would be believed to have executed none. Without 2,
//! the record of a copy would stand for another one, behind which something older was executed
//! again. Without 4, `b` would be executed after `c` and `c` suppressed.
//!
//! Nothing is suppressed any more once a delivery comes that nobody has held: what comes back
//! after that comes out of order.

use std::collections::{BTreeSet, HashSet};

use super::journal::{Batch, Fingerprint, Outcome, Record};
use super::task::{Resource, Task};

/// The tasks that a part of the journal has as settled, and whose records are of one message only.
#[derive(Debug, Clone, Default)]
pub struct Settled(HashSet<Fingerprint>);

impl Settled {
    /// Takes note of what a batch says. Of batches that were written twice too.
    pub fn note(&mut self, batch: &Batch) {
        let settled = batch.records.iter().filter(|record| match record.outcome {
            Outcome::Executed | Outcome::DeadLettered => true,
            Outcome::Failed | Outcome::Aborted | Outcome::Lost | Outcome::Superseded => false,
        });
        self.0.extend(settled.filter_map(of_record));
    }

    /// Whether this very message is among them.
    #[must_use]
    pub fn contains(&self, task: &Task) -> bool {
        of_task(task).is_some_and(|message| self.0.contains(&message))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What stands for one message; `None` if there may be others like it.
fn of_task(task: &Task) -> Option<Fingerprint> {
    let only = task.origin.as_ref().is_some_and(|origin| !origin.republished) && !task.replayed;
    if only { Fingerprint::of_task(task) } else { None }
}

fn of_record(record: &Record) -> Option<Fingerprint> {
    let only = !record.republished && !record.replayed;
    if only { Fingerprint::of_record(record) } else { None }
}

/// What one owner has decided. See the [module](self).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suppression {
    /// Something came that nobody had held.
    over: bool,
    /// Something of these was not suppressed.
    goes_on: BTreeSet<Resource>,
}

impl Suppression {
    /// Whether the next delivery would be suppressed if it were settled: whether it is worth the
    /// look. `times_held` counts the owners that held it before, or more.
    #[must_use]
    pub fn asks(&self, task: &Task, times_held: u32) -> bool {
        !self.over
            && times_held == 1
            && of_task(task).is_some()
            && !self.goes_on.contains(&task.resource)
    }

    /// Decides on the next delivery, in the order in which the broker hands them out. `settled`
    /// is what a look that goes back far enough has found.
    pub fn suppresses(
        &mut self,
        task: &Task,
        times_held: u32,
        settled: impl FnOnce(&Task) -> bool,
    ) -> bool {
        if self.asks(task, times_held) && settled(task) {
            return true;
        }
        if times_held == 0 {
            self.over = true;
            self.goes_on.clear();
        } else if !self.over {
            self.goes_on.insert(task.resource.clone());
        }
        false
    }
}

#[cfg(test)]
mod tests;
