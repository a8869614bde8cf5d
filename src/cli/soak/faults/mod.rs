//! One fault: what is done, how long it is kept up, and what was felt of it.

mod broker;
mod churn;
mod node;
mod poison;
mod workers;

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::excuses::Excuse;
use super::fleet::Role;
use super::report::FaultReport;
use super::scene::{CALM, Scene};
use super::schedule::{Fault, Planned};
use super::worker::now_us;

/// What a fault was, beside its kind.
#[derive(Debug, Default)]
struct Done {
    /// Whom it befell.
    on: String,
    /// Partitions that the node led, and whether it led the journal.
    led: Option<(usize, bool)>,
    /// Whether all partitions made progress while it lasted, if it was kept up for that.
    survived: Option<bool>,
}

/// Lets a fault befall the scene, and waits until that is over.
pub(super) async fn inflict(
    scene: &mut Scene<'_>,
    planned: Planned,
) -> anyhow::Result<FaultReport> {
    sleep(CALM).await;
    let (counts, violations) = (scene.watch.counts(), scene.truth.violations()?.len());
    let (began, began_us) = (Instant::now(), now_us());
    scene.watch.begin(began_us);
    scene.say(&planned.fault.name());
    let Planned { fault, time } = planned;
    let closes = matches!(fault, Fault::Close | Fault::StopApp | Fault::Stop | Fault::Restart);
    if closes {
        scene.fleet.note(Excuse::Closing, true)?;
    }
    let done = match fault {
        Fault::Cut if scene.wire.is_some() => node::cut_wire(scene, time).await?,
        Fault::Stop
        | Fault::Kill
        | Fault::Pause
        | Fault::Cut
        | Fault::Split
        | Fault::DoubleLoss => Box::pin(node::befall(scene, fault, time)).await?,
        Fault::Restart => node::restart_all(scene).await?,
        Fault::Move => node::move_all(scene).await?,
        Fault::Close => broker::close_connections(scene).await?,
        Fault::StopApp => broker::stop_app(scene, time).await?,
        Fault::Memory | Fault::Disk => broker::alarm(scene, fault, time).await?,
        Fault::Freeze => workers::freeze(scene, time).await?,
        Fault::KillWorker => workers::kill(scene)?,
        Fault::Drain => workers::drain(scene)?,
        Fault::Rolling => workers::rolling(scene, &[]).await?,
        Fault::FreezeReplace => workers::freeze_replace(scene, Duration::from_secs(2)).await?,
        Fault::FreezeReplaceLate => workers::freeze_replace(scene, Duration::from_secs(10)).await?,
        Fault::Churn => churn::churn(scene, time).await?,
        Fault::FreezeRouters => workers::freeze_routers(scene, time).await?,
        Fault::Poison => poison::poison(scene).await?,
        Fault::Any => anyhow::bail!("the schedule resolves `any`"),
    };
    if closes {
        scene.fleet.note(Excuse::Closing, false)?;
    }
    let held_ms = began.elapsed().as_millis() as u64;
    complete(scene)?;
    let what = format!("{} {}", fault.name(), done.on);
    scene.say(&format!("{what}: waiting until everything makes progress"));
    let stuck = scene.recovered().await;
    Ok(FaultReport {
        fault,
        on: done.on,
        led: done.led.map(|(partitions, _)| partitions),
        led_journal: done.led.map(|(_, journal)| journal),
        held_ms,
        survived: done.survived,
        pause_ms: scene.watch.pauses(now_us()),
        stuck: stuck.iter().map(ToString::to_string).collect(),
        counts: scene.watch.counts().since(counts),
        violations: scene.truth.violations()?.len() - violations,
    })
}

/// Brings the fleet to its usual numbers.
fn complete(scene: &mut Scene<'_>) -> anyhow::Result<()> {
    for name in scene.fleet.frozen() {
        scene.fleet.thaw(&name)?;
    }
    for (role, wanted) in [(Role::Worker, scene.workers), (Role::Router, scene.routers)] {
        let mut awake = scene.fleet.awake(role);
        while awake.len() > wanted {
            let name = awake.swap_remove(scene.chance.below(awake.len()));
            scene.fleet.drain(&name)?;
        }
        for _ in awake.len()..wanted {
            scene.fleet.start(role, None)?;
        }
    }
    Ok(())
}
