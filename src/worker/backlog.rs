//! Looks at how many tasks wait on the broker, for who reads the figures. Nothing else
//! depends on it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::session::Session;
use crate::rabbit::backlog::Backlog;
use crate::rabbit::error::Error;

/// How often an owner looks at its partitions: as often as Prometheus does, or so.
const PACE: Duration = Duration::from_secs(5);

/// The other partitions are looked at in so many rounds: every minute, so that one that
/// nobody is handed anything of shows, too, and that 20 workers on 1,024 partitions ask
/// the broker 340 times a second.
const ROUNDS: usize = 12;

/// Looks until it is aborted.
pub(super) async fn watch<E>(session: Arc<Session<E>>, queues: Vec<String>) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut backlog = None;
    for round in 0.. {
        pace.tick().await;
        if let Err(error) = look(&session, &queues, &mut backlog, round % ROUNDS).await {
            tracing::debug!(%error, "cannot look at the backlog");
            backlog = None;
        }
    }
}

async fn look<E>(
    session: &Session<E>,
    queues: &[String],
    backlog: &mut Option<Backlog>,
    round: usize,
) -> Result<(), Error> {
    let backlog = match backlog {
        Some(backlog) => backlog,
        None => backlog.insert(Backlog::open(&session.side).await?),
    };
    for (index, queue) in queues.iter().enumerate() {
        let Some(partition) = session.shared.figures.worker.partition(index) else { continue };
        if index % ROUNDS == round || partition.owned.load(Ordering::Relaxed) {
            partition.note_ready(backlog.ready(queue).await?);
        }
    }
    Ok(())
}
