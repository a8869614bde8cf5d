//! Every interleaving of a small fleet: `tests/model/` says what is modelled,
//! and `examples/model.rs` shows it.

use std::collections::BTreeSet;

use stateright::{Expectation, Model};

#[path = "model/mod.rs"]
mod model;

use model::{scenes, verdict};

/// The states of each model, and the steps that lead from one to another. Whatever
/// changes the protocol, the broker's rules or the bounds shows here.
const SIZES: [(&str, usize, usize); 12] = [
    ("moves", 21_927, 82_670),
    ("moves-and-a-failure", 41_706, 141_935),
    ("moves-and-a-crash", 33_229, 123_602),
    ("moves-and-a-cut", 22_348, 82_348),
    ("a-window-of-one", 8_375, 29_996),
    ("two-crashes", 12_369, 40_750),
    ("a-cut", 8_582, 30_333),
    ("two-cuts", 11_514, 42_256),
    ("one-of-each", 228_193, 953_682),
    ("three-workers", 36_743, 150_202),
    ("three-workers-and-a-crash", 63_990, 277_141),
    ("three-workers-and-a-cut", 103_425, 456_746),
];

#[test]
fn the_protocol_holds_on_every_path() {
    let (mut sizes, mut seen, mut possible) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for scene in scenes::safe() {
        let properties = scene.properties().into_iter();
        let sometimes = properties.filter(|p| p.expectation == Expectation::Sometimes);
        possible.extend(sometimes.map(|property| property.name));
        let name = scene.name;
        let verdict = verdict::check(scene);
        assert_eq!(verdict.fallen, [], "{name}");
        sizes.push((name, verdict.states, verdict.steps));
        seen.extend(verdict.seen);
    }
    assert_eq!(sizes, SIZES);
    assert_eq!(seen, possible, "what never happens proves nothing");
}

#[test]
fn without_one_of_the_rules_a_property_falls() {
    for (scene, property) in scenes::broken() {
        let (name, mended) = (scene.name, scenes::mended(&scene));
        assert!(verdict::refute(&scene, property).is_some(), "{name}: {property}");
        assert_eq!(verdict::check(mended).fallen, [], "{name}, mended");
    }
}
