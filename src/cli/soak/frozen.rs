//! Which processes were frozen, and when.
//!
//! A process that is stopped with SIGSTOP in the middle of a task cannot end it in time:
//! the broker gives the task to another worker while the first still holds the lock of
//! its resource. No distributor can prevent that (a store that must not see the late
//! write checks the fencing token), so such a lock may be taken over. Only a freeze
//! that is longer than a heartbeat counts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One freeze, in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Freeze {
    since_us: u64,
    /// `None` while it lasts.
    until_us: Option<u64>,
}

/// The notes about one process.
fn path(directory: &Path, pid: u32) -> PathBuf {
    directory.join(format!("{pid}.frozen"))
}

/// Notes that a process is frozen from now on.
pub(super) fn note_freeze(directory: &Path, pid: u32, now_us: u64) -> io::Result<()> {
    let mut freezes = read(directory, pid)?;
    freezes.push(Freeze { since_us: now_us, until_us: None });
    write(directory, pid, &freezes)
}

/// Notes that a process goes on.
pub(super) fn note_thaw(directory: &Path, pid: u32, now_us: u64) -> io::Result<()> {
    let mut freezes = read(directory, pid)?;
    if let Some(last) = freezes.last_mut() {
        last.until_us.get_or_insert(now_us);
    }
    write(directory, pid, &freezes)
}

/// Whether a process was frozen for at least `least` while it executed a task that it
/// began at `began_us`.
pub(super) fn excuses(
    directory: &Path,
    pid: u32,
    began_us: u64,
    now_us: u64,
    least: Duration,
) -> io::Result<bool> {
    let lasted = |freeze: Freeze| {
        let until_us = freeze.until_us.unwrap_or(now_us);
        Duration::from_micros(until_us.saturating_sub(freeze.since_us.max(began_us)))
    };
    Ok(read(directory, pid)?.into_iter().any(|freeze| lasted(freeze) >= least))
}

fn read(directory: &Path, pid: u32) -> io::Result<Vec<Freeze>> {
    let text = match fs::read_to_string(path(directory, pid)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let freeze = |line: &str| {
        let (since, until) = line.split_once(' ')?;
        Some(Freeze { since_us: since.parse().ok()?, until_us: until.parse().ok() })
    };
    Ok(text.lines().filter_map(freeze).collect())
}

/// Replaces the notes as a whole: readers never see half of them.
fn write(directory: &Path, pid: u32, freezes: &[Freeze]) -> io::Result<()> {
    let line = |freeze: &Freeze| {
        let until = freeze.until_us.map_or_else(|| "-".to_owned(), |us| us.to_string());
        format!("{} {until}\n", freeze.since_us)
    };
    let new = directory.join(format!("{pid}.frozen-new"));
    fs::write(&new, freezes.iter().map(line).collect::<String>())?;
    fs::rename(new, path(directory, pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_long_freeze_during_the_task_excuses() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let excused = |began_us, now_us| {
            let least = Duration::from_secs(5);
            excuses(directory, 7, began_us, now_us, least).expect("notes")
        };
        assert!(!excused(0, 60_000_000), "it was never frozen");
        note_freeze(directory, 7, 10_000_000).expect("written");
        assert!(!excused(9_000_000, 14_000_000), "not long enough yet");
        assert!(excused(9_000_000, 15_000_000), "it still lasts");
        note_thaw(directory, 7, 20_000_000).expect("written");
        note_freeze(directory, 7, 30_000_000).expect("written");
        note_thaw(directory, 7, 31_000_000).expect("written");
        assert!(excused(9_000_000, 90_000_000));
        assert!(!excused(20_500_000, 90_000_000), "it began after the long one");
    }
}
