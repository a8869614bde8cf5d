//! Lines of an input that are no tasks, and why.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::progress::counted;

/// As many are shown: who has more wants the file.
const SHOWN: usize = 10;

/// What was rejected so far.
#[derive(Debug, Default)]
pub(super) struct Rejects {
    count: u64,
    first: Vec<Reject>,
    file: Option<BufWriter<File>>,
}

#[derive(Debug, Serialize)]
struct Reject {
    line: u64,
    reason: String,
}

/// A line of the file of rejects.
#[derive(Serialize)]
struct Kept<'a> {
    line: u64,
    reason: &'a str,
    /// The line as it came; missing if it is no UTF-8, or was too long to be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

impl Rejects {
    /// Keeps them in a file, if there is to be one. An earlier one is overwritten.
    pub(super) fn new(file: Option<&Path>) -> anyhow::Result<Self> {
        let create = |path: &Path| {
            let created = File::create(path);
            created.with_context(|| format!("cannot write {}", path.display()))
        };
        let file = file.map(create).transpose()?.map(BufWriter::new);
        Ok(Self { file, ..Self::default() })
    }

    /// Takes one in.
    pub(super) fn add(
        &mut self,
        line: u64,
        reason: String,
        text: Option<&[u8]>,
    ) -> anyhow::Result<()> {
        if let Some(file) = &mut self.file {
            let text = text.and_then(|text| std::str::from_utf8(text).ok());
            let kept = serde_json::to_string(&Kept { line, reason: &reason, text })?;
            writeln!(file, "{kept}").context("cannot write the file of rejects")?;
        }
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(Reject { line, reason });
        }
        Ok(())
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Tells the first ones on standard error, and ends the file.
    pub(super) fn tell(&mut self, name: &str) -> anyhow::Result<()> {
        for Reject { line, reason } in &self.first {
            eprintln!("keylane: {name}, line {line}: {reason}");
        }
        let more = self.count - self.first.len() as u64;
        if more > 0 {
            let hint = if self.file.is_some() { "" } else { " (--rejects FILE keeps all)" };
            eprintln!("keylane: and {} more{hint}", counted(more, "line"));
        }
        if let Some(mut file) = self.file.take() {
            file.flush().context("cannot write the file of rejects")?;
        }
        Ok(())
    }
}
