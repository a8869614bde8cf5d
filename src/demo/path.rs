//! Paths of files as git has them: bytes, which need not be UTF-8.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::protocol::task::{Resource, ResourceError};

/// The path of a file inside a repository, checked to stay inside it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct FilePath(Box<[u8]>);

/// A path that git itself would refuse to check out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the path `{path}` is empty, leaves the repository, or writes into a .git")]
pub struct PathError {
    path: String,
}

impl FilePath {
    /// Checks `path`.
    ///
    /// # Errors
    /// [`PathError`] when it has an empty component, `.`, `..`, `.git` (in any
    /// case) or a NUL.
    pub fn new(path: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let path = path.into();
        let fine = |part: &[u8]| {
            !matches!(part, b"" | b"." | b"..") && !part.eq_ignore_ascii_case(b".git")
        };
        if !path.contains(&0) && path.split(|&b| b == b'/').all(fine) {
            return Ok(Self(path.into()));
        }
        Err(PathError { path: path.escape_ascii().to_string() })
    }

    /// The bytes of the path.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path for the file system.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The resource of this file's tasks: the path itself when it can be a
    /// resource key. If it is not UTF-8, `/` and the path with percent escapes;
    /// if it is too long, `/` and its hash. No path in git begins with `/`, so
    /// neither is taken for another file.
    ///
    /// # Errors
    /// None in practice: every branch makes a key of 1 to 1,024 bytes.
    pub fn resource(&self) -> Result<Resource, ResourceError> {
        if self.0.len() > Resource::MAX_BYTES {
            return self.hashed();
        }
        match std::str::from_utf8(&self.0) {
            Ok(path) => Resource::new(path),
            Err(_) => Resource::new(self.escaped()).or_else(|_| self.hashed()),
        }
    }

    /// A short name for the file, without `/`: 32 hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> String {
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&self.0))
    }

    fn hashed(&self) -> Result<Resource, ResourceError> {
        Resource::new(format!("/{}", self.digest()))
    }

    fn escaped(&self) -> String {
        use fmt::Write;
        self.0.iter().fold("/".to_owned(), |mut key, &byte| {
            match byte {
                b' '..=b'~' if byte != b'%' => key.push(byte.into()),
                // Writing to a string cannot fail.
                _ => write!(key, "%{byte:02x}").unwrap_or_default(),
            }
            key
        })
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(path) if !path.contains(char::is_control) => f.write_str(path),
            _ => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

impl fmt::Debug for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// JSON knows no bytes: a string if it can be one, else an array of numbers.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Wire {
    Text(String),
    Bytes(Vec<u8>),
}

impl TryFrom<Wire> for FilePath {
    type Error = PathError;
    fn try_from(wire: Wire) -> Result<Self, PathError> {
        match wire {
            Wire::Text(text) => Self::new(text),
            Wire::Bytes(bytes) => Self::new(bytes),
        }
    }
}

impl From<FilePath> for Wire {
    fn from(path: FilePath) -> Self {
        match String::from_utf8(path.0.into_vec()) {
            Ok(text) => Self::Text(text),
            Err(not_text) => Self::Bytes(not_text.into_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(bytes: &[u8]) -> FilePath {
        FilePath::new(bytes).expect("a path")
    }

    fn key(bytes: &[u8]) -> String {
        path(bytes).resource().expect("a resource").as_str().to_owned()
    }

    #[test]
    fn a_path_stays_inside_the_repository() {
        let bad: [&[u8]; 8] = [b"", b"/etc", b"a//b", b"..", b"a/../b", b"./a", b"a/.GIT/b", b"\0"];
        for bad in bad {
            assert!(FilePath::new(bad).is_err(), "{:?}", bad.escape_ascii().to_string());
        }
        assert!(FilePath::new("a/..b/.github").is_ok());
    }

    #[test]
    fn the_resource_is_the_path_if_it_can_be_one() {
        assert_eq!(key("konto/ä".as_bytes()), "konto/ä");
        assert_eq!(key(b"a\nb"), "a\nb");
        assert_eq!(key(b"50%\xff\n"), "/50%25%ff%0a");
        assert_eq!(key(&[b'x'; 1024]).len(), 1024);
        assert_eq!(key(&[b'x'; 1025]).len(), 33);
        assert_eq!(key(&[0xff; 400]).len(), 33, "too long once it is escaped");
    }

    #[test]
    fn any_path_survives_json() {
        for bytes in [&b"src/a.rs"[..], b"a\nb", b"\xff\x00".split_at(1).0] {
            let json = serde_json::to_vec(&path(bytes)).expect("to JSON");
            assert_eq!(serde_json::from_slice::<FilePath>(&json).expect("from JSON"), path(bytes));
        }
        assert!(serde_json::from_str::<FilePath>("\"../../etc/passwd\"").is_err());
    }
}
