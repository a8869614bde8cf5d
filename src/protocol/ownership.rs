//! Which worker should own which partition: weighted rendezvous hashing,
//! expressed as the priority of a consumer.
//!
//! Every worker draws, for every partition, a number that depends on nothing
//! but the two names; the highest one wins (Thaler & Ravishankar, 1998). No
//! worker needs to know of another: the broker compares the priorities.
//!
//! The draw is `ln(weight) + G` with `G` from the standard Gumbel distribution.
//! By the Gumbel-max trick (Gumbel, 1954) a worker then wins a partition with
//! a probability in exact proportion to its weight.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::partition::PartitionId;

/// Names a worker of the fleet. One name is one worker: two with the same name
/// are safe, but share a fate in who owns what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId(String);

impl WorkerId {
    /// Longest name, in bytes: it is part of an AMQP short string.
    pub const MAX_BYTES: usize = 128;

    /// Checks a name.
    ///
    /// # Errors
    /// When it is empty, too long, or has other characters than letters,
    /// digits and `. _ - : @`.
    pub fn new(name: impl Into<String>) -> Result<Self, WorkerIdError> {
        let name = name.into();
        let fits = (1..=Self::MAX_BYTES).contains(&name.len());
        if fits && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:@".contains(&b)) {
            Ok(Self(name))
        } else {
            Err(WorkerIdError { name })
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for WorkerId {
    type Error = WorkerIdError;
    fn try_from(name: String) -> Result<Self, WorkerIdError> {
        Self::new(name)
    }
}

impl From<WorkerId> for String {
    fn from(id: WorkerId) -> Self {
        id.0
    }
}

impl std::str::FromStr for WorkerId {
    type Err = WorkerIdError;
    fn from_str(name: &str) -> Result<Self, WorkerIdError> {
        Self::new(name)
    }
}

/// A string that is no worker name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no worker name: 1 to {max} letters, digits and . _ - : @", max = WorkerId::MAX_BYTES)]
pub struct WorkerIdError {
    /// The string.
    pub name: String,
}

/// A worker's share of the partitions, relative to the other workers' weights.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Weight(f64);

impl Weight {
    /// The weight of a worker that is like the others.
    pub const ONE: Self = Self(1.0);

    /// Checks a weight.
    ///
    /// # Errors
    /// When it is not within 0.001 to 1,000: outside, one worker would own
    /// everything or nothing, which is said better by starting or stopping it.
    pub fn new(weight: f64) -> Result<Self, WeightError> {
        if (0.001..=1000.0).contains(&weight) { Ok(Self(weight)) } else { Err(WeightError(weight)) }
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::ONE
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<f64> for Weight {
    type Error = WeightError;
    fn try_from(weight: f64) -> Result<Self, WeightError> {
        Self::new(weight)
    }
}

impl From<Weight> for f64 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

impl std::str::FromStr for Weight {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let weight: f64 = text.parse().map_err(|e| format!("{e}"))?;
        Self::new(weight).map_err(|e| e.to_string())
    }
}

/// A weight out of range.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("a weight is a number from 0.001 to 1000, not {0}")]
pub struct WeightError(pub f64);

/// Priority of a consumer; the broker makes the highest one the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(i32);

impl Priority {
    /// Steps per unit of the draw. Fine enough that two of a thousand workers
    /// tie on one partition in a thousand, coarse enough for 32 bits: the draw
    /// lies within ±50.
    const STEPS: f64 = 1e7;

    /// Above every draw: whoever has it is the owner next.
    pub const HIGHEST: Self = Self(i32::MAX);

    /// The number for the broker.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }
}

/// The priority of `worker` on `partition`.
#[must_use]
pub fn priority(worker: &WorkerId, weight: Weight, partition: PartitionId) -> Priority {
    let mut hash = Xxh3::new();
    hash.update(worker.as_str().as_bytes());
    hash.update(&[0]);
    hash.update(&partition.number().to_le_bytes());
    // 53 bits are what a double holds; the half keeps it off 0 and 1.
    let uniform = ((hash.digest() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let gumbel = -(-uniform.ln()).ln();
    Priority(((weight.0.ln() + gumbel) * Priority::STEPS) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const PARTITIONS: u32 = 20_000;

    fn fleet(weights: &[f64]) -> Vec<(WorkerId, Weight)> {
        let worker = |(i, w): (usize, &f64)| {
            (WorkerId::new(format!("w{i}")).expect("a name"), Weight::new(*w).expect("a weight"))
        };
        weights.iter().enumerate().map(worker).collect()
    }

    fn owners(fleet: &[(WorkerId, Weight)]) -> Vec<&WorkerId> {
        let owner = |p| fleet.iter().max_by_key(|(id, w)| priority(id, *w, PartitionId::new(p)));
        (0..PARTITIONS).filter_map(owner).map(|(id, _)| id).collect()
    }

    #[test]
    fn partitions_are_shared_in_proportion_to_the_weights() {
        let fleet = fleet(&[1.0, 1.0, 2.0, 4.0]);
        let mut owned = BTreeMap::<_, u32>::new();
        owners(&fleet).into_iter().for_each(|id| *owned.entry(id.as_str()).or_default() += 1);
        for ((id, weight), count) in fleet.iter().zip(owned.values()) {
            let expected = f64::from(PARTITIONS) * weight.0 / 8.0;
            let off = (f64::from(*count) - expected).abs() / expected;
            assert!(off < 0.06, "{id} owns {count}, expected {expected}");
        }
    }

    #[test]
    fn a_newcomer_takes_partitions_only_for_itself() {
        let before_fleet = fleet(&[1.0; 5]);
        let after_fleet = fleet(&[1.0; 6]);
        let (before, after) = (owners(&before_fleet), owners(&after_fleet));
        let moved: Vec<_> = before.iter().zip(&after).filter(|(b, a)| b != a).collect();
        assert!(moved.iter().all(|(_, to)| to.as_str() == "w5"));
        let share = moved.len() as f64 / f64::from(PARTITIONS);
        assert!((share - 1.0 / 6.0).abs() < 0.01, "{share}");
    }

    #[test]
    fn the_highest_draw_fits_its_integer() {
        let highest = (1000f64.ln() + 37.5) * Priority::STEPS;
        assert!(highest < f64::from(i32::MAX));
    }

    #[test]
    fn bad_names_and_weights_are_refused() {
        for name in ["", "a b", "ü", &"x".repeat(129)] {
            assert!(WorkerId::new(name).is_err(), "{name}");
        }
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Weight::new(weight).is_err(), "{weight}");
        }
    }
}
