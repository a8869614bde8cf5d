//! `keylane verify`

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::Broker;
use super::progress::bar;
use super::signals::{INTERRUPTED, until_signalled};
use super::since::{Since, time};
use super::work::parse_duration;
use crate::protocol::journal::{Audit, AuditReport, Batch, Finding};
use crate::{JournalReader, KEPT_FINDINGS, Resource};

/// Check what was executed against the rules: one at a time, in order, once
///
/// Reads the journal, and exits with 1 if anything in it breaks a rule.
#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    /// From then on: so long ago (`2h`), or at a UTC time [default: all that is kept]
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    /// Check this resource only
    #[arg(long)]
    resource: Option<Resource>,
    /// Go on with what is executed from now on, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// By how much the clocks of two workers may differ: shorter overlaps between
    /// different workers are none
    #[arg(long, default_value = "0", value_parser = parse_duration, value_name = "TIME")]
    clock_skew: Duration,
    /// Print one JSON object: the sums, and what is wrong. With --follow, one line
    /// for each thing that is wrong, and the sums at the end
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Verified<'a> {
    report: &'a AuditReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    findings: Option<&'a [Finding]>,
}

impl Verify {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        until_signalled("adding up", async |shutdown| {
            let since = self.since.map(|since| since.0);
            let mut journal = JournalReader::open(&broker.connect()?, since).await?;
            let mut audit = Audit::new(self.clock_skew);
            let mut kept = Vec::new();
            let (first, last) = journal.progress();
            let progress = bar(
                Some(last.saturating_sub(first)),
                "{bar:30.cyan} {pos} of {len} batches {elapsed}",
            );
            let reading = async {
                let mut begun = None;
                while let Some(batch) = journal.next_before_end().await? {
                    let (offset, last) = journal.progress();
                    let begun = *begun.get_or_insert(offset);
                    progress.set_length(last.saturating_sub(begun));
                    progress.set_position(offset.saturating_sub(begun));
                    self.note(&mut audit, batch, &mut kept)?;
                }
                progress.finish_and_clear();
                if !self.follow {
                    return anyhow::Ok(());
                }
                loop {
                    let batch = journal.next().await?;
                    self.note(&mut audit, batch, &mut kept)?;
                }
            };
            let read = tokio::select! {
                read = reading => read.map(|()| true)?,
                () = shutdown.cancelled() => false,
            };
            progress.finish_and_clear();
            let (offset, last) = journal.progress();
            journal.close().await;
            let verdict = self.conclude(&audit.report(), &kept)?;
            if !read && offset < last {
                eprintln!("keylane: interrupted before the end: what follows was not checked");
                return Ok(ExitCode::from(INTERRUPTED));
            }
            Ok(verdict)
        })
        .await
    }

    fn note(
        &self,
        audit: &mut Audit,
        mut batch: Batch,
        kept: &mut Vec<Finding>,
    ) -> anyhow::Result<()> {
        if let Some(resource) = &self.resource {
            batch.records.retain(|record| record.resource == *resource);
        }
        for finding in audit.note(batch) {
            if self.json && self.follow {
                out!("{}", serde_json::to_string(&finding)?);
            } else if self.follow {
                out!("{finding}");
            } else if kept.len() < KEPT_FINDINGS {
                kept.push(finding);
            }
        }
        Ok(())
    }

    fn conclude(&self, report: &AuditReport, kept: &[Finding]) -> anyhow::Result<ExitCode> {
        if self.json {
            let findings = (!self.follow).then_some(kept);
            out!("{}", serde_json::to_string(&Verified { report, findings })?);
        } else {
            for finding in kept {
                out!("{finding}");
            }
            if kept.len() as u64 == KEPT_FINDINGS as u64 {
                out!("only the first {KEPT_FINDINGS} are shown");
            }
            if report.executions > 0 {
                out!("from {} to {}", time(report.from_us), time(report.to_us));
            }
            out!("{report}");
            if kept.iter().any(of_clocks) {
                eprintln!(
                    "keylane: short overlaps between different workers may come from their clocks: \
                     see --clock-skew"
                );
            }
        }
        Ok(if report.findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Clocks that are kept by NTP differ by less.
const SHORT_OVERLAP_US: u64 = 100_000;

fn of_clocks(finding: &Finding) -> bool {
    match finding {
        Finding::Overlap { overlap_us, first, second } => {
            first.worker != second.worker && *overlap_us < SHORT_OVERLAP_US
        }
        _ => false,
    }
}
