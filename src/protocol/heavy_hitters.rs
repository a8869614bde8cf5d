//! The keys that weigh most in a stream of them, in bounded memory: the Space-Saving
//! sketch (Metwally, Agrawal & El Abbadi, "Efficient computation of frequent and top-k
//! elements in data streams", 2005), with counts that fade.
//!
//! It keeps a fixed number of counters. A key that has none takes the one with the
//! least count, and inherits that count as its possible error. Therefore, with a
//! capacity of m and a total of N:
//!
//! - every key whose weight is over N/m has a counter;
//! - a key's weight is at most its count, and at least its count less its error;
//! - no error is over N/m.
//!
//! [`HeavyHitters::halve`] halves all counts, and N with them, so that what was added
//! k halvings ago weighs 2⁻ᵏ of what it did. All three stay true of those weights.

use std::collections::HashMap;
use std::hash::Hash;

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct HeavyHitters<K> {
    capacity: usize,
    counters: Vec<Counter<K>>,
    /// Where a key's counter is.
    places: HashMap<K, usize>,
    total: f64,
}

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counter<K> {
    /// The key.
    pub key: K,
    /// It weighs no more than this.
    pub count: f64,
    /// It weighs no less than the count less this.
    pub error: f64,
}

impl<K> Counter<K> {
    /// What the key weighs at the least.
    #[must_use]
    pub fn at_least(&self) -> f64 {
        self.count - self.error
    }
}

impl<K: Clone + Eq + Hash> HeavyHitters<K> {
    /// With this many counters, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self { capacity, counters: Vec::new(), places: HashMap::new(), total: 0.0 }
    }

    /// Adds a weight, which is not negative, to a key. Takes time in the order of the
    /// capacity if the key has no counter.
    pub fn add(&mut self, key: &K, weight: f64) {
        self.total += weight;
        if let Some(counter) = self.places.get(key).and_then(|at| self.counters.get_mut(*at)) {
            counter.count += weight;
            return;
        }
        if self.counters.len() < self.capacity {
            self.places.insert(key.clone(), self.counters.len());
            self.counters.push(Counter { key: key.clone(), count: weight, error: 0.0 });
            return;
        }
        let by_count = |(_, a): &(usize, &mut Counter<K>), (_, b): &(usize, &mut Counter<K>)| {
            a.count.total_cmp(&b.count)
        };
        // There is one: the capacity is not zero.
        let Some((at, least)) = self.counters.iter_mut().enumerate().min_by(by_count) else {
            return;
        };
        self.places.remove(&least.key);
        self.places.insert(key.clone(), at);
        *least = Counter { key: key.clone(), count: least.count + weight, error: least.count };
    }

    /// What was added until now weighs half of what it did.
    pub fn halve(&mut self) {
        self.total /= 2.0;
        for counter in &mut self.counters {
            counter.count /= 2.0;
            counter.error /= 2.0;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }

    /// The weight of all keys together.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.total
    }

    /// The keys that have a counter, in no order.
    pub fn counters(&self) -> impl Iterator<Item = &Counter<K>> {
        self.counters.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rounding in a few thousand additions and halvings stays far below.
    const ROUNDING: f64 = 1e-6;

    #[derive(Debug, Clone)]
    enum Step {
        Add(u8, f64),
        Halve,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Small keys come often, large ones rarely.
        let key = prop_oneof![3 => 0u8..4, 2 => 0u8..32, 1 => any::<u8>()];
        let weight = prop_oneof![Just(1.0), 0.0..1000.0];
        let step = prop_oneof![
            30 => (key, weight).prop_map(|(key, weight)| Step::Add(key, weight)),
            1 => Just(Step::Halve),
        ];
        prop::collection::vec(step, 0..2_000)
    }

    /// The sketch, and the truth.
    fn run(capacity: usize, steps: &[Step]) -> (HeavyHitters<u8>, HashMap<u8, f64>) {
        let mut sketch = HeavyHitters::new(capacity);
        let mut truth: HashMap<u8, f64> = HashMap::new();
        for step in steps {
            match step {
                Step::Add(key, weight) => {
                    sketch.add(key, *weight);
                    *truth.entry(*key).or_default() += weight;
                }
                Step::Halve => {
                    sketch.halve();
                    truth.values_mut().for_each(|weight| *weight /= 2.0);
                }
            }
        }
        (sketch, truth)
    }

    proptest! {
        #[test]
        fn the_guarantees_hold(capacity in 1usize..24, steps in steps()) {
            let (sketch, truth) = run(capacity, &steps);
            let total: f64 = truth.values().sum();
            prop_assert!((sketch.total() - total).abs() <= ROUNDING);
            prop_assert!(sketch.counters().count() <= capacity);
            let bound = total / capacity as f64;
            for counter in sketch.counters() {
                let weight = truth[&counter.key];
                prop_assert!(weight <= counter.count + ROUNDING, "{counter:?} weighs {weight}");
                prop_assert!(weight >= counter.at_least() - ROUNDING, "{counter:?} weighs {weight}");
                prop_assert!(counter.error <= bound + ROUNDING, "{counter:?}, bound {bound}");
            }
            let mut keys: Vec<_> = sketch.counters().map(|counter| counter.key).collect();
            for (key, weight) in truth.iter().filter(|(_, weight)| **weight > bound + ROUNDING) {
                prop_assert!(keys.contains(key), "{key} weighs {weight} of {total} and has none");
            }
            keys.sort_unstable();
            keys.dedup();
            prop_assert_eq!(keys.len(), sketch.counters().count(), "a key has one counter");
        }

        #[test]
        fn with_room_for_all_it_is_exact(steps in steps()) {
            let (sketch, truth) = run(256, &steps);
            for counter in sketch.counters() {
                prop_assert_eq!(counter.error, 0.0);
                prop_assert!((counter.count - truth[&counter.key]).abs() <= ROUNDING);
            }
        }
    }

    #[test]
    fn what_was_hot_fades() {
        let mut sketch = HeavyHitters::new(4);
        (0..1_000).for_each(|_| sketch.add(&"old", 1.0));
        for _ in 0..8 {
            sketch.halve();
            (0..100).for_each(|_| sketch.add(&"new", 1.0));
        }
        let weight = |key| {
            let found = sketch.counters().find(|counter| counter.key == key);
            found.map(|counter| counter.count / sketch.total()).expect("both fit")
        };
        assert!(weight("old") < 0.03 && weight("new") > 0.97, "{sketch:?}");
    }
}
