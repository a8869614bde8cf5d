//! Faults of single workers and routers.

use std::time::Duration;

use anyhow::Context;
use tokio::time::sleep;

use super::Done;
use crate::cli::soak::fleet::Role;
use crate::cli::soak::scene::Scene;
use crate::cli::soak::supervisor::TEND;

/// How long a worker is frozen: from less than a heartbeat to more than the broker waits.
pub(super) const FREEZE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(40));

/// Between two restarts of a rolling one, and before the kill of a frozen worker: enough
/// for a fleet to change hands.
const APART: Duration = Duration::from_secs(2);

/// A worker by chance.
fn any(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let awake = scene.fleet.awake(Role::Worker);
    anyhow::ensure!(!awake.is_empty(), "no worker is left");
    Ok(awake[scene.chance.below(awake.len())].clone())
}

fn done(on: String) -> Done {
    Done { on, ..Done::default() }
}

pub(super) async fn freeze(scene: &mut Scene<'_>, time: Option<Duration>) -> anyhow::Result<Done> {
    let name = any(scene)?;
    let time = time.unwrap_or_else(|| scene.chance.between(FREEZE.0, FREEZE.1));
    scene.fleet.freeze(&name)?;
    sleep(time).await;
    scene.fleet.thaw(&name)?;
    Ok(done(name))
}

pub(super) fn kill(scene: &mut Scene<'_>) -> anyhow::Result<Done> {
    let name = any(scene)?;
    scene.fleet.kill(&name)?;
    Ok(done(name))
}

pub(super) fn drain(scene: &mut Scene<'_>) -> anyhow::Result<Done> {
    let name = any(scene)?;
    scene.fleet.drain(&name)?;
    Ok(done(name))
}

/// Drains every worker but `spared`, one after another, and starts each again under its
/// name.
pub(super) async fn rolling(scene: &mut Scene<'_>, spared: &[String]) -> anyhow::Result<Done> {
    for name in scene.fleet.awake(Role::Worker) {
        if spared.contains(&name) {
            continue;
        }
        scene.fleet.drain(&name)?;
        while !scene.fleet.has_left(&name) {
            sleep(TEND).await;
        }
        scene.fleet.start(Role::Worker, Some(name))?;
        sleep(APART).await;
    }
    Ok(done("all workers".to_owned()))
}

/// Freezes a worker, starts another one after a while, kills the first, and restarts the
/// rest one after another.
pub(super) async fn freeze_replace(scene: &mut Scene<'_>, after: Duration) -> anyhow::Result<Done> {
    let first = any(scene)?;
    scene.fleet.freeze(&first)?;
    sleep(after).await;
    let second = scene.fleet.start(Role::Worker, None).context("start the replacement")?;
    sleep(APART).await;
    scene.fleet.kill(&first)?;
    scene.say(&format!("{first} was frozen, replaced by {second} and killed"));
    sleep(APART * 2).await;
    rolling(scene, &[second]).await?;
    Ok(done(first))
}

/// Freezes one router after another, each while the one before is still frozen, and the
/// first one again in the end. Each is frozen for longer than the broker waits for it,
/// and each has become the active one by then.
pub(super) async fn freeze_routers(
    scene: &mut Scene<'_>,
    time: Option<Duration>,
) -> anyhow::Result<Done> {
    let routers = scene.fleet.awake(Role::Router);
    anyhow::ensure!(routers.len() > 1, "freeze-routers needs --routers 2 or more");
    // The broker gives a silent client up after two heartbeats, or three.
    let time = time.unwrap_or(scene.heartbeat * 4);
    let overlap = time / 5;
    let alone = time - overlap * 2;
    let mut before: Option<&String> = None;
    for name in routers.iter().chain(routers.first()) {
        scene.fleet.freeze(name)?;
        sleep(overlap).await;
        if let Some(before) = before.replace(name) {
            scene.fleet.thaw(before)?;
        }
        sleep(alone).await;
    }
    if let Some(last) = before {
        sleep(overlap).await;
        scene.fleet.thaw(last)?;
    }
    Ok(done(routers.join(", ")))
}
