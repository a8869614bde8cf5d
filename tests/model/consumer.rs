//! The consumers of a queue, as the broker keeps them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use keylane::protocol::settlement::DeliveryTag;

use super::scene::{Kind, TaskNo};

/// The consumer's name: its place in the order in which consumers attached.
///
/// RabbitMQ takes the Raft index of the command. The model numbers the consumers
/// that there are without gaps, so that a name may change from step to step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConsumerKey(pub(crate) usize);

impl fmt::Debug for ConsumerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// The field `status` of RabbitMQ's `#consumer{}`, as far as one node has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Status {
    Up,
    /// A consumer of a higher priority waits until this one holds nothing.
    Quiescing,
    /// It gets nothing more, but keeps what it holds.
    Cancelled,
}

/// The truth about the channel, which the broker does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Channel {
    Open,
    /// Closed or lost. The queue's monitor will report it.
    Gone,
    /// Gone, and reported already, so that nothing ever removes the consumer.
    Ghost,
}

/// RabbitMQ's `#consumer{}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Consumer {
    pub(crate) kind: Kind,
    pub(crate) status: Status,
    pub(crate) channel: Channel,
    /// The number of deliveries that it was sent, and the tag of the last.
    pub(crate) sent: u64,
    pub(crate) checked_out: BTreeMap<DeliveryTag, TaskNo>,
}

impl Consumer {
    pub(crate) fn new(kind: Kind) -> Self {
        let (status, channel) = (Status::Up, Channel::Open);
        Self { kind, status, channel, sent: 0, checked_out: BTreeMap::new() }
    }

    /// The number of deliveries that it may still be sent (`increase_credit`; a
    /// cancelled consumer is of lifetime `once` and gets no credit back).
    pub(crate) fn credit(&self) -> usize {
        match self.status {
            Status::Up | Status::Quiescing => {
                self.kind.window.saturating_sub(self.checked_out.len())
            }
            Status::Cancelled => 0,
        }
    }

    /// Takes one more delivery.
    pub(crate) fn check_out(&mut self, task: TaskNo) -> DeliveryTag {
        self.sent += 1;
        let tag = DeliveryTag(self.sent);
        self.checked_out.insert(tag, task);
        tag
    }
}

/// `sort_waiting`: by priority, then by credit, then by age.
pub(crate) fn sort_waiting(waiting: &mut [(ConsumerKey, Consumer)]) {
    waiting.sort_by_key(|(key, consumer)| {
        (Reverse(consumer.kind.priority), Reverse(consumer.credit()), *key)
    });
}
