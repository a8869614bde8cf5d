//! The protocol, purely: no runtime, no client library, no clock, no
//! environment. Everything a proof needs, and nothing else.

pub mod copies;
pub mod crashes;
pub mod envelope;
pub mod fence;
pub mod fleet;
pub mod heavy_hitters;
pub mod history;
pub mod journal;
pub mod lanes;
pub mod line;
pub mod names;
pub mod outage;
pub mod ownership;
pub mod partition;
pub mod plan;
pub mod result;
pub mod retry;
pub mod settlement;
pub mod stall;
pub mod steering;
pub mod suppression;
pub mod task;
pub mod text;
pub mod trace_context;
