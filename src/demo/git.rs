//! Runs `git` the same way whatever the caller's environment and configuration
//! say.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread::JoinHandle;

/// Settings that win over those of the repository. `safe.directory` counts in
/// this scope only: the repository may belong to someone else, and the user
/// named it.
const SETTINGS: [(&str, &str); 2] = [("core.quotePath", "off"), ("safe.directory", "*")];

/// The environment of every git.
const ENVIRONMENT: [(&str, &str); 7] = [
    ("LC_ALL", "C"),
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    // History as it was committed, not as someone replaced it locally.
    ("GIT_NO_REPLACE_OBJECTS", "1"),
    ("GIT_OPTIONAL_LOCKS", "0"),
    ("GIT_TERMINAL_PROMPT", "0"),
    // A partial clone would fetch blob by blob: an error says more.
    ("GIT_NO_LAZY_FETCH", "1"),
];

/// Why git could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GitError {
    /// There is no `git` on the PATH.
    #[error("git is not installed, or not on the PATH: the demo reads its history with it")]
    Missing,
    /// The process could not be started, written to or read from.
    #[error("could not talk to `git {subcommand}`")]
    Io {
        /// What git was to do.
        subcommand: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Git ended with an error.
    #[error("`git {subcommand}` failed: {stderr}")]
    Failed {
        /// What git was to do.
        subcommand: &'static str,
        /// What it said.
        stderr: String,
    },
}

/// One run of git that is being put together.
#[derive(Debug)]
pub(super) struct Git {
    command: Command,
    subcommand: &'static str,
}

impl Git {
    /// A git that looks for the repository of `directory`.
    pub(super) fn discover(directory: &Path, subcommand: &'static str) -> Self {
        let mut command = clean();
        command.arg("-C").arg(directory).arg(subcommand);
        Self { command, subcommand }
    }

    /// A git on the repository at `git_dir`.
    pub(super) fn on(git_dir: &Path, subcommand: &'static str) -> Self {
        let mut command = clean();
        command.env("GIT_DIR", git_dir).arg(subcommand);
        Self { command, subcommand }
    }

    pub(super) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Works in `directory` as if it were the work tree.
    pub(super) fn in_work_tree(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory).env("GIT_WORK_TREE", directory);
        self
    }

    #[cfg(test)]
    pub(super) fn env(mut self, key: &str, value: &str) -> Self {
        self.command.env(key, value);
        self
    }

    /// Runs to the end and returns what it printed.
    pub(super) fn output(mut self) -> Result<Vec<u8>, GitError> {
        let output = self.command.output().map_err(|e| io_error(self.subcommand, e))?;
        checked(self.subcommand, output)
    }

    /// Runs to the end with `input`, which must be written in full before the
    /// output is read: it is fed from its own thread.
    pub(super) fn output_with(
        mut self,
        input: impl FnOnce(&mut dyn io::Write) -> io::Result<()> + Send,
    ) -> Result<Vec<u8>, GitError> {
        let subcommand = self.subcommand;
        let mut child = self.start()?;
        let stdin = child.stdin.take();
        let (fed, output) = std::thread::scope(|scope| {
            let feeder = scope.spawn(move || {
                let mut stdin = io::BufWriter::new(stdin.ok_or(io::ErrorKind::BrokenPipe)?);
                input(&mut stdin)?;
                io::Write::flush(&mut stdin)
            });
            let output = child.wait_with_output();
            (feeder.join(), output)
        });
        // When git refuses its input it says why: that goes before "broken pipe".
        let printed = checked(subcommand, output.map_err(|e| io_error(subcommand, e))?)?;
        match fed {
            Ok(Ok(())) => Ok(printed),
            Ok(Err(e)) => Err(io_error(subcommand, e)),
            Err(_) => Err(io_error(subcommand, io::Error::other("the feeder panicked"))),
        }
    }

    /// Starts it with all three streams piped.
    pub(super) fn start(&mut self) -> Result<Child, GitError> {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command.spawn().map_err(|e| io_error(self.subcommand, e))
    }

    /// Starts it and reads its output record by record, each ended by a NUL.
    pub(super) fn records(mut self) -> Result<Records, GitError> {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(|e| io_error(self.subcommand, e))?;
        let pipe = || io_error(self.subcommand, io::ErrorKind::BrokenPipe.into());
        let stdout = child.stdout.take().map(BufReader::new).ok_or_else(pipe)?;
        let stderr = child.stderr.take().ok_or_else(pipe)?;
        // Read beside the output, or git blocks once the pipe is full.
        let stderr = std::thread::spawn(move || io::read_to_string(stderr).unwrap_or_default());
        Ok(Records { subcommand: self.subcommand, child, stdout, stderr: Some(stderr) })
    }
}

/// The records of a running git. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct Records {
    subcommand: &'static str,
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Taken when the output has ended.
    stderr: Option<JoinHandle<String>>,
}

impl Records {
    /// The next record without its NUL; `None` once git has ended well.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, GitError> {
        let mut record = Vec::new();
        let read = self.stdout.read_until(0, &mut record);
        if read.map_err(|e| io_error(self.subcommand, e))? == 0 {
            return self.end().map(|()| None);
        }
        if record.last() == Some(&0) {
            record.pop();
        }
        Ok(Some(record))
    }

    fn end(&mut self) -> Result<(), GitError> {
        let Some(stderr) = self.stderr.take() else { return Ok(()) };
        let status = self.child.wait().map_err(|e| io_error(self.subcommand, e))?;
        let stderr = stderr.join().unwrap_or_default();
        if status.success() {
            return Ok(());
        }
        Err(GitError::Failed { subcommand: self.subcommand, stderr: stderr.trim().to_owned() })
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        end_child(&mut self.child);
    }
}

/// Ends a child and leaves no zombie. It may have ended before.
pub(super) fn end_child(child: &mut Child) {
    child.kill().and_then(|()| child.wait()).ok();
}

pub(super) fn io_error(subcommand: &'static str, source: io::Error) -> GitError {
    match source.kind() {
        io::ErrorKind::NotFound => GitError::Missing,
        _ => GitError::Io { subcommand, source },
    }
}

/// Whatever a dead child still has to say.
pub(super) fn last_words(child: &mut Child) -> String {
    end_child(child);
    let mut stderr = Vec::new();
    if let Some(mut pipe) = child.stderr.take() {
        // Half a message is better than none.
        pipe.read_to_end(&mut stderr).ok();
    }
    String::from_utf8_lossy(&stderr).trim().to_owned()
}

fn checked(subcommand: &'static str, output: Output) -> Result<Vec<u8>, GitError> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(GitError::Failed { subcommand, stderr })
}

fn clean() -> Command {
    let mut command = Command::new("git");
    for (key, _) in std::env::vars_os() {
        // Where git keeps its own programs is no setting of a repository.
        if key.as_encoded_bytes().starts_with(b"GIT_") && key != "GIT_EXEC_PATH" {
            command.env_remove(key);
        }
    }
    command.envs(ENVIRONMENT).env("GIT_CONFIG_COUNT", SETTINGS.len().to_string());
    for (number, (key, value)) in SETTINGS.iter().enumerate() {
        command.env(format!("GIT_CONFIG_KEY_{number}"), key);
        command.env(format!("GIT_CONFIG_VALUE_{number}"), value);
    }
    // Ctrl-C is for the worker, which may still need git while it drains.
    command.process_group(0).stdin(Stdio::null());
    command
}
