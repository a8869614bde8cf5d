//! The neutral store, and the detector of overlaps: what *really* happened.
//!
//! Whoever locks keeps the state of a resource elsewhere than the lock, in a store that knows
//! nothing of the lock. So the state is a file per resource, read and written without a
//! transaction: two handlers that overlap lose an update, which the final state shows. The
//! patterns whose coordination *is* a conditional write keep the state in their own store.
//!
//! The detector takes the operating system's file lock without ever waiting for it, so it
//! notices an overlap and cannot prevent one. The kernel drops the lock of a killed process.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::State;

/// What the store checks before it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Nothing, as a plain file or a plain `UPDATE`.
    Nothing,
    /// That no higher fencing token was seen.
    Token(u64),
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is there.
    Done,
    /// The guard found that somebody else has taken over.
    Refused,
}

/// A handler is inside of a resource, until this is dropped.
#[derive(Debug)]
pub struct Entered {
    /// Another one was inside already.
    pub overlapped: bool,
    /// Holds the kernel's lock.
    _file: File,
}

/// The folder of the store.
#[derive(Debug, Clone)]
pub struct Truth(PathBuf);

impl Truth {
    /// The store in this folder, which has to be there.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    fn open(&self, kind: &str, resource: u32) -> io::Result<File> {
        let path = self.0.join(format!("{kind}-{resource}"));
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
    }

    /// Notes that a handler works on a resource.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn enter(&self, resource: u32) -> io::Result<Entered> {
        let file = self.open("busy", resource)?;
        let overlapped = match file.try_lock() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(error)) => return Err(error),
        };
        Ok(Entered { overlapped, _file: file })
    }

    /// The state of a resource.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn read(&self, resource: u32) -> io::Result<State> {
        Ok(Record::read(&self.open("state", resource)?)?.state)
    }

    /// Writes the state of a resource, if the guard allows it. The check and the write are one
    /// transaction of the store.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, resource: u32, state: State, guard: Guard) -> io::Result<Written> {
        let file = self.open("state", resource)?;
        if guard == Guard::Nothing {
            Record { state, token: 0 }.write(&file)?;
            return Ok(Written::Done);
        }
        file.lock()?;
        let there = Record::read(&file)?;
        let token = match guard {
            Guard::Nothing => 0,
            Guard::Token(token) if token < there.token => return Ok(Written::Refused),
            Guard::Token(token) => token,
        };
        Record { state, token }.write(&file)?;
        Ok(Written::Done)
    }

    /// The states of all resources.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn states(&self, resources: u32) -> io::Result<Vec<State>> {
        (0..resources).map(|resource| self.read(resource)).collect()
    }

    /// Whether this caller is the first one, of all processes, to step on the trap.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn spring_trap(&self) -> io::Result<bool> {
        let path = self.0.join("trap");
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Notes that a trap has its first lock, that of this resource.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn arrive(&self, resource: u32) -> io::Result<()> {
        self.open("met", resource).map(drop)
    }

    /// Whether a trap has had the lock of this resource as its first.
    #[must_use]
    pub fn has_arrived(&self, resource: u32) -> bool {
        self.0.join(format!("met-{resource}")).exists()
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn clear(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.0)?;
        fs::create_dir(&self.0)
    }
}

/// What is in the file of a resource.
struct Record {
    state: State,
    /// The highest fencing token seen.
    token: u64,
}

impl Record {
    fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; 24];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        // What was never written is zero: the first state.
        let [sequence, hash, token] = [0, 8, 16].map(|at| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        });
        Ok(Self { state: State { sequence, hash }, token })
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let mut bytes = [0; 24];
        let numbers = [self.state.sequence, self.state.hash, self.token];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        file.write_all_at(&bytes, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth() -> (tempfile::TempDir, Truth) {
        let folder = tempfile::tempdir().unwrap();
        let truth = Truth::new(folder.path());
        (folder, truth)
    }

    #[test]
    fn two_at_once_are_noticed() {
        let (_folder, truth) = truth();
        let first = truth.enter(7).unwrap();
        assert!(!first.overlapped && truth.enter(7).unwrap().overlapped);
        assert!(!truth.enter(8).unwrap().overlapped);
        drop(first);
        assert!(!truth.enter(7).unwrap().overlapped);
    }

    #[test]
    fn a_guard_refuses_what_is_stale() {
        let (_folder, truth) = truth();
        let (zero, one) = (State::default(), State::default().after(1));
        assert_eq!(truth.write(0, one, Guard::Token(5)).unwrap(), Written::Done);
        assert_eq!(truth.write(0, zero, Guard::Token(4)).unwrap(), Written::Refused);
        assert_eq!(truth.read(0).unwrap(), one);
        assert_eq!(truth.write(0, one.after(2), Guard::Token(5)).unwrap(), Written::Done);
        assert_eq!(truth.write(0, zero, Guard::Nothing).unwrap(), Written::Done);
        assert_eq!(truth.states(2).unwrap(), [zero, zero]);
    }

    #[test]
    fn the_trap_springs_once() {
        let (_folder, truth) = truth();
        assert!(truth.spring_trap().unwrap() && !truth.spring_trap().unwrap());
    }
}
