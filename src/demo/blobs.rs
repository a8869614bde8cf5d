//! The content of any object of a repository, from a few long-lived gits.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::num::NonZeroUsize;
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::{Condvar, Mutex, PoisonError};

use super::edit::{Blob, Mode, Oid};
use super::git::{GitError, end_child, io_error, last_words};
use super::history::Repository;

const CAT_FILE: &str = "cat-file";

/// Reads contents through up to a given number of `git cat-file --batch`.
///
/// Shared by any number of handlers: a caller waits while all of them are busy,
/// which takes well under a millisecond for a source file.
#[derive(Debug)]
pub struct Blobs {
    repository: Repository,
    readers: NonZeroUsize,
    pool: Mutex<Pool>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Reader>,
    busy: usize,
}

/// Why a content cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// The repository does not have the object.
    #[error("the repository has no content for {oid} (a partial clone?)")]
    Absent {
        /// Which object.
        oid: Oid,
    },
    /// Git failed.
    #[error(transparent)]
    Git(#[from] GitError),
}

impl Blobs {
    /// Contents of `repository`, read by at most `readers` processes, which
    /// are started when they are needed.
    #[must_use]
    pub fn new(repository: &Repository, readers: NonZeroUsize) -> Self {
        Self {
            repository: repository.clone(),
            readers,
            pool: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// The content of one version: the bytes of a file, the target of a
    /// symlink, the commit of a submodule and a newline.
    ///
    /// # Errors
    /// [`BlobError`] when the object is absent or git fails.
    pub fn content(&self, blob: &Blob) -> Result<Vec<u8>, BlobError> {
        if blob.mode == Mode::Submodule {
            return Ok(format!("{}\n", blob.oid).into_bytes());
        }
        let idle = self.take();
        let busy = Busy { blobs: self };
        let mut reader = match idle {
            Some(reader) => reader,
            None => Reader::start(&self.repository)?,
        };
        let content = reader.read(&blob.oid);
        // After an error the stream is out of step: that reader ends here.
        if matches!(content, Ok(_) | Err(BlobError::Absent { .. })) {
            self.lock().idle.push(reader);
        }
        drop(busy);
        content
    }

    /// Waits until it may use a reader; `None` if it has to be started first.
    fn take(&self) -> Option<Reader> {
        let full = |pool: &mut Pool| pool.busy >= self.readers.get();
        let pool = self.freed.wait_while(self.lock(), full);
        let mut pool = pool.unwrap_or_else(PoisonError::into_inner);
        pool.busy += 1;
        pool.idle.pop()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to use one reader.
struct Busy<'a> {
    blobs: &'a Blobs,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.blobs.lock().busy -= 1;
        self.blobs.freed.notify_one();
    }
}

#[derive(Debug)]
struct Reader {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Reader {
    fn start(repository: &Repository) -> Result<Self, GitError> {
        let mut child = repository.git(CAT_FILE).args(["--batch"]).start()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => {
                Ok(Self { child, stdin, stdout: BufReader::new(stdout) })
            }
            _ => Err(io_error(CAT_FILE, io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn read(&mut self, oid: &Oid) -> Result<Vec<u8>, BlobError> {
        match self.exchange(oid) {
            Ok(Some(content)) => Ok(content),
            Ok(None) => Err(BlobError::Absent { oid: oid.clone() }),
            Err(source) => Err(match last_words(&mut self.child) {
                silent if silent.is_empty() => io_error(CAT_FILE, source),
                stderr => GitError::Failed { subcommand: CAT_FILE, stderr },
            }
            .into()),
        }
    }

    /// Git answers `<oid> blob <size>`, the content and a newline, or
    /// `<oid> missing`.
    fn exchange(&mut self, oid: &Oid) -> io::Result<Option<Vec<u8>>> {
        self.stdin.write_all(format!("{oid}\n").as_bytes())?;
        let mut header = String::new();
        self.stdout.read_line(&mut header)?;
        let size = match header.split_whitespace().collect::<Vec<_>>()[..] {
            [_, "missing"] => return Ok(None),
            [_, "blob", size] => size.parse::<u64>().map_err(io::Error::other)?,
            [] => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => return Err(io::Error::other(format!("it answered `{}`", header.trim()))),
        };
        let mut content = Vec::new();
        (&mut self.stdout).take(size + 1).read_to_end(&mut content)?;
        // The newline after the content is also the proof that all of it came.
        match content.pop() {
            Some(b'\n') if content.len() as u64 == size => Ok(Some(content)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        end_child(&mut self.child);
    }
}
