//! How a namespace is, in one line: is work flowing, and if not, why?

use super::snapshot::{BrokerState, Flow, Stuck, StuckBecause, Totals, Verdict};

/// What it is judged by.
pub(super) struct Evidence<'a> {
    pub(super) broker: &'a BrokerState,
    pub(super) totals: &'a Totals,
    pub(super) stuck: &'a [Stuck],
    /// Workers that answer.
    pub(super) workers: usize,
    /// Resources whose task is to be tried again.
    pub(super) retrying: usize,
    /// Tasks that have run for more than half of their time.
    pub(super) late: usize,
    /// Why the handlers of some workers are out of reach.
    pub(super) unavailable: &'a [&'a str],
    /// Who has paused everything.
    pub(super) paused: Option<&'a str>,
}

/// So many partitions are named.
const NAMED: usize = 5;

impl Evidence<'_> {
    pub(super) fn verdict(&self) -> Verdict {
        let (state, text) = self.judge();
        Verdict { state, text }
    }

    fn judge(&self) -> (Flow, String) {
        let Self { broker, totals, stuck, workers, retrying, late, unavailable, paused } = self;
        if !broker.connected {
            let reason = broker.error.as_deref().unwrap_or("it does not answer");
            return (Flow::Lost, format!("The broker is out of reach: {reason}"));
        }
        let because = |why| stuck.iter().filter(move |stuck| stuck.why == why);
        let standing = because(StuckBecause::StandsStill).count();
        if standing > 0 {
            let (some, verb) =
                (counted(standing, "partition"), plural(standing, "stands", "stand"));
            let named = named(because(StuckBecause::StandsStill));
            let text = format!("{some} {verb} still, with tasks that no worker is handed: {named}");
            return (Flow::Stuck, text);
        }
        let unowned = because(StuckBecause::Unowned).count();
        if unowned > 0 {
            let tasks: u64 = because(StuckBecause::Unowned).map(|s| u64::from(s.ready)).sum();
            let text = format!(
                "{} in {} that nobody consumes: start workers (keylane work)",
                waiting(tasks),
                counted(unowned, "partition")
            );
            return (Flow::Stuck, text);
        }
        if totals.inbox > 0 && !totals.routed {
            let tasks = waiting(u64::from(totals.inbox));
            return (Flow::Stuck, format!("{tasks} in the inbox: start a router (keylane route)"));
        }
        if let Some(reason) = unavailable.first() {
            let workers = counted(unavailable.len(), "worker");
            let verb = plural(unavailable.len(), "reaches no handler", "reach no handler");
            return (Flow::Stuck, format!("{workers} {verb}: {reason}"));
        }
        if let Some(by) = paused {
            return (Flow::Waiting, format!("Everything is paused, by {by}"));
        }
        if *late > 0 && *late as u64 * 2 >= totals.slots {
            let slots = counted(totals.slots as usize, "slot");
            let text =
                format!("{late} of {slots} hang: their tasks have run for over half of their time");
            return (Flow::Stuck, text);
        }
        if totals.executed_per_s > 0.0 {
            let fleet = counted(*workers, "worker");
            let mut text = format!("{} on {fleet}", rate(totals.executed_per_s));
            if *late > 0 {
                let verb = plural(*late, "has", "have");
                text +=
                    &format!("; {} {verb} run for over half of their time", counted(*late, "task"));
            }
            return (Flow::Flowing, text);
        }
        if totals.running > 0 {
            let verb = plural(totals.running as usize, "runs", "run");
            let running = counted(totals.running as usize, "task");
            return (Flow::Waiting, format!("{running} {verb}, none has ended in the last 10 s"));
        }
        if *retrying > 0 && totals.unsettled > 0 {
            let resources = counted(*retrying, "resource");
            return (Flow::Waiting, format!("Another attempt is due on {resources}"));
        }
        if totals.ready + totals.unsettled > 0 {
            let text = waiting(totals.ready + totals.unsettled);
            return (Flow::Waiting, text);
        }
        if *workers == 0 {
            return (Flow::Idle, "Nothing to do, and no worker answers".to_owned());
        }
        (Flow::Idle, format!("Nothing to do; {} stand by", counted(*workers, "worker")))
    }
}

fn waiting(tasks: u64) -> String {
    format!("{} {}", counted(tasks as usize, "task"), plural(tasks as usize, "waits", "wait"))
}

fn counted(count: usize, noun: &str) -> String {
    let s = plural(count, "", "s");
    format!("{} {noun}{s}", grouped(count as u64))
}

fn plural<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

fn named<'a>(stuck: impl Iterator<Item = &'a Stuck>) -> String {
    let mut stuck = stuck.map(|stuck| stuck.partition.to_string());
    let names: Vec<_> = stuck.by_ref().take(NAMED).collect();
    let more = if stuck.next().is_some() { ", …" } else { "" };
    names.join(", ") + more
}

/// Tasks a second, as exact as it is of use.
pub(crate) fn rate(per_s: f64) -> String {
    match per_s {
        r if r >= 10.0 => format!("{} tasks/s", grouped(r.round() as u64)),
        r => format!("{r:.1} tasks/s"),
    }
}

/// 1234567 as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PartitionId;

    fn judged(change: impl FnOnce(&mut Totals, &mut Vec<Stuck>, &mut usize)) -> Verdict {
        let broker = BrokerState { connected: true, since_us: 0, error: None };
        let (mut totals, mut stuck, mut workers) = (Totals::default(), Vec::new(), 2);
        change(&mut totals, &mut stuck, &mut workers);
        let evidence = Evidence {
            broker: &broker,
            totals: &totals,
            stuck: &stuck,
            workers,
            retrying: 0,
            late: 0,
            unavailable: &[],
            paused: None,
        };
        evidence.verdict()
    }

    #[test]
    fn each_state_says_what_is_the_matter() {
        let stuck = |partition, why| Stuck {
            partition: PartitionId::new(partition),
            ready: 600,
            since_us: 0,
            why,
            reason: String::new(),
        };
        let (state, text) = {
            let v = judged(|_, all, _| {
                all.extend((0..7).map(|n| stuck(n, StuckBecause::StandsStill)));
                all.push(stuck(9, StuckBecause::Unowned));
            });
            (v.state, v.text)
        };
        assert_eq!(state, Flow::Stuck);
        assert_eq!(
            text,
            "7 partitions stand still, with tasks that no worker is handed: 0, 1, 2, 3, 4, …"
        );
        let v = judged(|_, all, _| {
            all.extend([stuck(1, StuckBecause::Unowned), stuck(2, StuckBecause::Unowned)])
        });
        assert!(
            v.text.starts_with("1,200 tasks wait in 2 partitions that nobody consumes"),
            "{v:?}"
        );
        let v = judged(|totals, _, _| totals.inbox = 1);
        assert!(v.state == Flow::Stuck && v.text.contains("1 task waits in the inbox"), "{v:?}");
        let v = judged(|totals, _, _| totals.executed_per_s = 1234.4);
        assert_eq!((v.state, v.text.as_str()), (Flow::Flowing, "1,234 tasks/s on 2 workers"));
        let v = judged(|totals, _, _| totals.running = 1);
        assert!(v.state == Flow::Waiting && v.text.starts_with("1 task runs, none"), "{v:?}");
        assert_eq!(judged(|_, _, _| ()).state, Flow::Idle);
        assert!(judged(|_, _, workers| *workers = 0).text.contains("no worker"));
    }

    #[test]
    fn slots_that_hang_are_not_called_a_flow() {
        let broker = BrokerState { connected: true, since_us: 0, error: None };
        let totals = Totals { executed_per_s: 5.0, running: 8, slots: 8, ..Totals::default() };
        let of = |late| {
            let (stuck, retrying, paused) = (&[][..], 0, None);
            Evidence {
                broker: &broker,
                totals: &totals,
                stuck,
                workers: 1,
                retrying,
                late,
                unavailable: &[],
                paused,
            }
            .verdict()
        };
        assert_eq!((of(0).state, of(0).text.as_str()), (Flow::Flowing, "5.0 tasks/s on 1 worker"));
        assert!(
            of(1).state == Flow::Flowing && of(1).text.contains("1 task has run"),
            "{:?}",
            of(1)
        );
        assert!(
            of(4).state == Flow::Stuck && of(4).text.starts_with("4 of 8 slots"),
            "{:?}",
            of(4)
        );
    }

    #[test]
    fn handlers_that_are_out_of_reach_are_told_with_the_reason() {
        let broker = BrokerState { connected: true, since_us: 0, error: None };
        let totals = Totals { running: 1, ..Totals::default() };
        let evidence = Evidence {
            broker: &broker,
            totals: &totals,
            stuck: &[],
            workers: 3,
            retrying: 0,
            late: 0,
            unavailable: &["nobody listens", "no such file"],
            paused: None,
        };
        let Verdict { state, text } = evidence.verdict();
        assert_eq!(state, Flow::Stuck);
        assert_eq!(text, "2 workers reach no handler: nobody listens");
    }

    #[test]
    fn a_lost_broker_comes_first() {
        let broker = BrokerState { connected: false, since_us: 0, error: Some("gone".to_owned()) };
        let totals = Totals { executed_per_s: 5.0, ..Totals::default() };
        let evidence = Evidence {
            broker: &broker,
            totals: &totals,
            stuck: &[],
            workers: 1,
            retrying: 0,
            late: 0,
            unavailable: &["nobody listens"],
            paused: None,
        };
        assert_eq!(evidence.verdict().text, "The broker is out of reach: gone");
        assert_eq!(evidence.verdict().state, Flow::Lost);
    }
}
