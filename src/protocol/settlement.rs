//! Which deliveries of a channel are still unsettled, and the fewest acks that
//! settle the rest.
//!
//! An AMQP ack with `multiple` settles every delivery of its channel up to its
//! tag. It may be used just for the contiguous front of the window: one task
//! that still runs must not be acked along with its neighbours.

use std::collections::VecDeque;

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Unsettled,
    Done,
    Acked,
}

/// The window of deliveries of one channel that the broker still counts as
/// unsettled.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Settlement {
    /// Tag of the window's front.
    front: u64,
    window: VecDeque<State>,
    done: usize,
}

impl Settlement {
    /// A delivery arrived. Returns false, and changes nothing, if its tag is
    /// not above every earlier one.
    pub fn deliver(&mut self, tag: DeliveryTag) -> bool {
        if self.window.is_empty() {
            if tag.0 < self.front {
                return false;
            }
            self.front = tag.0;
        }
        let next = self.front + self.window.len() as u64;
        if tag.0 < next {
            return false;
        }
        // A gap is a tag that something else on this channel got and settled.
        self.window.extend((next..tag.0).map(|_| State::Acked));
        self.window.push_back(State::Unsettled);
        true
    }

    /// A delivery may be acked now. Returns false, and changes nothing, if it
    /// is unknown or settled already.
    pub fn settle(&mut self, tag: DeliveryTag) -> bool {
        let index = tag.0.checked_sub(self.front).and_then(|i| usize::try_from(i).ok());
        match index.and_then(|i| self.window.get_mut(i)) {
            Some(state @ State::Unsettled) => {
                *state = State::Done;
                self.done += 1;
                true
            }
            Some(State::Done | State::Acked) | None => false,
        }
    }

    /// How many deliveries may be acked and were not yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.done
    }

    /// The acks that settle all that may be settled, and forgets them: the
    /// front with one, everything behind a gap one by one.
    pub fn take_acks(&mut self) -> Vec<Ack> {
        let mut acks = Vec::new();
        if self.done == 0 {
            return acks;
        }
        let (mut last, mut covered) = (None, 0);
        while let Some(state @ (State::Done | State::Acked)) = self.window.front() {
            if *state == State::Done {
                last = Some(DeliveryTag(self.front));
                covered += 1;
            }
            self.window.pop_front();
            self.front += 1;
        }
        acks.extend(last.map(|tag| Ack { tag, multiple: covered > 1 }));
        self.done -= covered;
        if self.done > 0 {
            for (state, tag) in self.window.iter_mut().zip(self.front..) {
                if *state == State::Done {
                    *state = State::Acked;
                    acks.push(Ack { tag: DeliveryTag(tag), multiple: false });
                }
            }
            self.done = 0;
        }
        acks
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
        assert!(window.window.is_empty());
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
}
