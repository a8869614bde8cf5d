//! What the commits of a generated history change, from a seed.

use std::collections::BTreeSet;

use super::edit::Mode;
use super::generate::Change;

const HOT: &str = "ledger/hot.csv";
const LINK: &str = "current";
/// Becomes a directory half-way.
const NOTES: &str = "notes";
/// Commits between two merges.
const MERGE_EVERY: u64 = 100;
/// Lines that a text file grows to: long enough to be worth comparing, short
/// enough that thousands of versions are made in a second.
const MOST_LINES: usize = 40;

/// The changes of one commit.
#[derive(Debug, Default)]
pub(super) struct Commit {
    pub(super) on_main: Vec<Change>,
    /// What a merge brings, committed on a side branch first.
    pub(super) from_side: Option<Vec<Change>>,
}

#[derive(Debug, Clone)]
struct LiveFile {
    path: String,
    mode: Mode,
    lines: Vec<String>,
}

impl LiveFile {
    fn change(&self) -> Change {
        let mut content = self.lines.join("\n").into_bytes();
        if self.path.ends_with(".bin") {
            // Neither text nor UTF-8, NULs and line ends included.
            content.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(167));
        }
        Change::Write { path: self.path.clone(), mode: self.mode, content }
    }
}

/// Makes up one commit after the other.
#[derive(Debug)]
pub(super) struct Script {
    random: Random,
    most_files: usize,
    hot: LiveFile,
    files: Vec<LiveFile>,
    removed: Vec<LiveFile>,
    next_file: u64,
}

impl Script {
    pub(super) fn new(seed: u64, most_files: usize) -> Self {
        let hot = LiveFile { path: HOT.to_owned(), mode: Mode::File, lines: Vec::new() };
        Self {
            random: Random(seed),
            most_files,
            hot,
            files: Vec::new(),
            removed: Vec::new(),
            next_file: 0,
        }
    }

    /// The changes of commit `number` of `commits`. No file changes twice.
    pub(super) fn next_commit(&mut self, number: u64, commits: u64) -> Commit {
        let mut commit = Commit::default();
        let changes = &mut commit.on_main;
        // Two changes a commit, and four commits of five touch the hot file:
        // that makes its 40 %.
        if number == 0 || self.random.hits(4, 5) {
            self.rewrite_hot();
            changes.push(self.hot.change());
        }
        let mut touched = BTreeSet::new();
        let others = if self.random.hits(1, 5) { 2 } else { 1 };
        for _ in 0..others {
            if let Some(change) = self.change_a_file(&mut touched) {
                changes.push(change);
            }
        }
        let text = |path: &str, mode, content: String| Change::Write {
            path: path.to_owned(),
            mode,
            content: content.into_bytes(),
        };
        if number.is_multiple_of(97) {
            changes.push(text(LINK, Mode::Symlink, format!("ledger/{number}")));
        }
        if number == 0 {
            changes.push(text(NOTES, Mode::File, "one file\n".to_owned()));
            changes.push(text("empty", Mode::File, String::new()));
        } else if number == commits / 2 {
            changes.push(Change::Remove { path: NOTES.to_owned() });
            changes.push(text("notes/a.md", Mode::File, "now a directory\n".to_owned()));
        }
        if number % MERGE_EVERY == MERGE_EVERY - 1 {
            let path = format!("side/{}.txt", number / MERGE_EVERY % 3);
            let content = format!("merged by commit {number}\n");
            commit.from_side = Some(vec![text(&path, Mode::File, content)]);
        }
        commit
    }

    fn change_a_file(&mut self, touched: &mut BTreeSet<String>) -> Option<Change> {
        if self.files.is_empty() || self.files.len() < self.most_files && self.random.hits(1, 6) {
            let file = self.new_file();
            touched.insert(file.path.clone());
            self.files.push(file.clone());
            return Some(file.change());
        }
        let chosen = self.random.below(self.files.len());
        if !touched.insert(self.files[chosen].path.clone()) {
            return None;
        }
        match self.random.below(100) {
            0..3 if self.files.len() > 3 => {
                let file = self.files.swap_remove(chosen);
                let path = file.path.clone();
                self.removed.push(file);
                Some(Change::Remove { path })
            }
            3..6 => {
                self.next_file += 1;
                let file = &mut self.files[chosen];
                let to = format!("moved/{}-{}", self.next_file, base_name(&file.path));
                let from = std::mem::replace(&mut file.path, to.clone());
                touched.insert(to.clone());
                Some(Change::Rename { from, to })
            }
            6..10 => {
                let file = &mut self.files[chosen];
                file.mode = match file.mode {
                    Mode::File => Mode::Executable,
                    _ => Mode::File,
                };
                Some(file.change())
            }
            _ => {
                rewrite(&mut self.files[chosen].lines, &mut self.random);
                Some(self.files[chosen].change())
            }
        }
    }

    /// A path that was never there, or one that was removed.
    fn new_file(&mut self) -> LiveFile {
        if self.random.hits(1, 2)
            && let Some(file) = self.removed.pop()
        {
            return file;
        }
        self.next_file += 1;
        let number = self.next_file;
        let path = match number % 8 {
            0 => format!("data/{number}.bin"),
            1 => format!("straße/{number}.txt"),
            2 => format!("bin/{number}.sh"),
            _ => format!("src/part{}/{number}.txt", number % 5),
        };
        let mode = if path.ends_with(".sh") { Mode::Executable } else { Mode::File };
        let mut lines = Vec::new();
        rewrite(&mut lines, &mut self.random);
        LiveFile { path, mode, lines }
    }

    fn rewrite_hot(&mut self) {
        rewrite(&mut self.hot.lines, &mut self.random);
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit(['/', '-']).next().unwrap_or(path)
}

/// Appends a line, replaces one, or removes the first.
fn rewrite(lines: &mut Vec<String>, random: &mut Random) {
    let line = format!("{:016x},{}", random.next(), random.below(100_000));
    if lines.len() >= MOST_LINES {
        lines.remove(0);
    }
    match random.below(lines.len() + 1) {
        place if place > 0 && random.hits(1, 3) => lines[place - 1] = line,
        _ => lines.push(line),
    }
}

/// SplitMix64: small, and the same on every machine and in every release.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is small: the bias of the remainder does not show.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// True in `hits` of `of` cases.
    fn hits(&mut self, hits: usize, of: usize) -> bool {
        self.below(of) < hits
    }
}
