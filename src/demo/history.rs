//! A repository and the edits of its first-parent history, oldest first.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::edit::{Blob, CommitIndex, Edit, EditError, Mode, Oid};
use super::git::{Git, GitError, Records};
use super::path::{FilePath, PathError};

/// A git repository, held at the commit that was its HEAD when it was opened:
/// commits that are made meanwhile do not disturb a running demo.
#[derive(Debug, Clone)]
pub struct Repository {
    git_dir: PathBuf,
    head: Oid,
}

/// Why the history cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// No repository at that place, nor above it.
    #[error("`{}` is not in a git repository: {reason}", path.display())]
    NotARepository {
        /// Where it was looked for.
        path: PathBuf,
        /// What git said.
        reason: String,
    },
    /// HEAD names no commit.
    #[error("the repository `{}` has no commit yet", git_dir.display())]
    NoCommit {
        /// Which repository.
        git_dir: PathBuf,
    },
    /// Git failed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Git printed something that is no history.
    #[error("git printed a history that cannot be read: `{record}`")]
    Malformed {
        /// The record.
        record: String,
    },
    /// A record has an object name or a mode that a file cannot have.
    #[error("commit {index} cannot be replayed")]
    Edit {
        /// Which commit.
        index: CommitIndex,
        /// Why.
        #[source]
        source: EditError,
    },
    /// A commit holds a path that git itself would refuse to check out.
    #[error("commit {index} cannot be replayed")]
    Path {
        /// Which commit.
        index: CommitIndex,
        /// Why.
        #[source]
        source: PathError,
    },
}

impl Repository {
    /// Opens the repository that `path` is in: a work tree or a folder of one,
    /// a linked work tree, a bare repository. Who owns it does not matter. A
    /// shallow clone begins with its oldest commit.
    ///
    /// # Errors
    /// [`HistoryError`] without git, without a repository, without a commit.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, HistoryError> {
        let path = path.as_ref();
        let found = Git::discover(path, "rev-parse").args(["--absolute-git-dir"]).output();
        let mut git_dir = found.map_err(|error| match error {
            GitError::Failed { stderr, .. } => {
                HistoryError::NotARepository { path: path.to_owned(), reason: stderr }
            }
            GitError::Missing | GitError::Io { .. } => error.into(),
        })?;
        // Only the newline that git adds: a folder's name may end in one too.
        git_dir.pop_if(|last| *last == b'\n');
        let git_dir = PathBuf::from(std::ffi::OsString::from_vec(git_dir));
        match commit(&git_dir, "HEAD") {
            Ok(head) => Ok(Self { git_dir, head }),
            Err(HistoryError::Git(GitError::Failed { .. })) => {
                Err(HistoryError::NoCommit { git_dir })
            }
            Err(error) => Err(error),
        }
    }

    /// The same repository, held at the commit `head`: what another process
    /// saw as its HEAD.
    #[must_use]
    pub fn at(self, head: Oid) -> Self {
        Self { head, ..self }
    }

    /// The same repository, held at its oldest `commits` commits.
    ///
    /// # Errors
    /// [`HistoryError`] when git fails. More commits than there are is none.
    pub fn oldest(self, commits: u64) -> Result<Self, HistoryError> {
        let surplus = self.commits()?.saturating_sub(commits.max(1));
        let older = commit(&self.git_dir, &format!("{}~{surplus}", self.head))?;
        Ok(self.at(older))
    }

    /// Where git keeps the repository; absolute.
    #[must_use]
    pub fn git_dir(&self) -> &Path {
        &self.git_dir
    }

    /// The commit whose files the demo rebuilds.
    #[must_use]
    pub fn head(&self) -> &Oid {
        &self.head
    }

    /// How many commits the first-parent history has.
    ///
    /// # Errors
    /// [`HistoryError`] when git fails.
    pub fn commits(&self) -> Result<u64, HistoryError> {
        let args = ["--count", "--first-parent", self.head.as_str()];
        let printed = self.git("rev-list").args(args).output()?;
        let count = std::str::from_utf8(&printed).ok().and_then(|n| n.trim().parse().ok());
        count.ok_or_else(|| malformed(&printed))
    }

    /// How many edits there are: reads the whole history once.
    ///
    /// # Errors
    /// [`HistoryError`] when the history cannot be read.
    pub fn count(&self) -> Result<u64, HistoryError> {
        self.edits()?.try_fold(0, |count, edit| edit.map(|_| count + 1))
    }

    /// The edits, oldest commit first, while git prints them: memory does not
    /// grow with the history. A merge is what it changed against its first
    /// parent, a rename is a removal and a new file.
    ///
    /// # Errors
    /// [`HistoryError`] when git cannot be started. Later errors come as the
    /// last item.
    pub fn edits(&self) -> Result<Edits, HistoryError> {
        let log = self.git("log").args([
            "--first-parent",
            "--reverse",
            "--root",
            "--diff-merges=first-parent",
            "--raw",
            "-r",
            "-z",
            "--no-renames",
            "--no-abbrev",
            "--format=%H",
            // The repository's own settings must not change what is printed.
            "--ignore-submodules=none",
            "--no-relative",
            "--no-show-signature",
            "--no-color",
            self.head.as_str(),
            "--",
        ]);
        Ok(Edits { records: Some(log.records()?), next_index: 0, commit: None })
    }

    pub(super) fn git(&self, subcommand: &'static str) -> Git {
        Git::on(&self.git_dir, subcommand)
    }
}

/// The edits of a history. Dropping it ends the git that prints them.
#[derive(Debug)]
pub struct Edits {
    /// `None` after the last edit or an error.
    records: Option<Records>,
    next_index: u64,
    /// The commit that the coming records belong to.
    commit: Option<(CommitIndex, Oid)>,
}

impl Edits {
    /// Git prints a commit's name, then two records for each of its files: one
    /// that begins with a colon (the first after a newline), then the path.
    fn advance(&mut self, records: &mut Records) -> Result<Option<Edit>, HistoryError> {
        while let Some(record) = records.next()? {
            let text = std::str::from_utf8(&record).map_err(|_| malformed(&record))?;
            let text = text.trim_start_matches('\n');
            let Some(change) = text.strip_prefix(':') else {
                let name = Oid::new(text).map_err(|_| malformed(&record))?;
                self.commit = Some((CommitIndex::new(self.next_index), name));
                self.next_index += 1;
                continue;
            };
            let Some((index, commit)) = self.commit.clone() else {
                return Err(malformed(&record));
            };
            let path = records.next()?.ok_or_else(|| malformed(&record))?;
            let path =
                FilePath::new(path).map_err(|source| HistoryError::Path { index, source })?;
            let fields: Vec<&str> = change.split(' ').collect();
            let [mode_before, mode_after, before, after, _status] = fields[..] else {
                return Err(malformed(&record));
            };
            let version = |mode, oid| {
                version(mode, oid).map_err(|source| HistoryError::Edit { index, source })
            };
            let (before, after) = (version(mode_before, before)?, version(mode_after, after)?);
            return Ok(Some(Edit { index, commit, path, before, after }));
        }
        Ok(None)
    }
}

impl Iterator for Edits {
    type Item = Result<Edit, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut records = self.records.take()?;
        let edit = self.advance(&mut records).transpose()?;
        if edit.is_ok() {
            self.records = Some(records);
        }
        Some(edit)
    }
}

fn version(mode: &str, oid: &str) -> Result<Option<Blob>, EditError> {
    match mode {
        "000000" => Ok(None),
        _ => Ok(Some(Blob { oid: Oid::new(oid)?, mode: Mode::parse(mode)? })),
    }
}

/// The name of the commit that `revision` means.
fn commit(git_dir: &Path, revision: &str) -> Result<Oid, HistoryError> {
    let revision = format!("{revision}^{{commit}}");
    let printed = Git::on(git_dir, "rev-parse").args(["--verify", &revision]).output()?;
    let name = std::str::from_utf8(&printed).ok().and_then(|name| Oid::new(name.trim()).ok());
    name.ok_or_else(|| malformed(&printed))
}

fn malformed(record: &[u8]) -> HistoryError {
    HistoryError::Malformed { record: record.escape_ascii().to_string() }
}
