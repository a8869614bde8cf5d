//! What things are called on the broker.

use std::fmt;

use super::partition::{PartitionId, Topology};

/// Separates one use of keylane from another on the same broker. All names
/// start with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Namespace(String);

impl Namespace {
    /// Longest namespace, in bytes: AMQP names have 255, and we add to it.
    pub const MAX_BYTES: usize = 128;

    /// Checks a name.
    ///
    /// # Errors
    /// When it is empty, too long, or has other characters than letters,
    /// digits and `. _ -`, or starts with `amq.`, which the broker reserves.
    pub fn new(name: impl Into<String>) -> Result<Self, NamespaceError> {
        let name = name.into();
        let fits = (1..=Self::MAX_BYTES).contains(&name.len()) && !name.starts_with("amq.");
        if fits && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            Ok(Self(name))
        } else {
            Err(NamespaceError { name })
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Direct exchange that routes a partition's number to its queue.
    #[must_use]
    pub fn exchange(&self, topology: &Topology) -> String {
        format!("{self}.g{}", topology.generation)
    }

    /// Routing key of a partition.
    #[must_use]
    pub fn routing_key(&self, partition: PartitionId) -> String {
        partition.to_string()
    }

    /// The queue of a partition.
    #[must_use]
    pub fn partition(&self, topology: &Topology, partition: PartitionId) -> String {
        format!("{self}.g{}.p{partition}", topology.generation)
    }

    /// The claims on a partition's suspect tasks, by the partition's queue; made
    /// when first needed.
    #[must_use]
    pub fn claims(partition: &str) -> String {
        format!("{partition}.claims")
    }

    /// The counter of a partition's epochs, by the partition's queue.
    #[must_use]
    pub fn epoch(partition: &str) -> String {
        format!("{partition}.epoch")
    }

    /// Exclusive queue that an `init` holds, so that there is one at a time.
    #[must_use]
    pub fn init(&self) -> String {
        format!("{self}.init")
    }

    /// Stream of the layouts.
    #[must_use]
    pub fn topology(&self) -> String {
        format!("{self}.topology")
    }

    /// Stream of the records of what was executed.
    #[must_use]
    pub fn journal(&self) -> String {
        format!("{self}.journal")
    }

    /// Stream of what operators order.
    #[must_use]
    pub fn steering(&self) -> String {
        format!("{self}.steering")
    }

    /// Queue of the dead letters.
    #[must_use]
    pub fn dead(&self) -> String {
        format!("{self}.dead")
    }

    /// Fanout exchange for publishers that cannot hash. Rights are given by name, and those who
    /// count the messages of the [inbox](Self::inbox) may not publish, so its name is another one.
    #[must_use]
    pub fn submit(&self) -> String {
        format!("{self}.submit")
    }

    /// Queue of what those have published.
    #[must_use]
    pub fn inbox(&self) -> String {
        format!("{self}.inbox")
    }

    /// Queue of the token by which a worker learns whether its node is cut off. It vanishes
    /// when it is not used. The number is that of the worker's seat: RabbitMQ never frees the
    /// name of a quorum queue, so names are used again.
    #[must_use]
    pub fn pulse(&self, seat: u16) -> String {
        format!("{self}.pulse.{seat}")
    }

    /// Exclusive queue that keeps a seat for one worker.
    #[must_use]
    pub fn seat(&self, seat: u16) -> String {
        format!("{self}.pulse.{seat}.seat")
    }

    /// Queue of the members' reports; its active consumer is the planner.
    #[must_use]
    pub fn planner(&self) -> String {
        format!("{self}.planner")
    }

    /// Fanout exchange on which operators ask the members of the fleet.
    #[must_use]
    pub fn control(&self) -> String {
        format!("{self}.control")
    }

    /// Direct exchange on which the members of the fleet talk to one another, and to the planner.
    /// Whoever may write here is believed to be a member.
    #[must_use]
    pub fn fleet(&self) -> String {
        format!("{self}.fleet")
    }

    /// Exclusive queue in which a member of the fleet, or an operator, hears the others.
    #[must_use]
    pub fn hearing(&self, id: &uuid::Uuid) -> String {
        format!("{self}.control.{}", id.simple())
    }

    /// Whether a queue is one of [those](Self::hearing). Answers go nowhere else: who asks names
    /// the queue, and may have fewer rights than who answers.
    #[must_use]
    pub fn is_hearing(&self, queue: &str) -> bool {
        let id = queue.strip_prefix(&self.0).and_then(|rest| rest.strip_prefix(".control."));
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        id.is_some_and(|id| id.len() == 32 && id.bytes().all(hex))
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self("keylane".to_owned())
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Namespace {
    type Err = NamespaceError;
    fn from_str(name: &str) -> Result<Self, NamespaceError> {
        Self::new(name)
    }
}

/// A string that is no namespace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no namespace: 1 to {max} letters, digits and . _ -, not starting with `amq.`", max = Namespace::MAX_BYTES)]
pub struct NamespaceError {
    /// The string.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::partition::PartitionCount;

    #[test]
    fn names_are_as_published() {
        let (ns, topology) = (Namespace::default(), Topology::first(PartitionCount::DEFAULT));
        let p = PartitionId::new(7);
        assert_eq!(ns.exchange(&topology), "keylane.g1");
        assert_eq!(ns.partition(&topology, p), "keylane.g1.p7");
        assert_eq!(Namespace::claims("keylane.g1.p7"), "keylane.g1.p7.claims");
        assert_eq!(Namespace::epoch("keylane.g1.p7"), "keylane.g1.p7.epoch");
        assert_eq!(ns.routing_key(p), "7");
        assert_eq!(ns.dead(), "keylane.dead");
        assert_eq!((ns.submit(), ns.inbox()), ("keylane.submit".into(), "keylane.inbox".into()));
    }

    #[test]
    fn answers_go_to_queues_of_those_who_hear() {
        let ns = Namespace::default();
        assert!(ns.is_hearing(&ns.hearing(&uuid::Uuid::from_u128(7))));
        let id = "0".repeat(32);
        for queue in [
            String::new(),
            ns.control(),
            "keylane.control.".to_owned(),
            // A namespace may be called so.
            "keylane.control.g1.p7.epoch".to_owned(),
            format!("keylane.control.{}.epoch", &id[6..]),
            format!("keylane.control.{id}0"),
            format!("other.control.{id}"),
            format!("keylane.{id}"),
        ] {
            assert!(!ns.is_hearing(&queue), "{queue}");
        }
    }

    #[test]
    fn bad_namespaces_are_refused() {
        for name in ["", "a b", "a/b", "amq.x", &"x".repeat(129)] {
            assert!(Namespace::new(name).is_err(), "{name}");
        }
    }
}
