//! The ground truth of a soak: a file for each resource, which whoever works on
//! the resource has locked. keylane's own bookkeeping has no part in it.
//!
//! The file holds the number of the task that comes next, and who began the one that
//! runs, and when. What is read and written under the lock of the operating system
//! stands in the order in which it happened, survives the worker, and takes the same
//! room after a year. The lock of a process that was [frozen](super::excuses) is taken over:
//! a new file takes the place of the old one, in which the frozen process may write what
//! it likes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::excuses::{BRIEF, Excuse};

/// Where the files are.
#[derive(Debug, Clone)]
pub(super) struct Truth {
    directory: PathBuf,
    /// A freeze that is at least as long excuses whoever holds a lock: the heartbeat,
    /// after which a worker that runs has to have stopped.
    excused_after: Duration,
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
    /// Another process is on the resource, whose connection the broker may have closed a
    /// moment ago: to be tried again, for a moment.
    #[error("another worker is on the resource, and may not know yet that it is not the owner")]
    Closing,
    #[error("the ground truth: {0}")]
    Io(#[from] io::Error),
}

/// What stands in the file of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Page {
    next: u64,
    /// Who began a task last.
    pid: u32,
    began_us: u64,
}

/// Violations, a line each.
const VIOLATIONS: &str = "violations";

/// Locks that were taken over from frozen processes, a line each.
const TAKEN_OVER: &str = "taken-over";

/// Locks that were waited for while the broker closed connections, a line each.
const WAITED: &str = "waited";

impl Truth {
    pub(super) fn new(directory: &Path, excused_after: Duration) -> Self {
        Self { directory: directory.to_owned(), excused_after }
    }

    fn path(&self, resource: &str) -> PathBuf {
        self.directory.join(format!("{resource}.next"))
    }

    /// This process starts to execute a task. The resource is locked until the
    /// value is dropped, or the process is gone. A violation is written down. `waited`
    /// says that it was told [`TruthError::Closing`] before, and for how long.
    pub(super) fn begin(
        &self,
        resource: &str,
        sequence: u64,
        now_us: u64,
        waited: Option<Duration>,
    ) -> Result<Begun, TruthError> {
        let begun = self.try_begin(resource, sequence, now_us, waited);
        match &begun {
            Ok(_) if waited.is_some() => self.add_line(WAITED, resource)?,
            Err(TruthError::Violation(violation)) => {
                self.add_line(VIOLATIONS, &violation.to_string())?;
            }
            _ => {}
        }
        begun
    }

    fn try_begin(
        &self,
        resource: &str,
        sequence: u64,
        now_us: u64,
        waited: Option<Duration>,
    ) -> Result<Begun, TruthError> {
        let name = || resource.to_owned();
        let Some((mut file, page)) = self.lock(resource, now_us)? else {
            let spans = Excuse::Closing.spans(&self.directory)?;
            let closing = spans.into_iter().any(|span| span.is_about(now_us));
            if closing && waited.is_none_or(|waited| waited < BRIEF) {
                return Err(TruthError::Closing);
            }
            return Err(Violation::Overlap { resource: name(), sequence }.into());
        };
        let next = page.next;
        if sequence > next {
            return Err(Violation::Disorder { resource: name(), sequence, next }.into());
        }
        Page { next, pid: std::process::id(), began_us: now_us }.write(&mut file)?;
        Ok(Begun { file, next, sequence })
    }

    /// The locked file; `None` if another process has it.
    fn lock(&self, resource: &str, now_us: u64) -> io::Result<Option<(File, Page)>> {
        let path = self.path(resource);
        let mut options = OpenOptions::new();
        options.create(true).read(true).write(true).truncate(false);
        loop {
            let mut file = options.open(&path)?;
            match file.try_lock() {
                Ok(()) => {
                    // Unless somebody has put another one in its place meanwhile.
                    if fs::metadata(&path)?.ino() == file.metadata()?.ino() {
                        let page = Page::read(&mut file)?;
                        return Ok(Some((file, page)));
                    }
                }
                Err(TryLockError::WouldBlock) => {
                    let page = Page::read(&mut file)?;
                    let Page { pid, began_us, .. } = page;
                    let freezes = Excuse::Frozen(pid).spans(&self.directory)?.into_iter();
                    let mut lasted = freezes.map(|freeze| freeze.within(began_us, now_us));
                    if !lasted.any(|lasted| lasted >= self.excused_after) {
                        return Ok(None);
                    }
                    self.add_line(TAKEN_OVER, &format!("{resource} from {pid}"))?;
                    return Ok(Some((self.replace(&path, page)?, page)));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Puts a new file, which we have locked, in the place of another's.
    fn replace(&self, path: &Path, page: Page) -> io::Result<File> {
        let new = path.with_extension(format!("next-{}", std::process::id()));
        let mut options = OpenOptions::new();
        let mut file = options.create(true).read(true).write(true).truncate(true).open(&new)?;
        file.lock()?;
        page.write(&mut file)?;
        fs::rename(new, path)?;
        Ok(file)
    }

    /// How many tasks of a resource are executed.
    pub(super) fn executed(&self, resource: &str) -> io::Result<u64> {
        match File::open(self.path(resource)) {
            Ok(mut file) => Ok(Page::read(&mut file)?.next),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// All violations so far.
    pub(super) fn violations(&self) -> io::Result<Vec<String>> {
        self.lines(VIOLATIONS)
    }

    /// How often the lock of a frozen process was taken over.
    pub(super) fn taken_over(&self) -> io::Result<usize> {
        Ok(self.lines(TAKEN_OVER)?.len())
    }

    /// How often a lock was waited for while the broker closed connections.
    pub(super) fn waited(&self) -> io::Result<usize> {
        Ok(self.lines(WAITED)?.len())
    }

    fn add_line(&self, name: &str, line: &str) -> io::Result<()> {
        let path = self.directory.join(name);
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(format!("{line}\n").as_bytes())
    }

    fn lines(&self, name: &str) -> io::Result<Vec<String>> {
        match fs::read_to_string(self.directory.join(name)) {
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
        Page { next: self.sequence + 1, ..Page::default() }.write(&mut self.file)
    }
}

impl Page {
    fn read(file: &mut File) -> io::Result<Self> {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_string(&mut text)?;
        let mut words = text.split_whitespace();
        let mut number = || words.next().unwrap_or("0").parse::<u64>().map_err(io::Error::other);
        let next = number()?;
        let pid = u32::try_from(number()?).map_err(io::Error::other)?;
        Ok(Self { next, pid, began_us: number()? })
    }

    /// One write of a constant length: never torn, never a rest of the one before.
    fn write(self, file: &mut File) -> io::Result<()> {
        file.seek(SeekFrom::Start(0))?;
        let Self { next, pid, began_us } = self;
        file.write_all(format!("{next:020} {pid:010} {began_us:020}").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(5);

    #[test]
    fn it_tells_overlaps_disorder_and_repeats() {
        let directory = tempfile::tempdir().expect("a directory");
        let truth = Truth::new(directory.path(), HEARTBEAT);
        let first = truth.begin("a", 0, 1, None).expect("the first");
        assert!(!first.is_repeat());
        let overlap = truth.begin("a", 1, 2, None);
        assert!(matches!(overlap, Err(TruthError::Violation(Violation::Overlap { .. }))));
        truth.begin("b", 0, 3, None).expect("another resource");
        first.end().expect("written");
        assert_eq!(truth.executed("a").expect("a number"), 1);
        let early = truth.begin("a", 2, 4, None);
        assert!(matches!(early, Err(TruthError::Violation(Violation::Disorder { next: 1, .. }))));
        let again = truth.begin("a", 0, 5, None).expect("a repeat is allowed");
        assert!(again.is_repeat());
        again.end().expect("nothing to write");
        drop(truth.begin("a", 1, 6, None).expect("aborted"));
        assert_eq!(truth.executed("a").expect("a number"), 1, "what was aborted is not executed");
        let told = truth.violations().expect("two lines");
        let wanted = [
            "a/1 started while another worker was on the resource",
            "a/2 started before 1 was executed",
        ];
        assert_eq!(told, wanted);
    }

    #[test]
    fn the_lock_of_a_frozen_process_is_taken_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let truth = Truth::new(directory.path(), HEARTBEAT);
        let process = Excuse::Frozen(std::process::id());
        let frozen = truth.begin("a", 0, 1_000_000, None).expect("the first");
        process.begins(directory.path(), 2_000_000).expect("written");
        assert!(truth.begin("a", 0, 6_900_000, None).is_err(), "it was not frozen for long enough");
        let second = truth.begin("a", 0, 7_000_000, None).expect("taken over");
        assert_eq!(truth.taken_over().expect("lines"), 1);
        frozen.end().expect("written where nobody reads");
        assert_eq!(truth.executed("a").expect("a number"), 0);
        process.ends(directory.path(), 7_100_000).expect("written");
        assert!(truth.begin("a", 0, 7_200_000, None).is_err(), "the second one has it");
        second.end().expect("written");
        assert_eq!(truth.executed("a").expect("a number"), 1);
    }

    #[test]
    fn whose_connection_was_closed_is_waited_for_only_for_a_moment() {
        let directory = tempfile::tempdir().expect("a directory");
        let truth = Truth::new(directory.path(), HEARTBEAT);
        let first = truth.begin("a", 0, 1_000_000, None).expect("the first");
        Excuse::Closing.begins(directory.path(), 2_000_000).expect("written");
        let busy = truth.begin("a", 0, 2_100_000, None);
        assert!(matches!(busy, Err(TruthError::Closing)));
        let overlap = truth.begin("a", 0, 4_100_000, Some(BRIEF));
        assert!(matches!(overlap, Err(TruthError::Violation(Violation::Overlap { .. }))));
        drop(first);
        truth.begin("a", 0, 4_200_000, Some(BRIEF)).expect("it is free");
        assert_eq!(truth.waited().expect("lines"), 1);
    }
}
