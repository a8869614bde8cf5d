//! The journal on the broker: a stream, written in batches by every worker and
//! read by whoever wants to know.

mod reader;
mod recent;
mod writer;

#[cfg(feature = "fuzzing")]
pub(crate) use self::reader::fuzz;
pub(crate) use self::reader::{JournalReader, Start, check};
pub(crate) use self::recent::{Lately, Recent, Window};
pub(crate) use self::writer::{Journal, Position};
