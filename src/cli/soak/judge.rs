//! The verdict: what was executed, what was given up, and what the journal says.

use std::collections::BTreeSet;
use std::time::Duration;

use super::excuses::{BRIEF, Excuse, Span};
use super::finale::Finale;
use super::load::Published;
use super::payload::Payload;
use super::report::{FaultReport, Poison, Report};
use super::scene::Scene;
use crate::DeadLetters;
use crate::protocol::journal::{Entry, Finding};
use crate::provision::cluster::Setup;

/// Reads what is left, and makes the report.
pub(super) async fn judge(
    scene: &Scene<'_>,
    (seed, setup): (u64, Setup),
    faults: Vec<FaultReport>,
    published: Published,
    finale: Finale,
) -> anyhow::Result<Report> {
    let mut lost = Vec::new();
    for (resource, confirmed) in &published.confirmed {
        let executed = scene.truth.executed(resource.as_str())?;
        if executed < *confirmed {
            lost.push(format!("{resource}: {executed} of {confirmed} executed"));
        }
    }
    scene.say("reading the dead letters");
    let (poison, dead) = dead_letters(scene).await?;
    scene.say("verifying the journal");
    let (journal, mut findings) = crate::verify(&scene.connect, None, Duration::ZERO).await?;
    let all = findings.len();
    let freezes = scene.fleet.freezes()?;
    let closings = Excuse::Closing.spans(&scene.directory)?;
    findings.retain(|finding| !is_excused(finding, scene.heartbeat, &freezes, &closings));
    Ok(Report {
        seed,
        nodes: setup.nodes,
        version: setup.version.to_string(),
        net_ticktime_s: setup.waits.net_ticktime.as_secs(),
        consumer_disconnected_s: setup.waits.consumer_disconnected.as_secs(),
        heartbeat_s: scene.heartbeat.as_secs(),
        partitions: scene.topology.partitions.get(),
        faults,
        tasks: published.total(),
        republished: published.republished,
        refused: published.refused,
        counts: scene.watch.counts(),
        starts: scene.fleet.starts(),
        workers: scene.watch.ends(),
        failures: scene.fleet.failures(),
        violations: scene.truth.violations()?,
        taken_over: scene.truth.taken_over()?,
        waited: scene.truth.waited()?,
        finale,
        lost,
        poison,
        dead,
        journal,
        excused: all - findings.len(),
        findings,
    })
}

/// Whether an overlap in the journal has one of the [excuses](super::excuses).
fn is_excused(
    finding: &Finding,
    heartbeat: Duration,
    freezes: &[(String, Vec<Span>)],
    closings: &[Span],
) -> bool {
    let Finding::Overlap { overlap_us, first, second } = finding else { return false };
    let was_frozen = |Entry { worker, record }: &Entry| {
        let until_us = record.at_us + record.took_us;
        let of = freezes.iter().filter(|(name, _)| name == worker.as_str());
        let mut spans = of.flat_map(|(_, spans)| spans);
        spans.any(|span| span.within(record.at_us, until_us) >= heartbeat)
    };
    let began_us = first.record.at_us.max(second.record.at_us);
    let closed = closings.iter().any(|span| span.is_about(began_us));
    was_frozen(first) || was_frozen(second) || (closed && *overlap_us <= BRIEF.as_micros() as u64)
}

/// Poison and other dead letters, which are left where they are.
async fn dead_letters(scene: &Scene<'_>) -> anyhow::Result<(Poison, Vec<String>)> {
    let mut letters = DeadLetters::open(&scene.connect).await?;
    let mut poison = BTreeSet::new();
    let mut others = Vec::new();
    while let Some(letter) = letters.next().await? {
        match Payload::read(&letter.payload) {
            Some(Payload::Poison(number)) => drop(poison.insert(number)),
            _ => {
                let resource = letter.resource.as_deref().unwrap_or("no resource");
                let payload = String::from_utf8_lossy(&letter.payload);
                others.push(format!("{resource}/{payload}: {}", letter.reason));
            }
        }
    }
    letters.close().await;
    let (published, crashes) = (scene.poison, scene.fleet.crashes());
    Ok((Poison { published, dead: poison.len() as u64, crashes }, others))
}
