//! How large a model is, and which rules it breaks.

use std::fmt;

use keylane::protocol::task::Resource;

/// One worker. A higher number has the higher priority.
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

/// What may still go wrong, or be asked for, how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Budget {
    /// A worker dies.
    pub(crate) crashes: u8,
    /// The broker loses a worker that goes on: it was paused, or cut off.
    pub(crate) cuts: u8,
    /// A worker is asked to leave.
    pub(crate) drains: u8,
    /// An attempt fails; an attempt never fails twice in a row.
    pub(crate) failures: u8,
}

/// The rules that are broken; by default none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Breaks {
    /// An owner that leaves cancels its consumer first, as most programs do.
    pub(crate) cancel: bool,
    /// An owner that leaves gives back without a deputy.
    pub(crate) no_deputy: bool,
    /// An owner that leaves does not wait for what the broker has sent before it
    /// gives back.
    pub(crate) no_wait: bool,
    /// An owner that has read nothing more closes at once, whatever was sent.
    pub(crate) leave_unread: bool,
    /// A task that failed is requeued, instead of blocking its lane.
    pub(crate) requeue: bool,
    /// The store admits every write, and handlers ask for no token.
    pub(crate) no_guard: bool,
    /// Epochs are minted on some other channel, so that a worker that lost its
    /// delivery still gets one.
    pub(crate) mint_elsewhere: bool,
    /// A worker mints an epoch once on a channel, and not anew after it held
    /// nothing.
    pub(crate) mint_once: bool,
}

/// The bounds of one model.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    /// The prefetch window of each worker.
    pub(crate) windows: Vec<usize>,
    /// The resource of each task, in the order of publishing.
    pub(crate) tasks: Vec<Resource>,
    pub(crate) budget: Budget,
    pub(crate) breaks: Breaks,
}

impl Scene {
    pub(crate) fn resource(&self, task: TaskNo) -> Option<&Resource> {
        self.tasks.get(task.0)
    }

    /// The tasks that were published before this one, on its resource.
    pub(crate) fn before(&self, task: TaskNo) -> impl Iterator<Item = TaskNo> {
        let resource = self.resource(task);
        (0..task.0).map(TaskNo).filter(move |earlier| self.resource(*earlier) == resource)
    }
}
