//! A window that is full of one resource, so that all others of the partition wait on the broker.

use serde::{Deserialize, Serialize};

use super::{Lanes, Stage};
use crate::protocol::task::Resource;

/// The resource that has most of the deliveries of a full window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Crowd {
    /// Which.
    pub resource: Resource,
    /// Its deliveries.
    pub tasks: u32,
    /// What its first task does.
    pub head: Head,
}

/// What the first task of a resource does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Head {
    /// It runs.
    Running,
    /// It waits for its next attempt.
    Retrying,
    /// It is paused.
    Paused,
    /// It waits for a slot, or goes to the dead letters.
    Waiting,
}

impl Lanes {
    /// The resource that has at least half of the `window`, if that is full.
    #[must_use]
    pub fn crowd(&self, window: usize) -> Option<Crowd> {
        if self.deliveries.len() < window {
            return None;
        }
        let (resource, lane) = self.lanes.iter().max_by_key(|(_, lane)| lane.len())?;
        if lane.len() * 2 < window {
            return None;
        }
        let head = match self.deliveries.get(lane.front()?).map(|head| &head.stage)? {
            Stage::Running => Head::Running,
            Stage::Waiting { .. } => Head::Retrying,
            Stage::Queued { .. } if self.ready.parked().any(|parked| parked == resource) => {
                Head::Paused
            }
            Stage::Queued { .. } | Stage::DeadLettering => Head::Waiting,
        };
        // A window holds no more than a prefetch, which has 16 bits.
        Some(Crowd { resource: resource.clone(), tasks: lane.len() as u32, head })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::lanes::{Input, Millis, Outcome, Paused};
    use crate::protocol::retry::RetryPolicy;
    use crate::protocol::settlement::DeliveryTag;

    fn resource(name: &str) -> Resource {
        Resource::new(name).expect("a resource")
    }

    fn apply(lanes: &mut Lanes, input: Input) {
        lanes.apply(Millis(0), input, &mut Vec::new()).expect("a legal input");
    }

    #[test]
    fn a_full_window_names_the_resource_that_has_half_of_it() {
        let mut lanes = Lanes::new(RetryPolicy::default(), 1);
        for (tag, name) in (1..).zip(["hot", "a", "hot", "b"]) {
            assert_eq!(lanes.crowd(4), None, "it is not full");
            apply(&mut lanes, Input::Delivered { tag: DeliveryTag(tag), resource: resource(name) });
        }
        let seen = |lanes: &Lanes| lanes.crowd(4).map(|crowd| (crowd.tasks, crowd.head));
        assert_eq!(lanes.crowd(4).map(|crowd| crowd.resource), Some(resource("hot")));
        assert_eq!(seen(&lanes), Some((2, Head::Waiting)));
        apply(&mut lanes, Input::SlotFree);
        assert_eq!(seen(&lanes), Some((2, Head::Running)));
        let outcome = Outcome::Failed { not_before: None, reason: "no".to_owned() };
        apply(&mut lanes, Input::Finished { tag: DeliveryTag(1), outcome });
        assert_eq!(seen(&lanes), Some((2, Head::Retrying)));
        apply(&mut lanes, Input::Delivered { tag: DeliveryTag(5), resource: resource("c") });
        assert_eq!(lanes.crowd(5), None, "it has less than half");
    }

    #[test]
    fn a_paused_resource_is_told_from_one_that_waits() {
        let mut lanes = Lanes::new(RetryPolicy::default(), 1);
        let paused = Paused { everything: false, resources: [resource("hot")].into() };
        apply(&mut lanes, Input::Pause(paused));
        apply(&mut lanes, Input::Delivered { tag: DeliveryTag(1), resource: resource("hot") });
        assert_eq!(lanes.crowd(1).map(|crowd| crowd.head), Some(Head::Paused));
    }
}
