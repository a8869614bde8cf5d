//! The work: tasks on resources, and what they do to the state of a resource.

mod generate;
mod state;
mod truth;

pub use generate::{HOT, Workload, jobs};
pub use state::{State, expected};
pub use truth::{Entered, Guard, Truth, Written};

/// One task as it is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Its place in publish order, from 0.
    pub number: u32,
    /// The resource that it touches.
    pub resource: u32,
    /// The second one, if it is a transfer.
    pub other: Option<u32>,
    /// The handler that gets it first waits long enough to be killed or paused.
    pub trap: bool,
    /// When it was published ([`crate::clock::now_us`]).
    pub published_us: u64,
}

impl Job {
    /// What it touches, in the order in which the task names it.
    #[must_use]
    pub fn touches(&self) -> Vec<u32> {
        std::iter::once(self.resource).chain(self.other).collect()
    }

    /// The message.
    #[must_use]
    pub fn to_payload(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(21);
        payload.extend(self.number.to_le_bytes());
        payload.extend(self.resource.to_le_bytes());
        payload.extend(self.other.unwrap_or(u32::MAX).to_le_bytes());
        payload.push(u8::from(self.trap));
        payload.extend(self.published_us.to_le_bytes());
        payload
    }

    /// Reads a message; `None` if it is none of ours.
    #[must_use]
    pub fn from_payload(payload: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| {
            let bytes = payload.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let published = payload.get(13..21)?.try_into().ok()?;
        Some(Self {
            number: u32_at(0)?,
            resource: u32_at(4)?,
            other: Some(u32_at(8)?).filter(|other| *other != u32::MAX),
            trap: *payload.get(12)? != 0,
            published_us: u64::from_le_bytes(published),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_survives_its_payload() {
        for other in [None, Some(4)] {
            let job = Job { number: 1, resource: 2, other, trap: true, published_us: 1 << 40 };
            assert_eq!(Job::from_payload(&job.to_payload()), Some(job));
        }
        assert_eq!(Job::from_payload(b"short"), None);
    }
}
