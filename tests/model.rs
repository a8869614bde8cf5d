//! Every interleaving of a small fleet: `tests/model/` says what is modelled,
//! and `examples/model.rs` shows it.

use std::collections::BTreeSet;

use stateright::{Expectation, Model};

#[path = "model/mod.rs"]
mod model;

use model::{scenes, verdict};

/// How many states each model has, and how many steps lead from one to another.
/// Whatever changes the protocol, the broker's rules or the bounds shows here.
const SIZES: [(&str, usize, usize); 9] = [
    ("a-crash-and-a-failure", 44_132, 136_155),
    ("two-crashes", 18_797, 64_158),
    ("a-crash-and-a-drain", 23_369, 80_747),
    ("a-cut", 49_889, 186_961),
    ("a-cut-and-a-failure", 47_611, 177_354),
    ("two-cuts", 30_649, 115_985),
    ("one-of-each", 440_582, 1_901_623),
    ("three-workers", 54_825, 224_374),
    ("three-workers-and-a-cut", 235_953, 1_060_334),
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
        assert!(verdict::refute(scene, property).is_some(), "{name}: {property}");
        assert_eq!(verdict::check(mended).fallen, [], "{name}, mended");
    }
}
