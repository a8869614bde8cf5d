//! Outages of whatever executes tasks: nobody listens at its URL, its command is missing.
//!
//! The first task that is *refused* begins an outage. Until it ends, one task at a time starts as a
//! probe, at ever longer intervals; the first probe that is not refused ends the outage. A refused
//! task was never begun, so it costs no attempt.

use std::time::Duration;

use super::lanes::Millis;
use super::retry::RetryPolicy;

/// Probes of an outage. The first comes soon, since most outages are restarts; a service that is
/// away for long is asked twice a minute.
const PROBES: RetryPolicy = RetryPolicy {
    attempts: 0,
    first_delay: Duration::from_millis(500),
    max_delay: Duration::from_secs(30),
};

/// A task that was refused in more outages than these, while others ended each of them, is itself
/// what cannot be executed.
const MAX_OUTAGES: u32 = 3;

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outages {
    /// How many have begun.
    begun: u64,
    current: Option<Outage>,
}

/// An outage that lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// When it began.
    pub since: Millis,
    /// Why the last task was refused.
    pub reason: String,
    refusals: u32,
    probe_at: Millis,
    probing: bool,
}

/// Whether a task may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Now.
    Now,
    /// As a probe, at this time.
    At(Millis),
    /// Not before the probe that runs has ended.
    AfterProbe,
}

/// The permission to start one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    begun: u64,
    probe: bool,
}

/// The consequence of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// An outage begins.
    Begins,
    /// It lasts; the next probe is due after this time.
    Lasts(Duration),
    /// The task had started before, so nothing changes.
    Late,
}

impl Outages {
    /// The outage that lasts now.
    #[must_use]
    pub fn current(&self) -> Option<&Outage> {
        self.current.as_ref()
    }

    /// Number of the latest outage, from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.begun
    }

    /// Whether a task may start.
    #[must_use]
    pub fn admission(&self, now: Millis) -> Admission {
        match &self.current {
            Some(outage) if outage.probing => Admission::AfterProbe,
            Some(outage) if outage.probe_at > now => Admission::At(outage.probe_at),
            Some(_) | None => Admission::Now,
        }
    }

    /// Lets a task start, if it may.
    pub fn enter(&mut self, now: Millis) -> Option<Pass> {
        if self.admission(now) != Admission::Now {
            return None;
        }
        let probe = self.current.is_some();
        if let Some(outage) = &mut self.current {
            outage.probing = true;
        }
        Some(Pass { begun: self.begun, probe })
    }

    /// A task was refused. `random`: for the jitter of probes.
    pub fn refused(&mut self, now: Millis, pass: Pass, reason: &str, random: u64) -> Refused {
        match &mut self.current {
            Some(outage) if pass.probe => {
                outage.probing = false;
                outage.refusals = outage.refusals.saturating_add(1);
                reason.clone_into(&mut outage.reason);
                let delay = PROBES.delay(outage.refusals, random);
                outage.probe_at = now.after(delay);
                Refused::Lasts(delay)
            }
            None if pass.begun == self.begun => {
                self.begun += 1;
                let probe_at = now.after(PROBES.delay(1, random));
                let reason = reason.to_owned();
                let outage = Outage { since: now, reason, refusals: 1, probe_at, probing: false };
                self.current = Some(outage);
                Refused::Begins
            }
            Some(_) | None => Refused::Late,
        }
    }

    /// A task was not refused. Returns the outage that this ends.
    pub fn reached(&mut self, pass: Pass) -> Option<Outage> {
        if pass.probe { self.current.take() } else { None }
    }

    /// A task was aborted before it was known. If it was a probe, another one may follow at once.
    pub fn abandoned(&mut self, pass: Pass) {
        if let Some(outage) = self.current.as_mut().filter(|_| pass.probe) {
            outage.probing = false;
        }
    }
}

/// The outages in which one task was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refusals {
    last: u64,
    outages: u32,
}

impl Refusals {
    /// Counts a refusal in the outage of this number, and tells whether the task itself is to blame.
    pub fn note(&mut self, outage: u64) -> bool {
        if self.last != outage {
            (self.last, self.outages) = (outage, self.outages.saturating_add(1));
        }
        self.outages > MAX_OUTAGES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Millis {
        Millis(ms)
    }

    #[test]
    fn one_task_at_a_time_probes_an_outage_ever_more_seldom() {
        let mut outages = Outages::default();
        let passes = [outages.enter(at(0)), outages.enter(at(0))].map(Option::unwrap);
        assert_eq!(outages.refused(at(0), passes[0], "nobody", 0), Refused::Begins);
        assert_eq!(outages.refused(at(1), passes[1], "nobody", 0), Refused::Late);
        assert_eq!(outages.enter(at(249)), None);
        let mut now = 250;
        for delay in [500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000] {
            let probe = outages.enter(at(now)).expect("a probe is due");
            assert_eq!(outages.admission(at(now + 60_000)), Admission::AfterProbe, "one at a time");
            let delay = Duration::from_millis(delay);
            assert_eq!(outages.refused(at(now), probe, "nobody", 0), Refused::Lasts(delay));
            now += u64::try_from(delay.as_millis()).expect("small");
            assert_eq!(outages.admission(at(now - 1)), Admission::At(at(now)));
        }
        let probe = outages.enter(at(now)).expect("a probe is due");
        assert_eq!(outages.reached(probe).map(|outage| outage.since), Some(at(0)));
        assert!(outages.enter(at(now)).is_some() && outages.enter(at(now)).is_some());
    }

    #[test]
    fn what_started_before_an_outage_neither_ends_nor_begins_one() {
        let mut outages = Outages::default();
        let early = [(); 3].map(|()| outages.enter(at(0)).expect("no outage"));
        outages.refused(at(0), early[0], "nobody", 0);
        assert_eq!(outages.reached(early[1]), None);
        assert!(outages.current().is_some(), "it was let in when all was well");
        let probe = outages.enter(at(250)).expect("a probe is due");
        assert!(outages.reached(probe).is_some());
        assert_eq!(outages.refused(at(300), early[2], "late", 0), Refused::Late);
        assert_eq!(outages.current(), None);
    }

    #[test]
    fn an_abandoned_probe_makes_room_for_another() {
        let mut outages = Outages::default();
        let first = outages.enter(at(0)).expect("no outage");
        outages.refused(at(0), first, "nobody", 0);
        let probe = outages.enter(at(250)).expect("a probe is due");
        outages.abandoned(probe);
        assert!(outages.enter(at(250)).is_some());
    }

    #[test]
    fn a_task_that_alone_is_refused_again_and_again_is_to_blame() {
        let mut refusals = Refusals::default();
        let blamed = [1, 1, 1, 2, 5, 5, 6].map(|outage| refusals.note(outage));
        assert_eq!(blamed, [false, false, false, false, false, false, true]);
    }
}
