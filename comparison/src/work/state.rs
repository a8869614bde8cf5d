//! The state of a resource: a sequence number and a running hash.

use xxhash_rust::xxh3::xxh3_64;

use super::Job;

/// What every task reads, changes and writes. A lost update leaves the sequence number too
/// low, a second execution too high, and every reordering leaves another hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    /// How many tasks have changed it.
    pub sequence: u64,
    /// Which ones, and in which order.
    pub hash: u64,
}

impl State {
    /// The state after this task.
    #[must_use]
    pub fn after(self, number: u32) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.hash.to_le_bytes());
        bytes[8..].copy_from_slice(&number.to_le_bytes());
        Self { sequence: self.sequence + 1, hash: xxh3_64(&bytes) }
    }

    /// As text, for stores that keep strings.
    #[must_use]
    pub fn to_text(self) -> String {
        format!("{}:{:016x}", self.sequence, self.hash)
    }

    /// Reads [`State::to_text`]; what is empty is the first state.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        let (sequence, hash) = text.split_once(':')?;
        let hash = u64::from_str_radix(hash, 16).ok()?;
        Some(Self { sequence: sequence.parse().ok()?, hash })
    }
}

/// The states after all tasks in publish order.
#[must_use]
pub fn expected(jobs: &[Job], resources: u32) -> Vec<State> {
    let mut states = vec![State::default(); resources as usize];
    for job in jobs {
        for resource in job.touches() {
            let state = &mut states[resource as usize];
            *state = state.after(job.number);
        }
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_its_text() {
        let state = State::default().after(3).after(4);
        assert_eq!(State::from_text(&state.to_text()), Some(state));
        assert_eq!(State::from_text(""), Some(State::default()));
        assert_eq!(State::from_text("x"), None);
    }

    #[test]
    fn another_order_is_another_state() {
        let start = State::default();
        assert_ne!(start.after(1).after(2), start.after(2).after(1));
        assert_eq!(start.after(1).after(2).sequence, start.after(2).after(1).sequence);
    }
}
