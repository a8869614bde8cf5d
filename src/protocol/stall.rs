//! Which partitions stand still, and why.
//!
//! A [`Look`] is what is seen of a partition at one moment; [`Look::cause`] says why
//! nothing of it runs just then, which is usual for a moment. [`Watch`] compares looks
//! and names what lasts.

use std::collections::BTreeMap;
use std::fmt;
use std::mem::discriminant;
use std::time::Duration;

use serde::Serialize;

use super::lanes::{Crowd, Head};
use super::ownership::WorkerId;
use super::partition::PartitionId;

/// What is seen of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Which.
    pub partition: PartitionId,
    /// Whether its queue has answered the broker; otherwise nothing is known of what waits there
    /// and who consumes it.
    pub counted: bool,
    /// Tasks that wait on the broker.
    pub ready: u32,
    /// Whether anybody consumes it.
    pub consumed: bool,
    /// Whether it is paused as a whole.
    pub paused: bool,
    /// Who says that it holds deliveries of it.
    pub holder: Option<Holder>,
    /// The workers that say how they are.
    pub answering: Vec<WorkerId>,
    /// What is delivered to nobody of these.
    pub stray: Option<Stray>,
}

/// Deliveries of a partition at consumers that belong to no worker that answers. As long as they
/// stay there, their tasks are executed by nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stray {
    /// Consumers beside the active one that hold something. RabbitMQ has none in a healthy
    /// partition.
    pub consumers: u32,
    /// Deliveries that the broker counts and no worker says that it holds; `None` without the
    /// management interface of the broker.
    pub tasks: Option<u32>,
}

impl Stray {
    /// What is known of strays, if anything is.
    #[must_use]
    pub fn seen(consumers: u32, tasks: Option<u32>) -> Option<Self> {
        (consumers > 0 || tasks > Some(0)).then_some(Self { consumers, tasks })
    }
}

/// A worker that holds deliveries of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its name.
    pub worker: WorkerId,
    /// Deliveries that are not settled.
    pub unsettled: u32,
    /// Tasks that run.
    pub running: u32,
    /// Deliveries whose resource is paused.
    pub paused: u32,
    /// Tasks that wait for their next attempt.
    pub retrying: u32,
    /// When the first of these is due, in milliseconds.
    pub retry_in_ms: Option<u64>,
    /// Tasks that could start, had the worker a slot.
    pub startable: u32,
    /// Deliveries of the partition that were settled by it: only rises.
    pub settled: u64,
    /// Whether all slots of the worker are taken.
    pub busy: bool,
    /// The resource that its window is full of.
    pub crowd: Option<Crowd>,
    /// What its tasks need and the worker cannot reach.
    pub refused: Option<Lack>,
}

/// What a worker cannot reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Whatever executes its tasks.
    Handler,
    /// The fencing token of the partition.
    FencingToken,
}

/// Why nothing of a partition runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// No worker consumes it.
    NotConsumed,
    /// Its queue does not answer the broker, so that nothing is known of it.
    QueueSilent,
    /// It is paused, or everything is.
    Paused,
    /// All that its owner holds is of paused resources.
    ResourcesPaused {
        /// The owner.
        worker: WorkerId,
        /// How many tasks of them it holds.
        tasks: u32,
        /// More waits on the broker: the owner's window is full of them, so they
        /// hold up the others.
        window_full: bool,
    },
    /// All that its owner holds waits for a next attempt.
    Retrying {
        /// The owner.
        worker: WorkerId,
        /// How many.
        tasks: u32,
        /// When the first is due, in milliseconds.
        next_in_ms: u64,
    },
    /// The window of its owner is full of one resource, and more waits on the broker until tasks of
    /// that one have been executed.
    Crowded {
        /// The owner.
        worker: WorkerId,
        /// The resource, and how many tasks of it are held.
        #[serde(flatten)]
        by: Crowd,
    },
    /// Its owner has no slot for it: tasks of other partitions run.
    NoSlot {
        /// The owner.
        worker: WorkerId,
    },
    /// Its owner cannot reach whatever executes its tasks.
    HandlerUnavailable {
        /// The owner.
        worker: WorkerId,
    },
    /// Its owner has no fencing token for it.
    NoFencingToken {
        /// The owner.
        worker: WorkerId,
    },
    /// Its owner holds tasks that neither run nor wait: it cannot write its records
    /// or dead letters, or waits for an ack to be sent.
    Settling {
        /// The owner.
        worker: WorkerId,
    },
    /// It is consumed, and who consumes it does not answer.
    OwnerSilent {
        /// Who held it when it last answered, if that was seen.
        #[serde(skip_serializing_if = "Option::is_none")]
        worker: Option<WorkerId>,
    },
    /// Tasks of it are delivered to a consumer that belongs to no worker that answers, whether the
    /// others go on or not.
    Stray(Stray),
    /// Workers answer, and the broker hands it to none of them: a stranger consumes
    /// it, or a worker that does not answer, or one that is gone and that the broker
    /// did not forget (docs/reliability.md).
    NotHandedOut,
}

impl Cause {
    /// Whether it is the same but for numbers.
    fn is_like(&self, other: &Self) -> bool {
        let window = |cause: &Self| match cause {
            Self::ResourcesPaused { window_full, .. } => Some(*window_full),
            _ => None,
        };
        discriminant(self) == discriminant(other)
            && self.worker() == other.worker()
            && window(self) == window(other)
    }

    /// The worker that it is about.
    #[must_use]
    pub fn worker(&self) -> Option<&WorkerId> {
        match self {
            Self::NotConsumed
            | Self::QueueSilent
            | Self::Paused
            | Self::NotHandedOut
            | Self::Stray(_) => None,
            Self::OwnerSilent { worker } => worker.as_ref(),
            Self::ResourcesPaused { worker, .. }
            | Self::Retrying { worker, .. }
            | Self::Crowded { worker, .. }
            | Self::NoSlot { worker }
            | Self::HandlerUnavailable { worker }
            | Self::NoFencingToken { worker }
            | Self::Settling { worker } => Some(worker),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConsumed => f.write_str("nobody consumes it: start workers (keylane work)"),
            Self::QueueSilent => f.write_str(
                "its queue does not answer the broker, so nothing is known of it: is the broker \
                 overloaded, or has a majority of its cluster gone?",
            ),
            Self::Crowded { worker, by: Crowd { resource, tasks, head } } => {
                let doing = match head {
                    Head::Running => "the first of which runs",
                    Head::Retrying => "the first of which waits for its next attempt",
                    Head::Paused => "which is paused",
                    Head::Waiting => "the first of which waits for a slot",
                };
                write!(
                    f,
                    "the window of {worker} is full with {tasks} tasks of {:?}, {doing}: all others \
                     wait for them",
                    resource.as_str()
                )
            }
            Self::Paused => f.write_str("paused (keylane resume)"),
            Self::ResourcesPaused { worker, tasks, window_full: false } => {
                write!(f, "{worker} holds {tasks} tasks of paused resources, and no others")
            }
            Self::ResourcesPaused { worker, tasks, window_full: true } => write!(
                f,
                "the window of {worker} is full with {tasks} tasks of paused resources, and others \
                 wait behind them (keylane resume)"
            ),
            Self::Retrying { worker, tasks, next_in_ms } => {
                let next = Duration::from_millis(*next_in_ms);
                write!(
                    f,
                    "all {tasks} tasks that could run on {worker} wait for a retry, the next in {next:?}"
                )
            }
            Self::NoSlot { worker } => {
                write!(f, "all slots of {worker} are taken by other partitions (work --slots)")
            }
            Self::HandlerUnavailable { worker } => {
                write!(f, "{worker} cannot reach its handler")
            }
            Self::NoFencingToken { worker } => write!(
                f,
                "{worker} has no fencing token for it: see its log (keylane init mends a counter \
                 that is lost)"
            ),
            Self::Settling { worker } => write!(
                f,
                "{worker} holds tasks and can neither record nor dead-letter them: see its log"
            ),
            Self::OwnerSilent { worker: Some(worker) } => {
                write!(f, "{worker} held it, and does not answer: is it stopped, or cut off?")
            }
            Self::OwnerSilent { worker: None } => f.write_str(
                "somebody consumes it, but no worker answers: is it stopped, or cut off?",
            ),
            Self::Stray(Stray { tasks, .. }) => {
                let tasks = tasks.map_or_else(|| "some".to_owned(), |tasks| tasks.to_string());
                write!(
                    f,
                    "{tasks} of its tasks are delivered to a consumer that belongs to no worker \
                     that answers: see docs/reliability.md, \"Runbook\""
                )
            }
            Self::NotHandedOut => f.write_str(
                "the broker hands it to no worker that answers: is one frozen or cut off, does a \
                 stranger consume it, or did a cluster lose a node and then a leader? See \
                 docs/reliability.md, \"Runbook\"",
            ),
        }
    }
}

impl Look {
    /// Why nothing of it runs at this moment, though there are tasks. `last_holder`: who
    /// held it before.
    #[must_use]
    pub fn cause(&self, last_holder: Option<&WorkerId>) -> Option<Cause> {
        if let Some(stray) = self.stray {
            return Some(Cause::Stray(stray));
        }
        if !self.counted {
            return Some(Cause::QueueSilent);
        }
        let unsettled = self.holder.as_ref().map_or(0, |holder| holder.unsettled);
        if self.ready == 0 && unsettled == 0 {
            return None;
        }
        if self.paused {
            return Some(Cause::Paused);
        }
        if !self.consumed {
            return Some(Cause::NotConsumed);
        }
        let Some(holder) = &self.holder else {
            let silent = last_holder.filter(|last| !self.answering.contains(last));
            if self.answering.is_empty() || silent.is_some() {
                return Some(Cause::OwnerSilent { worker: silent.cloned() });
            }
            return Some(Cause::NotHandedOut);
        };
        let worker = holder.worker.clone();
        let tasks = holder.paused;
        let crowd = holder.crowd.as_ref().filter(|by| self.ready > 0 && by.head != Head::Paused);
        if let Some(by) = crowd {
            return Some(Cause::Crowded { worker, by: by.clone() });
        }
        if holder.unsettled == 0 {
            // It is on its way, or the broker gives it to somebody else.
            Some(Cause::NotHandedOut)
        } else if let (Some(lack), 1..) = (holder.refused, holder.startable) {
            Some(match lack {
                Lack::Handler => Cause::HandlerUnavailable { worker },
                Lack::FencingToken => Cause::NoFencingToken { worker },
            })
        } else if holder.running > 0 {
            None
        } else if holder.startable > 0 {
            holder.busy.then_some(Cause::NoSlot { worker })
        } else if holder.retrying > 0 {
            let next_in_ms = holder.retry_in_ms.unwrap_or(0);
            Some(Cause::Retrying { worker, tasks: holder.retrying, next_in_ms })
        } else if tasks > 0 {
            Some(Cause::ResourcesPaused { worker, tasks, window_full: self.ready > 0 })
        } else {
            Some(Cause::Settling { worker })
        }
    }

    /// Whether something was done since an earlier look.
    fn has_moved(&self, before: &Seen) -> bool {
        match (&self.holder, &before.holder) {
            (Some(now), Some(then)) => {
                now.worker != then.worker || now.settled != then.settled || now.running > 0
            }
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => self.ready < before.ready,
        }
    }
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A partition stands still or is held up, or is so for another reason now.
    Stalled {
        /// Which.
        partition: PartitionId,
        /// Why.
        #[serde(flatten)]
        cause: Cause,
        /// Tasks that wait on the broker.
        ready: u32,
        /// Tasks that its owner holds.
        unsettled: u32,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// A partition goes on, or has nothing left.
    Moves {
        /// Which.
        partition: PartitionId,
        /// For how long it stood still, in milliseconds.
        stalled_ms: u64,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stalled { partition, cause, ready, unsettled, .. } => {
                let how = match cause {
                    Cause::Crowded { .. } => "is held up",
                    _ => "stands still",
                };
                write!(f, "partition {partition} {how} with {ready} ready and {unsettled} ")?;
                write!(f, "unsettled tasks: {cause}")
            }
            Self::Moves { partition, stalled_ms } => {
                let stalled = Duration::from_secs(stalled_ms / 1_000);
                write!(f, "partition {partition} goes on after {stalled:?}")
            }
        }
    }
}

/// What is remembered of a partition.
#[derive(Debug, Clone)]
struct Seen {
    holder: Option<Holder>,
    last_holder: Option<WorkerId>,
    ready: u32,
    stray: Option<Stray>,
    counted: bool,
    /// When it last moved, or had a reason to stand still that is gone.
    still_since_ms: u64,
    told: Option<Cause>,
}

impl Seen {
    fn is_crowded_by(&self, by: &Crowd) -> bool {
        let crowd = self.holder.as_ref().and_then(|holder| holder.crowd.as_ref());
        self.ready > 0 && crowd.is_some_and(|crowd| crowd.resource == by.resource)
    }
}

/// Compares looks.
#[derive(Debug, Clone)]
pub struct Watch {
    patience_ms: u64,
    seen: BTreeMap<PartitionId, Seen>,
}

impl Watch {
    /// What stands still for `patience` is told of.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        Self { patience_ms, seen: BTreeMap::new() }
    }

    /// Takes the looks of one moment, and says what is new. `now_ms`: from any origin.
    pub fn note(&mut self, now_ms: u64, looks: impl IntoIterator<Item = Look>) -> Vec<Event> {
        let mut events = Vec::new();
        for look in looks {
            let first = Seen {
                holder: None,
                last_holder: None,
                ready: look.ready,
                stray: look.stray,
                counted: look.counted,
                still_since_ms: now_ms,
                told: None,
            };
            let before = self.seen.remove(&look.partition).unwrap_or(first);
            let partition = look.partition;
            let after = self.compare(now_ms, look, before, &mut events);
            self.seen.insert(partition, after);
        }
        events
    }

    /// The partitions that stand still, as the last events had it: why, and since when.
    pub fn stalled(&self) -> impl Iterator<Item = (PartitionId, &Cause, u64)> {
        self.seen.iter().filter_map(|(partition, seen)| {
            Some((*partition, seen.told.as_ref()?, seen.still_since_ms))
        })
    }

    fn compare(&self, now_ms: u64, look: Look, mut seen: Seen, events: &mut Vec<Event>) -> Seen {
        let partition = look.partition;
        let cause = look.cause(seen.last_holder.as_ref());
        // That others go on does not help what is held or waits there.
        let moved = match &cause {
            Some(Cause::Stray(_)) => seen.stray.is_none(),
            Some(Cause::Crowded { by, .. }) => !seen.is_crowded_by(by),
            Some(Cause::QueueSilent) => seen.counted,
            _ => look.has_moved(&seen),
        };
        let for_ms = now_ms.saturating_sub(seen.still_since_ms);
        match cause {
            Some(cause) if !moved => {
                let known = seen.told.as_ref().is_some_and(|told| told.is_like(&cause));
                if known {
                    // The numbers may be others.
                    seen.told = Some(cause);
                } else if for_ms >= self.patience_ms {
                    let unsettled = look.holder.as_ref().map_or(0, |holder| holder.unsettled);
                    seen.told = Some(cause.clone());
                    let ready = look.ready;
                    events.push(Event::Stalled { partition, cause, ready, unsettled, for_ms });
                }
            }
            Some(_) | None => {
                if seen.told.take().is_some() {
                    events.push(Event::Moves { partition, stalled_ms: for_ms });
                }
                seen.still_since_ms = now_ms;
            }
        }
        if let Some(holder) = &look.holder {
            seen.last_holder = Some(holder.worker.clone());
        }
        let Look { holder, ready, stray, counted, .. } = look;
        Seen { holder, ready, stray, counted, ..seen }
    }
}

#[cfg(test)]
mod tests;
