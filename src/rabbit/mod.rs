//! The broker. The only code that names the client library.

mod answers;
pub(crate) mod backlog;
pub(crate) mod claims;
pub(crate) mod collector;
pub(crate) mod connection;
pub(crate) mod consumer;
pub(crate) mod control;
pub(crate) mod dead_letters;
mod death;
pub(crate) mod envelope;
pub(crate) mod epoch;
pub(crate) mod error;
mod header_size;
pub(crate) mod journal;
#[cfg(feature = "cli")]
pub(crate) mod naive;
pub(crate) mod obituary;
pub(crate) mod planner;
pub(crate) mod pool;
pub(crate) mod publisher;
pub(crate) mod pulse;
#[cfg(feature = "cli")]
pub(crate) mod purge;
#[cfg(feature = "cli")]
pub(crate) mod raw;
pub(crate) mod running;
pub(crate) mod seat;
pub(crate) mod sieve;
pub(crate) mod status;
pub(crate) mod steering;
mod tls;
pub(crate) mod token;
pub(crate) mod topology;
pub(crate) mod version;
