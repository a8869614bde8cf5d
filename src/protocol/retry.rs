//! How often a failed task is tried, and how long it waits in between.

use std::time::Duration;

/// Exponential backoff with equal jitter: the wait before attempt *n + 1* is
/// between half of and the whole `first_delay × 2ⁿ⁻¹`, and `max_delay` at most.
/// (Brooker, "Exponential Backoff And Jitter", 2015.)
///
/// A task that waits holds up its own resource and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RetryPolicy {
    /// Attempts until a task is dead-lettered; 0 for no limit. Default 5. Those with earlier
    /// owners count, as far as the journal of the last 90 s knows them.
    pub attempts: u32,
    /// Longest wait after the first failed attempt. Default 500 ms.
    pub first_delay: Duration,
    /// Longest wait at all. Default 30 s.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    /// Five attempts over about four to eight seconds: enough for a restart of
    /// what the handler calls, short enough that somebody still watches.
    fn default() -> Self {
        Self {
            attempts: 5,
            first_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(30),
        }
    }
}

impl RetryPolicy {
    /// The longest wait that a handler can ask for: a day. A task that waits holds up its resource,
    /// so whoever asks for more means something else, or has a clock that is wrong.
    pub const MAX_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

    /// Whether a task that failed in this many attempts is to be given up.
    #[must_use]
    pub const fn is_exhausted(&self, attempts: u32) -> bool {
        self.attempts != 0 && attempts >= self.attempts
    }

    /// The wait after this many failed attempts. `random` is any number; the
    /// same one gives the same delay.
    #[must_use]
    pub fn delay(&self, attempts: u32, random: u64) -> Duration {
        let doublings = attempts.saturating_sub(1).min(31);
        let longest = self.first_delay.saturating_mul(1 << doublings).min(self.max_delay);
        let half = longest / 2;
        // The upper 32 bits of a good hash are as random as the lower ones.
        half.saturating_add(half.mul_f64((random >> 32) as f64 / f64::from(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_within_their_jitter_up_to_the_longest() {
        let policy = RetryPolicy::default();
        for (attempts, longest_ms) in [(1, 500), (2, 1000), (3, 2000), (7, 30_000), (99, 30_000)] {
            let longest = Duration::from_millis(longest_ms);
            assert_eq!(policy.delay(attempts, 0), longest / 2, "after {attempts}");
            assert_eq!(policy.delay(attempts, u64::MAX), longest, "after {attempts}");
        }
    }

    #[test]
    fn the_longest_duration_is_a_delay_like_any_other() {
        let longest = Duration::MAX;
        let policy = RetryPolicy { attempts: 0, first_delay: longest, max_delay: longest };
        assert!(policy.delay(40, u64::MAX) >= longest / 2);
    }

    #[test]
    fn zero_attempts_means_no_limit() {
        let limited = RetryPolicy { attempts: 2, ..RetryPolicy::default() };
        assert!(!limited.is_exhausted(1));
        assert!(limited.is_exhausted(2));
        let unlimited = RetryPolicy { attempts: 0, ..RetryPolicy::default() };
        assert!(!unlimited.is_exhausted(u32::MAX));
    }
}
