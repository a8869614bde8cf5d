//! When two workers may meet on a resource without anybody being to blame, noted in
//! files that the workers read.
//!
//! - A process that is *frozen* with SIGSTOP in the middle of a task cannot end it in time:
//!   the broker gives the task to another worker while the first still holds the lock of
//!   its resource. No distributor can prevent that (a store that must not see the late
//!   write checks the fencing token), so such a lock may be taken over. Only a freeze that
//!   is longer than a heartbeat counts.
//! - A broker that *closes* connections hands on what they held at once, before their
//!   owners can have read that they are closed. Who comes meanwhile waits, for a moment
//!   and no longer.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long after its connection was closed a worker on a busy machine may need until it
/// has aborted what it runs.
pub(super) const BRIEF: Duration = Duration::from_secs(2);

/// What lasts for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excuse {
    /// A process, by its number, is frozen.
    Frozen(u32),
    /// The broker closes connections.
    Closing,
}

/// One such time, in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    since_us: u64,
    /// `None` while it lasts.
    until_us: Option<u64>,
}

impl Span {
    /// How much of the time from `from_us` to `to_us` it covers.
    pub(super) fn within(self, from_us: u64, to_us: u64) -> Duration {
        let until_us = self.until_us.unwrap_or(to_us).min(to_us);
        Duration::from_micros(until_us.saturating_sub(self.since_us.max(from_us)))
    }

    /// Whether it lasts, or was over a moment ago.
    pub(super) fn is_about(self, now_us: u64) -> bool {
        let until_us = self.until_us.unwrap_or(u64::MAX);
        (self.since_us..=until_us.saturating_add(BRIEF.as_micros() as u64)).contains(&now_us)
    }
}

impl Excuse {
    fn path(self, directory: &Path) -> PathBuf {
        match self {
            Self::Frozen(pid) => directory.join(format!("{pid}.frozen")),
            Self::Closing => directory.join("closing"),
        }
    }

    /// Notes that it lasts from now on.
    pub(super) fn begins(self, directory: &Path, now_us: u64) -> io::Result<()> {
        let mut spans = self.spans(directory)?;
        spans.push(Span { since_us: now_us, until_us: None });
        self.write(directory, &spans)
    }

    /// Notes that it is over.
    pub(super) fn ends(self, directory: &Path, now_us: u64) -> io::Result<()> {
        let mut spans = self.spans(directory)?;
        if let Some(last) = spans.last_mut() {
            last.until_us.get_or_insert(now_us);
        }
        self.write(directory, &spans)
    }

    /// All the times so far.
    pub(super) fn spans(self, directory: &Path) -> io::Result<Vec<Span>> {
        let text = match fs::read_to_string(self.path(directory)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let span = |line: &str| {
            let (since, until) = line.split_once(' ')?;
            Some(Span { since_us: since.parse().ok()?, until_us: until.parse().ok() })
        };
        Ok(text.lines().filter_map(span).collect())
    }

    /// Replaces the notes as a whole: readers never see half of them.
    fn write(self, directory: &Path, spans: &[Span]) -> io::Result<()> {
        let line = |span: &Span| {
            let until = span.until_us.map_or_else(|| "-".to_owned(), |us| us.to_string());
            format!("{} {until}\n", span.since_us)
        };
        let path = self.path(directory);
        let new = path.with_extension("new");
        fs::write(&new, spans.iter().map(line).collect::<String>())?;
        fs::rename(new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasted_is_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (directory, frozen) = (directory.path(), Excuse::Frozen(7));
        let longest = |from_us, to_us| {
            let spans = frozen.spans(directory).expect("notes").into_iter();
            spans.map(|span| span.within(from_us, to_us).as_secs()).max()
        };
        assert_eq!(longest(0, 60_000_000), None, "it was never frozen");
        frozen.begins(directory, 10_000_000).expect("written");
        assert_eq!(longest(9_000_000, 14_000_000), Some(4), "it still lasts");
        frozen.ends(directory, 20_000_000).expect("written");
        frozen.begins(directory, 30_000_000).expect("written");
        frozen.ends(directory, 31_000_000).expect("written");
        assert_eq!(longest(9_000_000, 90_000_000), Some(10));
        assert_eq!(longest(20_500_000, 90_000_000), Some(1), "it began after the long one");
        assert_eq!(Excuse::Closing.spans(directory).expect("no notes"), Vec::new());
    }

    #[test]
    fn a_moment_after_is_still_about_then() {
        let span = Span { since_us: 10_000_000, until_us: Some(11_000_000) };
        let about = [9_999_999, 10_000_000, 13_000_000, 13_000_001].map(|us| span.is_about(us));
        assert_eq!(about, [false, true, true, false]);
        assert!(Span { until_us: None, ..span }.is_about(90_000_000));
    }
}
