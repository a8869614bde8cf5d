//! Payloads that wait for their turn, in memory up to a budget and beyond it in files.
//!
//! A window is bounded in messages, since all owners of a partition have to have the same one. What
//! those weigh is up to publishers. So the first payloads stay in memory, and the others are read
//! from the file when their attempt begins. Files have no names: they end with the process, and each
//! with the last payload in it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::task::spawn_blocking;

/// See the [module](self).
pub(crate) struct Spill {
    budget: u64,
    directory: PathBuf,
    in_memory: AtomicU64,
    space: Mutex<Space>,
}

/// A file is replaced when it has so many bytes: soon enough for the disk, seldom enough for the
/// number of open files.
const FILE_BYTES: u64 = 64 << 20;

/// The file that is written to.
#[derive(Default)]
struct Space {
    file: Option<Arc<File>>,
    end: u64,
    /// Of all files.
    in_use: u64,
}

/// Where a payload is.
#[derive(Clone)]
pub(crate) enum Kept {
    /// In memory, and counted.
    InMemory { _counted: Arc<Counted> },
    /// In a file.
    OnDisk(Arc<Spilled>),
}

impl Kept {
    /// The payload, if it is not in memory.
    pub(crate) fn spilled(&self) -> Option<&Arc<Spilled>> {
        match self {
            Self::OnDisk(spilled) => Some(spilled),
            Self::InMemory { .. } => None,
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.spilled().is_some() { "OnDisk" } else { "InMemory" })
    }
}

/// Bytes of the budget, until it is dropped.
pub(crate) struct Counted {
    spill: Arc<Spill>,
    bytes: u64,
}

/// A payload in the file. Dropped, its place is free again.
pub(crate) struct Spilled {
    spill: Arc<Spill>,
    file: Arc<File>,
    at: u64,
    bytes: usize,
}

impl Spill {
    pub(crate) fn new(budget: u64, directory: PathBuf) -> Arc<Self> {
        let (in_memory, space) = (AtomicU64::new(0), Mutex::default());
        Arc::new(Self { budget, directory, in_memory, space })
    }

    /// Takes the payload into account, and writes it to disk if it is over the budget.
    ///
    /// # Errors
    /// When it cannot be written; then it is best kept in memory all the same.
    ///
    /// # Cancel safety
    /// What is half-way written is forgotten.
    pub(crate) async fn keep(self: &Arc<Self>, payload: Bytes) -> io::Result<Kept> {
        let bytes = payload.len() as u64;
        let before = self.in_memory.fetch_add(bytes, Ordering::Relaxed);
        let counted = Counted { spill: Arc::clone(self), bytes };
        if before.saturating_add(bytes) <= self.budget || bytes == 0 {
            return Ok(Kept::InMemory { _counted: Arc::new(counted) });
        }
        let spilled = Arc::new(self.reserve(payload.len())?);
        let place = Arc::clone(&spilled);
        spawn_blocking(move || place.file.write_all_at(&payload, place.at)).await??;
        drop(counted);
        Ok(Kept::OnDisk(spilled))
    }

    /// What waits in the file.
    pub(crate) fn on_disk(&self) -> u64 {
        self.space().in_use
    }

    fn reserve(self: &Arc<Self>, bytes: usize) -> io::Result<Spilled> {
        let mut space = self.space();
        if space.file.is_none() || space.end >= FILE_BYTES {
            (space.file, space.end) = (Some(Arc::new(self.open()?)), 0);
        }
        let file = space.file.clone().ok_or(io::ErrorKind::NotFound)?;
        let at = space.end;
        space.end += bytes as u64;
        space.in_use += bytes as u64;
        Ok(Spilled { spill: Arc::clone(self), file, at, bytes })
    }

    fn open(&self) -> io::Result<File> {
        let name = format!("keylane-{}", uuid::Uuid::new_v4().simple());
        let path = self.directory.join(name);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }

    fn space(&self) -> std::sync::MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spilled {
    /// Reads the payload.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) async fn read(self: &Arc<Self>) -> io::Result<Bytes> {
        let place = Arc::clone(self);
        let read = spawn_blocking(move || {
            let mut payload = vec![0; place.bytes];
            place.file.read_exact_at(&mut payload, place.at)?;
            Ok(Bytes::from(payload))
        });
        read.await?
    }
}

impl Drop for Spilled {
    fn drop(&mut self) {
        self.spill.space().in_use -= self.bytes as u64;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.spill.in_memory.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn kept(spill: &Arc<Spill>, payload: &'static [u8]) -> Kept {
        spill.keep(Bytes::from_static(payload)).await.expect("a disk")
    }

    #[tokio::test]
    async fn what_is_over_the_budget_waits_on_disk_and_comes_back_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let spill = Spill::new(5, directory.path().to_owned());
        let first = kept(&spill, b"12345").await;
        assert!(first.spilled().is_none());
        let [Kept::OnDisk(second), Kept::OnDisk(third)] =
            [kept(&spill, b"second").await, kept(&spill, b"third").await]
        else {
            panic!("over the budget")
        };
        assert_eq!(spill.on_disk(), 11);
        assert_eq!(third.read().await.expect("a disk"), "third");
        assert_eq!(second.read().await.expect("a disk"), "second");
        drop(second);
        assert_eq!(third.read().await.expect("a disk"), "third", "twice, if it is tried again");
        drop((first, third));
        assert_eq!(spill.on_disk(), 0);
        assert!(kept(&spill, b"12345").await.spilled().is_none(), "there is room again");
        let left = std::fs::read_dir(directory.path()).expect("a directory").count();
        assert_eq!(left, 0, "nothing is left behind");
    }
}
