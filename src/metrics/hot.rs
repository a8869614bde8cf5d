//! Which resources of a partition are executed most, and keep it busiest, of late.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::protocol::heavy_hitters::HeavyHitters;
use crate::protocol::task::Resource;

/// Counters of a partition, for each of executions and time. A resource with over a
/// thirty-second of its partition's load is found for certain. Some ten kilobytes with
/// names of a usual length.
const COUNTERS: usize = 32;

/// What happened so long ago weighs half, and a quarter after as long again: what is
/// shown is the load of the last one to two minutes.
const HALF_LIFE_US: u64 = 60_000_000;

/// After so many half-lives without a task nothing is left.
const FORGOTTEN: u64 = 64;

/// The load of one partition's resources. Written by its owner, read by who reports.
#[derive(Debug)]
pub(crate) struct HotResources(Mutex<Sketches>);

#[derive(Debug)]
struct Sketches {
    /// Weighs an attempt 1.
    attempts: HeavyHitters<Resource>,
    /// Weighs an attempt the microseconds that its handler took.
    time: HeavyHitters<Resource>,
    halved_at_us: u64,
    /// The time that was watched until then, faded in the same way.
    watched_us: f64,
}

/// The load of a partition of late, in attempts and in microseconds of handlers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Load {
    pub(crate) attempts: f64,
    pub(crate) handler_us: f64,
    /// The time in which that was, in microseconds: one to two half-lives, less at the
    /// start.
    pub(crate) window_us: f64,
    /// What is certain of the resources that stand out, in no order.
    pub(crate) resources: Vec<ResourceLoad>,
}

/// The load of one resource of late, at the least.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ResourceLoad {
    pub(crate) resource: Resource,
    /// Which of the worker's partitions it belongs to.
    pub(crate) partition: usize,
    pub(crate) attempts: f64,
    pub(crate) handler_us: f64,
}

impl Load {
    /// Adds that of another partition.
    pub(super) fn add(&mut self, partition: usize, load: Self) {
        self.attempts += load.attempts;
        self.handler_us += load.handler_us;
        self.window_us = self.window_us.max(load.window_us);
        let resources = load.resources.into_iter();
        self.resources.extend(resources.map(|load| ResourceLoad { partition, ..load }));
    }

    /// Keeps so many of the resources that have the largest share, the largest first.
    pub(super) fn keep(&mut self, most: usize) {
        let (attempts, handler_us) = (self.attempts.max(1.0), self.handler_us.max(1.0));
        let share =
            |load: &ResourceLoad| (load.attempts / attempts).max(load.handler_us / handler_us);
        self.resources.sort_by(|a, b| share(b).total_cmp(&share(a)));
        self.resources.truncate(most);
    }
}

impl HotResources {
    /// Watches from now on.
    pub(crate) fn new(now_us: u64) -> Self {
        let (attempts, time) = (HeavyHitters::new(COUNTERS), HeavyHitters::new(COUNTERS));
        Self(Mutex::new(Sketches { attempts, time, halved_at_us: now_us, watched_us: 0.0 }))
    }

    /// An attempt ended. Times in microseconds.
    pub(crate) fn add(&self, resource: &Resource, took_us: u64, now_us: u64) {
        let mut sketches = self.lock();
        sketches.fade(now_us);
        sketches.attempts.add(resource, 1.0);
        sketches.time.add(resource, took_us as f64);
    }

    /// The load by now.
    pub(crate) fn load(&self, now_us: u64) -> Load {
        let mut sketches = self.lock();
        sketches.fade(now_us);
        let Sketches { attempts, time, halved_at_us, watched_us } = &*sketches;
        let window_us = watched_us + now_us.saturating_sub(*halved_at_us) as f64;
        let mut resources: Vec<_> = attempts
            .counters()
            .map(|counter| ResourceLoad {
                resource: counter.key.clone(),
                partition: 0,
                attempts: counter.at_least(),
                handler_us: 0.0,
            })
            .collect();
        for counter in time.counters() {
            let handler_us = counter.at_least();
            match resources.iter_mut().find(|load| load.resource == counter.key) {
                Some(load) => load.handler_us = handler_us,
                None => {
                    let resource = counter.key.clone();
                    let (partition, attempts) = (0, 0.0);
                    resources.push(ResourceLoad { resource, partition, attempts, handler_us });
                }
            }
        }
        let (attempts, handler_us) = (attempts.total(), time.total());
        Load { attempts, handler_us, window_us, resources }
    }

    fn lock(&self) -> MutexGuard<'_, Sketches> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sketches {
    fn fade(&mut self, now_us: u64) {
        let half_life = HALF_LIFE_US as f64;
        let halvings = now_us.saturating_sub(self.halved_at_us) / HALF_LIFE_US;
        self.halved_at_us += halvings * HALF_LIFE_US;
        if halvings >= FORGOTTEN {
            self.attempts.clear();
            self.time.clear();
            // The limit of what follows.
            self.watched_us = half_life;
            return;
        }
        for _ in 0..halvings {
            self.attempts.halve();
            self.time.halve();
            self.watched_us = (self.watched_us + half_life) / 2.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str) -> Resource {
        Resource::new(name).expect("a resource")
    }

    fn found(load: &Load, name: &str) -> Option<(f64, f64)> {
        let load = load.resources.iter().find(|load| load.resource.as_str() == name)?;
        Some((load.attempts, load.handler_us))
    }

    #[test]
    fn the_busy_and_the_many_are_found_among_a_crowd() {
        let hot = HotResources::new(0);
        for n in 0..3_000 {
            hot.add(&resource(&format!("r{n}")), 10, n);
            if n % 10 == 0 {
                hot.add(&resource("many"), 10, n);
            }
            if n == 700 {
                hot.add(&resource("slow"), 500_000, n);
            }
        }
        let load = hot.load(3_000);
        assert_eq!((load.attempts, load.window_us), (3_301.0, 3_000.0));
        let (attempts, _) = found(&load, "many").expect("every eleventh attempt");
        assert!(attempts > 150.0, "{attempts}");
        let (_, handler_us) = found(&load, "slow").expect("nearly all the time");
        assert!(handler_us > 480_000.0, "{handler_us}");
        assert!(load.resources.len() <= 2 * COUNTERS);
    }

    #[test]
    fn what_was_hot_minutes_ago_is_not() {
        let hot = HotResources::new(0);
        for _ in 0..1_000 {
            hot.add(&resource("old"), 1_000, 0);
        }
        assert_eq!(found(&hot.load(HALF_LIFE_US - 1), "old"), Some((1_000.0, 1e6)));
        assert_eq!(found(&hot.load(HALF_LIFE_US), "old"), Some((500.0, 5e5)));
        let later = hot.load(10 * HALF_LIFE_US);
        assert!(found(&later, "old").is_some_and(|(attempts, _)| attempts < 1.0), "{later:?}");
        let (least, most) = (HALF_LIFE_US as f64 * 0.99, HALF_LIFE_US as f64 * 2.0);
        assert!((least..most).contains(&later.window_us), "{later:?}");
        let nothing = Load { window_us: HALF_LIFE_US as f64, ..Load::default() };
        assert_eq!(hot.load(500 * HALF_LIFE_US), nothing);
    }
}
