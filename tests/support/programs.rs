//! Programs that tests start: those that are installed, or can be.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

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

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    folders.extend(versions.map(|version| version.path().join("bin")));
    folders.iter().map(|folder| folder.join(name)).find(|file| file.exists())
}
