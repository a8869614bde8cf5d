//! The outage of a handler, as reports have it.

use serde::{Deserialize, Serialize};

/// Whatever executes the tasks of a worker is out of reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HandlerOutage {
    /// Why.
    pub reason: String,
    /// For how long, in milliseconds.
    pub for_ms: u64,
}

impl HandlerOutage {
    /// Reports travel to everybody who asks; the log has the whole reason.
    const MAX_REASON_CHARS: usize = 200;
}

impl From<(String, u64)> for HandlerOutage {
    fn from((reason, for_ms): (String, u64)) -> Self {
        Self { reason: reason.chars().take(Self::MAX_REASON_CHARS).collect(), for_ms }
    }
}
