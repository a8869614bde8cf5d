//! One resource whose owners die at any moment, with its effects as the ground truth: random
//! histories by a seed, which every failure prints. Each rule is broken by telling the very code
//! under test something else.

use super::*;
use crate::protocol::ownership::WorkerId;
use crate::protocol::partition::PartitionId;
use crate::protocol::result::TaskResult;
use crate::protocol::task::{Origin, TaskId};

/// Numbers that look random (Steele, Lea & Flood, 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((z ^ (z >> 27)) % bound.max(1) as u64) as usize
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    HeldOnce,
    OneMessage,
    Identity,
    Front,
}

/// A message of the queue.
#[derive(Debug, Clone)]
struct Message {
    /// What it does to its resource.
    number: usize,
    task: Task,
    held: u32,
    /// So many owners give it up; later ones execute it.
    dead_until: usize,
    ended: Option<Outcome>,
}

fn task(number: usize) -> Task {
    let mut task = Task::on(Resource::new("r").expect("a key"), "");
    task.id = Some(TaskId::new(format!("t{number}")).expect("an id"));
    let sequence = number as u64;
    task.origin = Some(Origin { producer: "p".into(), sequence, republished: false });
    task
}

fn record(task: &Task, outcome: Outcome) -> Record {
    let mut record = Record {
        task: task.id.clone().unwrap_or_else(|| TaskId::of_content(task)),
        resource: task.resource.clone(),
        partition: PartitionId::new(0),
        epoch: None,
        slot: None,
        attempt: 1,
        at_us: 1,
        took_us: 1,
        outcome,
        reason: None,
        result: TaskResult::NONE,
        producer: None,
        sequence: None,
        republished: false,
        replayed: false,
        redelivered: false,
    };
    record.set_origin(task);
    record
}

/// Tasks in order, some that nobody can name, and copies of what went before.
fn queue(dice: &mut Dice, broken: Broken) -> Vec<Message> {
    let mut queue: Vec<Message> = Vec::new();
    let mut next = 0;
    let push = |queue: &mut Vec<Message>, number, task, dead_until| {
        queue.push(Message { number, task, held: 0, dead_until, ended: None });
    };
    while queue.len() < 3 + dice.below(4) {
        let mut task = task(next);
        match dice.below(8) {
            0 => task.id = None,
            // Without an origin, every publisher is free to use this id.
            1 => (task.id, task.origin) = (Some(TaskId::new("same").expect("an id")), None),
            _ => {}
        }
        if broken == Broken::Identity && task.origin.is_none() {
            task.origin = Some(Origin { producer: "?".into(), sequence: 0, republished: false });
        }
        let dead_until = if dice.one_in(5) { 1 + dice.below(2) } else { 0 };
        push(&mut queue, next, task, dead_until);
        next += 1;
    }
    // A lost connection: the producer sends its last ones again, in order. Or a replay.
    let from = dice.below(queue.len());
    for copy in queue.clone().into_iter().skip(from).take(dice.below(4)) {
        let Message { number, mut task, .. } = copy;
        match &mut task.origin {
            Some(origin) if !dice.one_in(4) => origin.republished = true,
            _ => task.replayed = true,
        }
        push(&mut queue, number, task, 0);
    }
    queue
}

struct World {
    dice: Dice,
    broken: Broken,
    queue: Vec<Message>,
    /// Acked, from the front on; and published.
    acked: usize,
    published: usize,
    /// What the broker has confirmed.
    journal: Vec<Record>,
    effects: Vec<usize>,
}

impl World {
    fn seen(&self, mut task: Task) -> Task {
        if self.broken == Broken::OneMessage {
            task.replayed = false;
            task.origin.iter_mut().for_each(|origin| origin.republished = false);
        }
        task
    }

    /// One owner: takes what is there, is killed somewhere unless it is the last one, and leaves
    /// what it had recorded, and a part of its acks.
    fn own(&mut self, life: usize, last: bool) {
        let journal = if last || !self.dice.one_in(4) { self.journal.clone() } else { Vec::new() };
        let (worker, writer) = (WorkerId::new("w").expect("a name"), "x".into());
        let mut settled = Settled::default();
        settled.note(&Batch {
            v: 1,
            writer,
            number: 1,
            open_from: 1,
            late: 0,
            ended: false,
            worker,
            records: journal,
        });
        let mut suppression = Suppression::default();
        let first = self.acked;
        let left = self.queue.len() - first;
        let dies_at = if last { usize::MAX } else { first + self.dice.below(left + 1) };
        let (mut records, mut at) = (Vec::new(), first);
        while at < self.published && at < dies_at {
            let task = self.seen(self.queue[at].task.clone());
            let held = match self.broken {
                Broken::HeldOnce => self.queue[at].held.min(1),
                _ => self.queue[at].held,
            };
            if self.broken == Broken::Front {
                suppression = Suppression::default();
            }
            let message = &mut self.queue[at];
            at += 1;
            if suppression.suppresses(&task, held, |task| settled.contains(task)) {
                // It stays what it was.
                continue;
            }
            let outcome = match life < message.dead_until {
                true => Outcome::DeadLettered,
                false => Outcome::Executed,
            };
            if outcome == Outcome::Executed {
                self.effects.push(message.number);
            }
            message.ended = Some(outcome);
            records.push((at, record(&task, outcome)));
            if self.published < self.queue.len() && self.dice.one_in(3) {
                self.published += 1;
            }
        }
        let recorded = if last { records.len() } else { self.dice.below(records.len() + 1) };
        let may_ack = records.get(recorded).map_or(at, |(at, _)| at - 1);
        self.journal.extend(records.into_iter().take(recorded).map(|(_, record)| record));
        let acked = if last { may_ack } else { first + self.dice.below(may_ack - first + 1) };
        for message in &mut self.queue[acked..self.published] {
            message.held += 1;
        }
        self.acked = acked;
    }
}

/// Whether the resource ends in the state of its newest task, with nothing left out.
fn ends_well(seed: u64, broken: Broken) -> Result<(), String> {
    let mut dice = Dice(seed);
    let queue = queue(&mut dice, broken);
    let published = 1 + dice.below(queue.len());
    let (journal, effects) = (Vec::new(), Vec::new());
    let mut world = World { dice, broken, queue, acked: 0, published, journal, effects };
    let lives = 1 + world.dice.below(4);
    for life in 0..lives {
        world.own(life, false);
    }
    world.published = world.queue.len();
    world.own(lives, true);
    let World { queue, effects, .. } = &world;
    let executed = queue.iter().filter(|message| message.ended == Some(Outcome::Executed));
    let newest = executed.clone().next_back().map(|message| message.number);
    let lost = queue.iter().any(|message| message.ended.is_none());
    if lost || effects.last().copied() != newest {
        return Err(format!("seed {seed}: {effects:?} of {queue:#?}"));
    }
    Ok(())
}

const SEEDS: u64 = 5_000;

#[test]
fn a_resource_ends_in_the_state_of_its_newest_task() {
    for seed in 0..SEEDS {
        ends_well(seed, Broken::Nothing).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn no_rule_can_be_left_out() {
    for broken in [Broken::HeldOnce, Broken::OneMessage, Broken::Identity, Broken::Front] {
        let fails = (0..SEEDS).any(|seed| ends_well(seed, broken).is_err());
        assert!(fails, "{broken:?}");
    }
}

#[test]
fn what_the_last_owner_settled_is_suppressed_from_the_front_on() {
    let on = |resource: &str, number| {
        let resource = Resource::new(resource).expect("a key");
        Task { resource, ..task(number) }
    };
    let mut suppression = Suppression::default();
    let mut next = |task: Task, held, settled| suppression.suppresses(&task, held, |_| settled);
    assert!(next(on("a", 1), 1, true));
    assert!(!next(on("b", 2), 1, false));
    assert!(next(on("a", 3), 1, true), "another resource is none of its business");
    assert!(!next(on("b", 4), 1, true), "it is behind one that is executed again");
    assert!(!next(on("a", 5), 2, true), "somebody may have been there since");
    assert!(next(on("c", 6), 1, true));
    assert!(!next(on("d", 7), 0, true), "a copy of it was, not this");
    assert!(!next(on("c", 8), 1, true), "it comes out of its order");
}
