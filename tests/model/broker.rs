//! A quorum queue with a single active consumer, as RabbitMQ 4.3 runs it.
//!
//! The rules are those of `rabbit_fifo.erl` (4.3.5), function by function, with
//! the names that they have there:
//!
//! | here | in the source |
//! |---|---|
//! | [`attach`](Broker::attach) | `#checkout{}`: `update_consumer`, `add_waiting`, `sort_waiting` |
//! | [`settle`](Broker::settle) | `#settle{}`: `complete_and_checkout`, `complete` |
//! | [`nack`](Broker::nack) | `#return{}`: `return`, `return_multiple`, `return_one` |
//! | [`cancel`](Broker::cancel) | `#checkout{spec = cancel}`: `cancel_consumer`, `maybe_return_all` |
//! | [`down`](Broker::down) | `{down, Pid, _}`: `handle_down`, `handle_waiting_consumer_down`, `cancel_consumer`, `return_all` |
//! | `activate_next_consumer`, `active_consumer` | the same |
//! | `update_or_remove_con` | the same; its clause for `quiescing` is where ghosts come from |
//! | `checkout` | `checkout_one`, `take_next_msg`: returns first, then messages |
//!
//! A closed channel and a lost one are the same to the queue: its monitor fires.
//! That takes its time, so a worker may have attached again before
//! ([`Channel::Gone`]).
//!
//! Left out: what depends on nodes (`suspected_down`, `nodeup`,
//! `consumer_disconnected_timeout`), the consumer timeout, delivery limits,
//! expiry, delays and message priorities. keylane switches off the last four.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use keylane::protocol::settlement::{Ack, DeliveryTag};

use super::consumer::{Channel, Consumer, ConsumerKey, Status, sort_waiting};
use super::scene::{Kind, TaskNo};
use super::store::Epoch;

/// A delivery on its way.
#[derive(Debug)]
pub(crate) struct Shipment {
    pub(crate) to: ConsumerKey,
    pub(crate) tag: DeliveryTag,
    pub(crate) task: TaskNo,
}

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Broker {
    /// Deliveries that came back; they go out before everything else.
    returns: VecDeque<TaskNo>,
    messages: VecDeque<TaskNo>,
    /// The active consumer, and cancelled ones that still hold something.
    consumers: BTreeMap<ConsumerKey, Consumer>,
    /// The line.
    waiting: Vec<(ConsumerKey, Consumer)>,
    pub(crate) settled: BTreeSet<TaskNo>,
    /// The last epoch that was minted.
    pub(crate) epoch: Epoch,
}

impl Broker {
    pub(crate) fn publish(&mut self, task: TaskNo) -> Vec<Shipment> {
        self.messages.push_back(task);
        self.checkout()
    }

    /// A consumer registers, and stands in line.
    pub(crate) fn attach(&mut self, kind: Kind) -> (ConsumerKey, Vec<Shipment>) {
        let last = self.all().map(|(key, _)| key.0 + 1).max();
        let key = ConsumerKey(last.unwrap_or_default());
        self.add_waiting(key, Consumer::new(kind));
        self.activate_next_consumer();
        (key, self.checkout())
    }

    /// Acks of a consumer that is gone, or of deliveries that came back, settle
    /// nothing.
    pub(crate) fn settle(&mut self, key: ConsumerKey, ack: Ack) -> Vec<Shipment> {
        let Some(mut consumer) = self.consumers.remove(&key) else { return Vec::new() };
        consumer.checked_out.retain(|tag, task| {
            let acked = *tag == ack.tag || ack.multiple && *tag < ack.tag;
            if acked {
                self.settled.insert(*task);
            }
            !acked
        });
        self.update_or_remove_con(key, consumer);
        self.activate_next_consumer();
        self.checkout()
    }

    /// `basic.nack` of one delivery, with requeue.
    pub(crate) fn nack(&mut self, key: ConsumerKey, tag: DeliveryTag) -> Vec<Shipment> {
        self.return_one(key, tag);
        self.activate_next_consumer();
        self.checkout()
    }

    /// `basic.cancel`: the channel, and what is unsettled on it, stay.
    pub(crate) fn cancel(&mut self, key: ConsumerKey) -> Vec<Shipment> {
        self.waiting.retain(|(waiting, _)| *waiting != key);
        if let Some(mut consumer) = self.consumers.remove(&key) {
            consumer.status = Status::Cancelled;
            self.update_or_remove_con(key, consumer);
        }
        self.activate_next_consumer();
        self.checkout()
    }

    /// The worker closes this channel, or dies. The queue does not know yet.
    pub(crate) fn lose(&mut self, key: ConsumerKey) {
        if let Some(consumer) = self.get_mut(key) {
            consumer.channel = Channel::Gone;
        }
    }

    /// The queue's monitor reports that a channel is gone.
    pub(crate) fn down(&mut self, key: ConsumerKey) -> Vec<Shipment> {
        // `handle_waiting_consumer_down` comes first, so it does not see what
        // `return_all` puts into the line.
        self.waiting.retain(|(waiting, _)| *waiting != key);
        self.return_all(key);
        self.consumers.remove(&key);
        if let Some(left) = self.get_mut(key) {
            left.channel = Channel::Ghost;
        }
        self.activate_next_consumer();
        self.checkout()
    }

    /// A number above every earlier one.
    pub(crate) fn mint(&mut self) -> Epoch {
        self.epoch = self.epoch.next();
        self.epoch
    }

    fn add_waiting(&mut self, key: ConsumerKey, consumer: Consumer) {
        self.waiting.push((key, consumer));
        sort_waiting(&mut self.waiting);
    }

    fn activate_next_consumer(&mut self) {
        let Some((_, next)) = self.waiting.first() else { return };
        let priority = next.kind.priority;
        match self.active_consumer() {
            None => {
                let (key, next) = self.waiting.remove(0);
                self.consumers.insert(key, next);
            }
            Some(key) => {
                let Some(mut active) = self.consumers.remove(&key) else { return };
                if priority <= active.kind.priority {
                    self.consumers.insert(key, active);
                } else if active.checked_out.is_empty() {
                    let (next_key, next) = self.waiting.remove(0);
                    self.consumers.insert(next_key, next);
                    self.add_waiting(key, active);
                } else {
                    active.status = Status::Quiescing;
                    self.consumers.insert(key, active);
                }
            }
        }
    }

    fn active_consumer(&self) -> Option<ConsumerKey> {
        let mut consumers = self.consumers.iter();
        consumers.find(|(_, c)| c.status != Status::Cancelled).map(|(key, _)| *key)
    }

    fn update_or_remove_con(&mut self, key: ConsumerKey, mut consumer: Consumer) {
        match consumer.status {
            Status::Cancelled if consumer.checked_out.is_empty() => {}
            Status::Quiescing if consumer.checked_out.is_empty() => {
                consumer.status = Status::Up;
                self.add_waiting(key, consumer);
            }
            Status::Up | Status::Quiescing | Status::Cancelled => {
                self.consumers.insert(key, consumer);
            }
        }
    }

    /// The source has no word on whether the channel is still there, so the last
    /// return moves a consumer that was quiescing into the line.
    fn return_all(&mut self, key: ConsumerKey) {
        let checked_out = self.consumers.get(&key).into_iter().flat_map(|c| c.checked_out.keys());
        let tags: Vec<DeliveryTag> = checked_out.copied().collect();
        tags.into_iter().for_each(|tag| self.return_one(key, tag));
    }

    /// One delivery goes behind what came back before.
    fn return_one(&mut self, key: ConsumerKey, tag: DeliveryTag) {
        let Some(mut consumer) = self.consumers.remove(&key) else { return };
        self.returns.extend(consumer.checked_out.remove(&tag));
        self.update_or_remove_con(key, consumer);
    }

    /// Hands out what there is, as the queue does after every command.
    fn checkout(&mut self) -> Vec<Shipment> {
        let mut shipments = Vec::new();
        let mut consumers = self.consumers.iter_mut();
        let Some((to, active)) = consumers.find(|(_, c)| c.status == Status::Up) else {
            return shipments;
        };
        while active.credit() > 0 {
            let next = self.returns.pop_front().or_else(|| self.messages.pop_front());
            let Some(task) = next else { break };
            shipments.push(Shipment { to: *to, tag: active.check_out(task), task });
        }
        shipments
    }

    /// All consumers that the broker has, the line included.
    pub(crate) fn all(&self) -> impl Iterator<Item = (ConsumerKey, &Consumer)> {
        let consumers = self.consumers.iter().map(|(key, consumer)| (*key, consumer));
        consumers.chain(self.waiting.iter().map(|(key, consumer)| (*key, consumer)))
    }

    pub(crate) fn get(&self, key: ConsumerKey) -> Option<&Consumer> {
        self.all().find(|(there, _)| *there == key).map(|(_, consumer)| consumer)
    }

    fn get_mut(&mut self, key: ConsumerKey) -> Option<&mut Consumer> {
        let waiting = self.waiting.iter_mut().find(|(there, _)| *there == key);
        waiting.map(|(_, consumer)| consumer).or_else(|| self.consumers.get_mut(&key))
    }

    /// Consumers whose channel is gone, which the queue will be told.
    pub(crate) fn unreported(&self) -> impl Iterator<Item = ConsumerKey> {
        self.all().filter(|(_, c)| c.channel == Channel::Gone).map(|(key, _)| key)
    }

    /// The first in line.
    pub(crate) fn next_in_line(&self) -> Option<&Consumer> {
        self.waiting.first().map(|(_, consumer)| consumer)
    }

    /// Every place that this task is in.
    pub(crate) fn places(&self, task: TaskNo) -> usize {
        let queued = self.returns.iter().chain(&self.messages);
        let unsettled = self.all().flat_map(|(_, consumer)| consumer.checked_out.values());
        queued.chain(unsettled).chain(&self.settled).filter(|there| **there == task).count()
    }

    /// Numbers the consumers without gaps; says which number was which before.
    pub(crate) fn renumber(&mut self) -> Vec<ConsumerKey> {
        let mut keys: Vec<ConsumerKey> = self.all().map(|(key, _)| key).collect();
        keys.sort_unstable();
        let rank = |key: ConsumerKey| ConsumerKey(keys.partition_point(|there| *there < key));
        let consumers = std::mem::take(&mut self.consumers).into_iter();
        self.consumers = consumers.map(|(key, consumer)| (rank(key), consumer)).collect();
        self.waiting.iter_mut().for_each(|(key, _)| *key = rank(*key));
        keys
    }
}
