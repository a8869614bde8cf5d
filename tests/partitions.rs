//! Partitions, against golden vectors that an independent implementation wrote
//! (`vectors/partitions.py`), and as ranges of the hash.

#![allow(clippy::expect_used, reason = "helpers of tests panic as tests do")]

use keylane::{PartitionCount, Resource, Topology};
use proptest::prelude::*;
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

#[derive(Deserialize)]
struct Golden {
    hash: String,
    counts: Vec<u32>,
    vectors: Vec<Vector>,
}

/// `partitions` has one entry per count.
#[derive(Deserialize)]
struct Vector {
    bytes: usize,
    hash: String,
    partitions: Vec<u32>,
    resource: String,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("vectors/partitions.json")).expect("vectors are JSON")
}

fn topology(count: u32) -> Topology {
    Topology::first(PartitionCount::new(count).expect("a valid count"))
}

fn partition(count: u32, resource: &str) -> u32 {
    let resource = Resource::new(resource).expect("a valid resource");
    topology(count).partition_of(&resource).number()
}

fn hash(resource: &str) -> u64 {
    xxh3_64(resource.as_bytes())
}

#[test]
fn every_golden_vector_is_met() {
    let golden = golden();
    assert_eq!(golden.counts, [1, 2, 3, 7, 64, 100, 1000, 1024]);
    assert!(golden.vectors.len() >= 120, "only {} vectors", golden.vectors.len());
    for vector in &golden.vectors {
        let resource = &vector.resource;
        assert_eq!(resource.len(), vector.bytes, "length of {resource:?}");
        let expected = u64::from_str_radix(&vector.hash, 16).expect("a hexadecimal hash");
        assert_eq!(hash(resource), expected, "hash of {resource:?}");
        assert_eq!(vector.partitions.len(), golden.counts.len(), "partitions of {resource:?}");
        for (&count, &expected) in golden.counts.iter().zip(&vector.partitions) {
            assert_eq!(partition(count, resource), expected, "{resource:?} of {count}");
        }
    }
}

#[test]
fn the_vectors_are_for_the_hash_of_the_topology() {
    assert_eq!(topology(64).hash.to_string(), golden().hash);
}

#[test]
fn the_vectors_reach_every_path_of_the_hash() {
    let vectors = golden().vectors;
    for boundary in [1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 1023, 1024] {
        assert!(vectors.iter().any(|v| v.bytes == boundary), "no vector of {boundary} bytes");
    }
    let signed = vectors.iter().filter(|v| v.hash.as_bytes()[0] >= b'8').count();
    assert!(signed >= 32, "only {signed} hashes that are negative as a signed integer");
}

/// Resource keys of one to forty characters of any script.
fn keys() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("\\PC{1,40}", 2..64)
}

proptest! {
    #[test]
    fn partitions_are_contiguous_ranges_of_the_hash(mut keys in keys(), count in 1u32..=1024) {
        keys.sort_by_key(|key| hash(key));
        let partitions: Vec<u32> = keys.iter().map(|key| partition(count, key)).collect();
        prop_assert!(partitions.is_sorted(), "{partitions:?} falls while the hash rises");
        prop_assert!(partitions.iter().all(|&p| p < count));
    }

    #[test]
    fn a_split_partition_has_one_parent(keys in keys(), half in 1u32..=512) {
        for key in keys {
            prop_assert_eq!(partition(2 * half, &key) / 2, partition(half, &key), "{:?}", key);
        }
    }
}
