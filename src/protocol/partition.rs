//! Which partition a resource belongs to, and the layout of a namespace.
//!
//! `partition = (xxh3_64(resource) × count) >> 64`, with the product in 128
//! bits: the multiply-shift reduction of Lemire, "Fast random integer
//! generation in an interval" (2019). Partitions are contiguous *ranges* of the
//! hash, so a later split of a partition has exactly one parent per child.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::task::Resource;

/// A hash range backed by one queue, numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(u32);

impl PartitionId {
    /// The partition of this number.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How resources are hashed. Part of the topology, so that a producer with
/// another hash is refused instead of breaking exclusivity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HashFunction {
    /// XXH3, 64 bits, seed 0, over the UTF-8 bytes of the resource.
    #[serde(rename = "xxh3_64")]
    Xxh3,
}

impl fmt::Display for HashFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xxh3 => f.write_str("xxh3_64"),
        }
    }
}

/// The number of partitions of a topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PartitionCount(NonZeroU32);

impl PartitionCount {
    /// The most partitions of a topology. Each is two quorum queues, which RabbitMQ keeps some
    /// tens of thousands of.
    pub const MAX: u32 = 16_384;
    /// 64: enough to spread a fleet of twenty evenly, few enough to open in
    /// well under a second.
    pub const DEFAULT: Self = match Self::new(64) {
        Ok(count) => count,
        Err(_) => unreachable!(),
    };

    /// Checks a number of partitions.
    ///
    /// # Errors
    /// [`PartitionCountError`] when it is not within 1 to [`PartitionCount::MAX`].
    pub const fn new(count: u32) -> Result<Self, PartitionCountError> {
        match NonZeroU32::new(count) {
            Some(nonzero) if count <= Self::MAX => Ok(Self(nonzero)),
            _ => Err(PartitionCountError { count }),
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl TryFrom<u32> for PartitionCount {
    type Error = PartitionCountError;
    fn try_from(count: u32) -> Result<Self, PartitionCountError> {
        Self::new(count)
    }
}

impl From<PartitionCount> for u32 {
    fn from(count: PartitionCount) -> Self {
        count.get()
    }
}

impl std::str::FromStr for PartitionCount {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number: u32 = text.parse().map_err(|e| format!("{e}"))?;
        Self::new(number).map_err(|e| e.to_string())
    }
}

impl fmt::Display for PartitionCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of partitions out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a topology has 1 to {max} partitions, not {count}", max = PartitionCount::MAX)]
pub struct PartitionCountError {
    /// The number that was asked for.
    pub count: u32,
}

/// A task lay in a partition that its resource does not belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it came from partition {from}, but its resource belongs to partition {own} of {partitions}: \
     is the publisher's hash or number of partitions wrong, or has it a header `CC`?"
)]
pub struct Misplaced {
    /// The partition that it came from.
    pub from: PartitionId,
    /// The partition that its resource belongs to.
    pub own: PartitionId,
    /// How many partitions there are.
    pub partitions: PartitionCount,
}

/// The layout of a namespace: a versioned fact that the broker stores, and
/// that producers and workers read before they do anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Rises by one with every change of the layout; part of every queue name.
    pub generation: u32,
    /// How many partitions there are.
    pub partitions: PartitionCount,
    /// How a resource is hashed.
    pub hash: HashFunction,
    /// How many deliveries of one partition an owner holds, at the most. It is
    /// the same for all owners, since the order depends on it: what an owner
    /// gives back must fit into the window of the next one, whole. The broker
    /// puts what is given back *behind* what was given back before, and only an
    /// empty list keeps that in order.
    pub prefetch: NonZeroU16,
}

impl Topology {
    /// 256: keeps a worker busy over a round trip to the broker, and bounds
    /// what a crash redelivers.
    pub const DEFAULT_PREFETCH: NonZeroU16 = NonZeroU16::new(256).unwrap();

    /// The first layout of a namespace.
    #[must_use]
    pub const fn first(partitions: PartitionCount) -> Self {
        let prefetch = Self::DEFAULT_PREFETCH;
        Self { generation: 1, partitions, hash: HashFunction::Xxh3, prefetch }
    }

    /// The same with another prefetch.
    #[must_use]
    pub const fn with_prefetch(self, prefetch: NonZeroU16) -> Self {
        Self { prefetch, ..self }
    }

    /// The partition that `resource` belongs to.
    #[must_use]
    pub fn partition_of(&self, resource: &Resource) -> PartitionId {
        let hash = match self.hash {
            HashFunction::Xxh3 => xxh3_64(resource.as_str().as_bytes()),
        };
        let scaled = (u128::from(hash) * u128::from(self.partitions.get())) >> 64;
        // The product of a 64-bit hash and a count shifted by 64 is below the count.
        PartitionId(scaled as u32)
    }

    /// Checks that a task of `resource` came from the partition that the resource belongs to.
    /// What does not would run beside the resource's other tasks, on another worker.
    ///
    /// # Errors
    /// [`Misplaced`] when it came from another one.
    pub fn check_place(&self, resource: &Resource, from: PartitionId) -> Result<(), Misplaced> {
        let own = self.partition_of(resource);
        let partitions = self.partitions;
        if own == from { Ok(()) } else { Err(Misplaced { from, own, partitions }) }
    }

    /// All partitions, in order.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = PartitionId> + use<> {
        (0..self.partitions.get()).map(PartitionId)
    }
}

impl From<PartitionCount> for Topology {
    /// The first layout of a namespace.
    fn from(partitions: PartitionCount) -> Self {
        Self::first(partitions)
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "generation {}, {} partitions, hash {}, prefetch {}",
            self.generation, self.partitions, self.hash, self.prefetch
        )
    }
}
