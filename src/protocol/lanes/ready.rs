//! The lanes whose head may start: first come, first served, but for those that
//! are paused.

use std::collections::{BTreeSet, VecDeque};

use crate::protocol::task::Resource;

/// What is not to be started in a partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Paused {
    /// Nothing at all.
    pub everything: bool,
    /// Nothing of these resources.
    pub resources: BTreeSet<Resource>,
}

impl Paused {
    /// Whether tasks of this resource wait.
    #[must_use]
    pub fn holds(&self, resource: &Resource) -> bool {
        self.everything || self.resources.contains(resource)
    }
}

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Ready {
    queue: VecDeque<Resource>,
    /// Those that would be in the queue, were they not paused.
    parked: VecDeque<Resource>,
    paused: Paused,
}

impl Ready {
    /// The head of a lane may start now.
    pub(super) fn push(&mut self, resource: Resource) {
        let paused = self.paused.holds(&resource);
        if paused { &mut self.parked } else { &mut self.queue }.push_back(resource);
    }

    /// The lane whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Resource> {
        self.queue.pop_front()
    }

    /// The head of a lane may not start any more.
    pub(super) fn remove(&mut self, resource: &Resource) {
        self.queue.retain(|ready| ready != resource);
        self.parked.retain(|ready| ready != resource);
    }

    /// Pauses these, and resumes all others.
    pub(super) fn pause(&mut self, paused: Paused) {
        self.paused = paused;
        let queue = std::mem::take(&mut self.queue);
        let parked = std::mem::take(&mut self.parked);
        queue.into_iter().chain(parked).for_each(|resource| self.push(resource));
    }

    /// How many lanes wait for a slot.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// The lanes that wait because they are paused.
    pub(super) fn parked(&self) -> impl Iterator<Item = &Resource> {
        self.parked.iter()
    }
}
