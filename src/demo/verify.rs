//! The judgement: is what the workers wrote what git says the commit holds?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::blobs::{BlobError, Blobs};
use super::edit::{Blob, Mode, Oid};
use super::git::GitError;
use super::history::Repository;
use super::layout::lay_out;
use super::path::FilePath;
use super::store::Store;

/// All files are what git says they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// How many there are.
    pub files: u64,
    /// How many bytes they have together.
    pub bytes: u64,
}

/// One file that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which file.
    pub path: FilePath,
    /// How it differs.
    pub reason: Reason,
}

/// How a file differs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The commit has it, the workers do not.
    Missing,
    /// The workers have it, the commit does not.
    Unexpected,
    /// It is another sort of file.
    Mode {
        /// What the commit has.
        expected: Mode,
        /// What the workers wrote.
        found: Mode,
    },
    /// It has another content.
    Content {
        /// What the commit has.
        expected: Oid,
    },
    /// It could not be laid out: a file stands where its directory must be.
    Unwritable {
        /// What the file system said.
        reason: String,
    },
}

/// Why there is no [`Verified`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// Some files differ; ordered by path.
    #[error("{} of the files differ, the first is {}", .0.len(), first(.0))]
    Different(Vec<Difference>),
    /// Git failed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A symlink's target could not be read.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Git answered something that cannot be read.
    #[error("git printed something that cannot be read: `{record}`")]
    Malformed {
        /// The record.
        record: String,
    },
    /// The store cannot be read or the output cannot be written.
    #[error("the files cannot be laid out in `{}`", out_dir.display())]
    Io {
        /// Where to.
        out_dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Lays the store out as a real tree in `out_dir`, which must be empty or not
/// there, and compares that tree with the commit `repository` is held at. Git
/// itself is the judge of the content.
///
/// # Errors
/// [`VerifyError::Different`] with every file that is not right; the others
/// when there is no judgement.
pub fn verify(
    repository: &Repository,
    store: &Store,
    out_dir: &Path,
) -> Result<Verified, VerifyError> {
    let io = |source| VerifyError::Io { out_dir: out_dir.to_owned(), source };
    let mut differences = lay_out(store, out_dir).map_err(io)?;
    let out_dir = fs::canonicalize(out_dir).map_err(io)?;
    let mut expected = tree(repository)?;
    let mut found = Vec::new();
    walk(&out_dir, &out_dir, &mut found).map_err(io)?;

    let mut verified = Verified { files: 0, bytes: 0 };
    let blobs = Blobs::new(repository, NonZeroUsize::MIN);
    // Git judges these, all in one go.
    let mut plain = Vec::new();
    for (path, metadata) in found {
        let Some(blob) = expected.remove(&path) else {
            differences.push(Difference { path, reason: Reason::Unexpected });
            continue;
        };
        verified.files += 1;
        verified.bytes += metadata.len();
        let place = out_dir.join(path.as_path());
        // A submodule lies there as a plain file with the commit's name.
        let same = match (mode(&metadata), blob.mode) {
            (Mode::File, Mode::Submodule) => {
                fs::read(place).map_err(io)? == blobs.content(&blob)?
            }
            (Mode::Symlink, Mode::Symlink) => {
                let target = fs::read_link(place).map_err(io)?;
                target.as_os_str().as_bytes() == blobs.content(&blob)?
            }
            (found, expected) if found == expected => {
                plain.push((path, blob.oid));
                continue;
            }
            (found, expected) => {
                differences.push(Difference { path, reason: Reason::Mode { expected, found } });
                continue;
            }
        };
        if !same {
            differences.push(Difference { path, reason: Reason::Content { expected: blob.oid } });
        }
    }
    let hashes = hashes(repository, &out_dir, &plain)?;
    for ((path, expected), _) in
        plain.into_iter().zip(hashes).filter(|((_, oid), hash)| oid != hash)
    {
        differences.push(Difference { path, reason: Reason::Content { expected } });
    }
    // What could not be laid out is missing for a reason that is known.
    let known: BTreeSet<FilePath> = differences.iter().map(|d| d.path.clone()).collect();
    let missing = expected.into_keys().filter(|path| !known.contains(path));
    differences.extend(missing.map(|path| Difference { path, reason: Reason::Missing }));
    if differences.is_empty() {
        return Ok(verified);
    }
    differences.sort_by(|a, b| a.path.cmp(&b.path));
    Err(VerifyError::Different(differences))
}

/// How many files the commit has that `repository` is held at.
///
/// # Errors
/// [`VerifyError`] when git fails.
pub fn files(repository: &Repository) -> Result<u64, VerifyError> {
    Ok(tree(repository)?.len() as u64)
}

/// What the commit holds.
fn tree(repository: &Repository) -> Result<BTreeMap<FilePath, Blob>, VerifyError> {
    let args = ["-r", "-z", "--full-tree", repository.head().as_str()];
    let mut records = repository.git("ls-tree").args(args).records()?;
    let mut tree = BTreeMap::new();
    while let Some(record) = records.next()? {
        let (path, blob) = tree_entry(&record).ok_or_else(|| malformed(&record))?;
        tree.insert(path, blob);
    }
    Ok(tree)
}

/// Reads `<mode> <type> <oid>\t<path>`.
fn tree_entry(record: &[u8]) -> Option<(FilePath, Blob)> {
    let tab = record.iter().position(|&b| b == b'\t')?;
    let mut fields = std::str::from_utf8(&record[..tab]).ok()?.split(' ');
    let (mode, _type, oid) = (fields.next()?, fields.next()?, fields.next()?);
    let blob = Blob { oid: Oid::new(oid).ok()?, mode: Mode::parse(mode).ok()? };
    Some((FilePath::new(&record[tab + 1..]).ok()?, blob))
}

/// The names that git gives the contents of `files`, in their order.
fn hashes(
    repository: &Repository,
    out_dir: &Path,
    files: &[(FilePath, Oid)],
) -> Result<Vec<Oid>, VerifyError> {
    // No filters: an attribute of the repository must not excuse a byte.
    let hash_object = repository.git("hash-object").args(["--no-filters", "--stdin-paths"]);
    let printed = hash_object.in_work_tree(out_dir).output_with(|stdin| {
        files.iter().try_for_each(|(path, _)| writeln!(stdin, "{}", quoted(path)))
    })?;
    let text = String::from_utf8_lossy(&printed);
    let oids: Result<Vec<Oid>, _> = text.lines().map(Oid::new).collect();
    oids.ok().filter(|oids| oids.len() == files.len()).ok_or_else(|| malformed(&printed))
}

/// The path as git reads it in one line, whatever bytes it has.
fn quoted(path: &FilePath) -> String {
    let escaped = path.as_bytes().iter().map(|byte| format!("\\{byte:03o}"));
    format!("\"{}\"", escaped.collect::<String>())
}

/// All files below `directory`, without following a link.
fn walk(
    root: &Path,
    directory: &Path,
    found: &mut Vec<(FilePath, fs::Metadata)>,
) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let place = entry?.path();
        let metadata = fs::symlink_metadata(&place)?;
        if metadata.is_dir() {
            walk(root, &place, found)?;
            continue;
        }
        let path = place.strip_prefix(root).map_err(io::Error::other)?;
        let path = FilePath::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        found.push((path, metadata));
    }
    Ok(())
}

fn mode(metadata: &fs::Metadata) -> Mode {
    match metadata {
        link if link.is_symlink() => Mode::Symlink,
        file if file.permissions().mode() & 0o100 != 0 => Mode::Executable,
        _ => Mode::File,
    }
}

fn malformed(record: &[u8]) -> VerifyError {
    let shown = &record[..record.len().min(200)];
    VerifyError::Malformed { record: shown.escape_ascii().to_string() }
}

fn first(differences: &[Difference]) -> String {
    differences.first().map_or_else(String::new, Difference::to_string)
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.path, self.reason)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing"),
            Self::Unexpected => f.write_str("should not be there"),
            Self::Mode { expected, found } => write!(f, "is a {found}, should be a {expected}"),
            Self::Content { expected } => write!(f, "is not {}", expected.short()),
            Self::Unwritable { reason } => write!(f, "could not be laid out: {reason}"),
        }
    }
}
