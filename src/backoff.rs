//! Waits between attempts to reach the broker.

use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::retry::RetryPolicy;

/// A node restarts in seconds, so the first tries come fast; a broker that is
/// gone for long is asked every five seconds.
const POLICY: RetryPolicy = RetryPolicy {
    attempts: 0,
    first_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(5),
};

/// In so much time; a duration that no clock can add is as good as thirty years.
pub(crate) fn later(duration: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    Instant::now() + duration.min(FAR)
}

/// The next delays, until patience ends.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    deadline: Option<Instant>,
}

impl Backoff {
    /// Starts now. `None` has no end.
    pub(crate) fn new(patience: Option<Duration>) -> Self {
        Self { failures: 0, deadline: patience.map(later) }
    }

    /// How long to wait before the next try; `None` when patience has ended.
    pub(crate) fn next(&mut self) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        let random = uuid::Uuid::new_v4().as_u64_pair().0;
        let delay = POLICY.delay(self.failures, random);
        match self.deadline {
            Some(deadline) if Instant::now() + delay > deadline => None,
            _ => Some(delay),
        }
    }
}
