//! Guards: stores that check fencing tokens.
//!
//! keylane hands the tasks of a resource to one worker at a time. It cannot
//! take a write back from a worker that was paused in the middle of one and goes
//! on after its partition has moved. The store can: it keeps the highest
//! [`FencingToken`] that it has seen of each resource, and
//! refuses a write with a lower one, in the same atomic step as the write.

use crate::protocol::fence::FencingToken;

#[cfg(feature = "guard-postgres")]
pub mod postgres;
#[cfg(feature = "guard-redis")]
pub mod redis;

/// A later owner of the resource has written already: this write must not
/// happen, and did not.
///
/// The task was executed by that owner, or will be. Whatever the handler returns
/// now, its worker has lost the delivery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a stale write on {resource:?} was refused: fencing token {token}, and {highest} was there"
)]
pub struct StaleToken {
    /// What was to be written.
    pub resource: String,
    /// The token of the write.
    pub token: FencingToken,
    /// The highest token that the store has seen of the resource.
    pub highest: FencingToken,
}
