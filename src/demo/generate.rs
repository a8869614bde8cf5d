//! Makes a repository with a history that has a bit of everything: one hot
//! file, renames, removals, changes of mode, a symlink, merges, binary content,
//! and a file that becomes a directory.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::edit::Mode;
use super::git::{Git, GitError};
use super::script::Script;

/// What the generated history looks like. The same plan makes the same
/// commits, byte for byte, on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Commits on the first-parent history; at least 1.
    pub commits: u64,
    /// Files that the history grows to, about; at least 1.
    pub files: usize,
    /// Chooses one of many such histories.
    pub seed: u64,
}

impl Default for Plan {
    /// 1,500 commits over 60 files: some 3,000 tasks, 40 % of them on one file,
    /// which a laptop replays in seconds.
    fn default() -> Self {
        Self { commits: 1_500, files: 60, seed: 1 }
    }
}

/// Why no repository was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// There is something at that place.
    #[error("`{}` is not empty", directory.display())]
    NotEmpty {
        /// Where.
        directory: PathBuf,
    },
    /// The directory cannot be made or read.
    #[error("cannot make a repository in `{}`", directory.display())]
    Io {
        /// Where.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Git failed.
    #[error(transparent)]
    Git(#[from] GitError),
}

/// Makes a bare repository in `directory`, which must be empty or not there.
///
/// # Errors
/// [`GenerateError`] when the directory is not empty or git fails.
pub fn generate(directory: &Path, plan: &Plan) -> Result<(), GenerateError> {
    let error = |source| GenerateError::Io { directory: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(error)?;
    if fs::read_dir(directory).map_err(error)?.next().is_some() {
        return Err(GenerateError::NotEmpty { directory: directory.to_owned() });
    }
    let init = ["--quiet", "--bare", "--template=", "--initial-branch=main"];
    Git::discover(directory, "init").args(init).output()?;
    let import = Git::discover(directory, "fast-import").args(["--quiet"]);
    let plan = *plan;
    import.output_with(move |stream| write_history(stream, &plan))?;
    Ok(())
}

/// Writes the history as a stream for `git fast-import`. Commit 1 has mark 1.
fn write_history(stream: &mut dyn Write, plan: &Plan) -> io::Result<()> {
    let mut script = Script::new(plan.seed, plan.files);
    let mut tip = None;
    let mut mark = 0;
    for number in 0..plan.commits.max(1) {
        let mut changes = script.next_commit(number, plan.commits);
        let side = changes.from_side.take();
        let mut merged = None;
        if let (Some(side), Some(parent)) = (&side, tip) {
            mark += 1;
            header(stream, "side", mark, number)?;
            writeln!(stream, "from :{parent}")?;
            side.iter().try_for_each(|change| change.write(stream))?;
            merged = Some(mark);
        }
        mark += 1;
        header(stream, "main", mark, number)?;
        if let Some(parent) = tip {
            writeln!(stream, "from :{parent}")?;
        }
        if let Some(merged) = merged {
            writeln!(stream, "merge :{merged}")?;
        }
        let merged = side.unwrap_or_default();
        changes.on_main.iter().chain(&merged).try_for_each(|change| change.write(stream))?;
        writeln!(stream)?;
        tip = Some(mark);
    }
    Ok(())
}

fn header(stream: &mut dyn Write, branch: &str, mark: u64, number: u64) -> io::Result<()> {
    // Fixed dates make fixed commit names: one commit a minute from 2023-11-14.
    let seconds = 1_700_000_000 + 60 * number;
    writeln!(stream, "commit refs/heads/{branch}\nmark :{mark}")?;
    writeln!(stream, "committer Keylane Demo <demo@keylane.invalid> {seconds} +0000")?;
    let message = format!("Change {number} on {branch}");
    writeln!(stream, "data {}\n{message}", message.len())
}

/// One line of a commit in the stream.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write { path: String, mode: Mode, content: Vec<u8> },
    Rename { from: String, to: String },
    Remove { path: String },
}

impl Change {
    fn write(&self, stream: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Rename { from, to } => writeln!(stream, "R {from} {to}"),
            Self::Remove { path } => writeln!(stream, "D {path}"),
            Self::Write { path, mode, content } => {
                let mode = match mode {
                    Mode::File => "100644",
                    Mode::Executable => "100755",
                    Mode::Symlink => "120000",
                    Mode::Submodule => "160000",
                };
                writeln!(stream, "M {mode} inline {path}\ndata {}", content.len())?;
                stream.write_all(content)?;
                writeln!(stream)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::history::Repository;

    #[test]
    fn the_same_plan_makes_the_same_commits() {
        let directory = tempfile::tempdir().expect("a directory");
        let plan = Plan { commits: 120, ..Plan::default() };
        let heads = ["a", "b"].map(|name| {
            generate(&directory.path().join(name), &plan).expect("a repository");
            Repository::open(directory.path().join(name)).expect("opens").head().clone()
        });
        assert_eq!(heads[0], heads[1]);
        let again = generate(&directory.path().join("a"), &plan);
        assert!(matches!(again, Err(GenerateError::NotEmpty { .. })));
    }

    #[test]
    fn the_default_history_has_a_hot_file() {
        let directory = tempfile::tempdir().expect("a directory");
        generate(directory.path(), &Plan::default()).expect("a repository");
        let repository = Repository::open(directory.path()).expect("opens");
        assert_eq!(repository.commits().expect("counts"), 1_500);
        let edits: Vec<_> =
            repository.edits().expect("starts").collect::<Result<_, _>>().expect("edits");
        let hot = edits.iter().filter(|e| e.path.as_bytes() == b"ledger/hot.csv").count();
        let percent = 100 * hot / edits.len();
        assert!((35..=45).contains(&percent), "{percent} % of {} edits", edits.len());
        assert!((2_500..=4_000).contains(&edits.len()), "{} edits", edits.len());
    }
}
