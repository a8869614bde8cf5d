//! The report, for people to read.

use super::Report;
use crate::cli::progress::grouped;

pub(super) fn print(report: &Report) {
    if let Some(t) = &report.throughput {
        out!("throughput, {} rounds of {} tasks, medians", t.rounds, grouped(t.tasks));
        out!("  keylane                {:>9.0} tasks/s", t.keylane);
        out!(
            "  without its journal    {:>9.0} tasks/s   with it is {:.2} of it",
            t.no_journal,
            t.ratio_journal
        );
        out!(
            "  with metrics read      {:>9.0} tasks/s   it is {:.2} of keylane",
            t.metrics,
            t.ratio_metrics
        );
        out!(
            "  raw, an ack each       {:>9.0} tasks/s   keylane is {:.2} of it",
            t.raw_single,
            t.ratio_single
        );
        out!(
            "  raw, coalesced acks    {:>9.0} tasks/s   keylane is {:.2} of it",
            t.raw_coalesced,
            t.ratio_coalesced
        );
    }
    if let Some(l) = &report.latency_ms {
        out!("latency at 200 tasks/s, publish call to handler start");
        out!(
            "  keylane                p50 {:>6.2} ms   p99 {:>6.2} ms",
            l.keylane.p50,
            l.keylane.p99
        );
        out!("  raw                    p50 {:>6.2} ms   p99 {:>6.2} ms", l.raw.p50, l.raw.p99);
    }
    if let Some(f) = &report.failover_ms {
        let line = |who: &str, ms: f64, load: &str| out!("  {who:<22} {ms:>6.0} ms   ({load})");
        out!(
            "failover of one of three workers, tasks of {} ms, until its last partition executes \
             elsewhere",
            f.task_ms
        );
        line("killed", f.kill, "steady load");
        line("killed", f.kill_prefetched, "all windows full");
        line("stopped", f.stop, "steady load, the window of one of its partitions full");
        line("stopped", f.stop_prefetched, "all windows full");
        line("joined", f.join, "all windows full");
    }
    if let Some(m) = &report.memory_mb {
        out!("memory over {} tasks, peak (growth after the first tenth)", grouped(m.tasks));
        out!(
            "  publisher              {:>6.1} MB   ({:+.1} MB)",
            m.publisher_peak,
            m.publisher_growth
        );
        out!("  worker                 {:>6.1} MB   ({:+.1} MB)", m.worker_peak, m.worker_growth);
    }
    if let Some(b) = &report.balance {
        out!("balance, partitions of each worker");
        for c in &b.counts {
            out!(
                "  {:>2} workers             {:>3} to {} (aim {})",
                c.workers,
                c.fewest,
                c.most,
                c.limit
            );
        }
        let b = &b.busy;
        out!(
            "busy time of {} workers over the last of four half minutes of an uneven load, by its mean",
            b.workers
        );
        out!(
            "  busiest                {:>6.2}   (aim 1.25; the hottest partition alone {:.2}, shared by count {:.2})",
            b.busiest,
            b.bound,
            b.unlevelled
        );
        out!(
            "  least busy             {:>6.2}   (all together {:.1} handlers)",
            b.least,
            b.handlers
        );
        out!("  partitions moved       {:?}", b.moved);
    }
    if let Some(s) = &report.scale {
        out!("scale, {} workers on {} partitions", s.workers, grouped(s.partitions as u64));
        out!("  owned as planned       {:>6.1} s", s.owned_s);
        out!("  standbys in line       {:>6.1} s", s.stood_by_s);
        if let (Some(consumers), Some(before), Some(after)) =
            (s.consumers, s.broker_mb, s.broker_owned_mb)
        {
            out!("  consumers              {:>6}", grouped(consumers));
            out!("  memory of the broker   {after:>6.0} MB  ({before:.0} MB without workers)");
        }
        out!(
            "  one killed             {:>6.2} s   until its {} partitions execute again",
            s.executed_again_s,
            s.lost
        );
        out!(
            "                         {:>6.1} s   until all are owned as planned without it",
            s.planned_again_s
        );
        let p = &s.plan_ms;
        out!(
            "plan for 1,000 workers on 16,384 partitions, ms: first {:.1}, unchanged {:.1}, one leaves {:.1}, by load {:.1}",
            p.first,
            p.unchanged,
            p.one_leaves,
            p.levelled
        );
    }
    out!("violations               {:>6}", report.violations);
}
