//! The state of the whole, and how it changes.

use keylane::protocol::lanes::{Input, Millis, Outcome, Output};
use keylane::protocol::settlement::{Ack, DeliveryTag};

use super::broker::{Broker, Shipment};
use super::consumer::{Channel, ConsumerKey};
use super::scene::{Budget, Scene, TaskNo, WorkerNo};
use super::step::{End, Step};
use super::store::{Epoch, Store};
use super::tenure::{Attempt, Held, Link, Tenure};

/// A change of place that the last step made, for the properties that say that it
/// can happen. It tells nothing to anybody in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// An owner that had finished tasks gave the rest to the next in line.
    HandedOver,
    /// An owner that had started nothing gave everything to the next in line.
    PassedOn,
    /// A worker stepped back with deliveries on the wire.
    SteppedBack,
}

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) broker: Broker,
    /// `None`: the worker does not run, or consumes nothing.
    pub(crate) workers: Vec<Option<Tenure>>,
    pub(crate) store: Store,
    pub(crate) published: usize,
    pub(crate) budget: Budget,
    pub(crate) event: Option<Event>,
    /// The token with which a worker would attach. Only if a rule is broken.
    pub(crate) kept_tokens: Vec<Option<Epoch>>,
}

impl State {
    pub(crate) fn new(scene: &Scene) -> Self {
        Self {
            broker: Broker::default(),
            workers: scene.workers.iter().map(|_| None).collect(),
            store: Store::default(),
            published: 0,
            budget: scene.budget,
            event: None,
            kept_tokens: scene.workers.iter().map(|_| None).collect(),
        }
    }

    /// The workers that consume, or believe that they do.
    pub(crate) fn tenures(&self) -> impl Iterator<Item = (WorkerNo, &Tenure)> {
        let all = self.workers.iter().enumerate();
        all.filter_map(|(number, tenure)| Some((WorkerNo(number), tenure.as_ref()?)))
    }

    /// Makes a step; `None` if it is not possible.
    pub(crate) fn apply(&mut self, scene: &Scene, step: Step) -> Option<()> {
        self.event = None;
        match step {
            Step::Publish => {
                let sent = self.broker.publish(TaskNo(self.published));
                self.published += 1;
                self.ship(sent);
            }
            Step::Attach(worker) => self.attach(scene, worker)?,
            Step::Arrive(worker) => self.arrive(scene, worker)?,
            Step::Start(worker) => self.feed(scene, worker, Input::SlotFree)?,
            Step::Mint(worker) => {
                let epoch = self.broker.mint();
                self.tenure(worker)?.token = Some(epoch);
            }
            Step::Write(worker, tag) => self.write(scene, worker, tag)?,
            Step::Finish(worker, tag, end) => self.finish(scene, worker, tag, end)?,
            Step::Retry(worker) => self.feed(scene, worker, Input::Tick)?,
            Step::Bury(worker, tag) => {
                let buried = self.tenure(worker)?.held.remove(&tag)?;
                self.store.done.insert(buried.task);
                self.feed(scene, worker, Input::DeadLettered { tag })?;
            }
            Step::Flush(worker) => self.feed(scene, worker, Input::Flush)?,
            Step::Down(key) => {
                let sent = self.broker.down(key);
                self.ship(sent);
            }
            Step::GiveUp(worker) => self.give_up(scene, worker)?,
            Step::StepBack(worker) => self.step_back(scene, worker)?,
            Step::Crash(worker) => {
                self.budget.crashes -= 1;
                self.store.executed.clear();
                self.leave(scene, worker)?;
            }
            Step::Cut(worker) => self.cut(worker)?,
            Step::Notice(worker) => {
                self.feed(scene, worker, Input::Lost)?;
                self.leave(scene, worker)?;
            }
        }
        self.renumber();
        Some(())
    }

    fn tenure(&mut self, worker: WorkerNo) -> Option<&mut Tenure> {
        self.workers.get_mut(worker.0)?.as_mut()
    }

    /// Puts what the broker has sent on the wire. To a channel that is gone it is
    /// lost, until the queue knows.
    fn ship(&mut self, sent: Vec<Shipment>) {
        for Shipment { to, tag, task } in sent {
            let mut tenures = self.workers.iter_mut().flatten();
            if let Some(tenure) = tenures.find(|tenure| tenure.consumer() == Some(to)) {
                tenure.wire.push_back((tag, task));
            }
        }
    }

    /// A worker joins, or comes back.
    fn attach(&mut self, scene: &Scene, worker: WorkerNo) -> Option<()> {
        let (key, sent) = self.broker.attach(scene.kind(worker)?);
        let token = self.kept_tokens.get_mut(worker.0)?.take();
        *self.workers.get_mut(worker.0)? = Some(Tenure { token, ..Tenure::new(key) });
        self.ship(sent);
        Some(())
    }

    /// The worker's channel is gone, if it has one, and nothing of it is left.
    fn leave(&mut self, scene: &Scene, worker: WorkerNo) -> Option<()> {
        let tenure = self.workers.get_mut(worker.0)?.take()?;
        if let Some(key) = tenure.consumer() {
            self.broker.lose(key);
        }
        if scene.breaks.keep_token {
            *self.kept_tokens.get_mut(worker.0)? = tenure.token;
        }
        Some(())
    }

    /// Nothing is started any more; the channel is closed when nothing runs. An
    /// owner passes on in the same way: then nothing runs to begin with.
    fn give_up(&mut self, scene: &Scene, worker: WorkerNo) -> Option<()> {
        self.budget.moves -= 1;
        let tenure = self.workers.get_mut(worker.0)?.as_mut()?;
        let key = tenure.consumer()?;
        tenure.draining = true;
        if scene.breaks.leave_running {
            tenure.link = Link::Closed;
            self.broker.lose(key);
        }
        if scene.breaks.cancel {
            let sent = self.broker.cancel(key);
            self.ship(sent);
        }
        self.feed(scene, worker, Input::Drain)
    }

    /// A worker that holds nothing closes its channel at once. That something is
    /// on the wire it cannot know.
    fn step_back(&mut self, scene: &Scene, worker: WorkerNo) -> Option<()> {
        self.budget.moves -= 1;
        if !self.tenure(worker)?.wire.is_empty() {
            self.event = Some(Event::SteppedBack);
        }
        self.leave(scene, worker)
    }

    /// The broker has closed the channel. The worker does not know.
    fn cut(&mut self, worker: WorkerNo) -> Option<()> {
        self.budget.cuts -= 1;
        self.store.executed.clear();
        let tenure = self.tenure(worker)?;
        let key = tenure.consumer()?;
        tenure.link = Link::Cut;
        self.broker.lose(key);
        let sent = self.broker.down(key);
        self.ship(sent);
        Some(())
    }

    fn arrive(&mut self, scene: &Scene, worker: WorkerNo) -> Option<()> {
        let tenure = self.tenure(worker)?;
        let (tag, task) = tenure.wire.pop_front()?;
        let resource = scene.resource(task)?.clone();
        tenure.held.insert(tag, Held { task, attempt: Attempt::None });
        self.feed(scene, worker, Input::Delivered { tag, resource })
    }

    fn write(&mut self, scene: &Scene, worker: WorkerNo, tag: DeliveryTag) -> Option<()> {
        let tenure = self.workers.get_mut(worker.0)?.as_mut()?;
        let held = tenure.held.get_mut(&tag)?;
        let resource = scene.resource(held.task)?;
        if !scene.breaks.no_guard && !self.store.admit(resource, tenure.token?) {
            held.attempt = Attempt::Refused;
            return Some(());
        }
        held.attempt = Attempt::Wrote;
        self.store.done.insert(held.task);
        if tenure.link == Link::Cut {
            self.store.stale_admitted |= tenure.overtaken.contains(resource);
            return Some(());
        }
        let others = self.workers.iter_mut().flatten();
        for cut_off in others.filter(|other| other.link == Link::Cut) {
            cut_off.overtaken.insert(resource.clone());
        }
        Some(())
    }

    fn finish(
        &mut self,
        scene: &Scene,
        worker: WorkerNo,
        tag: DeliveryTag,
        end: End,
    ) -> Option<()> {
        let reason = String::new();
        let outcome = match end {
            End::Executed => Outcome::Executed,
            End::Failed => Outcome::Failed { not_before: None, reason },
            End::Dead => Outcome::Dead { reason },
        };
        let tenure = self.tenure(worker)?;
        let consumer = tenure.consumer();
        if end == End::Executed {
            let task = tenure.held.remove(&tag)?.task;
            self.note_executed(scene, task);
            return self.feed(scene, worker, Input::Finished { tag, outcome });
        }
        tenure.held.get_mut(&tag)?.attempt = Attempt::None;
        self.budget.failures -= 1;
        if end == End::Failed && scene.breaks.requeue {
            // As far as the lanes are concerned, it is settled.
            self.tenure(worker)?.held.remove(&tag);
            let sent = self.broker.nack(consumer?, tag);
            self.ship(sent);
            return self.feed(scene, worker, Input::Finished { tag, outcome: Outcome::Executed });
        }
        self.feed(scene, worker, Input::Finished { tag, outcome })
    }

    fn note_executed(&mut self, scene: &Scene, task: TaskNo) {
        let Budget { crashes, cuts, .. } = scene.budget;
        if (self.budget.crashes, self.budget.cuts) == (crashes, cuts) {
            self.store.executed_again |= !self.store.executed.insert(task);
        }
    }

    /// Gives the lanes of a worker an input, and does what they ask for.
    fn feed(&mut self, scene: &Scene, worker: WorkerNo, input: Input) -> Option<()> {
        let mut outputs = Vec::new();
        self.tenure(worker)?.lanes.apply(Millis(0), input, &mut outputs).ok()?;
        for output in outputs {
            match output {
                Output::Start { tag, .. } => {
                    self.attempt(worker, tag, Attempt::Running)?;
                    if scene.breaks.ack_early {
                        self.ack(worker, Ack { tag, multiple: false })?;
                    }
                }
                Output::DeadLetter { tag, .. } => self.attempt(worker, tag, Attempt::Burying)?,
                Output::Ack(ack) => self.ack(worker, ack)?,
                // All of them end at once, with the tenure.
                Output::Abort(_) => {}
                Output::CloseChannel => {
                    self.event = self.handing_on(scene, worker);
                    return self.leave(scene, worker);
                }
            }
        }
        let tenure = self.tenure(worker)?;
        if tenure.held.is_empty() && !scene.breaks.keep_token {
            tenure.token = None;
        }
        Some(())
    }

    /// Settles deliveries, if the broker still has the channel.
    fn ack(&mut self, worker: WorkerNo, ack: Ack) -> Option<()> {
        if let Some(key) = self.tenure(worker)?.consumer() {
            let sent = self.broker.settle(key, ack);
            self.ship(sent);
        }
        Some(())
    }

    fn attempt(&mut self, worker: WorkerNo, tag: DeliveryTag, attempt: Attempt) -> Option<()> {
        self.tenure(worker)?.held.get_mut(&tag)?.attempt = attempt;
        Some(())
    }

    /// The event that it is when this worker closes its channel now.
    fn handing_on(&self, scene: &Scene, worker: WorkerNo) -> Option<Event> {
        let tenure = self.workers.get(worker.0)?.as_ref()?;
        let consumer = self.broker.get(tenure.consumer()?)?;
        let has_heir = self.broker.next_in_line().is_some_and(|c| c.channel == Channel::Open);
        if consumer.checked_out.is_empty() || !has_heir {
            return None;
        }
        let settled_nothing = consumer.sent == consumer.checked_out.len() as u64;
        let failed_nothing = self.budget.failures == scene.budget.failures;
        match (settled_nothing, failed_nothing) {
            (false, _) => Some(Event::HandedOver),
            (true, true) => Some(Event::PassedOn),
            (true, false) => None,
        }
    }

    /// Only the order of epochs and of consumers matters: numbers both without
    /// gaps, so that states which differ in nothing else are one.
    fn renumber(&mut self) {
        let before = self.broker.renumber();
        let rank = |key: ConsumerKey| before.iter().position(|there| *there == key);
        for tenure in self.workers.iter_mut().flatten() {
            if let Some(rank) = tenure.consumer().and_then(rank) {
                tenure.link = Link::Open(ConsumerKey(rank));
            }
        }
        let tokens = self.workers.iter_mut().flatten().filter_map(|t| t.token.as_mut());
        let tokens = tokens.chain(self.kept_tokens.iter_mut().flatten());
        let mut epochs: Vec<&mut Epoch> = tokens.chain(self.store.seen.values_mut()).collect();
        epochs.push(&mut self.broker.epoch);
        epochs.sort();
        let (mut last, mut rank) = (Epoch::default(), Epoch::default());
        for epoch in epochs {
            if *epoch > last {
                rank = rank.next();
            }
            last = std::mem::replace(epoch, rank);
        }
    }
}
