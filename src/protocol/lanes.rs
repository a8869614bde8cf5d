//! The state machine of one partition on the worker that owns it.
//!
//! A *lane* is the queue of the deliveries of one resource. A lane runs at most
//! one task; lanes run side by side. [`Lanes`] decides what may start, what is
//! retried when, what is dead-lettered, what may be acked, and when the channel
//! may be closed. It has no clock and does nothing itself: inputs go into
//! [`Lanes::apply`], and what is to be done comes out. The worker, the property
//! tests and the model all drive this very code.
//!
//! ```text
//!            Delivered            SlotFree             Finished(Executed)
//!  broker ───────────────▶ queued ─────────▶ running ───────────────────▶ done ─▶ Ack
//!                            ▲                  │  Finished(Failed)         ▲
//!                      Tick  │                  ├──────────▶ waiting        │
//!                            └──────────────────┼───────────────┘           │
//!                                               └──────▶ DeadLetter ────────┘
//!                                                            DeadLettered
//! ```
//!
//! `Drain` ends the starts and closes the channel once nothing runs; `Lost`
//! ends everything at once. Only the *head* of a lane is ever not queued, which
//! is what keeps the order of a resource.
//!
//! `Pause` says which lanes start nothing; they keep what they hold, and nobody
//! else waits for them. `Cancel` turns a task that does not run into one that must
//! not be run, where it stands.

mod crowd;
mod messages;
mod ready;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use self::crowd::{Crowd, Head};
pub use self::messages::{IllegalInput, Input, Millis, Outcome, Output};
pub use self::ready::Paused;
use self::ready::Ready;
use super::retry::RetryPolicy;
use super::settlement::{DeliveryTag, Settlement};
use super::task::Resource;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage {
    /// Waits for its turn; if it has a reason, its turn is the dead letters.
    Queued {
        unusable: Option<String>,
    },
    Running,
    Waiting {
        until: Millis,
    },
    DeadLettering,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Delivery {
    /// `None`: in no lane, because it names no usable resource.
    resource: Option<Resource>,
    stage: Stage,
    attempts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Open,
    Draining,
    Closed,
}

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lanes {
    retry: RetryPolicy,
    /// Makes the jitter of two partitions differ.
    seed: u64,
    phase: Phase,
    deliveries: BTreeMap<DeliveryTag, Delivery>,
    lanes: BTreeMap<Resource, VecDeque<DeliveryTag>>,
    ready: Ready,
    waiting: BTreeSet<(Millis, DeliveryTag)>,
    running: usize,
    dead_lettering: usize,
    settlement: Settlement,
}

impl Lanes {
    /// No deliveries yet. `seed` is any number; it makes retries of different
    /// partitions spread out.
    #[must_use]
    pub fn new(retry: RetryPolicy, seed: u64) -> Self {
        Self {
            retry,
            seed,
            phase: Phase::Open,
            deliveries: BTreeMap::new(),
            lanes: BTreeMap::new(),
            ready: Ready::default(),
            waiting: BTreeSet::new(),
            running: 0,
            dead_lettering: 0,
            settlement: Settlement::default(),
        }
    }

    /// Whether [`Input::SlotFree`] would start a task.
    #[must_use]
    pub fn wants_slot(&self) -> bool {
        self.phase == Phase::Open && self.ready.len() > 0
    }

    /// When [`Input::Tick`] will next change anything.
    #[must_use]
    pub fn next_tick(&self) -> Option<Millis> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// Acks that wait for [`Input::Flush`].
    #[must_use]
    pub fn pending_acks(&self) -> usize {
        self.settlement.pending()
    }

    /// Tasks that run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    /// Resources that have deliveries.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Deliveries that are not done.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        self.deliveries.len()
    }

    /// Lanes whose head could start, if there were a slot.
    #[must_use]
    pub fn startable(&self) -> usize {
        self.ready.len()
    }

    /// Lanes whose head waits for its next attempt.
    #[must_use]
    pub fn retrying(&self) -> usize {
        self.waiting.len()
    }

    /// Deliveries in lanes whose head could start, were they not paused.
    #[must_use]
    pub fn paused(&self) -> usize {
        let lanes = self.ready.parked().filter_map(|resource| self.lanes.get(resource));
        lanes.map(VecDeque::len).sum()
    }

    /// Takes an input at the time `now` and appends to `outputs` what is to be
    /// done, in this order.
    ///
    /// # Errors
    /// [`IllegalInput`] when the input contradicts the state, which stays as it
    /// is then.
    pub fn apply(
        &mut self,
        now: Millis,
        input: Input,
        outputs: &mut Vec<Output>,
    ) -> Result<(), IllegalInput> {
        if self.phase == Phase::Closed {
            return Err(IllegalInput::Closed);
        }
        match input {
            Input::Delivered { tag, resource } => {
                self.deliver(tag, Some(resource), None, outputs)?
            }
            Input::Unusable { tag, resource, reason } => {
                self.deliver(tag, resource, Some(reason), outputs)?;
            }
            Input::Executed { tag } => {
                if !self.settlement.deliver(tag) {
                    return Err(IllegalInput::TagOutOfOrder(tag));
                }
                self.settlement.settle(tag);
            }
            Input::Pause(paused) => self.ready.pause(paused),
            Input::Cancel { tag, reason } => self.cancel(tag, reason, outputs),
            Input::SlotFree => self.start(outputs),
            Input::Tried { tag, before } => {
                let running = self.deliveries.get_mut(&tag).filter(|d| d.stage == Stage::Running);
                let delivery = running.ok_or(IllegalInput::NotRunning(tag))?;
                delivery.attempts = delivery.attempts.saturating_add(before);
            }
            Input::Finished { tag, outcome } => self.finish(now, tag, outcome, outputs)?,
            Input::DeadLettered { tag } => {
                let delivery =
                    self.deliveries.get(&tag).filter(|d| d.stage == Stage::DeadLettering);
                delivery.ok_or(IllegalInput::NotDeadLettering(tag))?;
                self.dead_lettering -= 1;
                self.settle(tag, outputs);
            }
            Input::Tick => self.tick(now),
            Input::Flush => {
                outputs.extend(self.settlement.take_acks().into_iter().map(Output::Ack))
            }
            Input::Drain => self.phase = Phase::Draining,
            Input::Lost => {
                let running = self.deliveries.iter().filter(|(_, d)| d.stage == Stage::Running);
                outputs.extend(running.map(|(tag, _)| Output::Abort(*tag)));
                *self = Self { phase: Phase::Closed, ..Self::new(self.retry, self.seed) };
            }
        }
        if self.phase == Phase::Draining && self.running == 0 && self.dead_lettering == 0 {
            outputs.extend(self.settlement.take_acks().into_iter().map(Output::Ack));
            outputs.push(Output::CloseChannel);
            *self = Self { phase: Phase::Closed, ..Self::new(self.retry, self.seed) };
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        tag: DeliveryTag,
        resource: Option<Resource>,
        unusable: Option<String>,
        outputs: &mut Vec<Output>,
    ) -> Result<(), IllegalInput> {
        if !self.settlement.deliver(tag) {
            return Err(IllegalInput::TagOutOfOrder(tag));
        }
        let stage = Stage::Queued { unusable };
        self.deliveries.insert(tag, Delivery { resource: resource.clone(), stage, attempts: 0 });
        match resource {
            Some(resource) => {
                let lane = self.lanes.entry(resource.clone()).or_default();
                lane.push_back(tag);
                if lane.len() == 1 {
                    self.advance(resource, tag, outputs);
                }
            }
            None => self.dead_letter_unusable(tag, outputs),
        }
        Ok(())
    }

    /// A delivery has become the head of its lane.
    fn advance(&mut self, resource: Resource, tag: DeliveryTag, outputs: &mut Vec<Output>) {
        match self.deliveries.get(&tag).map(|d| &d.stage) {
            Some(Stage::Queued { unusable: Some(_) }) => self.dead_letter_unusable(tag, outputs),
            Some(_) => self.ready.push(resource),
            None => {}
        }
    }

    fn dead_letter_unusable(&mut self, tag: DeliveryTag, outputs: &mut Vec<Output>) {
        if self.phase != Phase::Open {
            return;
        }
        let Some(delivery) = self.deliveries.get_mut(&tag) else { return };
        if let Stage::Queued { unusable: Some(reason) } = &mut delivery.stage {
            let reason = std::mem::take(reason);
            delivery.stage = Stage::DeadLettering;
            self.dead_lettering += 1;
            outputs.push(Output::DeadLetter { tag, attempts: delivery.attempts, reason });
        }
    }

    fn cancel(&mut self, tag: DeliveryTag, reason: String, outputs: &mut Vec<Output>) {
        let Some(delivery) = self.deliveries.get_mut(&tag) else { return };
        match delivery.stage {
            Stage::Queued { unusable: None } => {}
            Stage::Waiting { until } => {
                self.waiting.remove(&(until, tag));
            }
            Stage::Queued { unusable: Some(_) } | Stage::Running | Stage::DeadLettering => return,
        }
        delivery.stage = Stage::Queued { unusable: Some(reason) };
        let Some(resource) = delivery.resource.clone() else { return };
        if self.lanes.get(&resource).and_then(VecDeque::front) == Some(&tag) {
            self.ready.remove(&resource);
            self.dead_letter_unusable(tag, outputs);
        }
    }

    fn start(&mut self, outputs: &mut Vec<Output>) {
        if self.phase != Phase::Open {
            return;
        }
        let Some(resource) = self.ready.pop() else { return };
        let head = self.lanes.get(&resource).and_then(|lane| lane.front().copied());
        if let Some((tag, delivery)) =
            head.and_then(|tag| Some((tag, self.deliveries.get_mut(&tag)?)))
        {
            delivery.stage = Stage::Running;
            delivery.attempts += 1;
            self.running += 1;
            outputs.push(Output::Start { tag, attempt: delivery.attempts });
        }
    }

    fn finish(
        &mut self,
        now: Millis,
        tag: DeliveryTag,
        outcome: Outcome,
        outputs: &mut Vec<Output>,
    ) -> Result<(), IllegalInput> {
        let running = self.deliveries.get_mut(&tag).filter(|d| d.stage == Stage::Running);
        let delivery = running.ok_or(IllegalInput::NotRunning(tag))?;
        self.running -= 1;
        let attempts = delivery.attempts;
        match outcome {
            Outcome::Executed => self.settle(tag, outputs),
            Outcome::Refused { .. } => {
                delivery.attempts -= 1;
                delivery.stage = Stage::Queued { unusable: None };
                delivery.resource.clone().into_iter().for_each(|lane| self.ready.push(lane));
            }
            Outcome::Failed { not_before, .. } if !self.retry.is_exhausted(attempts) => {
                let random = splitmix(self.seed ^ tag.0 ^ (u64::from(attempts) << 48));
                let wished = not_before.map(|wished| wished.min(RetryPolicy::MAX_AFTER));
                let delay = wished.unwrap_or_else(|| self.retry.delay(attempts, random));
                let until = now.after(delay);
                delivery.stage = Stage::Waiting { until };
                self.waiting.insert((until, tag));
            }
            Outcome::Failed { reason, .. } | Outcome::Dead { reason } => {
                delivery.stage = Stage::DeadLettering;
                self.dead_lettering += 1;
                outputs.push(Output::DeadLetter { tag, attempts, reason });
            }
        }
        Ok(())
    }

    fn tick(&mut self, now: Millis) {
        while let Some((until, tag)) = self.waiting.first().copied() {
            if until > now {
                return;
            }
            self.waiting.pop_first();
            if let Some(delivery) = self.deliveries.get_mut(&tag) {
                delivery.stage = Stage::Queued { unusable: None };
                delivery.resource.clone().into_iter().for_each(|lane| self.ready.push(lane));
            }
        }
    }

    /// The head of a lane is done: the next one takes its place.
    fn settle(&mut self, tag: DeliveryTag, outputs: &mut Vec<Output>) {
        self.settlement.settle(tag);
        let Some(resource) = self.deliveries.remove(&tag).and_then(|d| d.resource) else { return };
        let Some(lane) = self.lanes.get_mut(&resource) else { return };
        lane.pop_front();
        match lane.front().copied() {
            Some(next) => self.advance(resource, next, outputs),
            None => {
                self.lanes.remove(&resource);
            }
        }
    }
}

/// A bijective mix of 64 bits (Steele, Lea & Flood, "Fast splittable
/// pseudorandom number generators", 2014): jitter without a generator's state.
fn splitmix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
