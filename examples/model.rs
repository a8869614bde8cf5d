//! The protocol as a model, to look at: every interleaving of a small fleet.
//!
//! ```sh
//! cargo run --example model -- check              # counts, and what breaks without which rule
//! cargo run --example model -- explore            # in a browser, step by step
//! cargo run --example model -- explore cancel     # another model, by its name in `check`
//! ```
//!
//! `tests/model.rs` checks the same models; `tests/model/` has the code.

use std::process::ExitCode;
use std::time::Instant;

use stateright::Model;

#[path = "../tests/model/mod.rs"]
mod model;

use model::scene::Scene;
use model::{scenes, verdict};

/// The address of the explorer.
const ADDRESS: &str = "127.0.0.1:3000";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["check"] => check(),
        ["explore"] => explore(None),
        ["explore", name] => explore(Some(name)),
        _ => {
            eprintln!("usage: model check | model explore [MODEL]");
            ExitCode::FAILURE
        }
    }
}

fn check() -> ExitCode {
    let mut holds = true;
    for scene in scenes::safe() {
        let (name, started) = (scene.name, Instant::now());
        let verdict = verdict::check(scene);
        let (states, steps) = (verdict.states, verdict.steps);
        println!(
            "{name}: {states} states, {steps} steps, {:.1} s",
            started.elapsed().as_secs_f32()
        );
        verdict.seen.iter().for_each(|seen| println!("  seen: {seen}"));
        for (property, path) in &verdict.fallen {
            println!("  does not hold: {property}: {path:?}");
        }
        holds &= verdict.fallen.is_empty();
    }
    for (scene, property) in scenes::broken() {
        let (name, mended) = (scene.name, scenes::mended(&scene));
        if let Some(path) = verdict::refute(&scene, property) {
            println!("{name}: does not hold: {property}");
            path.iter().for_each(|step| println!("  {step:?}"));
        } else {
            println!("{name}: should break, and does not: {property}");
            holds = false;
        }
        holds &= verdict::check(mended).fallen.is_empty();
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn explore(name: Option<&str>) -> ExitCode {
    let broken = scenes::broken().into_iter().map(|(scene, _)| scene);
    let scenes: Vec<Scene> = scenes::safe().into_iter().chain(broken).collect();
    let found = scenes.iter().find(|scene| name.is_none_or(|name| name == scene.name));
    let Some(scene) = found else {
        let names: Vec<_> = scenes.iter().map(|scene| scene.name).collect();
        eprintln!("no such model; there are {}", names.join(", "));
        return ExitCode::FAILURE;
    };
    println!("{} on http://{ADDRESS}, until Ctrl-C", scene.name);
    // Serves for as long as the program runs.
    drop(scene.clone().checker().serve(ADDRESS));
    ExitCode::SUCCESS
}
