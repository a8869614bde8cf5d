//! Which deliveries of a channel are still unsettled, and the fewest acks that
//! settle the rest.
//!
//! An AMQP ack with `multiple` settles every delivery of its channel up to its
//! tag. It may be used just for the contiguous front of the window: one task
//! that still runs must not be acked along with its neighbours.

use std::collections::BTreeSet;

/// Names one delivery on one channel; rises with every delivery, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryTag(pub u64);

/// One ack to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ack {
    /// The delivery to settle.
    pub tag: DeliveryTag,
    /// Settle every earlier delivery of the channel as well.
    pub multiple: bool,
}

/// The deliveries of one channel that the broker still counts as unsettled. It holds no more
/// than these, however much is delivered and settled behind one that stays.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Settlement {
    /// The last tag that was seen.
    highest: u64,
    unsettled: BTreeSet<u64>,
    /// May be acked, and is not yet.
    done: BTreeSet<u64>,
}

impl Settlement {
    /// A delivery arrived. Returns false, and changes nothing, if its tag is
    /// not above every earlier one.
    pub fn deliver(&mut self, tag: DeliveryTag) -> bool {
        // A gap is a tag that something else on this channel got and settled.
        let is_new = tag.0 > self.highest;
        if is_new {
            self.highest = tag.0;
            self.unsettled.insert(tag.0);
        }
        is_new
    }

    /// A delivery may be acked now. Returns false, and changes nothing, if it
    /// is unknown or settled already.
    pub fn settle(&mut self, tag: DeliveryTag) -> bool {
        let is_unsettled = self.unsettled.remove(&tag.0);
        if is_unsettled {
            self.done.insert(tag.0);
        }
        is_unsettled
    }

    /// How many deliveries may be acked and were not yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.done.len()
    }

    /// The acks that settle all that may be settled, and forgets them: the
    /// front with one, everything behind a gap one by one.
    pub fn take_acks(&mut self) -> Vec<Ack> {
        let behind = match self.unsettled.first() {
            Some(first) => self.done.split_off(first),
            None => BTreeSet::new(),
        };
        let front = std::mem::take(&mut self.done);
        let multiple = front.len() > 1;
        let front = front.last().map(|tag| Ack { tag: DeliveryTag(*tag), multiple });
        let behind = behind.into_iter().map(|tag| Ack { tag: DeliveryTag(tag), multiple: false });
        front.into_iter().chain(behind).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(deliveries: u64) -> Settlement {
        let mut window = Settlement::default();
        (1..=deliveries).for_each(|tag| assert!(window.deliver(DeliveryTag(tag))));
        window
    }

    fn ack(tag: u64, multiple: bool) -> Ack {
        Ack { tag: DeliveryTag(tag), multiple }
    }

    #[test]
    fn the_front_is_settled_by_one_ack_and_the_rest_one_by_one() {
        let mut window = window(6);
        assert!([1, 2, 4, 6].into_iter().all(|tag| window.settle(DeliveryTag(tag))));
        assert_eq!(window.take_acks(), [ack(2, true), ack(4, false), ack(6, false)]);
        assert_eq!(window.take_acks(), []);
        assert!(window.settle(DeliveryTag(3)));
        assert_eq!(window.take_acks(), [ack(3, false)]);
        assert!(window.settle(DeliveryTag(5)));
        assert_eq!(window.take_acks(), [ack(5, false)]);
        assert!(window.unsettled.is_empty() && window.done.is_empty());
    }

    #[test]
    fn nothing_is_settled_twice() {
        let mut window = window(2);
        assert!(window.settle(DeliveryTag(2)));
        assert!(!window.settle(DeliveryTag(2)));
        assert_eq!(window.take_acks(), [ack(2, false)]);
        assert!(!window.settle(DeliveryTag(2)));
        assert!(!window.settle(DeliveryTag(3)), "never delivered");
    }

    #[test]
    fn tags_only_rise() {
        let mut window = window(2);
        assert!(!window.deliver(DeliveryTag(2)));
        assert!(window.deliver(DeliveryTag(5)), "a gap belongs to somebody else");
        assert!([1, 2, 5].into_iter().all(|tag| window.settle(DeliveryTag(tag))));
        assert_eq!(window.take_acks(), [ack(5, true)]);
        assert!(!window.deliver(DeliveryTag(5)));
        assert!(window.deliver(DeliveryTag(6)));
    }

    #[test]
    fn one_that_stays_costs_nothing_of_what_is_settled_behind_it() {
        let mut window = window(1);
        for tag in 2..10_000 {
            assert!(window.deliver(DeliveryTag(tag)) && window.settle(DeliveryTag(tag)));
            assert_eq!(window.take_acks(), [ack(tag, false)]);
            assert_eq!(window.unsettled.len() + window.done.len(), 1);
        }
        assert!(window.settle(DeliveryTag(1)));
        assert_eq!(window.take_acks(), [ack(1, false)]);
    }
}
