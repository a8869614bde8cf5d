//! A quorum queue with a single active consumer, as RabbitMQ 4.3 runs it.
//!
//! ARCHITECTURE.md, "What RabbitMQ does", says which test shows which rule. Left
//! out is what becomes of a consumer that stays behind when its channel goes while
//! it is being replaced; that a worker closes such a channel is noted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use keylane::protocol::settlement::{Ack, DeliveryTag};

use super::scene::{TaskNo, WorkerNo};
use super::store::Epoch;

/// Which channel of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Channel {
    Owner(WorkerNo),
    /// The deputy of a worker that hands its partition over.
    Deputy(WorkerNo),
}

/// A delivery on its way.
pub(crate) struct Shipment {
    pub(crate) to: Channel,
    pub(crate) tag: DeliveryTag,
    pub(crate) task: TaskNo,
}

/// One channel with its consumer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Consumer {
    window: usize,
    /// False once it was cancelled: it gets nothing more, but keeps what it has.
    consumes: bool,
    last_tag: u64,
    pub(crate) unsettled: BTreeMap<DeliveryTag, TaskNo>,
}

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Broker {
    /// What came back, delivered before everything else.
    returned: VecDeque<TaskNo>,
    ready: VecDeque<TaskNo>,
    /// The order of channels is that of priorities: a deputy is above all.
    pub(crate) consumers: BTreeMap<Channel, Consumer>,
    active: Option<Channel>,
    pub(crate) settled: BTreeSet<TaskNo>,
    /// A consumer was left behind that may stop the queue later.
    pub(crate) ghost: bool,
    /// The last epoch that was minted.
    pub(crate) epoch: Epoch,
}

impl Broker {
    pub(crate) fn publish(&mut self, task: TaskNo) {
        self.ready.push_back(task);
    }

    /// A consumer registers.
    pub(crate) fn consume(&mut self, channel: Channel, window: usize) {
        let unsettled = BTreeMap::new();
        self.consumers.insert(channel, Consumer { window, consumes: true, last_tag: 0, unsettled });
    }

    /// The consumer leaves, its channel and what is unsettled there stay: the
    /// next one is activated at once.
    pub(crate) fn cancel(&mut self, channel: Channel) {
        if let Some(consumer) = self.consumers.get_mut(&channel) {
            consumer.consumes = false;
        }
        self.active.take_if(|active| *active == channel);
    }

    /// A channel is closed, or lost: what is unsettled there goes behind what
    /// came back before.
    pub(crate) fn close(&mut self, channel: Channel) {
        if let Some(consumer) = self.consumers.remove(&channel) {
            self.returned.extend(consumer.unsettled.into_values());
        }
        self.active.take_if(|active| *active == channel);
    }

    /// A worker closes its channel. RabbitMQ never forgets the consumer of one that
    /// holds something while it is being replaced.
    pub(crate) fn leave(&mut self, channel: Channel) {
        let replaced = self.active == Some(channel) && self.favourite() > Some(channel);
        self.ghost |= replaced && self.unsettled(channel).next().is_some();
        self.close(channel);
    }

    /// Whose turn it is, once the active one holds nothing.
    fn favourite(&self) -> Option<Channel> {
        let waiting = self.consumers.iter().rev().find(|(_, consumer)| consumer.consumes);
        waiting.map(|(channel, _)| *channel)
    }

    /// Acks on a channel that is gone settle nothing.
    pub(crate) fn ack(&mut self, channel: Channel, ack: Ack) {
        let Some(consumer) = self.consumers.get_mut(&channel) else { return };
        consumer.unsettled.retain(|tag, task| {
            let acked = *tag == ack.tag || ack.multiple && *tag < ack.tag;
            if acked {
                self.settled.insert(*task);
            }
            !acked
        });
    }

    /// `nack` with requeue.
    pub(crate) fn give_back(&mut self, channel: Channel, given: impl Fn(DeliveryTag) -> bool) {
        let Some(consumer) = self.consumers.get_mut(&channel) else { return };
        consumer.unsettled.retain(|tag, task| {
            let back = given(*tag);
            if back {
                self.returned.push_back(*task);
            }
            !back
        });
    }

    /// A number above every earlier one.
    pub(crate) fn mint(&mut self) -> Epoch {
        self.epoch = self.epoch.next();
        self.epoch
    }

    /// Activates who is to be active, and fills its window: all in one step, as
    /// the queue does after every command.
    pub(crate) fn dispatch(&mut self) -> Vec<Shipment> {
        let favourite = self.favourite();
        let holds = |channel| self.consumers.get(channel).is_some_and(|c| !c.unsettled.is_empty());
        if !self.active.as_ref().is_some_and(holds) {
            self.active = favourite;
        }
        let mut shipments = Vec::new();
        // One that holds something while a higher one waits is being replaced.
        let Some(to) = self.active.filter(|active| Some(*active) == favourite) else {
            return shipments;
        };
        let Some(consumer) = self.consumers.get_mut(&to) else { return shipments };
        while consumer.unsettled.len() < consumer.window {
            let next = self.returned.pop_front().or_else(|| self.ready.pop_front());
            let Some(task) = next else { break };
            consumer.last_tag += 1;
            let tag = DeliveryTag(consumer.last_tag);
            consumer.unsettled.insert(tag, task);
            shipments.push(Shipment { to, tag, task });
        }
        shipments
    }

    /// Every place that this task is in.
    pub(crate) fn places(&self, task: TaskNo) -> usize {
        let queued = self.returned.iter().chain(&self.ready);
        let unsettled = self.consumers.values().flat_map(|c| c.unsettled.values());
        queued.chain(unsettled).chain(&self.settled).filter(|there| **there == task).count()
    }

    pub(crate) fn is_open(&self, channel: Channel) -> bool {
        self.consumers.contains_key(&channel)
    }

    /// What is unsettled on a channel.
    pub(crate) fn unsettled(
        &self,
        channel: Channel,
    ) -> impl Iterator<Item = (DeliveryTag, TaskNo)> {
        let consumer = self.consumers.get(&channel);
        consumer.into_iter().flat_map(|c| c.unsettled.iter().map(|(tag, task)| (*tag, *task)))
    }
}
