//! Whether a process is ready to work.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Metrics;

/// The state of one worker or router.
#[derive(Debug, Default)]
pub(crate) struct Health {
    connected: AtomicBool,
    /// It cannot read what operators have ordered.
    deaf: AtomicBool,
    /// Why its handler is out of reach.
    unavailable: Mutex<Option<String>>,
}

impl Health {
    pub(crate) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    pub(crate) fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Relaxed);
    }

    pub(crate) fn set_unavailable(&self, reason: Option<String>) {
        *self.unavailable.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    pub(crate) fn unavailable(&self) -> Option<String> {
        self.unavailable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        if !self.is_connected() {
            obstacles.push("not connected to the broker".to_owned());
        } else if self.deaf.load(Ordering::Relaxed) {
            obstacles.push("cannot read what operators order".to_owned());
        }
        if let Some(reason) = self.unavailable() {
            obstacles.push(format!("the handler is out of reach: {reason}"));
        }
        obstacles
    }
}

/// A process is not ready: the reasons, one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotReady {
    /// The reasons; at least one.
    pub reasons: Vec<String>,
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reasons.join("\n"))
    }
}

impl std::error::Error for NotReady {}

impl Metrics {
    /// Tells whether the worker or router that counts here can execute tasks: it is connected,
    /// reaches its handler and reads what operators order. A producer is ready once it counts.
    ///
    /// # Errors
    /// [`NotReady`] with the reasons.
    pub fn readiness(&self) -> Result<(), NotReady> {
        let reasons = if self.figures.worker.info.get().is_some() {
            self.figures.worker.health.obstacles()
        } else if self.figures.publish.get().is_some() {
            Vec::new()
        } else {
            vec!["nothing has started yet".to_owned()]
        };
        if reasons.is_empty() { Ok(()) } else { Err(NotReady { reasons }) }
    }
}
