//! Starts workers again that ended by themselves, as an orchestrator does.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::fleet::{DRAIN_TIMEOUT, Leaving, Role, Shared, State};

/// How soon one that ended by itself is started again, unless a fault says otherwise.
pub(super) const RESTART_AFTER: Duration = Duration::from_secs(1);

/// Between two looks at the processes.
pub(super) const TEND: Duration = Duration::from_millis(50);

/// A process that is started again.
#[derive(Debug)]
pub(super) struct Restart {
    name: String,
    role: Role,
    at: Instant,
}

/// Looks after the processes until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let due = tend(&mut shared.state());
        for Restart { name, role, .. } in due {
            if let Err(error) = shared.start(role, Some(name)) {
                shared.state().failures.push(format!("{error:#}"));
            }
        }
        sleep(TEND).await;
    }
}

/// Takes note of who has ended; gives who is to be started now.
fn tend(state: &mut State) -> Vec<Restart> {
    let now = Instant::now();
    let mut index = 0;
    while let Some(member) = state.members.get_mut(index) {
        let Ok(Some(status)) = member.child.try_wait() else {
            index += 1;
            continue;
        };
        let member = state.members.swap_remove(index);
        // Only poison does that: those that we kill are no members any more.
        if status.signal() == Some(Signal::KILL.as_raw()) && member.role == Role::Worker {
            state.crashes += 1;
        } else {
            state.failures.push(format!("{} ended by itself: {status}", member.name));
        }
        let at = now + state.restart_after;
        state.restarts.push(Restart { name: member.name, role: member.role, at });
    }
    let State { leaving, failures, .. } = state;
    leaving.retain_mut(|leaving| match leaves(leaving, now) {
        Some(failure) => {
            failures.extend(failure);
            false
        }
        None => true,
    });
    let (due, later) = std::mem::take(&mut state.restarts).into_iter().partition(|r| r.at <= now);
    state.restarts = later;
    due
}

/// Whether one that was told to end has done so, and what was wrong with that.
fn leaves(leaving: &mut Leaving, now: Instant) -> Option<Option<String>> {
    let Leaving { name, child, deadline } = leaving;
    match (child.try_wait(), *deadline) {
        (Ok(Some(status)), deadline) => {
            let well = deadline.is_none() || ExitStatus::success(&status);
            Some((!well).then(|| format!("{name} was to drain, and ended with {status}")))
        }
        (Ok(None), Some(deadline)) if now > deadline => {
            // Dropping it kills it.
            Some(Some(format!("{name} did not drain within {} s", DRAIN_TIMEOUT.as_secs())))
        }
        (Ok(None), _) => None,
        (Err(error), _) => Some(Some(format!("{name}: {error}"))),
    }
}
