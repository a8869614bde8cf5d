//! A publisher that does not hash: into the inbox, one task of each resource at a time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::load::{Load, Published};
use super::payload::Payload;
use crate::protocol::task::Origin;
use crate::rabbit::publisher::{PublishError, Publisher, Route};
use crate::{Resource, Task, TaskId, Topology};

/// Before a task is sent again that the broker may not have.
const AGAIN: Duration = Duration::from_millis(100);

/// Publishes tasks of all these resources in turn until the load is stopped. The next
/// task of a resource is sent when the one before is confirmed, so order is kept
/// whatever happens to the connection.
pub(super) async fn publish_to_inbox(load: Load, topology: Topology) -> Published {
    let Load { connect, resources, rate, stop, confirmed } = load;
    let route = Route::new(&connect.namespace().submit(), "");
    let publisher = Publisher::new(connect, "soak inbox", topology, None);
    let mut published = Published::default();
    let mut beat = tokio::time::interval(Duration::from_secs_f64(resources.len() as f64 / rate));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for sequence in 0.. {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = beat.tick() => {}
        }
        let each = resources.iter().map(|resource| one(&publisher, &route, resource, sequence));
        for (resource, outcome) in resources.iter().zip(join_all(each).await) {
            match outcome {
                Ok(sent) => {
                    confirmed.fetch_add(1, Ordering::Relaxed);
                    published.republished += u64::from(sent > 1);
                    *published.confirmed.entry(resource.clone()).or_default() += 1;
                }
                Err(error) => published.refuse(format!("{resource}: {error}")),
            }
        }
    }
    publisher.close().await;
    published
}

/// Publishes one task until it is confirmed; tells how often it was sent.
async fn one(
    publisher: &Publisher,
    route: &Route,
    resource: &Resource,
    sequence: u64,
) -> Result<u32, PublishError> {
    let task = Task::on(resource.clone(), Payload::Number { sequence, inbox: true }.text());
    let id = TaskId::from(Uuid::now_v7());
    for sent in 1.. {
        let producer = format!("inbox-{resource}").into();
        let origin = Origin { producer, sequence, republished: sent > 1 };
        let outcome = match publisher.send_task(route, &task, &id, Some(&origin), None).await {
            Ok(sent) => sent.confirmed().await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => return Ok(sent),
            Err(
                PublishError::Indeterminate { .. }
                | PublishError::NotSent(_)
                | PublishError::Nacked { .. },
            ) => tokio::time::sleep(AGAIN).await,
            Err(error) => return Err(error),
        }
    }
    unreachable!("the loop has no end")
}
