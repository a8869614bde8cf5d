//! What [`Checker`] finds: nothing in random runs of a correct fleet, and in a
//! run with one fault just that fault. Histories are random by a seed, which
//! every failure prints.

mod fleet;

use std::collections::BTreeMap;
use std::mem;

use proptest::prelude::*;

use self::fleet::{Dice, History, RESOURCES, at_once, correct, ending, execution, process, task};
use super::*;

/// A run with a fault that `seed_fault` seeds: it finds a place for it, or says
/// that this run has none. Checks that most runs have one.
fn with_fault(
    mut seed_fault: impl FnMut(&mut Dice, &mut History) -> Option<fn(&Violation) -> bool>,
) {
    let mut seeded = 0;
    for seed in 0..200 {
        let mut history = correct(seed);
        let Some(is_expected) = seed_fault(&mut Dice(!seed), &mut history) else { continue };
        seeded += 1;
        let fault = history.fault();
        assert!(is_expected(&fault), "seed {seed}: {fault}");
    }
    assert!(seeded >= 100, "the fault fitted into {seeded} of 200 runs only");
}

/// Starts a task on the same resource while one runs there.
fn seed_overlap(dice: &mut Dice, history: &mut History, zombie: bool) -> (Execution, Execution) {
    let spans = history.spans();
    let (start, stop) = spans[dice.below(spans.len())];
    let running = history.start(start).clone();
    let at = start + 1 + dice.below(stop - start);
    let mut intruder = Execution {
        process: process(9, 0),
        at_us: history.events[at - 1].at_us(),
        ..running.clone()
    };
    if zombie {
        intruder.redelivered = true;
    } else {
        (intruder.task, intruder.sequence) = (task("intruder"), None);
    }
    let mut events = at_once(intruder.clone());
    if zombie && let Event::Ended(end) = &mut events[1] {
        end.outcome = Outcome::Aborted;
    }
    history.insert(at, events);
    (running, intruder)
}

#[test]
fn an_overlap_is_found() {
    with_fault(|dice, history| {
        seed_overlap(dice, history, false);
        Some(|v| matches!(v, Violation::Overlap { .. }))
    });
}

#[test]
fn a_task_that_overlaps_itself_is_found() {
    with_fault(|dice, history| {
        seed_overlap(dice, history, true);
        Some(|v| matches!(v, Violation::Overlap { .. }))
    });
}

#[test]
fn a_hand_over_that_comes_too_early_is_found() {
    with_fault(|dice, history| {
        let spans = history.spans();
        let early: Vec<_> = spans
            .iter()
            .filter_map(|&(start, stop)| {
                let (first, end) = (history.start(start), &history.events[stop]);
                let next = spans
                    .iter()
                    .find(|(s, _)| *s > stop && history.start(*s).resource == first.resource)?;
                // Only an end can be late, and the slot must not be in use again.
                let reuses =
                    |e: &Event| matches!(e, Event::Started(s) if s.process == first.process);
                let is_end = matches!(end, Event::Ended(_));
                let lost = |e: &Event| matches!(e, Event::WorkerLost { .. });
                let between = &history.events[stop..=next.0];
                let fits = is_end && !between.iter().any(|e| reuses(e) || lost(e));
                fits.then_some((stop, next.0))
            })
            .collect();
        let (stop, next) = early[dice.pick(&early)?];
        // The later start sees the task as not executed: it must be another one.
        if history.end(stop).task == history.start(next).task {
            return None;
        }
        history.events[stop..=next].rotate_left(1);
        Some(|v| matches!(v, Violation::Overlap { .. }))
    });
}

#[test]
fn a_busy_process_is_found() {
    with_fault(|dice, history| {
        let spans = history.spans();
        let (start, stop) = spans[dice.below(spans.len())];
        let at = start + 1 + dice.below(stop - start);
        let busy = history.start(start).process.clone();
        history.insert(at, at_once(execution("second", "elsewhere", busy, 0)));
        Some(|v| matches!(v, Violation::ProcessBusy { .. }))
    });
}

#[test]
fn a_needless_second_execution_is_found() {
    with_fault(|dice, history| {
        let ends = history.ends_with(Outcome::Executed);
        let at = ends[dice.pick(&ends)?];
        let end = history.end(at).clone();
        let again = Execution {
            task: end.task,
            ..execution("again", end.resource.as_str(), process(9, 0), end.at_us)
        };
        history.insert(at + 1, at_once(again));
        Some(|v| matches!(v, Violation::AlreadyExecuted { .. }))
    });
}

#[test]
fn an_end_without_a_start_is_found() {
    with_fault(|dice, history| {
        let ends: Vec<_> = (0..history.events.len())
            .filter(|&i| matches!(history.events[i], Event::Ended(_)))
            .collect();
        let at = ends[dice.pick(&ends)?];
        history.insert(at + 1, [history.events[at].clone()]);
        Some(|v| matches!(v, Violation::EndWithoutStart(_)))
    });
}

#[test]
fn a_start_that_was_not_recorded_is_found() {
    with_fault(|dice, history| {
        let spans = history.spans();
        let ended = |&(_, stop): &(usize, usize)| matches!(history.events[stop], Event::Ended(_));
        let spans: Vec<_> = spans.into_iter().filter(ended).collect();
        history.events.remove(spans[dice.pick(&spans)?].0);
        Some(|v| matches!(v, Violation::EndWithoutStart(_)))
    });
}

#[test]
fn swapped_tasks_are_found() {
    with_fault(|dice, history| {
        let mut firsts: BTreeMap<_, Vec<&Execution>> = BTreeMap::new();
        for (start, _) in history.spans() {
            let e = history.start(start);
            let line = firsts.entry((&e.resource, &e.producer)).or_default();
            if line.iter().all(|known| known.task != e.task) {
                line.push(e);
            }
        }
        let pairs: Vec<_> = firsts.values().flat_map(|line| line.windows(2)).collect();
        let pair = pairs[dice.pick(&pairs)?];
        let (a, b) = (pair[0].clone(), pair[1].clone());
        for event in &mut history.events {
            if let Event::Started(e) = event {
                if e.task == a.task {
                    e.sequence = b.sequence;
                } else if e.task == b.task {
                    e.sequence = a.sequence;
                }
            }
        }
        Some(|v| matches!(v, Violation::OutOfOrder { .. }))
    });
}

#[test]
fn a_retry_that_is_overtaken_is_found() {
    with_fault(|dice, history| {
        let ends = history.ends_with(Outcome::Failed);
        let at = ends[dice.pick(&ends)?];
        let failed = history.end(at).task.clone();
        let is_it = |e: &&Event| matches!(e, Event::Started(s) if s.task == failed);
        let Some(Event::Started(first)) = history.events.iter().find(is_it) else { return None };
        if history.events[..at].iter().any(|e| {
            matches!(e, Event::Ended(end) if end.task == failed && matches!(end.outcome, Outcome::Executed | Outcome::DeadLettered))
        }) {
            return None;
        }
        let overtaking = Execution {
            task: task("overtaking"),
            sequence: first.sequence.map(|s| s + 1),
            process: process(9, 0),
            ..first.clone()
        };
        history.insert(at + 1, at_once(overtaking));
        Some(|v| matches!(v, Violation::OutOfOrder { .. }))
    });
}

#[test]
fn an_unfinished_task_is_found() {
    with_fault(|_, history| {
        let last = history.events.iter().rposition(|e| matches!(e, Event::Ended(_)))?;
        let lost = |e: &Event| matches!(e, Event::WorkerLost { .. });
        if history.events[last..].iter().any(lost) {
            return None;
        }
        history.events.remove(last);
        Some(|v| matches!(v, Violation::Unfinished { .. }))
    });
}

#[test]
fn a_task_that_never_ran_is_missing() {
    with_fault(|dice, history| {
        let gone = history.published[dice.below(history.published.len())].clone();
        history.events.retain(|event| match event {
            Event::Started(e) => e.task != gone,
            Event::Ended(e) => e.task != gone,
            Event::WorkerLost { .. } => true,
        });
        let unknown = history.check_against(None);
        assert!(unknown.is_clean(), "nobody said that it was published: {unknown}");
        let count = Published::Count(history.published.len() as u64);
        let counted = history.check_against(Some(count)).violations;
        assert!(matches!(counted[..], [Violation::MissingCount { missing: 1, .. }]), "{counted:?}");
        Some(|v| matches!(v, Violation::Missing { .. }))
    });
}

#[test]
fn a_task_that_only_failed_is_missing() {
    let failed = execution("t", "r", process(1, 0), 5);
    let end = ending(&failed, 6, Outcome::Failed);
    let events = vec![Event::Started(failed), Event::Ended(end)];
    let history = History { events, published: vec![task("t")] };
    assert_eq!(history.fault(), Violation::Missing { task: task("t") });
}

#[test]
fn random_runs_contain_everything_that_may_happen() {
    let mut all = Report::default();
    for seed in 0..100 {
        let report = correct(seed).check();
        assert!(report.is_clean(), "seed {seed}: {report}");
        assert_eq!(report.resources, RESOURCES as u64);
        all.executions += report.executions;
        all.repeated += report.repeated;
        all.failed += report.failed;
        all.aborted += report.aborted;
        all.lost += report.lost;
        all.executed += report.executed;
        all.dead_lettered += report.dead_lettered;
    }
    let counts = [all.repeated, all.failed, all.aborted, all.lost, all.dead_lettered];
    assert!(counts.iter().all(|&count| count >= 100), "{all}");
}

#[test]
fn a_lost_worker_leaves_its_slots_and_resources_to_others() {
    let mut checker = Checker::default();
    let first = execution("t", "r", process(1, 0), 5);
    let second = Execution { redelivered: true, at_us: 7, ..first.clone() };
    checker.observe(&Event::Started(first));
    checker.observe(&Event::WorkerLost { worker: process(1, 0).worker, at_us: 6 });
    at_once(second).iter().for_each(|event| checker.observe(event));
    let report = checker.finish(Some(Published::Tasks(&[task("t")])));
    assert!(report.is_clean(), "{report}");
    let Report { executions, executed, repeated, lost, .. } = report;
    assert_eq!((executions, executed, repeated, lost), (2, 1, 0, 1));
}

#[test]
fn a_process_must_end_what_it_executes() {
    let [started, other] = ["t", "u"].map(|name| execution(name, "r", process(1, 0), 5));
    let [end, wrong] = [&started, &other].map(|e| ending(e, 6, Outcome::Failed));
    let events = vec![Event::Started(started), Event::Ended(wrong.clone()), Event::Ended(end)];
    let report = History { events, published: Vec::new() }.check_against(None);
    assert_eq!(report.violations, [Violation::EndWithoutStart(wrong)]);
}

#[test]
fn an_executed_task_stays_executed() {
    let first = execution("t", "r", process(1, 0), 5);
    let second = Execution { redelivered: true, ..first.clone() };
    let dead = ending(&second, 7, Outcome::DeadLettered);
    let mut events = at_once(first).to_vec();
    events.extend([Event::Started(second.clone()), Event::Ended(dead)]);
    let mut history = History { events, published: vec![task("t")] };
    let Report { executed, repeated, dead_lettered, .. } = history.check();
    assert_eq!((executed, repeated, dead_lettered), (1, 1, 0));

    history.events.push(Event::Started(second.clone()));
    assert_eq!(history.fault(), Violation::Unfinished { started: second.into() });
    history.published.push(task("never"));
    assert_eq!(history.check().violation_count, 2, "the repetition hides no missing task");
}

#[test]
fn a_worker_without_slots_is_never_busy() {
    let whole = Process { slot: None, ..process(1, 0) };
    let mut history = History { events: Vec::new(), published: Vec::new() };
    for resource in ["r", "s"] {
        let started = execution(resource, resource, whole.clone(), 5);
        history.insert(0, [Event::Started(started.clone())]);
        history.events.push(Event::Ended(ending(&started, 9, Outcome::Executed)));
    }
    assert!(history.check().is_clean());
}

#[test]
fn only_the_first_violations_are_kept() {
    let orphan = ending(&execution("t", "r", process(1, 0), 5), 6, Outcome::Failed);
    let events = vec![Event::Ended(orphan); Report::KEPT_VIOLATIONS + 20];
    let report = History { events, published: Vec::new() }.check();
    assert_eq!(report.violations.len(), Report::KEPT_VIOLATIONS);
    assert_eq!(report.violation_count, Report::KEPT_VIOLATIONS as u64 + 20);
    assert!(report.to_string().ends_with("- and 20 more"), "{report}");
}

#[test]
fn a_violation_shows_both_executions() {
    let running = execution("t-1", "konto/7", process(1, 0), 1_700_000_000_000_250);
    let sequence = Some(4);
    let started =
        Execution { sequence, ..execution("t-2", "konto/7", process(2, 3), 1_700_000_000_500_000) };
    let overlap = Violation::Overlap { running: running.into(), started: started.into() };
    assert_eq!(
        overlap.to_string(),
        "overlap on resource konto/7: task t-1 on worker-1/0 from 22:13:20.000250Z (attempt 1)\n  \
         was still running at the start of task t-2 on worker-2/3 from 22:13:20.500000Z \
         (attempt 1, sequence 4)"
    );
}

#[test]
fn who_came_too_early_and_who_too_late_is_named() {
    let nth = |sequence: u64| Execution {
        sequence: Some(sequence),
        ..execution(&format!("t-{sequence}"), "r", process(1, 0), sequence)
    };
    let events = [1, 3, 2, 4].map(|sequence| at_once(nth(sequence))).concat();
    let history = History { events, published: [1, 2, 3, 4].map(|s| nth(s).task).to_vec() };
    let (earlier, overtaken) = (nth(3).into(), nth(2).into());
    assert_eq!(history.fault(), Violation::OutOfOrder { earlier, overtaken });
}

#[test]
fn two_tasks_of_one_position_are_out_of_order() {
    let first = Execution { sequence: Some(1), ..execution("t", "r", process(1, 0), 5) };
    let twin = Execution { task: task("twin"), ..first.clone() };
    let other = Execution { task: task("u"), producer: Some("p".to_owned()), ..first.clone() };
    let published = [&first, &other].map(|e| e.task.clone()).to_vec();
    let mut history = History { events: [at_once(first), at_once(other)].concat(), published };
    assert!(history.check().is_clean(), "producers are ordered apart");
    history.events.extend(at_once(twin));
    assert!(matches!(history.fault(), Violation::OutOfOrder { .. }));
}

#[test]
fn events_are_flat_json() {
    let started = Execution {
        sequence: Some(4),
        producer: Some("p".to_owned()),
        ..execution("t", "r", process(1, 0), 5)
    };
    let lost = Event::WorkerLost { worker: process(1, 0).worker, at_us: 7 };
    let ended = Event::Ended(ending(&started, 6, Outcome::DeadLettered));
    for (event, json) in [
        (
            Event::Started(started),
            r#"{"event":"started","task":"t","resource":"r","worker":"worker-1","slot":0,"partition":0,"attempt":1,"at_us":5,"producer":"p","sequence":4,"redelivered":false}"#,
        ),
        (
            ended,
            r#"{"event":"ended","task":"t","resource":"r","worker":"worker-1","slot":0,"at_us":6,"outcome":"dead_lettered"}"#,
        ),
        (lost, r#"{"event":"worker_lost","worker":"worker-1","at_us":7}"#),
    ] {
        assert_eq!(serde_json::to_string(&event).expect("JSON"), json);
        assert_eq!(serde_json::from_str::<Event>(json).expect("an event"), event);
    }
    let sparse = r#"{"event":"started","task":"t","resource":"r","worker":"w","partition":0,"attempt":1,"at_us":5}"#;
    assert!(serde_json::from_str::<Event>(sparse).is_ok(), "what is optional may be absent");
}

/// Whether two executions on one resource touch in time, found pair by pair.
fn overlaps(history: &History) -> bool {
    let spans = history.spans();
    spans.iter().any(|&(a, a_end)| {
        let same = |b: usize| history.start(a).resource == history.start(b).resource;
        spans.iter().any(|&(b, _)| a < b && b < a_end && same(b))
    })
}

proptest! {
    #[test]
    fn a_correct_run_has_no_violation(seed: u64) {
        let report = correct(seed).check();
        prop_assert!(report.is_clean(), "{report}");
    }

    #[test]
    fn an_overlap_is_always_found_and_named(seed: u64, zombie: bool) {
        let mut history = correct(seed);
        let (running, started) = seed_overlap(&mut Dice(!seed), &mut history, zombie);
        let (running, started) = (running.into(), started.into());
        prop_assert_eq!(history.fault(), Violation::Overlap { running, started });
    }

    #[test]
    fn a_moved_start_overlaps_just_when_pairs_say_so(seed: u64) {
        let mut history = correct(seed);
        let dice = &mut Dice(!seed);
        let spans = history.spans();
        let start = spans[dice.below(spans.len())].0;
        history.events[start - dice.below(start + 1)..=start].rotate_right(1);
        let found = history.check_against(None).violations;
        let found = found.iter().any(|v| matches!(v, Violation::Overlap { .. }));
        prop_assert_eq!(found, overlaps(&history));
    }

    #[test]
    fn any_sequence_of_events_is_taken(seed: u64) {
        let mut history = correct(seed);
        let dice = &mut Dice(!seed);
        for i in 0..history.events.len() {
            let j = dice.below(history.events.len());
            history.events.swap(i, j);
        }
        let mut events = mem::take(&mut history.events);
        events.truncate(dice.below(events.len() + 1));
        history.events = events;
        let report = history.check_against(None);
        prop_assert!(report.violations.len() as u64 <= report.violation_count);
    }
}
