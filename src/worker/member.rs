//! A worker as a member of its fleet: reports to the planner, follows its plan, tells the others
//! where it stands, and answers who asks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::line::Announced;
use super::session::Session;
use super::{Execute, Shared};
use crate::backoff::Backoff;
use crate::protocol::fleet::REPORT_EVERY_MS;
use crate::rabbit::control::{Control, Said};
use crate::rabbit::error::Error;
use crate::rabbit::planner::MemberMessage;
use crate::rabbit::running::Found;
use crate::rabbit::steering::Heeded;

/// Places in a line that change at about the same time are announced together: within this time,
/// and a longer one in a large fleet, where each is heard by many.
const GATHERING: Duration = Duration::from_millis(5);
const LONGEST_GATHERING: Duration = Duration::from_secs(1);
/// Members that all may announce every 5 ms.
const SMALL_FLEET: u32 = 8;

/// Announcements are repeated, for those who came later or did not hear: this often, and less in
/// a large fleet, so that nobody hears more than a few tens of them a second.
const REPEAT: Duration = Duration::from_secs(10);
const REPEAT_PER_MEMBER: Duration = Duration::from_millis(200);

/// How often it makes sure that it hears what is said to all.
const HEAR_EVERY: Duration = Duration::from_secs(5);
/// Each waits for a second at the most; more than people give orders in that time.
const MOST_HEEDERS: usize = 1_000;

/// Listens and reports until it is aborted, or the connection beside the consuming one is lost.
pub(super) async fn take_part<E: Execute>(session: Arc<Session<E>>, mut control: Control) -> Error {
    let (heeding, mut heeded) = mpsc::unbounded_channel::<(String, Heeded)>();
    let mut heeders = JoinSet::new();
    let mut reports = interval(Duration::from_millis(REPORT_EVERY_MS));
    reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut loads = Loads::new(&session);
    let mut announced = Instant::now();
    let mut repeated = announced;
    let mut due = None;
    let mut hears = interval(HEAR_EVERY);
    hears.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while heeders.try_join_next().is_some() {}
        let sent = tokio::select! {
            Some((to, heeded)) = heeded.recv() => control.answer(&to, &heeded).await,
            _ = hears.tick() => control.hear_all().await,
            _ = reports.tick() => {
                if repeated.elapsed() > REPEAT + REPEAT_PER_MEMBER * members(&session) {
                    (announced, repeated) = (Instant::now(), Instant::now());
                    announce(&session, &control, Announced::All).await
                } else {
                    report(&session, &control, &mut loads).await
                }
            }
            () = session.line.to_announce(), if due.is_none() => {
                let pace = gathering(members(&session));
                due = Some((announced + pace).max(Instant::now() + GATHERING));
                Ok(())
            }
            () = sleep_until(due.unwrap_or(announced)), if due.is_some() => {
                (announced, due) = (Instant::now(), None);
                announce(&session, &control, Announced::News).await
            }
            heard = control.hear() => match heard {
                Some((Said::Call, _)) => report(&session, &control, &mut loads).await,
                Some((Said::Plan(plan), _)) => {
                    session.follow(plan);
                    Ok(())
                }
                Some((Said::Attached { worker, places }, _)) => {
                    session.line.heard(&worker, &places);
                    Ok(())
                }
                Some((Said::Unattended { partitions }, _)) => {
                    session.line.unattended(&partitions);
                    Ok(())
                }
                Some((Said::Report, Some(to))) => {
                    control.answer(&to, &session.report()).await
                }
                Some((Said::Find { task }, Some(to))) => {
                    let Some(running) = session.shared.stints.find(&task) else { continue };
                    let found = Found::new(session.shared.options.id.clone(), running);
                    control.answer(&to, &found).await
                }
                Some((Said::Running, Some(to))) => {
                    let worker = session.shared.options.id.clone();
                    control.answer(&to, &session.shared.stints.running(worker)).await
                }
                Some((Said::Heed { .. }, Some(_))) if heeders.len() >= MOST_HEEDERS => Ok(()),
                Some((Said::Heed { position }, Some(to))) => {
                    let (session, heeding) = (Arc::clone(&session), heeding.clone());
                    heeders.spawn(async move {
                        let Some(position) = session.steered.heed(position).await else { return };
                        let worker = session.shared.options.id.clone();
                        // The listener may have ended; then nobody waits.
                        heeding.send((to, Heeded { worker, position })).ok();
                    });
                    Ok(())
                }
                Some((
                    Said::Report | Said::Find { .. } | Said::Running | Said::Heed { .. },
                    None,
                )) => Ok(()),
                None => {
                    tracing::warn!("cannot hear the fleet: it is out of balance until it can");
                    control.close().await;
                    control = match hear_again(&session).await {
                        Ok(control) => control,
                        Err(error) => return error,
                    };
                    tracing::info!("hears the fleet again");
                    Ok(())
                }
            },
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "not said");
        }
    }
}

/// Opens what was lost, while the connection was not.
async fn hear_again<E>(session: &Session<E>) -> Result<Control, Error> {
    let mut backoff = Backoff::new(None);
    loop {
        sleep(backoff.next().unwrap_or_default()).await;
        match Control::open(&session.side, session.shared.connect.namespace(), true).await {
            Ok(control) => return Ok(control),
            // Nobody could pause, plan or find this worker.
            Err(error) if !session.side.status().connected() => return Err(error),
            Err(error) => tracing::debug!(%error, "cannot hear the fleet yet"),
        }
    }
}

fn members<E>(session: &Session<E>) -> u32 {
    let members = session.line.plan().map_or(0, |plan| plan.members.len());
    u32::try_from(members).unwrap_or(u32::MAX)
}

/// Least time between two announcements: all members together are heard by all of them, so that
/// it grows with their square.
fn gathering(members: u32) -> Duration {
    let larger = (members.min(1_000) / SMALL_FLEET).max(1);
    (GATHERING * larger * larger).min(LONGEST_GATHERING)
}

async fn announce<E>(
    session: &Session<E>,
    control: &Control,
    which: Announced,
) -> Result<(), Error> {
    let places = session.line.announcement(which);
    if places.is_empty() {
        return Ok(());
    }
    let worker = session.shared.options.id.clone();
    control.say(&Said::Attached { worker, places }).await
}

/// Tells the planner that this worker comes.
pub(super) async fn greet<E>(shared: &Shared<E>, control: &Control) -> Result<(), Error> {
    control
        .tell_planner(&MemberMessage::Report {
            worker: shared.options.id.clone(),
            weight: shared.options.weight,
            plan: shared.last_plan().map(|plan| plan.number),
            loads: Vec::new(),
        })
        .await
}

async fn report<E>(
    session: &Session<E>,
    control: &Control,
    loads: &mut Loads,
) -> Result<(), Error> {
    // A member that leaves has said goodbye.
    if session.drain.is_cancelled() {
        return Ok(());
    }
    control
        .tell_planner(&MemberMessage::Report {
            worker: session.shared.options.id.clone(),
            weight: session.shared.options.weight,
            plan: session.line.plan().map(|plan| plan.number),
            loads: loads.since_last(session),
        })
        .await
}

/// How busy the handlers of each partition were.
struct Loads {
    last: Duration,
    busy_us: Vec<u64>,
}

impl Loads {
    fn new<E>(session: &Session<E>) -> Self {
        let now = session.shared.started.elapsed();
        Self { last: now, busy_us: session.held.iter().map(|held| held.busy_us(now)).collect() }
    }

    /// Handlers that ran at once in each partition that is owned, in the mean since the last time.
    fn since_last<E>(&mut self, session: &Session<E>) -> Vec<(u32, f64)> {
        let now = session.shared.started.elapsed();
        let since = (now - std::mem::replace(&mut self.last, now)).as_micros().max(1) as f64;
        let held = (0..).zip(session.held.iter().zip(&mut self.busy_us));
        let loads = held.filter_map(|(number, (held, last))| {
            let busy_us = held.busy_us(now);
            let busy = busy_us.saturating_sub(std::mem::replace(last, busy_us)) as f64 / since;
            // Three digits are enough.
            held.served().then(|| (number, (busy * 1e3).round() / 1e3))
        });
        loads.collect()
    }
}
