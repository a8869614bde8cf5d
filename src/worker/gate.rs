//! A gate that closes while tasks are refused, and lets probes through; see
//! [`protocol::outage`](crate::protocol::outage).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::protocol::lanes::Millis;
use crate::protocol::outage::{self, Admission, Outages, Refused};

/// See the [module](self).
pub(super) struct Gate {
    /// What is out of reach while it is closed, for the log.
    what: String,
    outages: Mutex<Outages>,
    changed: Notify,
    began: Instant,
}

impl Gate {
    pub(super) fn new(what: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            what: what.into(),
            outages: Mutex::default(),
            changed: Notify::new(),
            began: Instant::now(),
        })
    }

    /// Whether a task may start now.
    pub(super) fn is_open(&self) -> bool {
        self.outages().admission(self.now()) == Admission::Now
    }

    /// Waits until a task may start.
    ///
    /// # Cancel safety
    /// Nothing is missed.
    pub(super) async fn opens(&self) {
        loop {
            let changed = self.changed.notified();
            let admission = self.outages().admission(self.now());
            match admission {
                Admission::Now => return,
                Admission::At(at) => tokio::select! {
                    () = sleep_until(self.began + at.since_origin()) => {}
                    () = changed => {}
                },
                Admission::AfterProbe => changed.await,
            }
        }
    }

    /// Lets a task start, if it may.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Pass> {
        let pass = self.outages().enter(self.now())?;
        Some(Pass { gate: Arc::clone(self), pass: Some(pass) })
    }

    /// Why it is closed, and for how many milliseconds it has been.
    pub(super) fn closed(&self) -> Option<(String, u64)> {
        let now = self.now();
        let outages = self.outages();
        let outage = outages.current()?;
        Some((outage.reason.clone(), now.0.saturating_sub(outage.since.0)))
    }

    fn outages(&self) -> MutexGuard<'_, Outages> {
        self.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Millis {
        Millis::since(self.began.elapsed())
    }
}

/// One task that was let through. Dropped without a word, its attempt was aborted.
pub(super) struct Pass {
    gate: Arc<Gate>,
    pass: Option<outage::Pass>,
}

impl Pass {
    /// The task was refused. Returns the number of the outage.
    pub(super) fn refused(mut self, reason: &str) -> u64 {
        let Some(pass) = self.pass.take() else { return 0 };
        let Gate { what, .. } = &*self.gate;
        let random = uuid::Uuid::new_v4().as_u64_pair().0;
        let mut outages = self.gate.outages();
        let refused = outages.refused(self.gate.now(), pass, reason, random);
        let number = outages.number();
        drop(outages);
        match refused {
            Refused::Begins => {
                tracing::error!(what, reason, "out of reach: starts nothing until it is back");
            }
            Refused::Lasts(retry_in) => {
                tracing::warn!(what, reason, ?retry_in, "still out of reach");
            }
            Refused::Late => {}
        }
        self.gate.changed.notify_waiters();
        number
    }

    /// The task was not refused.
    pub(super) fn reached(mut self) {
        let Some(pass) = self.pass.take() else { return };
        let Gate { what, .. } = &*self.gate;
        let ended = self.gate.outages().reached(pass);
        if let Some(outage) = ended {
            let now = self.gate.now().since_origin();
            let after = now.saturating_sub(outage.since.since_origin());
            tracing::info!(what, ?after, "within reach again");
            self.gate.changed.notify_waiters();
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.gate.outages().abandoned(pass);
            self.gate.changed.notify_waiters();
        }
    }
}
