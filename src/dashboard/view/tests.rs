use super::super::sample;
use super::super::snapshot::Flow;
use super::*;
use crate::protocol::ownership::Weight;
use crate::protocol::partition::{PartitionCount, PartitionId};
use crate::rabbit::control::{HeldPartition, RecentLoad};

const S: u64 = 1_000_000;

fn view(partitions: u32) -> View {
    let count = PartitionCount::new(partitions).expect("a count");
    View::new(&Namespace::default(), Topology::first(count), 0)
}

fn counts(ready: &[u32], consumers: u32) -> Counts {
    let partitions = ready.iter().map(|ready| Count::known(*ready, consumers)).collect();
    Counts { partitions, inbox: Count::default(), dead: Count::default() }
}

fn report(name: &str, executed: u64, held: &[u32]) -> WorkerReport {
    WorkerReport {
        worker: WorkerId::new(name).expect("a name"),
        weight: Weight::ONE,
        slots: 4,
        uptime_ms: 1,
        executed,
        failed: 0,
        dead_lettered: 0,
        busy: 0,
        recent: RecentLoad::default(),
        hot: Vec::new(),
        longest: Vec::new(),
        crowded: Vec::new(),
        plan: None,
        unavailable: None,
        line: Vec::new(),
        partitions: held.iter().map(|number| HeldPartition::new(*number, 2, 1)).collect(),
    }
}

#[test]
fn a_change_of_owner_is_seen_once() {
    let mut view = view(2);
    view.note_counts(counts(&[0, 0], 1), None);
    view.note_report(report("a", 0, &[0, 1]), S);
    assert!(view.snapshot(S).handovers.is_empty(), "the first look is no change");
    view.note_report(report("a", 0, &[0]), 2 * S);
    view.note_report(report("b", 0, &[1]), 2 * S);
    for at in [2, 3] {
        let seen = view.snapshot(at * S).handovers;
        let moved: Vec<_> = seen.iter().filter(|h| h.partition == PartitionId::new(1)).collect();
        assert_eq!(moved.len(), 1, "{seen:?}");
        let names = [&moved[0].from, &moved[0].to].map(|w| w.as_ref().map(WorkerId::as_str));
        assert_eq!((names, moved[0].at_us), ([Some("a"), Some("b")], 2 * S));
    }
    let snapshot = view.snapshot(4 * S);
    assert_eq!(snapshot.partitions.owner, [0, 1]);
    assert_eq!(snapshot.workers.iter().map(|w| w.owned).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn who_does_not_answer_is_silent_then_forgotten() {
    let mut view = view(1);
    view.note_counts(counts(&[0], 1), None);
    view.note_report(report("a", 0, &[]), S);
    for _ in 1..SILENT_AFTER {
        view.note_question();
    }
    assert!(!view.snapshot(3 * S).workers[0].silent);
    view.note_question();
    let snapshot = view.snapshot(4 * S);
    assert!(snapshot.workers[0].silent && snapshot.workers[0].seen_us == S);
    assert_eq!(snapshot.partitions.owner, [-1], "it owns nothing that we know of");
    for _ in 0..FORGOTTEN_AFTER {
        view.note_question();
    }
    assert!(view.snapshot(40 * S).workers.is_empty());
}

#[test]
fn tasks_that_nobody_is_handed_are_stuck_after_a_while() {
    let mut view = view(3);
    view.note_report(report("a", 0, &[1]), S);
    view.note_counts(counts(&[5, 5, 0], 1), None);
    assert_eq!(view.snapshot(S).stuck, []);
    assert_eq!(view.snapshot(3 * S).stuck, [], "a hand-over takes a moment");
    let snapshot = view.snapshot(4 * S);
    assert_eq!(snapshot.verdict.state, Flow::Stuck);
    let stuck = &snapshot.stuck[..];
    assert!(
        matches!(stuck, [Stuck { ready: 5, since_us: S, why: StuckBecause::StandsStill, .. }]),
        "{stuck:?}"
    );
    view.note_counts(counts(&[0, 5, 0], 1), None);
    assert_eq!(view.snapshot(5 * S).stuck, []);
    view.note_counts(counts(&[0, 0, 7], 0), None);
    view.snapshot(6 * S);
    let stuck = view.snapshot(9 * S).stuck;
    assert!(matches!(stuck[..], [Stuck { why: StuckBecause::Unowned, .. }]), "{stuck:?}");
}

#[test]
fn a_lost_broker_leaves_the_picture_as_it_was() {
    let mut view = view(1);
    view.note_report(report("a", 0, &[0]), S);
    view.note_counts(counts(&[9], 1), Some(3));
    view.snapshot(S);
    view.lost("gone".to_owned(), 2 * S);
    view.lost("still gone".to_owned(), 3 * S);
    let snapshot = view.snapshot(20 * S);
    assert_eq!(snapshot.verdict.state, Flow::Lost);
    assert!(snapshot.broker.since_us == 2 * S && snapshot.totals.ready == 9, "{snapshot:?}");
    assert_eq!(snapshot.stuck, []);
    let topology = snapshot.topology;
    view.found(topology, 21 * S);
    assert!(view.snapshot(21 * S).broker.connected);
}

#[test]
fn a_look_at_the_dead_letters_does_not_hide_them() {
    let mut view = view(1);
    view.note_counts(counts(&[0], 1), Some(4));
    view.note_counts(counts(&[0], 1), None);
    assert_eq!(view.snapshot(S).totals.dead, 4);
}

#[test]
fn a_worker_has_a_rate() {
    let mut view = view(1);
    for second in 0..=20 {
        view.note_report(report("a", second * 30, &[0]), second * S);
    }
    let rate = view.snapshot(20 * S).workers[0].executed_per_s;
    assert!((29.0..=30.0).contains(&rate), "{rate}");
}

#[test]
fn memory_has_a_bound() {
    let mut view = view(8);
    for n in 0..2 * WORKERS as u64 {
        view.note_report(report(&format!("w{n}"), 0, &[]), n * S);
    }
    assert_eq!(view.workers.len(), WORKERS);
    for n in 0..3 * HANDOVERS as u64 {
        let (one, other) = if n % 2 == 0 { ("w1", "w2") } else { ("w2", "w1") };
        view.note_report(report(one, 0, &[0]), n * S);
        view.note_report(report(other, 0, &[]), n * S);
        view.snapshot(n * S);
    }
    assert_eq!(view.handovers.len(), HANDOVERS);
    assert!(view.handovers_total > 2 * HANDOVERS as u64);
}

#[test]
fn a_picture_of_the_largest_namespace_is_small() {
    let snapshot = sample::snapshot(1_024, 200);
    assert_eq!((snapshot.partitions.owner.len(), snapshot.workers.len()), (1_024, 200));
    assert_eq!(snapshot.stuck.len(), 1);
    assert!(snapshot.totals.handovers > 100 && snapshot.handovers.len() == HANDOVERS);
    assert!(!snapshot.hot.is_empty() && snapshot.retrying_total > 0);
    let bytes = serde_json::to_string(&snapshot).expect("JSON").len();
    println!("{bytes} bytes of JSON");
    assert!(bytes < 150_000, "{bytes} bytes, every second");
}
