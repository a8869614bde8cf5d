//! A fleet that comes and goes: several faults of workers and routers at once.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Done;
use super::workers::FREEZE;
use crate::cli::soak::fleet::Role;
use crate::cli::soak::scene::Scene;

/// How long it goes on.
const CHURN: Duration = Duration::from_secs(60);

/// Between two events.
const APART: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(2_500));

/// Freezes, kills, drains and starts workers, and routers, at random. One of each always
/// goes on.
pub(super) async fn churn(scene: &mut Scene<'_>, time: Option<Duration>) -> anyhow::Result<Done> {
    let end = Instant::now() + time.unwrap_or(CHURN);
    let mut thaws: Vec<(Instant, String)> = Vec::new();
    let mut gone: Vec<String> = Vec::new();
    let [mut frozen, mut killed, mut drained, mut started] = [0; 4];
    while Instant::now() < end {
        sleep_until(Instant::now() + scene.chance.between(APART.0, APART.1)).await;
        let now = Instant::now();
        for (_, name) in thaws.extract_if(.., |(at, _)| *at <= now) {
            scene.fleet.thaw(&name)?;
        }
        let is_router = scene.routers > 0 && scene.chance.below(4) == 0;
        let (role, usual) =
            if is_router { (Role::Router, scene.routers) } else { (Role::Worker, scene.workers) };
        let awake = scene.fleet.awake(role);
        // A frozen worker may be killed as well as any other.
        let asleep = scene.fleet.frozen();
        let victim = match awake.as_slice() {
            [] | [_] => None,
            awake => Some(awake[scene.chance.below(awake.len())].clone()),
        };
        match (victim, scene.chance.below(4)) {
            (Some(name), 0) => {
                scene.fleet.freeze(&name)?;
                let time = scene.chance.between(FREEZE.0, FREEZE.1);
                thaws.push((now + time, name));
                frozen += 1;
            }
            (victim, 1) if !asleep.is_empty() || victim.is_some() => {
                let of = asleep.into_iter().chain(victim).collect::<Vec<_>>();
                let name = of[scene.chance.below(of.len())].clone();
                scene.fleet.kill(&name)?;
                gone.push(name);
                killed += 1;
            }
            (Some(name), 2) => {
                scene.fleet.drain(&name)?;
                gone.push(name);
                drained += 1;
            }
            _ if awake.len() < usual * 2 => {
                // Under a new name, or under one that was there before.
                let again = gone.iter().position(|name| {
                    name.starts_with("router") == is_router && scene.fleet.has_left(name)
                });
                let name = again.filter(|_| scene.chance.below(2) == 0);
                let name = name.map(|index| gone.swap_remove(index));
                scene.fleet.start(role, name)?;
                started += 1;
            }
            _ => {}
        }
        scene.show(&format!(
            "churn: {frozen} frozen, {killed} killed, {drained} drained, {started} started"
        ));
    }
    let on = format!("{frozen} frozen, {killed} killed, {drained} drained, {started} started");
    Ok(Done { on, ..Done::default() })
}
