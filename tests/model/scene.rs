//! The size of a model, and the rules that it breaks.

use std::fmt;

use keylane::protocol::task::Resource;

/// One worker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkerNo(pub(crate) usize);

impl fmt::Debug for WorkerNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}", self.0)
    }
}

/// One task, by its place in the order of publishing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TaskNo(pub(crate) usize);

impl fmt::Debug for TaskNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// The arguments with which a worker consumes. The same for all, if the rules are
/// kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    /// The prefetch window.
    pub(crate) window: usize,
    pub(crate) priority: u8,
}

/// The number of times that something may still be decided, or go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Budget {
    /// A worker leaves its place: it gives up, passes on, steps back, detaches or
    /// is drained. Any worker at any moment, so every plan is among them.
    pub(crate) moves: u8,
    /// A worker dies.
    pub(crate) crashes: u8,
    /// The broker loses a worker that goes on: it was paused, or cut off.
    pub(crate) cuts: u8,
    /// An attempt fails; an attempt never fails twice in a row.
    pub(crate) failures: u8,
}

/// The rules that are broken; by default none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Breaks {
    /// An owner that gives up cancels its consumer first, as most programs do.
    pub(crate) cancel: bool,
    /// An owner that gives up closes its channel at once, whatever runs.
    pub(crate) leave_running: bool,
    /// A worker that steps back does not send the acks that it owes.
    pub(crate) leave_unacked: bool,
    /// A task that failed is requeued, instead of blocking its lane.
    pub(crate) requeue: bool,
    /// A task is acked when it starts.
    pub(crate) ack_early: bool,
    /// The store admits every write, and handlers ask for no token.
    pub(crate) no_guard: bool,
    /// Epochs are minted on some other channel, so that a worker that lost its
    /// delivery still gets one.
    pub(crate) mint_elsewhere: bool,
    /// A worker that attaches again keeps the token that it had.
    pub(crate) keep_token: bool,
}

/// The bounds of one model.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    pub(crate) workers: Vec<Kind>,
    /// The resource of each task, in the order of publishing.
    pub(crate) tasks: Vec<Resource>,
    pub(crate) budget: Budget,
    pub(crate) breaks: Breaks,
}

impl Scene {
    pub(crate) fn kind(&self, worker: WorkerNo) -> Option<Kind> {
        self.workers.get(worker.0).copied()
    }

    pub(crate) fn resource(&self, task: TaskNo) -> Option<&Resource> {
        self.tasks.get(task.0)
    }

    /// The tasks that were published before this one, on its resource.
    pub(crate) fn before(&self, task: TaskNo) -> impl Iterator<Item = TaskNo> {
        let resource = self.resource(task);
        (0..task.0).map(TaskNo).filter(move |earlier| self.resource(*earlier) == resource)
    }
}
