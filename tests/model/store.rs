//! The store that the handlers write to.

use std::collections::{BTreeMap, BTreeSet};

use keylane::protocol::task::Resource;

use super::scene::TaskNo;

/// A fencing token: which ownership period of the partition it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Epoch(pub(crate) u8);

impl Epoch {
    pub(crate) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Store {
    /// The highest token seen, for each resource.
    pub(crate) seen: BTreeMap<Resource, Epoch>,
    /// Tasks that have had their effect, or stand in the dead letters.
    pub(crate) done: BTreeSet<TaskNo>,
    /// A worker wrote after its successor had written.
    pub(crate) stale_admitted: bool,
    /// Tasks whose handlers ended well, until the first worker is lost: from then
    /// on they may be executed again.
    pub(crate) executed: BTreeSet<TaskNo>,
    /// A task was executed again, though no worker had been lost.
    pub(crate) executed_again: bool,
}

impl Store {
    /// Decides, as the guard does, whether a write with this token is admitted.
    pub(crate) fn admit(&mut self, resource: &Resource, token: Epoch) -> bool {
        let seen = self.seen.entry(resource.clone()).or_default();
        let admitted = token >= *seen;
        *seen = token.max(*seen);
        admitted
    }
}
