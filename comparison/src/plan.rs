//! What a worker process has to know, handed over as the first line of its standard input.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The number of partitions that keylane runs with: its default.
pub const PARTITIONS: u32 = 64;

/// Where the servers are, all on 127.0.0.1. Empty or zero: not started.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Endpoints {
    /// The broker, without a query.
    pub amqp: String,
    /// Five independent processes; who needs one takes the first.
    pub redis: Vec<u16>,
    /// Trusts everybody on 127.0.0.1.
    pub postgres: u16,
    /// gRPC.
    pub etcd: u16,
    /// Client port.
    pub zookeeper: u16,
}

/// One run of one contestant, as the coordinator and its workers see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// A name that no other run has; part of the names of queues and keys.
    pub run: String,
    /// Which contestant.
    pub contestant: String,
    /// Where the servers are.
    pub endpoints: Endpoints,
    /// The number of this worker, from 0.
    pub worker: u32,
    /// How many worker processes there are.
    pub workers: u32,
    /// Tasks that one worker process has in its hands at once.
    pub slots: u32,
    /// How long the handler waits between its read and its write.
    pub handler_ms: u64,
    /// How long the handler of the trap waits, the first time.
    pub hold_ms: u64,
    /// The lease of every lock that has one: what a crash costs at most.
    pub lease_ms: u64,
    /// The broker's heartbeat for a worker of keylane, in seconds.
    pub heartbeat_s: u64,
    /// Whether the store checks fencing tokens (or versions) where the pattern has them.
    pub fenced: bool,
    /// How many resources there are.
    pub resources: u32,
    /// The folder of the neutral store and of the overlap detector.
    pub truth: PathBuf,
}

impl Plan {
    /// The lease as a duration.
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }
}
