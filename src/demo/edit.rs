//! One file of one commit: the task of the demo.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::path::FilePath;
use crate::protocol::task::{Resource, ResourceError};

/// The name of an object in git: 40 (SHA-1) or 64 (SHA-256) lower-case
/// hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Oid(Box<str>);

impl Oid {
    /// Checks `oid`.
    ///
    /// # Errors
    /// [`EditError::Oid`] when it is no object name.
    pub fn new(oid: &str) -> Result<Self, EditError> {
        let hexadecimal = oid.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if matches!(oid.len(), 40 | 64) && hexadecimal {
            return Ok(Self(oid.into()));
        }
        Err(EditError::Oid { found: oid.to_owned() })
    }

    /// All digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Enough digits for a person.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..10]
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Oid {
    type Error = EditError;
    fn try_from(oid: String) -> Result<Self, EditError> {
        Self::new(&oid)
    }
}

impl From<Oid> for String {
    fn from(oid: Oid) -> Self {
        oid.0.into()
    }
}

/// What sort of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A plain file (100644; old repositories also have 100664).
    File,
    /// A plain file that may be executed (100755).
    Executable,
    /// A symbolic link (120000); its content is the target.
    Symlink,
    /// A submodule (160000); its content is the commit's name and a newline.
    Submodule,
}

impl Mode {
    /// Reads a mode as git prints it.
    ///
    /// # Errors
    /// [`EditError::Mode`] when a file cannot have it.
    pub fn parse(mode: &str) -> Result<Self, EditError> {
        match mode {
            "120000" => Ok(Self::Symlink),
            "160000" => Ok(Self::Submodule),
            _ => match u32::from_str_radix(mode, 8) {
                // Git looks at the owner's bit only, and so do we.
                Ok(bits) if bits & !0o777 == 0o100_000 => {
                    Ok(if bits & 0o100 == 0 { Self::File } else { Self::Executable })
                }
                _ => Err(EditError::Mode { found: mode.to_owned() }),
            },
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Executable => "executable",
            Self::Symlink => "symlink",
            Self::Submodule => "submodule",
        })
    }
}

/// One version of a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Blob {
    /// The object that holds the content; a submodule's commit.
    pub oid: Oid,
    /// What sort of file it is.
    pub mode: Mode,
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.mode, self.oid.short())
    }
}

/// The place of a commit in the first-parent history: 0 is the oldest.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct CommitIndex(u64);

impl CommitIndex {
    /// The commit with this many before it.
    #[must_use]
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// How many commits come before it.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for CommitIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What one commit does to one file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Edit {
    /// Which commit, by its place.
    pub index: CommitIndex,
    /// Which commit, by its name.
    pub commit: Oid,
    /// Which file.
    pub path: FilePath,
    /// The version that must be there; `None` if there must be no such file.
    pub before: Option<Blob>,
    /// The version to write; `None` if the file is to be removed.
    pub after: Option<Blob>,
}

impl Edit {
    /// What the task touches; see [`FilePath::resource`].
    ///
    /// # Errors
    /// None in practice.
    pub fn resource(&self) -> Result<Resource, ResourceError> {
        self.path.resource()
    }

    /// The edit as the payload of a task (JSON).
    ///
    /// # Errors
    /// None in practice: every edit can be written as JSON.
    pub fn to_payload(&self) -> Result<Vec<u8>, EditError> {
        serde_json::to_vec(self).map_err(EditError::Payload)
    }

    /// Reads the payload of a task.
    ///
    /// # Errors
    /// [`EditError`] when it is no edit, or one that changes nothing.
    pub fn from_payload(payload: &[u8]) -> Result<Self, EditError> {
        let edit: Self = serde_json::from_slice(payload).map_err(EditError::Payload)?;
        if edit.before == edit.after {
            return Err(EditError::NoChange { path: edit.path });
        }
        Ok(edit)
    }
}

/// Why something is no edit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// Not an object name.
    #[error("`{found}` is no object name of git")]
    Oid {
        /// What was found instead.
        found: String,
    },
    /// Not the mode of a file.
    #[error("a file cannot have the mode `{found}`")]
    Mode {
        /// What was found instead.
        found: String,
    },
    /// The version before and after are the same.
    #[error("the edit of `{path}` changes nothing")]
    NoChange {
        /// Which file.
        path: FilePath,
    },
    /// Not the JSON of an edit.
    #[error("the payload is no edit")]
    Payload(#[source] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit() -> Edit {
        let oid = Oid::new(&"0a".repeat(20)).expect("an oid");
        Edit {
            index: CommitIndex::new(7),
            commit: oid.clone(),
            path: FilePath::new(*b"a\xff").expect("a path"),
            before: None,
            after: Some(Blob { oid, mode: Mode::Executable }),
        }
    }

    #[test]
    fn an_edit_survives_its_payload() {
        let payload = edit().to_payload().expect("a payload");
        assert_eq!(Edit::from_payload(&payload).expect("an edit"), edit());
    }

    #[test]
    fn a_payload_is_checked() {
        let idle = Edit { after: None, ..edit() }.to_payload().expect("a payload");
        assert!(matches!(Edit::from_payload(&idle), Err(EditError::NoChange { .. })));
        let text = String::from_utf8(edit().to_payload().expect("a payload")).expect("JSON");
        let bad = text.replace("0a0a", "0A\\n0");
        assert!(matches!(Edit::from_payload(bad.as_bytes()), Err(EditError::Payload(_))));
    }

    #[test]
    fn modes_are_read_as_git_reads_them() {
        let modes = ["100644", "100664", "100755", "120000", "160000"];
        let read = modes.map(|mode| Mode::parse(mode).expect("a mode"));
        use Mode::{Executable, File, Submodule, Symlink};
        assert_eq!(read, [File, File, Executable, Symlink, Submodule]);
        for bad in ["040000", "000000", "", "rwx"] {
            assert!(Mode::parse(bad).is_err(), "{bad}");
        }
    }
}
