//! The ground truth of a soak: a file for each resource, which whoever works on
//! the resource has locked. keylane's own bookkeeping has no part in it.
//!
//! The file holds the number of the task that comes next. What is read and written
//! under the lock of the operating system stands in the order in which it
//! happened, survives the worker, and takes the same room after a year.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Where the files are.
#[derive(Debug, Clone)]
pub(super) struct Truth {
    directory: PathBuf,
}

/// What the beginning of an execution is, if it is no violation.
#[derive(Debug)]
pub(super) struct Begun {
    file: File,
    next: u64,
    sequence: u64,
}

/// What must never happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("{resource}/{sequence} started while another worker was on the resource")]
    Overlap { resource: String, sequence: u64 },
    #[error("{resource}/{sequence} started before {next} was executed")]
    Disorder { resource: String, sequence: u64, next: u64 },
}

#[derive(Debug, thiserror::Error)]
pub(super) enum TruthError {
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("the ground truth: {0}")]
    Io(#[from] io::Error),
}

/// Violations, a line each.
const VIOLATIONS: &str = "violations";

impl Truth {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    fn path(&self, resource: &str) -> PathBuf {
        self.directory.join(format!("{resource}.next"))
    }

    /// Somebody starts to execute this task. The resource is locked until the
    /// value is dropped, or its process is gone. A violation is written down.
    pub(super) fn begin(&self, resource: &str, sequence: u64) -> Result<Begun, TruthError> {
        let begun = self.try_begin(resource, sequence);
        if let Err(TruthError::Violation(violation)) = &begun {
            let path = self.directory.join(VIOLATIONS);
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(format!("{violation}\n").as_bytes())?;
        }
        begun
    }

    fn try_begin(&self, resource: &str, sequence: u64) -> Result<Begun, TruthError> {
        let mut options = OpenOptions::new();
        let mut file = options
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(self.path(resource))?;
        let name = || resource.to_owned();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Violation::Overlap { resource: name(), sequence }.into());
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let next = number(&mut file)?;
        if sequence > next {
            return Err(Violation::Disorder { resource: name(), sequence, next }.into());
        }
        Ok(Begun { file, next, sequence })
    }

    /// How many tasks of a resource are executed.
    pub(super) fn executed(&self, resource: &str) -> io::Result<u64> {
        match File::open(self.path(resource)) {
            Ok(mut file) => number(&mut file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// All violations so far.
    pub(super) fn violations(&self) -> io::Result<Vec<String>> {
        match std::fs::read_to_string(self.directory.join(VIOLATIONS)) {
            Ok(lines) => Ok(lines.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

impl Begun {
    /// Whether the task had been executed already.
    pub(super) fn is_repeat(&self) -> bool {
        self.sequence < self.next
    }

    /// The task is executed.
    pub(super) fn end(mut self) -> io::Result<()> {
        if self.is_repeat() {
            return Ok(());
        }
        self.file.seek(SeekFrom::Start(0))?;
        // One write of a constant length: never torn, never a rest of the one before.
        self.file.write_all(format!("{:020}", self.sequence + 1).as_bytes())
    }
}

fn number(file: &mut File) -> io::Result<u64> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_overlaps_disorder_and_repeats() {
        let directory = tempfile::tempdir().expect("a directory");
        let truth = Truth::new(directory.path());
        let first = truth.begin("a", 0).expect("the first");
        assert!(!first.is_repeat());
        let overlap = truth.begin("a", 1);
        assert!(matches!(overlap, Err(TruthError::Violation(Violation::Overlap { .. }))));
        truth.begin("b", 0).expect("another resource");
        first.end().expect("written");
        assert_eq!(truth.executed("a").expect("a number"), 1);
        let early = truth.begin("a", 2);
        assert!(matches!(early, Err(TruthError::Violation(Violation::Disorder { next: 1, .. }))));
        let again = truth.begin("a", 0).expect("a repeat is allowed");
        assert!(again.is_repeat());
        again.end().expect("nothing to write");
        drop(truth.begin("a", 1).expect("aborted"));
        assert_eq!(truth.executed("a").expect("a number"), 1, "what was aborted is not executed");
        let told = truth.violations().expect("two lines");
        let wanted = [
            "a/1 started while another worker was on the resource",
            "a/2 started before 1 was executed",
        ];
        assert_eq!(told, wanted);
    }
}
