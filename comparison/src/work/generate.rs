//! Which tasks there are. Drawn with a fixed seed, so all contestants get the same.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::Job;

/// The resource that is hot in the workloads that have one.
pub const HOT: u32 = 0;

/// The exponent of the zipf workload: that of words in a text, and about that of many caches.
const ZIPF_EXPONENT: f64 = 1.0;

/// Any number; the same for all, so that all get the same tasks.
const SEED: u64 = 20_250_701;

/// How the tasks fall on the resources.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Uniform over all resources.
    Uniform,
    /// 90 % on one resource, the rest uniform over the others.
    Hot90,
    /// The n-th resource gets a share of 1/n.
    Zipf,
    /// All on one resource.
    One,
    /// Each task touches two different resources, uniform.
    Transfers,
}

impl Workload {
    /// All of them, in the order of the report.
    pub const ALL: [Self; 5] = [Self::Uniform, Self::Hot90, Self::Zipf, Self::One, Self::Transfers];

    /// Its name in tables.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Hot90 => "90/10",
            Self::Zipf => "zipf",
            Self::One => "all on one",
            Self::Transfers => "transfers",
        }
    }

    /// The share of the tasks that it is run with: where everything goes through one
    /// resource, half of them tell as much and take half as long.
    #[must_use]
    pub const fn share(self, tasks: u32) -> u32 {
        match self {
            Self::One => tasks / 2,
            Self::Uniform | Self::Hot90 | Self::Zipf | Self::Transfers => tasks,
        }
    }
}

/// The first `count` tasks of a workload over `resources` resources (at least two).
#[must_use]
pub fn jobs(workload: Workload, count: u32, resources: u32) -> Vec<Job> {
    let mut random = fastrand::Rng::with_seed(SEED);
    let zipf = Zipf::new(resources);
    let draw = |number| {
        let resource = match workload {
            Workload::Uniform | Workload::Transfers => random.u32(0..resources),
            Workload::One => HOT,
            Workload::Hot90 if random.u32(0..10) > 0 => HOT,
            Workload::Hot90 => random.u32(1..resources),
            Workload::Zipf => zipf.at(random.f64()),
        };
        let other = (workload == Workload::Transfers)
            .then(|| (resource + random.u32(1..resources)) % resources);
        Job { number, resource, other, trap: false, published_us: 0 }
    };
    (0..count).map(draw).collect()
}

struct Zipf {
    /// The share of all resources up to this one.
    cumulated: Vec<f64>,
}

impl Zipf {
    fn new(resources: u32) -> Self {
        let mut total = 0.0;
        let mut cumulated: Vec<f64> = (1..=resources)
            .map(|rank| {
                total += f64::from(rank).powf(-ZIPF_EXPONENT);
                total
            })
            .collect();
        cumulated.iter_mut().for_each(|share| *share /= total);
        Self { cumulated }
    }

    fn at(&self, random: f64) -> u32 {
        self.cumulated.partition_point(|share| *share < random) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hot_resource_gets_its_share() {
        let share = |workload| {
            let jobs = jobs(workload, 10_000, 1_000);
            jobs.iter().filter(|job| job.resource == HOT).count()
        };
        assert!((8_800..9_200).contains(&share(Workload::Hot90)));
        assert!((1_000..1_700).contains(&share(Workload::Zipf)));
        assert!(share(Workload::Uniform) < 50);
        assert_eq!(share(Workload::One), 10_000);
    }

    #[test]
    fn a_transfer_touches_two_resources() {
        let jobs = jobs(Workload::Transfers, 10_000, 3);
        assert!(jobs.iter().all(|job| job.other.is_some_and(|other| other != job.resource)));
        assert!(jobs.iter().all(|job| job.touches().iter().all(|resource| *resource < 3)));
    }
}
