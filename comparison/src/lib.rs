//! The patterns of distributed locking, measured beside keylane: the same tasks, the same
//! worker processes, the same machine, each pattern on a real system that people use for it.
//!
//! `cargo run --release -p comparison` prints a table and writes JSON, a page with charts and
//! the tables of `docs/comparison.md`.
//!
//! - [`work`]: the tasks, the state that they change, and the ground truth
//! - [`contestants`]: one file for each pattern
//! - [`servers`]: starts what the contestants need, on private ports
//! - [`worker`]: what runs in a worker process, and what it tells
//! - [`fleet`], [`measure`], [`stress`]: runs them, kills them, pauses them
//! - [`report`]: what is said about it

pub mod cli;
pub mod clock;
pub mod contestants;
pub mod fleet;
pub mod measure;
pub mod plan;
pub mod report;
pub mod servers;
pub mod stress;
pub mod work;
pub mod worker;
