//! The lines in which one session stands, and what it knows of the others there.
//!
//! Nothing here matters for safety; see [`protocol::line`](crate::protocol::line).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::protocol::lanes::Millis;
use crate::protocol::line::{Step, View};
use crate::protocol::ownership::WorkerId;
use crate::protocol::partition::PartitionId;
use crate::protocol::plan::{Plan, Role};
use crate::rabbit::control::{AnnouncedPlace, LinePlace};

/// See the [module](self).
pub(super) struct Line {
    worker: WorkerId,
    began: Instant,
    plan: Mutex<Option<Arc<Plan>>>,
    places: Vec<Place>,
    /// A place that others should know of has changed.
    announce: Notify,
}

/// The next step of a partition's consumer; see [`Step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Attach,
    GiveUp,
    WaitUntil(Instant),
    Stay,
}

/// The places that an announcement names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Announced {
    /// For those who came later or did not hear.
    All,
    /// Those of which nothing was said yet.
    News,
}

#[derive(Default)]
struct Place {
    changed: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    role: Option<Role>,
    since: Millis,
    unattended: bool,
    attached: Option<Attachment>,
    /// The attachment that the others were told of in this role.
    told: Option<Attachment>,
    /// Planned owner and first standby, and their attachments.
    before: [Option<(WorkerId, Option<Attachment>)>; 2],
}

/// One stay in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attachment {
    at: Millis,
    /// Tells it from the others of the same worker.
    id: u32,
}

impl Line {
    /// Begins with the plan of an earlier session, if there was one: it is advice like any other.
    pub(super) fn new(worker: WorkerId, partitions: usize, plan: Option<Arc<Plan>>) -> Self {
        let line = Self {
            worker,
            began: Instant::now(),
            plan: Mutex::new(None),
            places: (0..partitions).map(|_| Place::default()).collect(),
            announce: Notify::new(),
        };
        if let Some(plan) = plan {
            line.follow(plan);
        }
        line
    }

    /// Begins without a plan and follows none: attaches everywhere and never gives way. For
    /// routers, who have one queue.
    pub(super) fn planless(worker: WorkerId, partitions: usize) -> Self {
        let line = Self::new(worker, partitions, None);
        line.places.iter().for_each(|place| place.state().role = Some(Role::Owner));
        line
    }

    /// The plan that is followed.
    pub(super) fn plan(&self) -> Option<Arc<Plan>> {
        lock(&self.plan).clone()
    }

    /// Follows this plan from now on. One that does not name this worker is no plan for it: its
    /// reports do not arrive, and those who are planned may be gone.
    pub(super) fn follow(&self, plan: Arc<Plan>) {
        let now = self.now();
        let is_member = plan.members.binary_search(&self.worker).is_ok();
        for (number, place) in (0..).zip(&self.places) {
            let partition = PartitionId::new(number);
            let role = is_member.then(|| plan.role(&self.worker, partition));
            let mut line = plan.line(partition).cloned();
            let mut state = place.state();
            let known = state.before.clone();
            let attached = |worker: WorkerId| {
                let known = known.iter().flatten().find(|(known, _)| *known == worker);
                let attachment = known.and_then(|(_, attachment)| *attachment);
                (worker, attachment)
            };
            let before = [line.next().map(attached), line.next().map(attached)];
            let changed = state.role != role || state.before != before;
            if state.role != role {
                // Those for whom the place matters now may not have listened before.
                (state.role, state.since, state.told) = (role, now, None);
            }
            state.before = before;
            drop(state);
            if changed {
                place.changed.notify_waiters();
                self.announce.notify_one();
            }
        }
        *lock(&self.plan) = Some(plan);
    }

    /// Another worker tells of its places in some lines.
    pub(super) fn heard(&self, worker: &WorkerId, places: &[AnnouncedPlace]) {
        if *worker == self.worker {
            return;
        }
        let now = self.now();
        for AnnouncedPlace { partition, age_ms, id } in places {
            let Some(place) = self.places.get(*partition as usize) else { continue };
            let mut at = Millis(now.0.saturating_sub(*age_ms));
            let mut state = place.state();
            let before = state.before.iter_mut().flatten().find(|(before, _)| before == worker);
            let Some((_, known)) = before else { continue };
            // It is announced again and again; the message that took the least time is the best.
            if let Some(known) = known.filter(|known| known.id == *id) {
                at = at.min(known.at);
            }
            let news = Some(Attachment { at, id: *id });
            if std::mem::replace(known, news) != news {
                drop(state);
                place.changed.notify_waiters();
            }
        }
    }

    /// The planner has found nobody in these lines.
    pub(super) fn unattended(&self, partitions: &[PartitionId]) {
        for partition in partitions {
            let Some(place) = self.places.get(partition.number() as usize) else { continue };
            place.state().unattended = true;
            place.changed.notify_waiters();
        }
    }

    /// The consumer of a partition stands at the end of its line.
    pub(super) fn attached(&self, index: usize) {
        let attachment = Attachment { at: self.now(), id: uuid::Uuid::new_v4().as_fields().0 };
        if let Some(place) = self.places.get(index) {
            let mut state = place.state();
            (state.attached, state.unattended) = (Some(attachment), false);
        }
        self.announce.notify_one();
    }

    /// It has left the line.
    pub(super) fn detached(&self, index: usize) {
        if let Some(place) = self.places.get(index) {
            place.state().attached = None;
        }
    }

    /// Waits for anything that may change the next step of a partition.
    pub(super) fn changed(&self, index: usize) -> Notified<'_> {
        self.places[index].changed.notified()
    }

    /// The next step of a partition. `serving`: it was handed something since it attached.
    pub(super) fn next(&self, index: usize, serving: bool) -> Next {
        let now = self.now();
        let state = self.places[index].state();
        let place = |rank: usize| {
            let (_, attachment) = state.before[rank].as_ref()?;
            attachment.map(|attachment| attachment.at)
        };
        let view = View {
            role: state.role,
            since: state.since,
            unattended: state.unattended,
            attached: state.attached.map(|attachment| attachment.at),
            serving,
            owner: place(0),
            standby: place(1),
        };
        match view.next(now) {
            Step::Attach => Next::Attach,
            Step::GiveUp => Next::GiveUp,
            Step::WaitUntil(at) => Next::WaitUntil(self.began + at.since_origin()),
            Step::Stay => Next::Stay,
        }
    }

    /// Waits until the others should be told where this worker stands.
    pub(super) async fn to_announce(&self) {
        self.announce.notified().await;
    }

    /// Where it stands as a planned owner or first standby: everywhere, or where the others were
    /// not told of it yet.
    pub(super) fn announcement(&self, news: Announced) -> Vec<AnnouncedPlace> {
        let now = self.now();
        let announced = (0..).zip(&self.places).filter_map(|(partition, place)| {
            let mut state = place.state();
            let attachment @ Attachment { at, id } = state.attached?;
            if !matches!(state.role?, Role::Owner | Role::Standby(1)) {
                return None;
            }
            let known = state.told.replace(attachment) == Some(attachment);
            let age_ms = now.0.saturating_sub(at.0);
            let said = news == Announced::All || !known;
            said.then_some(AnnouncedPlace { partition, age_ms, id })
        });
        announced.collect()
    }

    /// The places that it is planned for, and those where it stands.
    pub(super) fn places(&self) -> Vec<LinePlace> {
        let now = self.now();
        let places = (0..).zip(&self.places).filter_map(|(number, place)| {
            let state = place.state();
            let role = state.role.unwrap_or(Role::InLine);
            let attached_ms = state.attached.map(|there| now.0.saturating_sub(there.at.0));
            let there = attached_ms.is_some() || !matches!(role, Role::InLine | Role::Absent);
            there.then(|| LinePlace::from((PartitionId::new(number), role, attached_ms)))
        });
        places.collect()
    }

    fn now(&self) -> Millis {
        Millis::since(self.began.elapsed())
    }
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ownership::Weight;
    use crate::protocol::plan::Member;

    fn worker(name: &str) -> WorkerId {
        WorkerId::new(name).expect("a name")
    }

    fn plan(names: &[&str]) -> Arc<Plan> {
        let member = |name: &&str| Member { worker: worker(name), weight: Weight::ONE };
        let members: Vec<_> = names.iter().map(member).collect();
        Arc::new(Plan::next(None, &members, 1, &[]))
    }

    /// The last report of a worker that is gone may be all that a planner has heard.
    #[tokio::test(start_paused = true)]
    async fn a_plan_for_others_does_not_keep_a_worker_away() {
        let line = Line::new(worker("us"), 1, None);
        line.follow(plan(&["gone"]));
        let Next::WaitUntil(due) = line.next(0, false) else { panic!("{:?}", line.next(0, false)) };
        tokio::time::sleep_until(due).await;
        assert_eq!(line.next(0, false), Next::Attach);
        line.attached(0);
        assert_eq!(line.next(0, false), Next::Stay);
    }

    #[tokio::test(start_paused = true)]
    async fn a_standby_steps_back_for_an_owner_that_attached_later_and_for_no_other() {
        let plan = plan(&["a", "b"]);
        let owner = plan.owner(PartitionId::new(0)).expect("an owner").clone();
        let standby = if owner.as_str() == "a" { "b" } else { "a" };
        let line = Line::new(worker(standby), 1, Some(plan));
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        line.attached(0);
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        let place = |age_ms, id| [AnnouncedPlace { partition: 0, age_ms, id }];
        line.heard(&owner, &place(8_000, 1));
        assert_eq!(line.next(0, false), Next::Stay, "it stands before us");
        line.heard(&worker("stranger"), &place(1_000, 7));
        assert_eq!(line.next(0, false), Next::Stay, "not planned");
        line.heard(&owner, &place(1_000, 2));
        assert_eq!(line.next(0, false), Next::GiveUp);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_news_once_in_each_role_and_each_stay() {
        let line = Line::new(worker("a"), 1, Some(plan(&["a"])));
        let announced = |which| line.announcement(which).len();
        assert_eq!(announced(Announced::All), 0, "it does not stand there");
        line.attached(0);
        assert_eq!([announced(Announced::News), announced(Announced::News)], [1, 0]);
        assert_eq!(announced(Announced::All), 1);
        line.detached(0);
        line.attached(0);
        assert_eq!([announced(Announced::News), announced(Announced::News)], [1, 0]);
        line.follow(plan(&["b"]));
        assert_eq!(announced(Announced::All), 0, "nobody waits for it");
        line.follow(plan(&["a"]));
        assert_eq!(announced(Announced::News), 1);
    }
}
