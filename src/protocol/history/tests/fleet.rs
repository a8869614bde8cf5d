//! A correct fleet, and the history that it records.

use std::collections::BTreeMap;

use super::super::*;
use crate::protocol::partition::PartitionId;

/// Numbers that depend on the seed only: SplitMix64 (Steele et al., 2014).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    pub(super) fn pick<T>(&mut self, from: &[T]) -> Option<usize> {
        (!from.is_empty()).then(|| self.below(from.len()))
    }
}

pub(super) fn task(name: &str) -> TaskId {
    TaskId::new(name).expect("a task id")
}

pub(super) fn process(worker: usize, slot: u32) -> Process {
    let worker = WorkerId::new(format!("worker-{worker}")).expect("a worker name");
    Process { worker, slot: Some(slot) }
}

pub(super) fn execution(name: &str, resource: &str, process: Process, at_us: u64) -> Execution {
    Execution {
        task: task(name),
        resource: Resource::new(resource).expect("a resource"),
        process,
        partition: PartitionId::new(0),
        attempt: 1,
        at_us,
        producer: None,
        sequence: None,
        redelivered: false,
    }
}

pub(super) fn ending(of: &Execution, at_us: u64, outcome: Outcome) -> Ending {
    let Execution { task, resource, process, .. } = of.clone();
    Ending { task, resource, process, at_us, outcome }
}

/// A start and its end, as one would happen that takes no time.
pub(super) fn at_once(execution: Execution) -> [Event; 2] {
    let end = ending(&execution, execution.at_us, Outcome::Executed);
    [Event::Started(execution), Event::Ended(end)]
}

#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) events: Vec<Event>,
    pub(super) published: Vec<TaskId>,
}

impl History {
    /// Checks against the tasks, and against their number, which must agree
    /// when at most one is missing.
    pub(super) fn check(&self) -> Report {
        let report = self.check_against(Some(Published::Tasks(&self.published)));
        let number = self.published.len() as u64;
        let counted = self.check_against(Some(Published::Count(number)));
        assert_eq!(report.violation_count, counted.violation_count, "{report}\nor: {counted}");
        report
    }

    pub(super) fn check_against(&self, published: Option<Published<'_>>) -> Report {
        let mut checker = Checker::default();
        self.events.iter().for_each(|event| checker.observe(event));
        checker.finish(published)
    }

    /// The only violation; anything else fails the test.
    pub(super) fn fault(&self) -> Violation {
        let report = self.check();
        assert_eq!(report.violation_count, 1, "{report}");
        report.violations[0].clone()
    }

    pub(super) fn insert(&mut self, at: usize, events: impl IntoIterator<Item = Event>) {
        self.events.splice(at..at, events);
    }

    pub(super) fn ends_with(&self, outcome: Outcome) -> Vec<usize> {
        let is_it = |e: &Event| matches!(e, Event::Ended(end) if end.outcome == outcome);
        (0..self.events.len()).filter(|&i| is_it(&self.events[i])).collect()
    }

    pub(super) fn start(&self, index: usize) -> &Execution {
        match &self.events[index] {
            Event::Started(execution) => execution,
            other => panic!("{other:?} is no start"),
        }
    }

    pub(super) fn end(&self, index: usize) -> &Ending {
        match &self.events[index] {
            Event::Ended(end) => end,
            other => panic!("{other:?} is no end"),
        }
    }

    /// Every start, with where it stops running.
    pub(super) fn spans(&self) -> Vec<(usize, usize)> {
        let mut spans = Vec::new();
        for (start, event) in self.events.iter().enumerate() {
            let Event::Started(e) = event else { continue };
            let stops = |later: &Event| match later {
                Event::Ended(end) => end.task == e.task && end.process == e.process,
                Event::WorkerLost { worker, .. } => *worker == e.process.worker,
                Event::Started(_) => false,
            };
            let stop = self.events[start..].iter().position(stops).expect("nothing runs forever");
            spans.push((start, start + stop));
        }
        spans
    }
}

/// A resource as the broker and its owner see it: tasks before `acked` are gone,
/// those before `next` are settled and come again if the owner dies.
struct Queue {
    tasks: Vec<Execution>,
    acked: usize,
    next: usize,
    owner: usize,
    running: bool,
}

impl Queue {
    fn changes_hands(&mut self, owner: usize) {
        self.tasks[self.acked..].iter_mut().for_each(|task| task.redelivered = true);
        (self.owner, self.next, self.running) = (owner, self.acked, false);
    }
}

const WORKERS: usize = 3;
const SLOTS: usize = 2;
pub(super) const RESOURCES: usize = 4;

/// What a correct fleet records of a random run with failures, hand-overs and
/// workers that are killed: at least one task on every resource.
pub(super) fn correct(seed: u64) -> History {
    let dice = &mut Dice(seed);
    let mut published = Vec::new();
    let mut queues: Vec<Queue> = Vec::new();
    for r in 0..RESOURCES {
        let (mut tasks, mut sequences) = (Vec::new(), [0, 100]);
        for t in 0..1 + dice.below(8) {
            let producer = dice.below(2);
            sequences[producer] += 1 + dice.below(2) as u64;
            let name = format!("r{r}-t{t}");
            published.push(task(&name));
            tasks.push(Execution {
                producer: Some(format!("producer-{producer}")),
                sequence: Some(sequences[producer]),
                ..execution(&name, &format!("resource-{r}"), process(0, 0), 0)
            });
        }
        let owner = dice.below(WORKERS);
        queues.push(Queue { tasks, acked: 0, next: 0, owner, running: false });
    }
    let mut slots: BTreeMap<(usize, usize), Option<(usize, Execution)>> =
        (0..WORKERS * SLOTS).map(|i| ((i / SLOTS, i % SLOTS), None)).collect();
    let mut events = Vec::new();
    let mut now = 1_700_000_000_000_000;
    while queues.iter().any(|queue| queue.acked < queue.tasks.len()) {
        now += 1 + dice.below(1000) as u64;
        let (worker, slot) = (dice.below(WORKERS), dice.below(SLOTS));
        match dice.below(20) {
            0 => {
                for (_, held) in slots.iter_mut().filter(|((w, _), _)| *w == worker) {
                    *held = None;
                }
                for queue in queues.iter_mut().filter(|queue| queue.owner == worker) {
                    queue.changes_hands(dice.below(WORKERS));
                }
                events.push(Event::WorkerLost { worker: process(worker, 0).worker, at_us: now });
            }
            1..4 => {
                let queue = &mut queues[dice.below(RESOURCES)];
                queue.acked = queue.next;
                if !queue.running {
                    queue.owner = dice.below(WORKERS);
                }
            }
            _ => match slots.get_mut(&(worker, slot)).expect("a slot") {
                held @ None => {
                    let ready =
                        |q: &Queue| q.owner == worker && !q.running && q.next < q.tasks.len();
                    let ready: Vec<usize> = (0..RESOURCES).filter(|&r| ready(&queues[r])).collect();
                    let Some(chosen) = dice.pick(&ready) else { continue };
                    let queue = &mut queues[ready[chosen]];
                    let mut started = queue.tasks[queue.next].clone();
                    (started.process, started.at_us) = (process(worker, slot as u32), now);
                    queue.running = true;
                    events.push(Event::Started(started.clone()));
                    *held = Some((ready[chosen], started));
                }
                held @ Some(_) => {
                    let (resource, started) = held.take().expect("held");
                    let queue = &mut queues[resource];
                    queue.running = false;
                    let outcome = match dice.below(10) {
                        0 => Outcome::Failed,
                        1 => Outcome::Aborted,
                        2 => Outcome::Lost,
                        3 => Outcome::DeadLettered,
                        _ => Outcome::Executed,
                    };
                    match outcome {
                        Outcome::Executed | Outcome::DeadLettered => queue.next += 1,
                        Outcome::Failed => queue.tasks[queue.next].attempt += 1,
                        Outcome::Aborted | Outcome::Lost | Outcome::Superseded => {}
                    }
                    events.push(Event::Ended(ending(&started, now, outcome)));
                }
            },
        }
    }
    History { events, published }
}
