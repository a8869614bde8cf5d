//! `keylane demo`: rebuild a git repository's files from its history, in
//! parallel.
//!
//! Every file that a commit changes is a task, and its resource is the path of
//! the file. A handler accepts only the parent's version and writes the next
//! one, so one task too early, too late, or beside another shows up at once.
//! In the end every file must be what git says it is.
//!
//! Nothing here knows of RabbitMQ, and everything blocks: call it from a
//! blocking thread. The way of the data:
//!
//! [`mod@history`] → [`mod@edit`] → (the broker) → [`mod@store`], which reads
//! [`mod@blobs`] and records [`mod@events`] → [`mod@verify`] and
//! [`mod@report`]. [`mod@generate`] makes a repository where there is none.

pub mod blobs;
pub mod corruption;
pub mod edit;
pub mod events;
mod files;
pub mod generate;
pub mod git;
pub mod history;
mod layout;
pub mod path;
pub mod report;
mod script;
pub mod store;
pub mod verify;

#[cfg(test)]
mod history_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use blobs::Blobs;
pub use corruption::{ApplyError, Corruption};
pub use edit::{Blob, CommitIndex, Edit, Mode, Oid};
pub use generate::{Plan, generate};
pub use history::Repository;
pub use path::FilePath;
pub use report::Report;
pub use store::{Applied, Held, Naive, Store};
pub use verify::{Difference, Verified, VerifyError, verify};
