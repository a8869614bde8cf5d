//! The one clock of all processes of a run.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Microseconds on the monotonic clock, which is the same for all processes of this machine
/// and which nobody sets.
#[must_use]
pub fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Never negative: it counts from the machine's start.
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds * 1_000_000 + nanos / 1_000
}

/// The time since an earlier [`now_us`].
#[must_use]
pub fn since(earlier_us: u64) -> Duration {
    Duration::from_micros(now_us().saturating_sub(earlier_us))
}
