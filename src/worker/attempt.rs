//! One attempt at a task, with all that can end it.

use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Execute;
use super::stints::{Stint, Stints};
use crate::handler::{Attempt, Failure, Lacking};
use crate::protocol::lanes::Outcome;
use crate::protocol::result::TaskResult;
use crate::protocol::text::cut_reason;
use crate::rabbit::claims::ClaimRegister;
use crate::rabbit::consumer::Delivery;

/// Executes the task within the attempt's time, and notes from when to when.
pub(super) async fn run<E: Execute>(
    executor: &E,
    attempt: Attempt,
    delivery: Arc<Delivery>,
    (stints, stint): (&Stints, Arc<Stint>),
) -> Ended {
    let limit = attempt.timeout;
    let said = Arc::clone(&attempt.result);
    let last_words = Arc::clone(&attempt.last_words);
    let _running = stints.begin(&attempt, Arc::clone(&stint));
    let ended = {
        let running = pin!(executor.execute(attempt, delivery));
        let limited = async {
            match limit {
                None => Some(running.await),
                Some(limit) => timeout(limit, running).await.ok(),
            }
        };
        tokio::select! {
            biased;
            () = stint.aborted() => Some(Err(Failure::failed("aborted by an operator"))),
            ended = limited => ended,
        }
    };
    // What is dropped unfinished may have left a word.
    let result = ended.unwrap_or_else(|| {
        let words = last_words.lock().unwrap_or_else(PoisonError::into_inner).take();
        let words = words.map_or_else(String::new, |words| format!(": {words}"));
        Err(Failure::failed(format!("no end after {:?}{words}", limit.unwrap_or_default())))
    });
    let mut lacking = None;
    let mut outcome = match result {
        Ok(()) => Outcome::Executed,
        Err(Failure::Retry { after, reason }) => Outcome::Failed { not_before: after, reason },
        Err(Failure::Failed { reason }) => Outcome::Failed { not_before: None, reason },
        Err(Failure::Dead { reason }) => Outcome::Dead { reason },
        Err(Failure::Unavailable { what, reason }) => {
            lacking = Some(what);
            Outcome::Refused { reason }
        }
    };
    if let Outcome::Failed { reason, .. } | Outcome::Dead { reason } = &mut outcome {
        cut_reason(reason);
    }
    let result = std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner));
    Ended { outcome, result, lacking, failed_before: 0 }
}

/// How long a suspect waits until nothing else runs.
const ALONE_PATIENCE: Duration = Duration::from_secs(60);

/// How an attempt ended, and what its handler said of it.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) result: TaskResult,
    /// What was out of reach, if it was refused.
    pub(super) lacking: Option<Lacking>,
    /// Attempts that failed with earlier owners. Looked for when the first one fails here.
    pub(super) failed_before: u32,
}

impl From<Outcome> for Ended {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, result: TaskResult::NONE, lacking: None, failed_before: 0 }
    }
}

/// What a suspect needs to be run: a claim, and maybe the worker to itself.
pub(super) struct Caution {
    pub(super) register: Arc<ClaimRegister>,
    /// All slots of the worker, if the suspect is to run alone.
    pub(super) alone: Option<(Arc<Semaphore>, u32)>,
}

impl Caution {
    /// Runs a suspect: stores the claim before and takes it back after, so that
    /// it stays only if the worker does not survive.
    ///
    /// A claim that cannot be stored does not stop work: evidence is lost then,
    /// and a killer may kill once more.
    pub(super) async fn run<E: Execute>(
        self,
        executor: &E,
        attempt: Attempt,
        delivery: Arc<Delivery>,
        stint: (&Stints, Arc<Stint>),
        slot: OwnedSemaphorePermit,
    ) -> Ended {
        let id = attempt.id.clone();
        let (_slots, alone) = match self.alone {
            None => (Some(slot), false),
            Some((slots, all)) => {
                // Ours goes back first, or two who want them all would wait for each other.
                drop(slot);
                match timeout(ALONE_PATIENCE, Arc::clone(&slots).acquire_many_owned(all)).await {
                    Ok(all) => (all.ok(), true),
                    // Nothing else starts while it waits, so it does not wait for ever.
                    Err(_) => (slots.acquire_owned().await.ok(), false),
                }
            }
        };
        tracing::debug!(task = %id, alone, "runs with a claim: earlier executions were lost");
        if let Err(error) = self.register.claim(id.clone(), alone).await {
            tracing::warn!(task = %id, %error, "its claim could not be stored");
        }
        let ended = run(executor, attempt, delivery, stint).await;
        self.register.clear(&id);
        // A claim that is left over makes suspect; only one of a run alone condemns.
        if alone && let Err(error) = self.register.flush().await {
            tracing::warn!(task = %id, %error, "its claim could not be taken back");
        }
        ended
    }
}

/// How long the dead letters are left alone after a failure to publish one.
pub(super) const DEAD_LETTER_RETRY: Duration = Duration::from_secs(1);
