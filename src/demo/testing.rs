//! Repositories for tests, made by a real git.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::git::Git;
use super::{Applied, Blobs, Edit, FilePath, Repository, Store};

/// A work tree that is removed in the end.
pub(super) struct Fixture {
    pub(super) directory: tempfile::TempDir,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::with(&[])
    }

    pub(super) fn with(init: &[&str]) -> Self {
        let fixture = Self { directory: tempfile::tempdir().expect("a directory") };
        fixture.git("init", &[&["--quiet", "--initial-branch=main"], init].concat());
        fixture
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn git(&self, subcommand: &'static str, args: &[&str]) -> String {
        let git = Git::discover(self.path(), subcommand).args(args);
        let git = ["AUTHOR", "COMMITTER"].iter().fold(git, |git, role| {
            git.env(&format!("GIT_{role}_NAME"), "test")
                .env(&format!("GIT_{role}_EMAIL"), "test@keylane.invalid")
        });
        String::from_utf8_lossy(&git.output().expect("git works")).trim().to_owned()
    }

    pub(super) fn write(&self, path: &[u8], content: &[u8]) -> &Self {
        let place = self.place(path);
        std::fs::create_dir_all(place.parent().expect("a parent")).expect("a directory");
        std::fs::write(place, content).expect("a file");
        self
    }

    pub(super) fn remove(&self, path: &[u8]) -> &Self {
        std::fs::remove_file(self.place(path)).expect("a file");
        self
    }

    pub(super) fn place(&self, path: &[u8]) -> std::path::PathBuf {
        self.path().join(std::ffi::OsStr::from_bytes(path))
    }

    /// Commits the work tree as it is.
    pub(super) fn commit(&self) -> &Self {
        self.git("add", &["--all"]);
        self.commit_index()
    }

    /// Commits what is staged, which may be nothing.
    pub(super) fn commit_index(&self) -> &Self {
        self.git("commit", &["--quiet", "--allow-empty", "--message", "a commit"]);
        self
    }

    pub(super) fn repository(&self) -> Repository {
        Repository::open(self.path()).expect("a repository")
    }

    pub(super) fn edits(&self) -> Vec<Edit> {
        edits(&self.repository())
    }

    /// The edits, each as `commit path before after`.
    pub(super) fn story(&self) -> Vec<String> {
        let version = |blob: &Option<super::Blob>| match blob {
            Some(blob) => blob.mode.to_string(),
            None => "-".to_owned(),
        };
        let line = |edit: &Edit| {
            let (before, after) = (version(&edit.before), version(&edit.after));
            format!("{} {} {before} {after}", edit.index, edit.path)
        };
        self.edits().iter().map(line).collect()
    }
}

pub(super) fn edits(repository: &Repository) -> Vec<Edit> {
    repository.edits().expect("a history").collect::<Result<_, _>>().expect("edits")
}

pub(super) fn path(path: impl Into<Vec<u8>>) -> FilePath {
    FilePath::new(path).expect("a path")
}

/// A store to replay into, and where to lay it out.
pub(super) struct Bench {
    directory: tempfile::TempDir,
    pub(super) repository: Repository,
    pub(super) store: Store,
    pub(super) blobs: Blobs,
}

impl Bench {
    pub(super) fn new(repository: Repository) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path().join("store")).expect("a store");
        let blobs = Blobs::new(&repository, NonZeroUsize::MIN);
        Self { directory, repository, store, blobs }
    }

    /// Replays the history in order, as one worker would.
    pub(super) fn replay(&self) -> &Self {
        for edit in edits(&self.repository) {
            let applied = self.store.apply(&edit, false, &self.blobs).expect("it fits");
            assert_eq!(applied, Applied::Written);
        }
        self
    }

    pub(super) fn verify(&self) -> Result<super::Verified, super::VerifyError> {
        let out_dir = self.directory.path().join(uuid::Uuid::now_v7().to_string());
        super::verify(&self.repository, &self.store, &out_dir)
    }

    /// The files that differ, with the reason.
    pub(super) fn differences(&self) -> BTreeMap<FilePath, super::verify::Reason> {
        match self.verify() {
            Err(super::VerifyError::Different(list)) => {
                list.into_iter().map(|d| (d.path, d.reason)).collect()
            }
            other => panic!("expected differences, got {other:?}"),
        }
    }
}

/// A history with everything that git can do to a file.
pub(super) fn everything(fixture: &Fixture) {
    fixture.write(b"a", b"one").write(b"empty", b"").write(b"kept", b"kept").commit();
    fixture.git("checkout", &["--quiet", "-b", "side"]);
    fixture.write(b"side", b"from the side").commit();
    fixture.git("checkout", &["--quiet", "main"]);
    fixture.write(b"a", b"two\r\n").commit();
    fixture.git("merge", &["--quiet", "--no-ff", "--message", "merge", "side"]);
    fixture.commit_index();
    fixture.remove(b"a").commit();
    fixture.write(b"a/b", b"now in a directory").commit();
    symlink("a/b", fixture.place(b"link")).expect("a symlink");
    fixture.commit();
    fixture.remove(b"link").write(b"link", b"no link any more").commit();
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(fixture.place(b"kept"), executable).expect("chmod");
    fixture.commit();
    fixture.write(b"\xff\xfe", b"not UTF-8").write(b"new\nline \"quoted\"\t\\", b"\0\n\0");
    fixture.write("ä ö".as_bytes(), b"umlauts").commit();
    let gitlink = |oid: &str| {
        let entry = format!("160000,{oid},vendor/lib");
        fixture.git("update-index", &["--add", "--cacheinfo", &entry]);
        fixture.commit_index();
    };
    gitlink(&"1".repeat(40));
    gitlink(&"2".repeat(40));
}
