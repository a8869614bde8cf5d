//! Which fault comes next.

use clap::ValueEnum;
use serde::Serialize;

use crate::provision::cluster::NodeFault;

/// What befalls the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fault {
    /// A node is stopped as an operator does it
    Stop,
    /// A node is killed with SIGKILL
    Kill,
    /// A node is frozen: its connections stay open, and nothing answers
    Pause,
    /// A node is cut off from its peers and its clients
    Cut,
    /// A node is cut off from its peers; its clients still reach it
    Split,
    /// All three nodes are stopped, and started again
    Restart,
    /// One of the faults of a node, by chance
    Any,
}

impl Fault {
    /// What it does to a node; `None` if it is one of all nodes.
    pub(super) fn of_node(self) -> Option<NodeFault> {
        match self {
            Self::Stop => Some(NodeFault::Stop),
            Self::Kill => Some(NodeFault::Kill),
            Self::Pause => Some(NodeFault::Pause),
            Self::Cut => Some(NodeFault::Cut),
            Self::Split => Some(NodeFault::Split),
            Self::Restart | Self::Any => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Cut => "cut",
            Self::Split => "split",
            Self::Restart => "restart",
            Self::Any => "any",
        }
    }
}

/// Numbers that depend on the seed only: SplitMix64 (Steele et al., 2014).
#[derive(Debug)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Below `limit`, which is small: the bias of the remainder does not show.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }
}

/// The faults in their order: those that were asked for, or random ones for ever.
#[derive(Debug)]
pub(super) enum Schedule {
    Given(std::vec::IntoIter<Fault>),
    Random,
}

impl Schedule {
    const OF_NODES: [Fault; 5] = [Fault::Stop, Fault::Kill, Fault::Pause, Fault::Cut, Fault::Split];

    /// The next one; never [`Fault::Any`].
    pub(super) fn next(&mut self, chance: &mut Chance) -> Option<Fault> {
        let fault = match self {
            Self::Given(faults) => faults.next()?,
            // A full restart is rare, and comes at the end anyway.
            Self::Random if chance.below(10) == 0 => Fault::Restart,
            Self::Random => Fault::Any,
        };
        Some(match fault {
            Fault::Any => Self::OF_NODES[chance.below(Self::OF_NODES.len())],
            fault => fault,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_faults() {
        let draw = |seed| -> Vec<Fault> {
            let mut chance = Chance::new(seed);
            (0..200).filter_map(|_| Schedule::Random.next(&mut chance)).collect()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let drawn = draw(7);
        let all = Schedule::OF_NODES.iter().chain(&[Fault::Restart]);
        assert!(all.clone().all(|fault| drawn.contains(fault)) && !drawn.contains(&Fault::Any));
        let mut given = Schedule::Given(vec![Fault::Kill].into_iter());
        let mut chance = Chance::new(0);
        assert_eq!(given.next(&mut chance), Some(Fault::Kill));
        assert_eq!(given.next(&mut chance), None);
    }
}
