//! Lays the flat store out as a tree of real files.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use super::edit::Mode;
use super::path::FilePath;
use super::store::Store;
use super::verify::{Difference, Reason};

/// Writes every file of `store` below `out_dir`, which must be empty or not
/// there. Returns those that found no place: after a naive run a file may stand
/// where another one's directory must be.
pub(super) fn lay_out(store: &Store, out_dir: &Path) -> io::Result<Vec<Difference>> {
    fs::create_dir_all(out_dir)?;
    if fs::read_dir(out_dir)?.next().is_some() {
        return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, "it is not empty"));
    }
    let mut misplaced = Vec::new();
    let mut placed = |path: FilePath, result: io::Result<()>| {
        if let Err(error) = result {
            let reason = Reason::Unwritable { reason: error.to_string() };
            misplaced.push(Difference { path, reason });
        }
    };
    // Links come last: no file may be written through one.
    let mut links = Vec::new();
    for entry in store.files().iter()? {
        let (path, entry) = entry?;
        let Some((mode, content)) = entry.version else { continue };
        let place = out_dir.join(path.as_path());
        let made = place.parent().map_or(Ok(()), fs::create_dir_all);
        match (made, mode) {
            (Err(error), _) => placed(path, Err(error)),
            (Ok(()), Mode::Symlink) => links.push((path, content)),
            (Ok(()), Mode::Executable) => placed(path, create(&place, 0o755, &content)),
            (Ok(()), Mode::File | Mode::Submodule) => placed(path, create(&place, 0o644, &content)),
        }
    }
    for (path, target) in links {
        let place = out_dir.join(path.as_path());
        let linked = symlink(OsStr::from_bytes(&target), place);
        placed(path, linked);
    }
    Ok(misplaced)
}

fn create(place: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode).open(place)?.write_all(content)
}
