//! The house stays as ARCHITECTURE.md says: arrows point one way.

#![allow(clippy::expect_used, reason = "clippy spares #[test] functions only")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
    found
}

/// Lines of code under `folder` that name one of `words`, with their places.
fn naming(folder: &str, words: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for path in sources(&root.join(folder)) {
        let text = fs::read_to_string(&path).expect("a source");
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) {
                let path = path.strip_prefix(&root).expect("below the root").display();
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn the_protocol_is_pure() {
    let impure = [
        "tokio",
        "lapin",
        "Instant",
        "SystemTime::now",
        "now_v7",
        "new_v4",
        "std::env",
        "std::fs",
        "std::net",
        "std::thread",
        "crate::rabbit",
        "crate::worker",
        "crate::producer",
        "crate::router",
        "crate::handler",
        "crate::cli",
    ];
    assert_eq!(naming("protocol", &impure), Vec::<String>::new());
}

#[test]
fn only_rabbit_names_the_client_library() {
    let elsewhere: Vec<_> = naming("", &["lapin::"])
        .into_iter()
        .filter(|place| !place.starts_with("rabbit/"))
        .collect();
    assert_eq!(elsewhere, Vec::<String>::new());
}

#[test]
fn rabbit_knows_nothing_of_the_roles() {
    let roles = [
        "crate::worker",
        "crate::producer",
        "crate::router",
        "crate::handler",
        "crate::cli",
        "crate::dashboard",
    ];
    assert_eq!(naming("rabbit", &roles), Vec::<String>::new());
}

#[test]
fn the_roles_know_nothing_of_the_command_line() {
    for role in ["worker", "handler"] {
        let above = ["crate::cli", "crate::demo", "crate::dashboard"];
        assert_eq!(naming(role, &above), Vec::<String>::new());
    }
}

#[test]
fn the_dashboard_knows_nothing_of_the_command_line() {
    let beside = ["crate::cli", "crate::demo", "crate::worker", "crate::handler"];
    assert_eq!(naming("dashboard", &beside), Vec::<String>::new());
}
