//! Shares of the partitions, by weight. Integers only, so that every machine
//! rounds in the same way.

use std::cmp::Reverse;

use super::super::ownership::WorkerId;
use super::{Member, Plan};

/// Weights are counted in millionths: the smallest one, 0.001, keeps three
/// digits, and the largest, 1,000, fits 32 bits.
const UNITS: f64 = 1e6;

/// Names and weights of `members`, sorted by name, without duplicates.
pub(super) fn sorted(members: &[Member]) -> (Vec<WorkerId>, Vec<u32>) {
    let units = |m: &Member| (f64::from(m.weight) * UNITS).round() as u32;
    let mut members: Vec<_> = members.iter().map(|m| (&m.worker, units(m).max(1))).collect();
    members.sort_unstable();
    members.dedup_by_key(|(worker, _)| *worker);
    members.truncate(Plan::MAX_MEMBERS);
    members.into_iter().map(|(worker, weight)| (worker.clone(), weight)).unzip()
}

/// Shares of the members in the partitions.
pub(super) struct Shares {
    weights: Vec<u32>,
    total: u128,
    partitions: u128,
}

impl Shares {
    pub(super) fn new(weights: Vec<u32>, partitions: usize) -> Self {
        let total = weights.iter().map(|w| u128::from(*w)).sum();
        Self { weights, total, partitions: partitions as u128 }
    }

    /// The share of `member`, rounded down, and what that leaves over, in
    /// fractions of the sum of all weights.
    fn split(&self, member: usize) -> (usize, u128) {
        let product = self.partitions * u128::from(self.weights[member]);
        ((product / self.total) as usize, product % self.total)
    }

    /// The share of `member`, rounded down.
    pub(super) fn floor(&self, member: usize) -> usize {
        self.split(member).0
    }

    /// The most partitions that `member` may own because of their load: half
    /// as many again as its share, and one. Wide enough to keep the light
    /// partitions off the owner of a hot one, narrow enough that no worker has
    /// to hold a multiple of the windows it was sized for.
    pub(super) fn limit(&self, member: usize) -> usize {
        let (floor, rest) = self.split(member);
        let ceiling = floor + usize::from(rest > 0);
        ceiling + ceiling.div_ceil(2) + 1
    }

    /// Quotas that add up to the number of partitions, each the share rounded
    /// down or up. Rounding up goes first to members that own more than their
    /// share rounded down, since this saves a move; then to the largest
    /// remainder, to the most `claims`, and to the first name.
    pub(super) fn quotas(&self, owned: &[usize], claims: &[usize]) -> Vec<usize> {
        let split: Vec<_> = (0..self.weights.len()).map(|m| self.split(m)).collect();
        let mut quotas: Vec<_> = split.iter().map(|(floor, _)| *floor).collect();
        let left = self.partitions as usize - quotas.iter().sum::<usize>();
        let mut order: Vec<_> = (0..split.len()).filter(|&m| split[m].1 > 0).collect();
        order.sort_unstable_by_key(|&m| {
            let (floor, rest) = split[m];
            (Reverse(owned[m] > floor), Reverse(rest), Reverse(claims[m]), m)
        });
        order.into_iter().take(left).for_each(|m| quotas[m] += 1);
        quotas
    }

    /// Tells whether the members that stayed have weights in the same
    /// proportion as before. `came_from` has their previous indices.
    pub(super) fn keep_proportion(&self, came_from: &[Option<u16>], before: &[u32]) -> bool {
        let before = |index: u16| before.get(usize::from(index)).copied().unwrap_or(1);
        let mut pairs = came_from.iter().zip(&self.weights).filter_map(|(from, &now)| {
            from.map(|index| (u64::from(before(index)), u64::from(now)))
        });
        let Some((first_before, first_now)) = pairs.next() else { return true };
        pairs.all(|(before, now)| before * first_now == first_before * now)
    }

    /// The weights as a plan stores them: none when all are equal.
    pub(super) fn stored(self) -> Vec<u32> {
        let equal = self.weights.windows(2).all(|pair| pair[0] == pair[1]);
        if equal { Vec::new() } else { self.weights }
    }
}
