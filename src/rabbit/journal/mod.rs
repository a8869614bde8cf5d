//! The journal on the broker: a stream, written in batches by every worker and
//! read by whoever wants to know.

mod figures;
mod reader;
mod recent;
mod unacked;
mod writer;

pub(crate) use self::figures::JournalFigures;
#[cfg(feature = "fuzzing")]
pub(crate) use self::reader::fuzz;
pub(crate) use self::reader::{JournalReader, Start, check};
pub(crate) use self::recent::{Lately, Recent, Window};
pub(crate) use self::unacked::Unacked;
pub(crate) use self::writer::{Journal, Position};
