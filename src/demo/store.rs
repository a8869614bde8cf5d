//! The working store: where handlers replay edits, and notice when someone
//! else was there.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blobs::{BlobError, Blobs};
use super::corruption::{ApplyError, Corruption};
use super::edit::{Blob, Edit};
use super::events::{self, EventKind, EventLog, Outcome};
use super::files::{Entry, Files, Version};
use super::path::FilePath;
use crate::protocol::task::Resource;

/// A directory that all workers of a demo share. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    files: Files,
    log: EventLog,
}

/// What became of an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The parent's version was there, the next one is there now.
    Written,
    /// The edit had been applied before its task was delivered again.
    Already,
}

/// What became of an edit of [`Held::finish_naive`]: the next version was
/// written in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naive {
    /// What it overwrote, if that was not the parent's version.
    pub corruption: Option<Corruption>,
}

impl Store {
    /// Opens the store at `root`, and makes it if it is not there.
    ///
    /// # Errors
    /// [`io::Error`] when a directory cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        for directory in ["locks", "events"] {
            fs::create_dir_all(root.join(directory))?;
        }
        let files = Files::new(root.join("files"), root.join("scratch"))?;
        let log = EventLog::new(&root.join("events"));
        Ok(Self(Arc::new(Inner { root, files, log })))
    }

    /// Where the store is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Applies `edit` the careful way: [`Store::begin`] and [`Held::finish`].
    ///
    /// # Errors
    /// [`ApplyError`]; then the file is as it was.
    pub fn apply(
        &self,
        edit: &Edit,
        redelivered: bool,
        blobs: &Blobs,
    ) -> Result<Applied, ApplyError> {
        self.begin(edit, redelivered)?.finish(blobs)
    }

    /// Begins to work on a file: takes its lock, which only proves that nobody
    /// else does, and reads it.
    ///
    /// # Errors
    /// [`Corruption::Overlap`] at once when someone else holds the lock.
    pub fn begin(&self, edit: &Edit, redelivered: bool) -> Result<Held, ApplyError> {
        self.hold(edit, redelivered, true)
    }

    /// Begins to work on a file like an unsuspecting handler: just reads it.
    ///
    /// # Errors
    /// [`ApplyError`] when the store cannot be used.
    pub fn begin_naive(&self, edit: &Edit, redelivered: bool) -> Result<Held, ApplyError> {
        self.hold(edit, redelivered, false)
    }

    fn hold(&self, edit: &Edit, redelivered: bool, careful: bool) -> Result<Held, ApplyError> {
        let resource = edit.resource()?;
        let execution = self.0.log.next_execution();
        let record = |kind| {
            let recorded = self.0.log.record(execution, &resource, edit.index, kind);
            recorded.map_err(|e| self.error(e))
        };
        let lock = if careful { Some(self.lock_file(&edit.path)?) } else { None };
        match lock.as_ref().map(File::try_lock) {
            None | Some(Ok(())) => {}
            Some(Err(TryLockError::Error(e))) => return Err(self.error(e)),
            Some(Err(TryLockError::WouldBlock)) => {
                record(EventKind::Refused)?;
                let Edit { path, commit, index, .. } = edit.clone();
                return Err(self.noted(Corruption::Overlap { path, commit, index })?.into());
            }
        }
        record(EventKind::Start { redelivered })?;
        // From here on, dropping it records the end and gives the lock back.
        let mut held = Held {
            store: self.clone(),
            edit: edit.clone(),
            redelivered,
            current: None,
            lock,
            resource,
            execution,
            outcome: Outcome::Aborted,
        };
        held.current = self.0.files.read(&edit.path).map_err(|e| self.error(e))?;
        Ok(held)
    }

    /// A lock file stays for ever: to remove it would race with its next user.
    fn lock_file(&self, path: &FilePath) -> Result<File, ApplyError> {
        let path = self.0.root.join("locks").join(path.digest());
        events::append(&path).map_err(|e| self.error(e))
    }

    /// Appends to the log of all corruptions.
    fn noted(&self, corruption: Corruption) -> Result<Corruption, ApplyError> {
        let log = events::append(&self.corruption_log());
        let noted = log.and_then(|mut log| events::write_line(&mut log, &corruption));
        noted.map_err(|e| self.error(e)).map(|()| corruption)
    }

    fn error(&self, source: io::Error) -> ApplyError {
        ApplyError::Store { root: self.0.root.clone(), source }
    }

    /// The log of all corruptions, one JSON line each; not there if there were
    /// none.
    #[must_use]
    pub fn corruption_log(&self) -> PathBuf {
        self.0.root.join("corruptions.ndjson")
    }

    /// The first corruptions in the log, `limit` at the most.
    ///
    /// # Errors
    /// [`io::Error`] when the log cannot be read.
    pub fn corruptions(&self, limit: usize) -> io::Result<Vec<Corruption>> {
        match fs::read_to_string(self.corruption_log()) {
            Ok(log) => {
                let lines = log.lines().take(limit);
                lines.map(|line| serde_json::from_str(line).map_err(io::Error::from)).collect()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn events_dir(&self) -> PathBuf {
        self.0.root.join("events")
    }

    pub(super) fn files(&self) -> &Files {
        &self.0.files
    }
}

/// An execution that has begun. Dropping it abandons the edit.
#[derive(Debug)]
#[must_use = "dropping it abandons the edit"]
pub struct Held {
    store: Store,
    edit: Edit,
    redelivered: bool,
    /// As it was when the execution began.
    current: Option<Entry>,
    lock: Option<File>,
    resource: Resource,
    execution: u64,
    /// Recorded when this is dropped.
    outcome: Outcome,
}

impl Held {
    /// Checks that the parent's version is there, byte by byte, and writes the
    /// next. Blocks.
    ///
    /// A redelivered edit may have been applied before, and later ones of its
    /// file too (a worker that is killed loses the acks of both); the commit
    /// that wrote the current version tells.
    ///
    /// # Errors
    /// [`Corruption::Mismatch`] when anything else is there. The file stays as
    /// it is after every error.
    pub fn finish(mut self, blobs: &Blobs) -> Result<Applied, ApplyError> {
        let found = self.found();
        if found == version(self.edit.before.as_ref(), blobs)? {
            return self
                .write(version(self.edit.after.as_ref(), blobs)?)
                .map(|()| Applied::Written);
        }
        let written_by = self.current.as_ref().map(|entry| entry.index);
        let superseded = written_by > Some(self.edit.index);
        if self.redelivered && (superseded || found == version(self.edit.after.as_ref(), blobs)?) {
            self.outcome = Outcome::Already;
            return Ok(Applied::Already);
        }
        self.outcome = Outcome::Mismatch;
        Err(self.store.noted(self.mismatch())?.into())
    }

    /// Writes the next version over whatever is there by now, as a handler does
    /// that trusts its queue. Blocks. What it should not have overwritten goes
    /// to the [log](Store::corruption_log).
    ///
    /// # Errors
    /// [`ApplyError`] when a version cannot be read or written.
    pub fn finish_naive(mut self, blobs: &Blobs) -> Result<Naive, ApplyError> {
        let after = version(self.edit.after.as_ref(), blobs)?;
        let fits = self.found() == version(self.edit.before.as_ref(), blobs)?;
        if fits || (self.redelivered && self.found() == after) {
            return self.write(after).map(|()| Naive { corruption: None });
        }
        let corruption = self.store.noted(self.mismatch())?;
        self.write(after)?;
        self.outcome = Outcome::Mismatch;
        Ok(Naive { corruption: Some(corruption) })
    }

    fn found(&self) -> Version {
        self.current.as_ref().and_then(|entry| entry.version.clone())
    }

    fn write(&mut self, version: Version) -> Result<(), ApplyError> {
        let entry = Entry { index: self.edit.index, version };
        let written = self.store.0.files.write(&self.edit.path, entry);
        written.map_err(|e| self.store.error(e))?;
        self.outcome = Outcome::Written;
        Ok(())
    }

    fn mismatch(&self) -> Corruption {
        let Edit { path, commit, index, before, .. } = self.edit.clone();
        let expected = before.map_or_else(|| "no file".to_owned(), |blob| blob.to_string());
        let found = match &self.current {
            None => "nothing yet".to_owned(),
            Some(Entry { index, version: None }) => format!("no file, removed by commit {index}"),
            Some(Entry { index, version: Some((mode, bytes)) }) => {
                format!("a {mode} of {} bytes, written by commit {index}", bytes.len())
            }
        };
        Corruption::Mismatch { path, commit, index, expected, found }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let end = EventKind::End { outcome: self.outcome };
        // Without its end the execution counts as interrupted, which is true.
        self.store.0.log.record(self.execution, &self.resource, self.edit.index, end).ok();
        // Not left to the closing of the file: a git that is being started at
        // this moment has a copy of it.
        self.lock.take().map(|lock| lock.unlock());
    }
}

fn version(blob: Option<&Blob>, blobs: &Blobs) -> Result<Version, BlobError> {
    blob.map(|blob| Ok((blob.mode, blobs.content(blob)?))).transpose()
}
