//! What a handler of the demo finds when it was not alone, or not in order.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::blobs::BlobError;
use super::edit::{CommitIndex, Oid};
use super::path::FilePath;
use crate::protocol::task::ResourceError;

/// Two executions of one resource met, or came in the wrong order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "corruption", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Corruption {
    /// Someone else is working on the file.
    #[error("`{path}` at commit {index}: another worker is working on it")]
    Overlap {
        /// Which file.
        path: FilePath,
        /// For which commit.
        commit: Oid,
        /// The commit's place.
        index: CommitIndex,
    },
    /// The parent's version is not there.
    #[error("`{path}` at commit {index}: expected {expected}, found {found}")]
    Mismatch {
        /// Which file.
        path: FilePath,
        /// For which commit.
        commit: Oid,
        /// The commit's place.
        index: CommitIndex,
        /// What must be there.
        expected: String,
        /// What is there.
        found: String,
    },
}

/// Why an edit was not applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// What keylane promises was broken: no retry mends that.
    #[error(transparent)]
    Corruption(#[from] Corruption),
    /// A version could not be read from the repository.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The path makes no resource.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// The store could not be read or written.
    #[error("the store at `{}` cannot be used", root.display())]
    Store {
        /// Which store.
        root: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
