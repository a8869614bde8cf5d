//! The working files of the demo on disk: one per path, in one flat directory.
//!
//! Flat, so that a file `a` that later becomes a directory `a/b` is no
//! conflict: the two paths are two resources, and resources are independent.
//! Each begins with a line of JSON that says what it is.

use std::fs;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::edit::{CommitIndex, Mode};
use super::path::FilePath;

/// The version of a file: what sort it is, and its bytes.
pub(super) type Version = Option<(Mode, Vec<u8>)>;

/// What the store holds for one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The commit that wrote it.
    pub(super) index: CommitIndex,
    /// `None` after a commit that removed the file.
    pub(super) version: Version,
}

/// The first line of a working file.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    path: FilePath,
    index: CommitIndex,
    mode: Option<Mode>,
}

/// The directory of all working files.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    /// On the same file system, for files that are not complete yet.
    scratch: PathBuf,
}

impl Files {
    pub(super) fn new(directory: PathBuf, scratch: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        fs::create_dir_all(&scratch)?;
        Ok(Self { directory, scratch })
    }

    /// `None` if no commit has touched the path yet.
    pub(super) fn read(&self, path: &FilePath) -> io::Result<Option<Entry>> {
        let file = match fs::File::open(self.directory.join(path.digest())) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let (found, entry) = parse(file)?;
        if found == *path {
            return Ok(Some(entry));
        }
        Err(io::Error::other(format!("`{path}` and `{found}` have the same digest")))
    }

    /// Replaces the entry of `path` in one step: a reader, or a process that
    /// comes after one that was killed, finds the old or the new one.
    pub(super) fn write(&self, path: &FilePath, entry: Entry) -> io::Result<()> {
        let (mode, content) = entry.version.unzip();
        let header = Header { path: path.clone(), index: entry.index, mode };
        let scratch = self.scratch.join(uuid::Uuid::now_v7().to_string());
        let mut file = fs::File::create_new(&scratch)?;
        let mut bytes = serde_json::to_vec(&header)?;
        bytes.push(b'\n');
        bytes.extend(content.unwrap_or_default());
        file.write_all(&bytes)?;
        fs::rename(scratch, self.directory.join(path.digest()))
    }

    /// All paths that some commit has touched, one entry in memory at a time.
    pub(super) fn iter(
        &self,
    ) -> io::Result<impl Iterator<Item = io::Result<(FilePath, Entry)>> + use<>> {
        let names = fs::read_dir(&self.directory)?;
        Ok(names.map(|name| parse(fs::File::open(name?.path())?)))
    }
}

fn parse(mut file: fs::File) -> io::Result<(FilePath, Entry)> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let end = bytes.iter().position(|&b| b == b'\n').ok_or(io::ErrorKind::InvalidData)?;
    let content = bytes.split_off(end + 1);
    let header: Header = serde_json::from_slice(&bytes)?;
    let version = header.mode.map(|mode| (mode, content));
    Ok((header.path, Entry { index: header.index, version }))
}
