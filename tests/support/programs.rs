//! Programs that tests start: those that are installed, or can be.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

/// A program in the search path, or where Debian has those of Postgres. One that is
/// missing is installed, where that is possible.
pub(crate) fn program(name: &str, package: &str) -> PathBuf {
    find(name).unwrap_or_else(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers.sh");
        let installed = Command::new(script).arg(package).status().unwrap();
        assert!(installed.success(), "{name} is missing: apt-get install {package}");
        find(name).unwrap_or_else(|| panic!("{package} has no {name}"))
    })
}

/// A port of 127.0.0.1 that nothing listens on. Not one that the kernel would give to an outgoing
/// connection (32768 and up), which might have it before the program does.
pub(crate) fn free_port() -> u16 {
    // Every state has keys of its own, from the system's randomness.
    let random = || 20_000 + (RandomState::new().hash_one(0) % 12_000) as u16;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..100).map(|_| random()).find(free).expect("a free port")
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    folders.extend(versions.map(|version| version.path().join("bin")));
    folders.iter().map(|folder| folder.join(name)).find(|file| file.exists())
}
