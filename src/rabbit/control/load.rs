//! The load of a worker, as reports have it.

use serde::{Deserialize, Serialize};

use crate::protocol::partition::PartitionId;
use crate::protocol::task::Resource;

/// What a worker did lately. What was a minute ago counts half, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RecentLoad {
    /// In how much time, in milliseconds: less than two minutes.
    pub window_ms: u64,
    /// Attempts at tasks.
    pub attempts: u64,
    /// Time that all their handlers took, in milliseconds.
    pub handler_ms: u64,
}

/// A resource that a worker was busy with lately. What is given is certain; it may be
/// a thirty-second of its partition's load more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HotResource {
    /// Which one.
    pub resource: Resource,
    /// Where it belongs to.
    pub partition: PartitionId,
    /// Attempts at its tasks.
    pub attempts: u64,
    /// Time that their handlers took, in milliseconds.
    pub handler_ms: u64,
}
