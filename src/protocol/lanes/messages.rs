//! What goes into the lanes, and what comes out.

use std::time::Duration;

use super::Paused;
use crate::protocol::settlement::{Ack, DeliveryTag};
use crate::protocol::task::Resource;

/// A point in time: milliseconds since an origin that the caller keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// The time that has passed since the origin, in whole milliseconds.
    #[must_use]
    pub fn since(origin: Duration) -> Self {
        Self(u64::try_from(origin.as_millis()).unwrap_or(u64::MAX))
    }

    /// How long after the origin it is.
    #[must_use]
    pub const fn since_origin(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// The time `delay` later.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        // Rounded up: a retry is never early.
        let delay = delay.as_nanos().div_ceil(1_000_000);
        Self(self.0.saturating_add(u64::try_from(delay).unwrap_or(u64::MAX)))
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The task is Executed.
    Executed,
    /// Try again when `not_before` has passed, or by the retry policy.
    Failed {
        /// The handler's own wish.
        not_before: Option<Duration>,
        /// Why it failed.
        reason: String,
    },
    /// Never try again.
    Dead {
        /// Why.
        reason: String,
    },
    /// It was never begun, through no fault of the task: no attempt is counted, and it is ready
    /// again.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// The broker delivered a task.
    Delivered {
        /// Its delivery.
        tag: DeliveryTag,
        /// What it touches.
        resource: Resource,
    },
    /// The broker delivered something that must not be run.
    Unusable {
        /// Its delivery.
        tag: DeliveryTag,
        /// Its resource, if it has a usable one: then it takes its turn.
        resource: Option<Resource>,
        /// What is wrong with it.
        reason: String,
    },
    /// The broker delivered a task that was executed, but not acked.
    Executed {
        /// Its delivery.
        tag: DeliveryTag,
    },
    /// From now on nothing of these is started, and everything else may be.
    Pause(Paused),
    /// This task must not be run any more. One that runs is left alone.
    Cancel {
        /// Its delivery.
        tag: DeliveryTag,
        /// By whose order.
        reason: String,
    },
    /// The worker could run one more task.
    SlotFree,
    /// A task that runs had been tried so often by earlier owners.
    Tried {
        /// Its delivery.
        tag: DeliveryTag,
        /// The attempts that failed.
        before: u32,
    },
    /// A running attempt ended.
    Finished {
        /// Its delivery.
        tag: DeliveryTag,
        /// How.
        outcome: Outcome,
    },
    /// The broker confirmed a dead letter.
    DeadLettered {
        /// The delivery that it replaces.
        tag: DeliveryTag,
    },
    /// Time has passed.
    Tick,
    /// Acks that wait to be coalesced are to be sent now.
    Flush,
    /// Give the partition up: start nothing, and close when nothing runs.
    Drain,
    /// The channel is gone, and with it everything it delivered.
    Lost,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output {
    /// Run this task: StartProcessing.
    Start {
        /// Its delivery.
        tag: DeliveryTag,
        /// From 1; those of earlier owners count once they are known ([`Input::Tried`]).
        attempt: u32,
    },
    /// Publish this delivery to the dead letters, and say so when confirmed.
    DeadLetter {
        /// The delivery.
        tag: DeliveryTag,
        /// How often it was tried.
        attempts: u32,
        /// Why it is given up.
        reason: String,
    },
    /// Settle deliveries: EndProcessing.
    Ack(Ack),
    /// Stop this running attempt; its end is of no interest any more.
    Abort(DeliveryTag),
    /// Nothing runs and all acks are out: the channel may be closed.
    CloseChannel,
}

/// An input that cannot be. The state is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IllegalInput {
    /// A delivery's tag is not above every earlier one.
    #[error("delivery {} came out of order", .0.0)]
    TagOutOfOrder(DeliveryTag),
    /// An attempt ended that does not run.
    #[error("delivery {} does not run", .0.0)]
    NotRunning(DeliveryTag),
    /// A dead letter was confirmed that was not asked for.
    #[error("delivery {} was not to be dead-lettered", .0.0)]
    NotDeadLettering(DeliveryTag),
    /// The channel is closed or lost.
    #[error("the channel is closed")]
    Closed,
}
