//! Measured load of partitions and members.

/// Units that all loads together have, about. 2^40: a partition of a millionth
/// of the load still has a million, and no sum loses digits in a double.
const UNITS: f64 = (1u64 << 40) as f64;

/// Loads that were measured, in integer units.
pub(super) struct Load {
    /// Load of each partition.
    pub(super) of: Vec<u64>,
    /// For each member, the factor from units to a multiple of the mean.
    factor: Vec<f64>,
    /// Weight of each member relative to all members.
    weight: Vec<f64>,
}

impl Load {
    /// The measured loads; none when all are 0.
    pub(super) fn measured(loads: &[f64], partitions: usize, weights: &[u32]) -> Option<Self> {
        let load = |p| loads.get(p).copied().filter(|l: &f64| l.is_finite() && *l > 0.0);
        let loads: Vec<f64> = (0..partitions).map(|p| load(p).unwrap_or(0.0)).collect();
        let highest = loads.iter().copied().fold(0.0, f64::max);
        if highest <= 0.0 {
            return None;
        }
        // Relative to the highest one first: the sum itself might overflow.
        let sum: f64 = loads.iter().map(|load| load / highest).sum();
        let of: Vec<u64> = loads.iter().map(|l| (l / highest / sum * UNITS) as u64).collect();
        let total = of.iter().sum::<u64>().max(1) as f64;
        let all: f64 = weights.iter().copied().map(f64::from).sum();
        let weight: Vec<f64> = weights.iter().map(|w| f64::from(*w) / all).collect();
        let factor = weight.iter().map(|weight| 1.0 / (total * weight)).collect();
        Some(Self { of, factor, weight })
    }

    /// `units` on `member` as a multiple of the mean: 1 is the load that is the
    /// member's by its weight.
    pub(super) fn relative(&self, member: usize, units: u64) -> f64 {
        units as f64 * self.factor[member]
    }

    /// Units that are the share of `member` by its weight.
    pub(super) fn share(&self, member: usize) -> f64 {
        1.0 / self.factor[member]
    }

    /// Weight of `member` relative to all members.
    pub(super) fn weight(&self, member: usize) -> f64 {
        self.weight[member]
    }

    /// Load of each member, in units.
    pub(super) fn by_owner(&self, owner: &[u16]) -> Vec<u64> {
        let mut loads = vec![0; self.factor.len()];
        for (&owner, load) in owner.iter().zip(&self.of) {
            if let Some(sum) = loads.get_mut(usize::from(owner)) {
                *sum += load;
            }
        }
        loads
    }
}
