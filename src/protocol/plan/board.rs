//! Owners and standbys while a plan is being computed, by index of the member.

use super::super::ownership::WorkerId;
use super::{Line, Plan};

/// Index of no member: the partition has no owner, or no standby of that rank.
pub(super) const NOBODY: u16 = u16::MAX;

/// Owners and standbys of all partitions.
pub(super) struct Board {
    /// For each member, its index in the previous plan; none for a newcomer.
    pub(super) came_from: Vec<Option<u16>>,
    /// Owner of each partition.
    pub(super) owner: Vec<u16>,
    /// Standbys of each partition, by rank.
    pub(super) standbys: [Vec<u16>; Plan::STANDBYS],
}

impl Board {
    /// The lines of `previous`, without the members that have left.
    pub(super) fn new(previous: Option<&Plan>, members: &[WorkerId], partitions: usize) -> Self {
        let mut board = Self {
            came_from: vec![None; members.len()],
            owner: vec![NOBODY; partitions],
            standbys: std::array::from_fn(|_| vec![NOBODY; partitions]),
        };
        let Some(previous) = previous else { return board };
        let mut now = vec![NOBODY; previous.members.len()];
        for (then, worker) in previous.members.iter().enumerate() {
            if let Ok(index) = members.binary_search(worker) {
                now[then] = index as u16;
                board.came_from[index] = Some(then as u16);
            }
        }
        let now = |index: u16| now.get(usize::from(index)).copied().unwrap_or(NOBODY);
        for (partition, line) in previous.lines.iter().take(partitions).enumerate() {
            board.owner[partition] = now(line.owner);
            for (rank, standby) in board.standbys.iter_mut().zip(&line.standbys) {
                rank[partition] = now(*standby);
            }
        }
        board
    }

    /// Number of members.
    pub(super) fn members(&self) -> usize {
        self.came_from.len()
    }

    /// Number of partitions that each member owns.
    pub(super) fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.members()];
        self.owner.iter().filter(|&&o| o != NOBODY).for_each(|&o| counts[usize::from(o)] += 1);
        counts
    }

    /// Partitions of each member, in order.
    pub(super) fn owned(&self) -> Vec<Vec<usize>> {
        let mut owned = vec![Vec::new(); self.members()];
        for (partition, &owner) in self.owner.iter().enumerate().filter(|(_, o)| **o != NOBODY) {
            owned[usize::from(owner)].push(partition);
        }
        owned
    }

    /// Partitions without an owner, in order.
    pub(super) fn orphans(&self) -> Vec<usize> {
        (0..self.owner.len()).filter(|&p| self.owner[p] == NOBODY).collect()
    }

    /// The standbys of `partition` that are members, the first one first.
    pub(super) fn standbys_of(&self, partition: usize) -> impl Iterator<Item = u16> {
        self.standbys.iter().map(move |rank| rank[partition]).filter(|&s| s != NOBODY)
    }

    /// The lines of the plan. None at all when there are no members.
    pub(super) fn lines(&self) -> Vec<Line> {
        let owned = self.owner.iter().enumerate().filter(|(_, owner)| **owner != NOBODY);
        owned.map(|(p, &owner)| Line { owner, standbys: self.standbys_of(p).collect() }).collect()
    }
}

/// Scrambles the bits of a number (the finaliser of SplitMix64).
pub(super) const fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
