//! The line of one partition, as one of those who may stand in it sees it.
//!
//! All consumers of a partition have the same priority, so the broker activates them in the
//! order in which they attached, and never replaces one that is active. A [plan](super::plan)
//! says who should stand where; [`View::next`] says what a worker does about it. It is advice
//! for balance only: whatever a worker does here, an owner gives up by finishing what runs,
//! acking, and closing its channel.
//!
//! Nobody asks the broker for the line. The planned owner and the first standby announce how
//! long they have been attached; a message takes time, so they seem younger than they are, never
//! older. A worker may then step back once too often, and never once too seldom.

use super::lanes::Millis;
use super::plan::Role;

/// Where a worker stands in the line of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The role that the plan gives it; `None` while it knows no plan.
    pub role: Option<Role>,
    /// Since when it has had that role.
    pub since: Millis,
    /// The broker has told that nobody stands in the line.
    pub unattended: bool,
    /// When it attached; `None` while it does not stand in the line.
    pub attached: Option<Millis>,
    /// Whether it was handed anything since: then it is the active consumer.
    pub serving: bool,
    /// When the planned owner attached, as far as it is known.
    pub owner: Option<Millis>,
    /// When the planned first standby attached, as far as it is known.
    pub standby: Option<Millis>,
}

/// The next step of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Open a channel and consume: stand at the end of the line.
    Attach,
    /// Start nothing any more, finish what runs, ack, and close the channel.
    GiveUp,
    /// Nothing, until then or until the view changes.
    WaitUntil(Millis),
    /// Nothing, until the view changes.
    Stay,
}

/// A planner that is there answers a greeting within milliseconds, and the next one is elected
/// within seconds.
pub const PLANLESS_MS: u64 = 3_000;

/// An owner that is there announces itself at once when it attaches; one that attached before
/// we listened is waited for in vain.
pub const BEHIND_MS: u64 = 1_000;

impl View {
    /// Decides on the next step.
    #[must_use]
    pub fn next(&self, now: Millis) -> Step {
        match self.attached {
            None => self.join(now),
            // The broker knows nothing of a consumer that we take for ours.
            Some(at) if self.unattended || self.gives_way(at) => Step::GiveUp,
            Some(_) => Step::Stay,
        }
    }

    fn join(&self, now: Millis) -> Step {
        let patience = match self.role {
            Some(Role::Absent) => return Step::Stay,
            Some(Role::Owner) => 0,
            Some(Role::Standby(1)) if self.owner.is_some() => 0,
            Some(_) if self.owner.is_some() && self.standby.is_some() => 0,
            Some(_) => BEHIND_MS,
            None => PLANLESS_MS,
        };
        let due = Millis(self.since.0.saturating_add(patience));
        if self.unattended || due <= now { Step::Attach } else { Step::WaitUntil(due) }
    }

    /// Whether somebody who should stand before this worker stands behind it.
    fn gives_way(&self, at: Millis) -> bool {
        let behind = |other: Option<Millis>| other.is_some_and(|other| other > at);
        match self.role {
            None | Some(Role::Owner) => false,
            Some(Role::Absent) => self.owner.is_some_and(|owner| !self.serving || owner > at),
            Some(Role::Standby(1)) => behind(self.owner),
            // One that serves gives way to the owner alone.
            Some(Role::Standby(_) | Role::InLine) => {
                behind(self.owner) || !self.serving && behind(self.standby)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: View = View {
        role: None,
        since: Millis(1_000),
        unattended: false,
        attached: None,
        serving: false,
        owner: None,
        standby: None,
    };

    fn at(ms: u64) -> Option<Millis> {
        Some(Millis(ms))
    }

    #[test]
    fn an_owner_attaches_at_once_and_stays_whoever_comes() {
        let view = View { role: Some(Role::Owner), ..NOBODY };
        assert_eq!(view.next(Millis(1_000)), Step::Attach);
        let attached = View { attached: at(2), owner: at(1), standby: at(3), ..view };
        assert_eq!(attached.next(Millis(9_000)), Step::Stay);
    }

    #[test]
    fn without_a_plan_a_worker_attaches_after_a_while_and_stays() {
        let due = Millis(1_000 + PLANLESS_MS);
        assert_eq!(NOBODY.next(Millis(1_000)), Step::WaitUntil(due));
        assert_eq!(NOBODY.next(due), Step::Attach);
        let attached = View { attached: at(1), owner: at(2), standby: at(3), ..NOBODY };
        assert_eq!(attached.next(Millis(90_000)), Step::Stay);
    }

    #[test]
    fn a_standby_attaches_behind_those_before_it_or_after_a_while() {
        for (role, before) in [
            (Role::Standby(1), View { owner: at(1), ..NOBODY }),
            (Role::Standby(2), View { owner: at(1), standby: at(2), ..NOBODY }),
            (Role::InLine, View { owner: at(1), standby: at(2), ..NOBODY }),
        ] {
            let alone = View { role: Some(role), ..NOBODY };
            let due = Millis(1_000 + BEHIND_MS);
            assert_eq!(alone.next(Millis(1_000)), Step::WaitUntil(due), "{role:?}");
            assert_eq!(alone.next(due), Step::Attach, "{role:?}");
            let behind = View { role: Some(role), ..before };
            assert_eq!(behind.next(Millis(1_000)), Step::Attach, "{role:?}");
        }
    }

    #[test]
    fn those_who_stand_before_the_planned_owner_give_way_to_it() {
        for role in [Role::Standby(1), Role::Standby(2), Role::InLine, Role::Absent] {
            for serving in [false, true] {
                let alone = View { role: Some(role), attached: at(5), serving, ..NOBODY };
                assert_eq!(alone.next(Millis(90_000)), Step::Stay, "the owner does not come");
                let before = View { owner: at(6), ..alone };
                assert_eq!(before.next(Millis(7)), Step::GiveUp, "{role:?} {serving}");
            }
            let behind = View { role: Some(role), attached: at(5), owner: at(4), ..NOBODY };
            let wanted = if role == Role::Absent { Step::GiveUp } else { Step::Stay };
            assert_eq!(behind.next(Millis(7)), wanted, "{role:?}");
        }
    }

    #[test]
    fn the_first_standby_comes_second_unless_somebody_else_serves() {
        let view = View { attached: at(5), owner: at(4), standby: at(6), ..NOBODY };
        for role in [Role::Standby(2), Role::InLine] {
            let view = View { role: Some(role), ..view };
            assert_eq!(view.next(Millis(7)), Step::GiveUp);
            assert_eq!(View { serving: true, ..view }.next(Millis(7)), Step::Stay);
        }
    }

    #[test]
    fn a_line_without_anybody_is_joined_at_once() {
        for role in [Some(Role::Standby(1)), Some(Role::Standby(2)), Some(Role::InLine), None] {
            let view = View { role, unattended: true, ..NOBODY };
            assert_eq!(view.next(Millis(1_000)), Step::Attach);
        }
        let lost = View { role: Some(Role::Owner), attached: at(5), unattended: true, ..NOBODY };
        assert_eq!(lost.next(Millis(1_000)), Step::GiveUp, "the broker does not know us");
        let absent = View { role: Some(Role::Absent), unattended: true, ..NOBODY };
        assert_eq!(absent.next(Millis(1_000)), Step::Stay);
    }

    /// Everybody follows the plan, whatever the order in which they came: the line ends as
    /// planned, and nobody steps back more often than there are ranks before it.
    #[test]
    fn every_line_becomes_the_planned_one() {
        let roles = [Role::InLine, Role::Standby(2), Role::Standby(1), Role::Owner];
        let orders = permutations(&[0, 1, 2, 3]);
        for order in orders {
            let mut line: Vec<(usize, Millis)> =
                order.iter().zip(1..).map(|(who, at)| (*who, Millis(at))).collect();
            let mut steps = 0;
            for now in 10.. {
                let place = |role| {
                    let who = roles.iter().position(|r| *r == role);
                    line.iter().find(|(there, _)| Some(*there) == who).map(|(_, at)| *at)
                };
                let (owner, standby) = (place(Role::Owner), place(Role::Standby(1)));
                let gives_way = line.iter().enumerate().position(|(place, (who, at))| {
                    let view = View {
                        role: Some(roles[*who]),
                        attached: Some(*at),
                        serving: place == 0,
                        owner,
                        standby,
                        ..NOBODY
                    };
                    view.next(Millis(now)) == Step::GiveUp
                });
                let Some(place) = gives_way else { break };
                let (who, _) = line.remove(place);
                line.push((who, Millis(now)));
                steps += 1;
                assert!(steps < 12, "{order:?} does not come to an end: {line:?}");
            }
            let ended: Vec<_> = line.iter().map(|(who, _)| roles[*who]).collect();
            assert_eq!(ended[..2], [Role::Owner, Role::Standby(1)], "{order:?}");
        }
    }

    fn permutations(of: &[usize]) -> Vec<Vec<usize>> {
        if of.len() < 2 {
            return vec![of.to_vec()];
        }
        let mut all = Vec::new();
        for (place, first) in of.iter().enumerate() {
            let rest = [&of[..place], &of[place + 1..]].concat();
            for mut tail in permutations(&rest) {
                tail.insert(0, *first);
                all.push(tail);
            }
        }
        all
    }
}
