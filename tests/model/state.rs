//! The state of the whole, and how it changes.

use std::collections::BTreeSet;

use keylane::protocol::lanes::{Input, Millis, Outcome, Output};
use keylane::protocol::settlement::DeliveryTag;

use super::broker::{Broker, Channel};
use super::scene::{Budget, Scene, TaskNo, WorkerNo};
use super::step::{End, Step};
use super::store::{Epoch, Store};
use super::tenure::{Attempt, Held, Stage, Tenure};

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) broker: Broker,
    /// `None`: the worker does not run, or is about to connect.
    pub(crate) workers: Vec<Option<Tenure>>,
    pub(crate) store: Store,
    pub(crate) published: usize,
    pub(crate) budget: Budget,
}

impl State {
    pub(crate) fn new(scene: &Scene) -> Self {
        Self {
            broker: Broker::default(),
            workers: scene.windows.iter().map(|_| None).collect(),
            store: Store::default(),
            published: 0,
            budget: scene.budget,
        }
    }

    /// The workers that consume, or believe that they do.
    pub(crate) fn tenures(&self) -> impl Iterator<Item = (WorkerNo, &Tenure)> {
        let all = self.workers.iter().enumerate();
        all.filter_map(|(number, tenure)| Some((WorkerNo(number), tenure.as_ref()?)))
    }

    /// Whether the broker still has this worker's channel.
    pub(crate) fn is_connected(&self, worker: WorkerNo) -> bool {
        self.broker.is_open(Channel::Owner(worker))
    }

    /// What was delivered to a worker, has reached it, and is unsettled.
    pub(crate) fn arrived(&self, worker: WorkerNo) -> BTreeSet<DeliveryTag> {
        let tenure = self.workers.get(worker.0).and_then(Option::as_ref);
        let on_its_way = |tag| tenure.is_some_and(|t| t.wire.iter().any(|(sent, _)| *sent == tag));
        let unsettled = self.broker.unsettled(Channel::Owner(worker)).map(|(tag, _)| tag);
        unsettled.filter(|tag| !on_its_way(*tag)).collect()
    }

    /// Makes a step; `None` if it is not possible.
    pub(crate) fn apply(&mut self, scene: &Scene, step: Step) -> Option<()> {
        match step {
            Step::Publish => {
                self.broker.publish(TaskNo(self.published));
                self.published += 1;
            }
            Step::Join(worker) => self.join(scene, worker)?,
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
            Step::Outbid(worker) => self.drain(scene, worker)?,
            Step::Drain(worker) => {
                self.budget.drains -= 1;
                self.drain(scene, worker)?;
            }
            Step::OpenDeputy(worker) => {
                let window = *scene.windows.get(worker.0)?;
                self.broker.consume(Channel::Deputy(worker), window);
            }
            Step::GiveBack(worker) => {
                let arrived = self.arrived(worker);
                self.broker.give_back(Channel::Owner(worker), |tag| arrived.contains(&tag));
            }
            Step::CloseOwner(worker) => {
                self.broker.leave(Channel::Owner(worker));
                if scene.breaks.no_deputy {
                    self.leave(worker);
                } else {
                    let tenure = self.tenure(worker)?;
                    tenure.stage = Stage::Parting;
                    tenure.wire.clear();
                }
            }
            Step::CloseDeputy(worker) => {
                self.broker.leave(Channel::Deputy(worker));
                self.leave(worker);
            }
            Step::Crash(worker, first) => {
                self.budget.crashes -= 1;
                self.leave(worker);
                self.broker.close(first);
                self.dispatch();
                self.broker.close(Channel::Owner(worker));
                self.broker.close(Channel::Deputy(worker));
            }
            Step::Cut(worker) => {
                self.budget.cuts -= 1;
                self.broker.close(Channel::Owner(worker));
            }
            Step::Notice(worker) => {
                self.feed(scene, worker, Input::Lost)?;
                self.leave(worker);
            }
        }
        self.dispatch();
        self.forget_distances();
        Some(())
    }

    fn tenure(&mut self, worker: WorkerNo) -> Option<&mut Tenure> {
        self.workers.get_mut(worker.0)?.as_mut()
    }

    fn leave(&mut self, worker: WorkerNo) {
        self.workers.get_mut(worker.0).map(Option::take);
    }

    fn join(&mut self, scene: &Scene, worker: WorkerNo) -> Option<()> {
        self.broker.consume(Channel::Owner(worker), *scene.windows.get(worker.0)?);
        // The greeting. Only those of a lower priority heed it.
        self.workers.iter_mut().take(worker.0).flatten().for_each(|lower| lower.outbid = true);
        *self.workers.get_mut(worker.0)? = Some(Tenure::new());
        Some(())
    }

    fn arrive(&mut self, scene: &Scene, worker: WorkerNo) -> Option<()> {
        let tenure = self.tenure(worker)?;
        let (tag, task) = tenure.wire.pop_front()?;
        if tenure.stage == Stage::HandingBack {
            return Some(());
        }
        let resource = scene.resource(task)?.clone();
        tenure.held.insert(tag, Held { task, attempt: Attempt::None });
        self.feed(scene, worker, Input::Delivered { tag, resource })
    }

    fn write(&mut self, scene: &Scene, worker: WorkerNo, tag: DeliveryTag) -> Option<()> {
        let connected = self.is_connected(worker);
        let tenure = self.workers.get_mut(worker.0)?.as_mut()?;
        let held = tenure.held.get_mut(&tag)?;
        let resource = scene.resource(held.task)?;
        if !scene.breaks.no_guard && !self.store.admit(resource, tenure.token?) {
            held.attempt = Attempt::Refused;
            return Some(());
        }
        held.attempt = Attempt::Wrote;
        self.store.done.insert(held.task);
        if !connected {
            self.store.stale_admitted |= tenure.overtaken.contains(resource);
            return Some(());
        }
        let broker = &self.broker;
        let others = self.workers.iter_mut().enumerate();
        let cut_off = others.filter(|(other, _)| !broker.is_open(Channel::Owner(WorkerNo(*other))));
        for (_, other) in cut_off {
            other.iter_mut().for_each(|other| other.overtaken.extend([resource.clone()]));
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
        if end != End::Executed {
            self.budget.failures -= 1;
        }
        let tenure = self.tenure(worker)?;
        match end {
            End::Executed => drop(tenure.held.remove(&tag)),
            End::Failed | End::Dead => tenure.held.get_mut(&tag)?.attempt = Attempt::None,
        }
        if end == End::Failed && scene.breaks.requeue {
            // As far as the lanes are concerned, it is settled.
            tenure.held.remove(&tag);
            self.broker.give_back(Channel::Owner(worker), |given| given == tag);
            return self.feed(scene, worker, Input::Finished { tag, outcome: Outcome::Executed });
        }
        self.feed(scene, worker, Input::Finished { tag, outcome })
    }

    fn drain(&mut self, scene: &Scene, worker: WorkerNo) -> Option<()> {
        self.tenure(worker)?.stage = Stage::Draining;
        if scene.breaks.cancel {
            self.broker.cancel(Channel::Owner(worker));
        }
        self.feed(scene, worker, Input::Drain)
    }

    /// Tells the lanes of a worker, and does what they ask for.
    fn feed(&mut self, scene: &Scene, worker: WorkerNo, input: Input) -> Option<()> {
        let mut outputs = Vec::new();
        self.tenure(worker)?.lanes.apply(Millis(0), input, &mut outputs).ok()?;
        for output in outputs {
            match output {
                Output::Start { tag, .. } => self.attempt(worker, tag, Attempt::Running)?,
                Output::DeadLetter { tag, .. } => self.attempt(worker, tag, Attempt::Burying)?,
                Output::Ack(ack) => {
                    self.broker.ack(Channel::Owner(worker), ack);
                    self.dispatch();
                }
                // All of them end at once, with the tenure.
                Output::Abort(_) => {}
                Output::CloseChannel => return self.give_up(scene, worker),
            }
        }
        let tenure = self.tenure(worker)?;
        if tenure.held.is_empty() && !scene.breaks.mint_once {
            tenure.token = None;
        }
        Some(())
    }

    fn attempt(&mut self, worker: WorkerNo, tag: DeliveryTag, attempt: Attempt) -> Option<()> {
        self.tenure(worker)?.held.get_mut(&tag)?.attempt = attempt;
        Some(())
    }

    /// Nothing runs any more.
    fn give_up(&mut self, scene: &Scene, worker: WorkerNo) -> Option<()> {
        let connected = self.is_connected(worker);
        let tenure = self.tenure(worker)?;
        let unread = !tenure.wire.is_empty() && !scene.breaks.leave_unread;
        if connected && (!tenure.held.is_empty() || unread) && !scene.breaks.cancel {
            tenure.stage = Stage::HandingBack;
            tenure.held.clear();
            tenure.token = None;
        } else {
            self.broker.leave(Channel::Owner(worker));
            self.leave(worker);
        }
        Some(())
    }

    /// Lets the broker hand out what it can.
    fn dispatch(&mut self) {
        for shipment in self.broker.dispatch() {
            // What a deputy gets is of no interest to it.
            let Channel::Owner(worker) = shipment.to else { continue };
            if let Some(tenure) = self.tenure(worker) {
                tenure.wire.push_back((shipment.tag, shipment.task));
            }
        }
    }

    /// Only the order of epochs matters: numbers them without gaps, so that
    /// states which differ in nothing else are one.
    fn forget_distances(&mut self) {
        let tokens = self.workers.iter_mut().flatten().filter_map(|t| t.token.as_mut());
        let seen = self.store.seen.values_mut();
        let mut epochs: Vec<&mut Epoch> = tokens.chain(seen).collect();
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
