//! What [`Lanes`] promises, by example and by random runs against a ground
//! truth that shares no code with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::protocol::settlement::Ack;

const NO_DELAY: RetryPolicy =
    RetryPolicy { attempts: 3, first_delay: Duration::ZERO, max_delay: Duration::ZERO };

fn resource(key: &str) -> Resource {
    Resource::new(key).expect("a resource")
}

fn delivered(tag: u64, key: &str) -> Input {
    Input::Delivered { tag: DeliveryTag(tag), resource: resource(key) }
}

fn finished(tag: u64, outcome: Outcome) -> Input {
    Input::Finished { tag: DeliveryTag(tag), outcome }
}

fn failed() -> Outcome {
    Outcome::Failed { not_before: None, reason: "no".to_owned() }
}

fn start(tag: u64, attempt: u32) -> Output {
    Output::Start { tag: DeliveryTag(tag), attempt }
}

fn ack(tag: u64, multiple: bool) -> Output {
    Output::Ack(Ack { tag: DeliveryTag(tag), multiple })
}

/// Applies the inputs at time `now` and gives the outputs of the last one.
fn apply(lanes: &mut Lanes, now: u64, inputs: impl IntoIterator<Item = Input>) -> Vec<Output> {
    let mut outputs = Vec::new();
    for input in inputs {
        outputs.clear();
        lanes.apply(Millis(now), input, &mut outputs).expect("a legal input");
    }
    outputs
}

#[test]
fn one_task_of_a_resource_at_a_time_in_order() {
    let mut lanes = Lanes::new(NO_DELAY, 0);
    apply(&mut lanes, 0, [delivered(1, "a"), delivered(2, "a"), delivered(3, "b")]);
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), [start(1, 1)]);
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), [start(3, 1)]);
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), []);
    assert!(!lanes.wants_slot());
    apply(&mut lanes, 0, [finished(1, Outcome::Executed)]);
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), [start(2, 1)]);
    assert_eq!(apply(&mut lanes, 0, [Input::Flush]), [ack(1, false)]);
    apply(&mut lanes, 0, [finished(3, Outcome::Executed), finished(2, Outcome::Executed)]);
    assert_eq!(apply(&mut lanes, 0, [Input::Flush]), [ack(3, true)]);
}

#[test]
fn a_task_that_was_never_begun_costs_no_attempt_and_keeps_its_place() {
    let mut lanes = Lanes::new(NO_DELAY, 0);
    apply(&mut lanes, 0, [delivered(1, "a"), delivered(2, "a"), delivered(3, "b")]);
    for _ in 0..10 {
        assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), [start(1, 1)]);
        assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), [start(3, 1)]);
        for tag in [1, 3] {
            let outcome = Outcome::Refused { reason: "nobody listens".to_owned() };
            assert_eq!(apply(&mut lanes, 0, [finished(tag, outcome)]), []);
        }
    }
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), [start(1, 1)]);
    apply(&mut lanes, 0, [finished(1, Outcome::Executed)]);
    apply(&mut lanes, 0, [Input::SlotFree]);
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), [start(2, 1)], "in order");
}

#[test]
fn a_retry_holds_up_only_its_own_lane() {
    let policy = RetryPolicy {
        attempts: 3,
        first_delay: Duration::from_millis(100),
        max_delay: Duration::from_secs(1),
    };
    let mut lanes = Lanes::new(policy, 0);
    apply(&mut lanes, 0, [delivered(1, "a"), delivered(2, "a"), delivered(3, "b")]);
    apply(&mut lanes, 0, [Input::SlotFree, finished(1, failed())]);
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), [start(3, 1)]);
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), []);
    let Millis(until) = lanes.next_tick().expect("a retry waits");
    assert!((50..=100).contains(&until), "{until}");
    apply(&mut lanes, until - 1, [Input::Tick]);
    assert!(!lanes.wants_slot(), "a retry is never early");
    apply(&mut lanes, until, [Input::Tick]);
    assert_eq!(apply(&mut lanes, until, [Input::SlotFree]), [start(1, 2)]);
}

#[test]
fn the_handler_may_ask_for_a_longer_wait_and_for_a_shorter_one() {
    let delay = Duration::from_secs(60);
    let slow = RetryPolicy { attempts: 3, first_delay: delay, max_delay: delay };
    for (policy, after_ms) in [(NO_DELAY, 9_000), (slow, 20)] {
        let mut lanes = Lanes::new(policy, 0);
        let not_before = Some(Duration::from_millis(after_ms));
        let later = Outcome::Failed { not_before, reason: "not now".to_owned() };
        apply(&mut lanes, 1, [delivered(1, "a"), Input::SlotFree, finished(1, later)]);
        assert_eq!(lanes.next_tick(), Some(Millis(after_ms + 1)));
    }
}

#[test]
fn the_last_attempt_ends_in_the_dead_letters_before_the_ack() {
    let mut lanes = Lanes::new(NO_DELAY, 0);
    apply(&mut lanes, 0, [delivered(1, "a"), delivered(2, "a")]);
    for _ in 0..2 {
        apply(&mut lanes, 0, [Input::SlotFree, finished(1, failed()), Input::Tick]);
    }
    let outputs = apply(&mut lanes, 0, [Input::SlotFree, finished(1, failed())]);
    let tag = DeliveryTag(1);
    assert_eq!(outputs, [Output::DeadLetter { tag, attempts: 3, reason: "no".to_owned() }]);
    assert_eq!(apply(&mut lanes, 0, [Input::Flush]), [], "not acked before it is confirmed");
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), [], "its successor waits");
    apply(&mut lanes, 0, [Input::DeadLettered { tag }]);
    assert_eq!(apply(&mut lanes, 0, [Input::Flush]), [ack(1, false)]);
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), [start(2, 1)]);
}

#[test]
fn the_unusable_takes_its_turn_and_is_never_run() {
    let mut lanes = Lanes::new(NO_DELAY, 0);
    let unusable = |tag, key: Option<&str>| Input::Unusable {
        tag: DeliveryTag(tag),
        resource: key.map(resource),
        reason: "bad".to_owned(),
    };
    let letter =
        |tag| Output::DeadLetter { tag: DeliveryTag(tag), attempts: 0, reason: "bad".to_owned() };
    assert_eq!(apply(&mut lanes, 0, [unusable(1, None)]), [letter(1)]);
    assert_eq!(apply(&mut lanes, 0, [delivered(2, "a"), unusable(3, Some("a"))]), []);
    let outputs = apply(&mut lanes, 0, [Input::SlotFree, finished(2, Outcome::Executed)]);
    assert_eq!(outputs, [letter(3)]);
}

#[test]
fn a_drain_lets_running_tasks_finish_and_starts_no_other() {
    let mut lanes = Lanes::new(NO_DELAY, 0);
    apply(&mut lanes, 0, [delivered(1, "a"), delivered(2, "a"), delivered(3, "b")]);
    apply(&mut lanes, 0, [Input::SlotFree, Input::Drain]);
    assert!(!lanes.wants_slot());
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), []);
    assert_eq!(apply(&mut lanes, 0, [delivered(4, "c")]), [], "what comes late goes back as well");
    let outputs = apply(&mut lanes, 0, [finished(1, Outcome::Executed)]);
    assert_eq!(outputs, [ack(1, false), Output::CloseChannel]);
    let late = lanes.apply(Millis(0), Input::Tick, &mut Vec::new());
    assert_eq!(late, Err(IllegalInput::Closed));
}

#[test]
fn an_idle_partition_drains_at_once() {
    let mut lanes = Lanes::new(NO_DELAY, 0);
    apply(&mut lanes, 0, [delivered(1, "a")]);
    assert_eq!(apply(&mut lanes, 0, [Input::Drain]), [Output::CloseChannel]);
}

#[test]
fn a_loss_aborts_what_runs_and_acks_nothing() {
    let mut lanes = Lanes::new(NO_DELAY, 0);
    apply(&mut lanes, 0, [delivered(1, "a"), delivered(2, "b"), delivered(3, "c")]);
    apply(&mut lanes, 0, [Input::SlotFree, Input::SlotFree, finished(1, Outcome::Executed)]);
    assert_eq!(apply(&mut lanes, 0, [Input::Lost]), [Output::Abort(DeliveryTag(2))]);
    let mut outputs = Vec::new();
    let late = lanes.apply(Millis(0), finished(2, Outcome::Executed), &mut outputs);
    assert_eq!((late, outputs), (Err(IllegalInput::Closed), vec![]));
}

fn pause(resources: &[&str]) -> Input {
    let resources = resources.iter().map(|key| resource(key)).collect();
    Input::Pause(Paused { everything: false, resources })
}

fn pause_everything() -> Input {
    Input::Pause(Paused { everything: true, ..Paused::default() })
}

#[test]
fn a_paused_resource_waits_and_nobody_waits_for_it() {
    let mut lanes = Lanes::new(NO_DELAY, 0);
    apply(&mut lanes, 0, [delivered(1, "a"), delivered(2, "b"), pause(&["a"]), delivered(3, "a")]);
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), [start(2, 1)]);
    assert!(!lanes.wants_slot());
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), []);
    assert_eq!((lanes.paused(), lanes.startable()), (2, 0));
    assert_eq!(apply(&mut lanes, 0, [pause(&[]), Input::SlotFree]), [start(1, 1)]);
    assert_eq!(lanes.paused(), 0);
}

#[test]
fn what_runs_when_it_is_paused_finishes_and_its_retries_wait() {
    let mut lanes = Lanes::new(NO_DELAY, 0);
    apply(&mut lanes, 0, [delivered(1, "a"), Input::SlotFree, pause(&["a"])]);
    apply(&mut lanes, 0, [finished(1, failed()), Input::Tick]);
    assert_eq!(apply(&mut lanes, 9, [Input::SlotFree]), []);
    assert_eq!(lanes.next_tick(), None, "nothing to wake up for");
    assert_eq!(apply(&mut lanes, 9, [pause(&[]), Input::SlotFree]), [start(1, 2)]);
}

#[test]
fn a_paused_partition_starts_nothing_and_is_given_up_at_once() {
    let mut lanes = Lanes::new(NO_DELAY, 0);
    apply(&mut lanes, 0, [pause_everything(), delivered(1, "a"), delivered(2, "b")]);
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), []);
    assert_eq!(lanes.paused(), 2);
    assert_eq!(apply(&mut lanes, 0, [Input::Drain]), [Output::CloseChannel]);
}

#[test]
fn a_cancelled_task_is_never_run_and_takes_its_turn() {
    let mut lanes = Lanes::new(NO_DELAY, 0);
    let cancel = |tag| Input::Cancel { tag: DeliveryTag(tag), reason: "cancelled".to_owned() };
    let letter = |tag, attempts| {
        let reason = "cancelled".to_owned();
        Output::DeadLetter { tag: DeliveryTag(tag), attempts, reason }
    };
    apply(
        &mut lanes,
        0,
        [delivered(1, "a"), delivered(2, "a"), delivered(3, "b"), Input::SlotFree],
    );
    assert_eq!(apply(&mut lanes, 0, [cancel(1), cancel(9)]), [], "what runs is left alone");
    assert_eq!(apply(&mut lanes, 0, [cancel(2)]), [], "its turn comes later");
    assert_eq!(apply(&mut lanes, 0, [cancel(3)]), [letter(3, 0)], "its turn is now");
    assert_eq!(apply(&mut lanes, 0, [Input::SlotFree]), []);
    assert_eq!(apply(&mut lanes, 0, [finished(1, Outcome::Executed)]), [letter(2, 0)]);

    apply(&mut lanes, 0, [delivered(4, "c"), Input::SlotFree, finished(4, failed())]);
    assert_eq!(apply(&mut lanes, 0, [cancel(4)]), [letter(4, 1)], "it waited for a retry");
    assert_eq!(lanes.next_tick(), None);
}

#[test]
fn contradictions_are_refused_and_change_nothing() {
    let mut lanes = Lanes::new(NO_DELAY, 0);
    apply(&mut lanes, 0, [delivered(1, "a")]);
    let before = lanes.clone();
    let tag = DeliveryTag(1);
    for (input, error) in [
        (delivered(1, "a"), IllegalInput::TagOutOfOrder(tag)),
        (finished(1, Outcome::Executed), IllegalInput::NotRunning(tag)),
        (Input::DeadLettered { tag }, IllegalInput::NotDeadLettering(tag)),
    ] {
        let mut outputs = Vec::new();
        assert_eq!(lanes.apply(Millis(0), input, &mut outputs), Err(error));
        assert_eq!((&lanes, outputs.len()), (&before, 0));
    }
}

/// One step of a random run.
#[derive(Debug, Clone)]
enum Step {
    Deliver {
        resource: u8,
        usable: bool,
    },
    SlotFree,
    /// End one of the running tasks.
    Finish {
        which: usize,
        outcome: u8,
    },
    ConfirmDeadLetter {
        which: usize,
    },
    /// Let this many milliseconds pass.
    Pass(u16),
    Flush,
    /// Pause these resources, by their bits, or everything.
    Pause {
        resources: u8,
        everything: bool,
    },
    /// Cancel one that the broker counts as unsettled.
    Cancel {
        which: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6, prop::bool::weighted(0.95))
            .prop_map(|(resource, usable)| Step::Deliver { resource, usable }),
        4 => Just(Step::SlotFree),
        4 => (0usize..64, 0u8..10)
            .prop_map(|(which, outcome)| Step::Finish { which, outcome }),
        1 => (0usize..64).prop_map(|which| Step::ConfirmDeadLetter { which }),
        1 => (0u16..400).prop_map(Step::Pass),
        1 => Just(Step::Flush),
        1 => (0u8..64, prop::bool::weighted(0.2))
            .prop_map(|(resources, everything)| Step::Pause { resources, everything }),
        1 => (0usize..64).prop_map(|which| Step::Cancel { which }),
    ]
}

/// How a random run ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    RunDry,
    Drain,
    Lose,
}

/// The ground truth: what the broker and the handlers see.
#[derive(Default)]
struct World {
    now: u64,
    next_tag: u64,
    /// Resource of every delivery that the broker counts as unsettled.
    unsettled: BTreeMap<u64, Option<u8>>,
    running: BTreeMap<u64, u8>,
    /// Dead letters that were asked for and not confirmed.
    letters: BTreeSet<u64>,
    /// Deliveries that may be acked.
    ended: BTreeSet<u64>,
    closed: bool,
    starts: usize,
    paused: Paused,
    cancelled: BTreeSet<u64>,
}

impl World {
    fn holds(&self, number: u8) -> bool {
        self.paused.holds(&resource(&number.to_string()))
    }

    fn observe(&mut self, outputs: &[Output]) {
        for output in outputs {
            assert!(!self.closed, "{output:?} after the channel was closed");
            match output {
                Output::Start { tag, attempt } => self.start(tag.0, *attempt),
                Output::DeadLetter { tag, .. } => {
                    assert!(!self.running.contains_key(&tag.0), "dead-lettered while it runs");
                    assert!(self.letters.insert(tag.0), "dead-lettered twice");
                    self.assert_first_of_its_resource(tag.0);
                }
                Output::Ack(Ack { tag, multiple }) => {
                    let from = if *multiple { 0 } else { tag.0 };
                    let acked: Vec<u64> =
                        self.unsettled.range(from..=tag.0).map(|(tag, _)| *tag).collect();
                    assert!(acked.contains(&tag.0), "{} was settled twice", tag.0);
                    for tag in acked {
                        assert!(self.ended.remove(&tag), "{tag} was acked before its end");
                        self.unsettled.remove(&tag);
                    }
                }
                Output::Abort(tag) => {
                    assert!(self.running.remove(&tag.0).is_some(), "aborted what did not run");
                }
                Output::CloseChannel => {
                    assert!(self.running.is_empty(), "closed while tasks run");
                    assert!(self.letters.is_empty(), "closed while dead letters are unconfirmed");
                    assert!(self.ended.is_empty(), "closed with acks outstanding");
                    self.closed = true;
                }
            }
        }
    }

    fn start(&mut self, tag: u64, attempt: u32) {
        self.starts += 1;
        assert!(attempt >= 1);
        let resource = self.unsettled[&tag].expect("the unusable is never run");
        assert!(!self.running.values().any(|r| *r == resource), "two tasks of {resource}");
        assert!(!self.holds(resource), "{resource} is paused");
        assert!(!self.cancelled.contains(&tag), "{tag} was cancelled");
        assert!(!self.ended.contains(&tag) && !self.letters.contains(&tag), "{tag} had ended");
        self.assert_first_of_its_resource(tag);
        self.running.insert(tag, resource);
    }

    /// Every earlier delivery of the resource must have ended.
    fn assert_first_of_its_resource(&self, tag: u64) {
        let Some(resource) = self.unsettled[&tag] else { return };
        for (earlier, _) in self.unsettled.range(..tag).filter(|(_, r)| **r == Some(resource)) {
            assert!(self.ended.contains(earlier), "{tag} overtook {earlier}");
        }
    }

    fn input_of(&mut self, step: &Step) -> Option<Input> {
        match step {
            Step::Deliver { resource: number, usable } => {
                self.next_tag += 1;
                let tag = DeliveryTag(self.next_tag);
                let key = resource(&number.to_string());
                // Resource 0 stands for "no usable resource" when the task is unusable.
                let lane = (*usable || *number != 0).then_some(*number);
                self.unsettled.insert(tag.0, lane);
                Some(if *usable {
                    Input::Delivered { tag, resource: key }
                } else {
                    let resource = lane.map(|_| key);
                    Input::Unusable { tag, resource, reason: "bad".to_owned() }
                })
            }
            Step::SlotFree => Some(Input::SlotFree),
            Step::Finish { which, outcome } => {
                let running: Vec<u64> = self.running.keys().copied().collect();
                let tag = *running.get(which % running.len().max(1))?;
                self.running.remove(&tag);
                let outcome = match outcome {
                    0 => Outcome::Dead { reason: "dead".to_owned() },
                    1..=3 => failed(),
                    _ => {
                        self.ended.insert(tag);
                        Outcome::Executed
                    }
                };
                Some(finished(tag, outcome))
            }
            Step::ConfirmDeadLetter { which } => {
                let letters: Vec<u64> = self.letters.iter().copied().collect();
                let tag = *letters.get(which % letters.len().max(1))?;
                self.letters.remove(&tag);
                self.ended.insert(tag);
                Some(Input::DeadLettered { tag: DeliveryTag(tag) })
            }
            Step::Pass(ms) => {
                self.now += u64::from(*ms);
                Some(Input::Tick)
            }
            Step::Flush => Some(Input::Flush),
            Step::Pause { resources, everything } => {
                let paused = (0..8).filter(|bit| resources >> bit & 1 == 1);
                let resources = paused.map(|number: u8| resource(&number.to_string())).collect();
                self.paused = Paused { everything: *everything, resources };
                Some(Input::Pause(self.paused.clone()))
            }
            Step::Cancel { which } => {
                let tags: Vec<u64> = self.unsettled.keys().copied().collect();
                let tag = *tags.get(which % tags.len().max(1))?;
                if !self.running.contains_key(&tag) {
                    self.cancelled.insert(tag);
                }
                Some(Input::Cancel { tag: DeliveryTag(tag), reason: "cancelled".to_owned() })
            }
        }
    }

    fn take(&mut self, lanes: &mut Lanes, input: Input) {
        let mut outputs = Vec::new();
        lanes.apply(Millis(self.now), input, &mut outputs).expect("a legal input");
        self.observe(&outputs);
    }

    /// Whether it waits for somebody to resume its resource.
    fn is_held(&self, lane: Option<u8>) -> bool {
        lane.is_some_and(|number| self.holds(number))
    }

    /// Gives everything slots, time and confirms.
    fn run_dry(&mut self, lanes: &mut Lanes, rounds: usize) {
        for _ in 0..=rounds {
            self.now += 300;
            self.take(lanes, Input::Tick);
            while lanes.wants_slot() {
                self.take(lanes, Input::SlotFree);
            }
            self.finish_all(lanes);
        }
        self.take(lanes, Input::Flush);
    }

    /// Ends everything that runs and confirms every dead letter.
    fn finish_all(&mut self, lanes: &mut Lanes) {
        for step in [Step::Finish { which: 0, outcome: 9 }, Step::ConfirmDeadLetter { which: 0 }] {
            while !self.closed
                && let Some(input) = self.input_of(&step)
            {
                self.take(lanes, input);
            }
        }
    }
}

fn policy() -> RetryPolicy {
    RetryPolicy {
        attempts: 3,
        first_delay: Duration::from_millis(100),
        max_delay: Duration::from_millis(300),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn random_runs_keep_every_promise(
        steps in prop::collection::vec(step(), 0..200),
        ending in prop_oneof![Just(Ending::RunDry), Just(Ending::Drain), Just(Ending::Lose)],
        seed in any::<u64>(),
    ) {
        let mut lanes = Lanes::new(policy(), seed);
        let mut world = World::default();
        for step in &steps {
            if let Some(input) = world.input_of(step) {
                world.take(&mut lanes, input);
            }
            prop_assert_eq!(lanes.running(), world.running.len());
        }
        match ending {
            Ending::RunDry => {
                // Progress: with time, slots and confirms, everything that is not paused ends in
                // a bounded number of rounds, and every delivery is acked exactly once.
                let rounds = 4 * (steps.len() + 1);
                world.run_dry(&mut lanes, rounds);
                let stuck = world.unsettled.values().find(|lane| !world.is_held(**lane));
                prop_assert!(stuck.is_none(), "stuck: {:?}", world.unsettled);
                prop_assert_eq!(lanes.paused(), world.unsettled.len(), "all that is left is paused");
                world.paused = Paused::default();
                world.take(&mut lanes, Input::Pause(Paused::default()));
                world.run_dry(&mut lanes, rounds);
                prop_assert!(world.unsettled.is_empty(), "stuck: {:?}", world.unsettled);
                prop_assert_eq!(lanes.unsettled(), 0);
            }
            Ending::Drain => {
                let starts = world.starts;
                world.take(&mut lanes, Input::Drain);
                world.finish_all(&mut lanes);
                prop_assert!(world.closed, "a drain must end once nothing runs");
                prop_assert_eq!(world.starts, starts, "a drain starts nothing");
            }
            Ending::Lose => {
                world.take(&mut lanes, Input::Lost);
                prop_assert!(world.running.is_empty(), "every running task is aborted");
                prop_assert_eq!(lanes.unsettled(), 0);
            }
        }
    }
}
