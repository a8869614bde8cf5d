//! The name of a worker, and its share of the partitions relative to the others.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Name of a worker of the fleet. One name is one worker: two with the same name
/// are safe, but the planner takes them for one.
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

#[cfg(test)]
mod tests {
    use super::*;

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
