//! Which repository the demo rebuilds.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::demo::{Plan, Repository, generate};

/// A repository, and what it is called in the report.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) repository: Repository,
    pub(super) name: String,
}

impl Source {
    /// The named repository; else keylane's own, if this is run inside its
    /// checkout; else one that is made in `scratch`. Blocks.
    pub(super) fn choose(repo: Option<PathBuf>, scratch: &Path) -> anyhow::Result<Self> {
        if let Some(path) = repo {
            let repository = Repository::open(&path)?;
            return Ok(Self { repository, name: path.display().to_string() });
        }
        if let Some(repository) = own_checkout() {
            return Ok(Self { repository, name: "keylane's own".to_owned() });
        }
        let plan = Plan::default();
        generate(scratch, &plan).context("cannot make a history for the demo")?;
        Ok(Self { repository: Repository::open(scratch)?, name: "a generated one".to_owned() })
    }
}

/// The repository around the current directory, if it is keylane's and has
/// commits.
fn own_checkout() -> Option<Repository> {
    let here = std::env::current_dir().ok()?;
    let top = here.ancestors().find(|directory| directory.join(".git").exists())?;
    let manifest = std::fs::read_to_string(top.join("Cargo.toml")).ok()?;
    is_keylane(&manifest).then(|| Repository::open(top).ok()).flatten()
}

fn is_keylane(manifest: &str) -> bool {
    let package = manifest.lines().skip_while(|line| line.trim() != "[package]").skip(1);
    let mut fields = package.take_while(|line| !line.starts_with('['));
    fields.any(|line| {
        line.split_once('=')
            .is_some_and(|(key, value)| key.trim() == "name" && value.trim() == "\"keylane\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keylanes_own_manifest_is_keylanes() {
        assert!(is_keylane(include_str!("../../../Cargo.toml")));
        assert!(!is_keylane("[package]\nname = \"other\"\n[[bin]]\nname = \"keylane\"\n"));
        assert!(!is_keylane("[workspace]\nname = \"keylane\"\n"));
    }
}
