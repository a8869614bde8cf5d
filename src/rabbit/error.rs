//! What can go wrong between keylane and the broker.

use std::path::PathBuf;

use lapin::ErrorKind;

use crate::protocol::partition::{PartitionId, Topology};
use crate::protocol::steering::SteeringError;

/// An operation on the broker failed. The text names the thing and the way out,
/// and never holds a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address of a broker cannot be read.
    #[error("{url:?} is no broker address ({reason}): write amqp://user:password@host:5672/vhost")]
    BadUrl {
        /// The address, its password masked.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No node answers.
    #[error("no broker answers at {tried}: is it running, and is the address right?")]
    Unreachable {
        /// Every address that was tried, with its reason.
        tried: String,
    },
    /// A file for TLS cannot be used.
    #[error("{file:?} cannot be used for TLS ({reason}): a readable file in PEM format is needed")]
    BadTlsFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Files for TLS are given, and the connection would not be encrypted.
    #[error("certificates are given, but {url} is not encrypted: write amqps://")]
    NotEncrypted {
        /// The address, its password masked.
        url: String,
    },
    /// A broker answers, and no encrypted connection comes about.
    #[error("cannot speak TLS with the broker at {url}, {reason}: {way_out}")]
    Tls {
        /// The address, its password masked.
        url: String,
        /// What is wrong.
        reason: String,
        /// What to do about it.
        way_out: &'static str,
    },
    /// The broker does not know the user or the password.
    #[error("the broker at {url} refused user {user:?}: check user and password")]
    AccessRefused {
        /// The address, its password masked.
        url: String,
        /// The user.
        user: String,
    },
    /// The user may not use the virtual host, or there is none of that name.
    #[error(
        "the broker at {url} refused virtual host {vhost:?} for user {user:?}: does it exist, and may the user use it? ({reply})"
    )]
    VhostRefused {
        /// The address, its password masked.
        url: String,
        /// The virtual host.
        vhost: String,
        /// The user.
        user: String,
        /// What the broker said.
        reply: String,
    },
    /// The broker takes no more connections at the moment: a limit is reached, or the virtual
    /// host is still starting.
    #[error("the broker at {url} takes no connection now: {reply}")]
    ConnectionRefused {
        /// The address, its password masked.
        url: String,
        /// What the broker said.
        reply: String,
    },
    /// The broker is too old.
    #[error("the broker at {url} is RabbitMQ {version}, keylane needs 4.0 or newer: upgrade it")]
    BrokerTooOld {
        /// The address, its password masked.
        url: String,
        /// What the broker says it is.
        version: String,
    },
    /// The user lacks a permission on something.
    #[error("not permitted to {doing}: {reply}")]
    NotPermitted {
        /// What was tried.
        doing: String,
        /// What the broker said.
        reply: String,
    },
    /// The namespace was never set up.
    #[error(
        "namespace {namespace:?} has no topology on this broker: run `keylane init --namespace {namespace}` first"
    )]
    TopologyMissing {
        /// The namespace.
        namespace: String,
    },
    /// There is a place for the topology, and it is not read in time.
    #[error(
        "the topology of namespace {namespace:?} is not read yet: is the broker busy, or was `keylane init` interrupted? Then run it again"
    )]
    TopologyPending {
        /// The namespace.
        namespace: String,
    },
    /// The namespace has no journal: it was set up by an older keylane.
    #[error(
        "namespace {namespace:?} has no journal on this broker: run `keylane init --namespace {namespace}` again, or work without one (`--no-journal`)"
    )]
    JournalMissing {
        /// The namespace.
        namespace: String,
    },
    /// The namespace has no queue for the planner: it was set up by an older keylane.
    #[error(
        "namespace {namespace:?} has no queue for the planner of its workers: run `keylane init --namespace {namespace}` again"
    )]
    PlannerMissing {
        /// The namespace.
        namespace: String,
    },
    /// The namespace cannot be steered: it was set up by an older keylane.
    #[error(
        "namespace {namespace:?} has no log of orders on this broker: run `keylane init --namespace {namespace}` again"
    )]
    SteeringMissing {
        /// The namespace.
        namespace: String,
    },
    /// An order asks for too much.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// There is no partition of this number.
    #[error("there is no partition {partition}: they are numbered from 0 to {last}")]
    NoSuchPartition {
        /// The number.
        partition: PartitionId,
        /// The highest number.
        last: u32,
    },
    /// The stored topology is another one than wanted.
    #[error(
        "namespace {namespace:?} has another topology: stored is {stored}, wanted is {wanted}; use the stored one, or another namespace"
    )]
    TopologyDiffers {
        /// The namespace.
        namespace: String,
        /// What the broker stores.
        stored: Topology,
        /// What was asked for, or what was in force until now.
        wanted: Topology,
    },
    /// The stored topology cannot be understood.
    #[error(
        "the topology of namespace {namespace:?} cannot be read ({reason}), stored is {stored:?}; this keylane knows hash xxh3_64: was it written by a newer version?"
    )]
    TopologyUnreadable {
        /// The namespace.
        namespace: String,
        /// The record.
        stored: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something on the broker has keylane's name and other properties.
    #[error(
        "{thing} exists on the broker with other properties: {reply}; use another namespace, or, if an earlier keylane made it: let the workers finish what is there, stop them, delete it and run `keylane init` again"
    )]
    Conflict {
        /// What exists.
        thing: String,
        /// What the broker said.
        reply: String,
    },
    /// The broker or the virtual host has as many queues as it may have.
    #[error("cannot {doing}: {reply}; raise the limit, or delete queues that nobody needs")]
    LimitReached {
        /// What was tried.
        doing: String,
        /// What the broker said.
        reply: String,
    },
    /// A queue of the namespace is gone.
    #[error("queue {queue} does not exist: was it deleted? Run `keylane init` again")]
    QueueMissing {
        /// Its name.
        queue: String,
    },
    /// The leader of a queue does not answer the broker.
    #[error(
        "the leader of queue {queue} does not answer the broker: is the broker overloaded, or has a majority of its cluster gone?"
    )]
    QueueSilent {
        /// Its name.
        queue: String,
    },
    /// The broker takes no messages for the time being.
    #[error(
        "cannot {doing} now: the broker takes no messages, for it runs low on memory or disk (rabbitmq-diagnostics alarms); it may do so once it recovers"
    )]
    Blocked {
        /// What was tried.
        doing: String,
    },
    /// Somebody else reads the dead letters, and what he holds cannot be seen.
    #[error(
        "{readers} others read {queue} and hide what they hold: end `keylane dead` in other terminals, close pages that act on dead letters, and try again"
    )]
    DeadLettersHeld {
        /// The queue.
        queue: String,
        /// How many others.
        readers: u32,
    },
    /// The broker has not answered for so long that it may take us for dead.
    #[error(
        "the broker has not answered for {seconds} s: what runs is aborted before it is given to another worker"
    )]
    Silent {
        /// Since the last question that it answered.
        seconds: u64,
    },
    /// The broker's node has lost the others for so long that they may give away
    /// what it has handed out.
    #[error(
        "the broker has stored nothing of this worker for {seconds} s (its node is cut off from its cluster or overloaded, or this worker was frozen): what runs is aborted before it is given to another worker"
    )]
    Minority {
        /// Since it last did.
        seconds: u64,
    },
    /// Anything else, usually a lost connection.
    #[error("cannot {doing}: {source}")]
    Broker {
        /// What was tried.
        doing: String,
        /// What the client library said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Whether the same call may succeed later without anybody changing
    /// anything: the broker was unreachable or went away.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::ConnectionRefused { .. }
            | Self::TopologyPending { .. }
            | Self::Silent { .. }
            | Self::Minority { .. }
            | Self::QueueSilent { .. }
            | Self::Blocked { .. }
            | Self::LimitReached { .. }
            | Self::Broker { .. } => true,
            Self::BadUrl { .. }
            | Self::BadTlsFile { .. }
            | Self::NotEncrypted { .. }
            | Self::Tls { .. }
            | Self::AccessRefused { .. }
            | Self::VhostRefused { .. }
            | Self::BrokerTooOld { .. }
            | Self::NotPermitted { .. }
            | Self::TopologyMissing { .. }
            | Self::JournalMissing { .. }
            | Self::PlannerMissing { .. }
            | Self::SteeringMissing { .. }
            | Self::Steering(_)
            | Self::NoSuchPartition { .. }
            | Self::TopologyDiffers { .. }
            | Self::TopologyUnreadable { .. }
            | Self::Conflict { .. }
            | Self::DeadLettersHeld { .. }
            | Self::QueueMissing { .. } => false,
        }
    }

    /// Whether somebody who had the same work before should wait for its end: everything passes
    /// but another layout, and settings that cannot be read.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::BadUrl { .. }
            | Self::BadTlsFile { .. }
            | Self::NotEncrypted { .. }
            | Self::TopologyDiffers { .. } => false,
            Self::Unreachable { .. }
            | Self::ConnectionRefused { .. }
            | Self::TopologyPending { .. }
            | Self::Silent { .. }
            | Self::Minority { .. }
            | Self::QueueSilent { .. }
            | Self::Blocked { .. }
            | Self::DeadLettersHeld { .. }
            | Self::LimitReached { .. }
            | Self::Broker { .. }
            | Self::Tls { .. }
            | Self::AccessRefused { .. }
            | Self::VhostRefused { .. }
            | Self::BrokerTooOld { .. }
            | Self::NotPermitted { .. }
            | Self::TopologyMissing { .. }
            | Self::JournalMissing { .. }
            | Self::PlannerMissing { .. }
            | Self::SteeringMissing { .. }
            | Self::Steering(_)
            | Self::NoSuchPartition { .. }
            | Self::TopologyUnreadable { .. }
            | Self::Conflict { .. }
            | Self::QueueMissing { .. } => true,
        }
    }

    /// Whether the broker has ended the connection because of this queue.
    pub(crate) fn blames(&self, queue: &str) -> bool {
        let Self::Broker { source, .. } = self else { return false };
        let source = source.to_string();
        source.contains("INTERNAL_ERROR") && source.contains(&format!("'{queue}'"))
    }

    /// Tells what the client library's error means for what was tried.
    pub(crate) fn from_lapin(doing: impl Into<String>, error: lapin::Error) -> Self {
        let doing = doing.into();
        match reply(&error) {
            Some((403, reply)) => Self::NotPermitted { doing, reply },
            Some((406, reply)) if is_limit(&reply) => Self::LimitReached { doing, reply },
            _ => Self::Broker { doing, source: Box::new(error) },
        }
    }
}

/// Whether a declaration was refused because there are too many queues. Its code stands for many
/// things, so the words decide.
pub(crate) fn is_limit(reply: &str) -> bool {
    reply.contains("queue limit in")
}

/// Reply code and text, if it was the broker that refused.
pub(crate) fn reply(error: &lapin::Error) -> Option<(u16, String)> {
    match error.kind() {
        ErrorKind::ProtocolError(amqp) => {
            Some((amqp.get_id(), amqp.get_message().as_str().to_owned()))
        }
        _ => None,
    }
}

/// Adds what was tried to a result of the client library.
pub(crate) trait Doing<T> {
    /// Says what was tried.
    fn doing(self, what: impl Into<String>) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, lapin::Error> {
    fn doing(self, what: impl Into<String>) -> Result<T, Error> {
        self.map_err(|error| Error::from_lapin(what, error))
    }
}
