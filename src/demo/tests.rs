//! Replays, right and wrong ones, and what the judge and the report say.

use std::num::NonZeroUsize;
use std::os::unix::fs::symlink;

use super::testing::{Bench, Fixture, edits, everything, path};
use super::verify::Reason;
use super::{
    Applied, ApplyError, Blobs, Corruption, Edit, Held, Mode, Plan, Report, Repository, Store,
};

#[test]
fn a_replay_in_order_is_the_commit() {
    let fixture = Fixture::new();
    everything(&fixture);
    let bench = Bench::new(fixture.repository());
    let verified = bench.replay().verify().expect("all as git has it");
    assert_eq!(verified.files, 9);
    let report = Report::read(&bench.store).expect("a report");
    assert!(report.is_clean());
    assert_eq!((report.executions, report.processes), (15, 1));
    assert!(!bench.store.corruption_log().exists());
}

#[test]
fn an_absent_blob_is_named() {
    let fixture = Fixture::new();
    fixture.write(b"a", b"one").commit();
    let blobs = Blobs::new(&fixture.repository(), NonZeroUsize::MIN);
    let present = fixture.edits()[0].after.clone().expect("a blob");
    let absent =
        super::Blob { oid: super::Oid::new(&"7".repeat(40)).expect("an oid"), mode: Mode::File };
    let error = blobs.content(&absent).expect_err("absent");
    assert!(error.to_string().contains(&"7".repeat(40)));
    assert_eq!(blobs.content(&present).expect("still in step"), b"one");
}

#[test]
fn blobs_serve_many_handlers_at_once() {
    let fixture = Fixture::new();
    for number in 0..20_usize {
        fixture.write(format!("f{number}").as_bytes(), &vec![b'x'; number * 10_000]);
    }
    fixture.commit();
    let blobs = Blobs::new(&fixture.repository(), NonZeroUsize::new(3).expect("not zero"));
    let edits = fixture.edits();
    std::thread::scope(|scope| {
        for edit in &edits {
            scope.spawn(|| {
                let blob = edit.after.as_ref().expect("a blob");
                let number: usize = edit.path.to_string()[1..].parse().expect("a number");
                let content = blobs.content(blob).expect("content");
                assert_eq!(content.len(), number * 10_000);
            });
        }
    });
}

/// Three versions of one file. The fixture is what the blobs are read from.
fn three_versions() -> (Fixture, Bench, Vec<Edit>) {
    let fixture = Fixture::new();
    for content in [b"one", b"two", b"six"] {
        fixture.write(b"a", content).commit();
    }
    let (bench, edits) = (Bench::new(fixture.repository()), fixture.edits());
    (fixture, bench, edits)
}

fn mismatch(result: Result<Applied, ApplyError>) -> bool {
    matches!(result, Err(ApplyError::Corruption(Corruption::Mismatch { .. })))
}

#[test]
fn the_wrong_order_is_noticed() {
    let (_fixture, bench, edits) = three_versions();
    let apply = |number: usize, again| bench.store.apply(&edits[number], again, &bench.blobs);
    assert_eq!(apply(0, false).expect("fits"), Applied::Written);
    assert!(mismatch(apply(2, false)), "one too early");
    assert!(mismatch(apply(2, true)), "redelivered or not");
    assert!(mismatch(apply(0, false)), "twice without a redelivery");
    assert_eq!(apply(1, false).expect("the file is as it was"), Applied::Written);
    let report = Report::read(&bench.store).expect("a report");
    assert_eq!((report.mismatches, report.order_violations, report.repeated), (3, 1, 2));
    assert_eq!(bench.store.corruptions(9).expect("a log").len(), 3);
    assert!(matches!(bench.differences()[&path("a")], Reason::Content { .. }));
}

#[test]
fn a_redelivered_edit_may_have_been_applied() {
    let (_fixture, bench, edits) = three_versions();
    bench.replay();
    // The worker was killed before any of its acks came through.
    for edit in &edits {
        let applied = bench.store.apply(edit, true, &bench.blobs).expect("known");
        assert_eq!(applied, Applied::Already);
    }
    bench.verify().expect("all as git has it");
}

#[test]
fn two_at_once_are_noticed() {
    let (_fixture, bench, edits) = three_versions();
    let held: Held = bench.store.begin(&edits[0], false).expect("free");
    let second = Store::open(bench.store.root()).expect("as another process would");
    let refused = second.begin(&edits[1], false);
    let overlap = |error| matches!(error, ApplyError::Corruption(Corruption::Overlap { .. }));
    assert!(refused.is_err_and(overlap));
    drop(held);
    bench.replay().verify().expect("the dropped one left nothing behind");
    let report = Report::read(&bench.store).expect("a report");
    assert_eq!((report.overlaps, report.aborted, report.repeated), (1, 1, 1));
}

#[test]
fn naive_handlers_lose_updates_and_it_shows() {
    let (_fixture, bench, edits) = three_versions();
    let begin = |number: usize| bench.store.begin_naive(&edits[number], false).expect("begins");
    let finish = |held: Held| held.finish_naive(&bench.blobs).expect("writes").corruption;
    assert_eq!(finish(begin(0)), None);
    // Two consumers took neighbours from the queue, the second was faster.
    let (slow, fast) = (begin(1), begin(2));
    assert!(finish(fast).is_some());
    assert_eq!(finish(slow), None, "it does not even notice");
    let differences = bench.differences();
    assert!(matches!(differences[&path("a")], Reason::Content { .. }));
    let report = Report::read(&bench.store).expect("a report");
    assert_eq!((report.overlaps, report.mismatches), (1, 1));
}

#[test]
fn the_judge_sees_every_sort_of_difference() {
    let fixture = Fixture::new();
    everything(&fixture);
    let bench = Bench::new(fixture.repository());
    // The last edit of each of these files is lost.
    let lost = ["a", "a/b", "link", "kept", "vendor/lib"].map(path);
    let mut edits = edits(&bench.repository);
    for lost in &lost {
        let last = edits.iter().rposition(|edit| edit.path == *lost).expect("an edit");
        edits.remove(last);
    }
    for edit in &edits {
        bench.store.apply(edit, false, &bench.blobs).expect("fits");
    }
    let differences = bench.differences();
    assert_eq!(differences.keys().cloned().collect::<Vec<_>>(), {
        let mut lost = lost.to_vec();
        lost.sort();
        lost
    });
    assert_eq!(differences[&path("a")], Reason::Unexpected);
    assert_eq!(differences[&path("a/b")], Reason::Missing);
    let (expected, found) = (Mode::Executable, Mode::File);
    assert_eq!(differences[&path("kept")], Reason::Mode { expected, found });
    assert!(matches!(differences[&path("link")], Reason::Mode { found: Mode::Symlink, .. }));
    assert!(matches!(differences[&path("vendor/lib")], Reason::Content { .. }));
}

#[test]
fn a_stale_file_in_the_way_is_a_difference() {
    let fixture = Fixture::new();
    fixture.write(b"a", b"one").commit().remove(b"a");
    let outside = tempfile::tempdir().expect("a directory");
    symlink(outside.path(), fixture.place(b"a")).expect("a symlink");
    fixture.commit().remove(b"a").write(b"a/b", b"two").commit();
    let bench = Bench::new(fixture.repository());
    let edits = edits(&bench.repository);
    // The link `a` is never removed: nothing may be written through it.
    for edit in edits.iter().filter(|edit| edit.path != path("a") || edit.after.is_some()) {
        bench.store.apply(edit, false, &bench.blobs).expect("fits");
    }
    assert!(matches!(bench.differences()[&path("a")], Reason::Unwritable { .. }));
    assert!(!outside.path().join("b").exists());
}

#[test]
fn a_generated_history_is_replayed_and_a_shuffled_one_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let plan = Plan { commits: 260, ..Plan::default() };
    super::generate(directory.path(), &plan).expect("a repository");
    let repository = Repository::open(directory.path()).expect("opens");
    Bench::new(repository.clone()).replay().verify().expect("all as git has it");

    let bench = Bench::new(repository);
    let mut edits = edits(&bench.repository);
    // Swap the last two edits of the hottest file.
    let hot = path("ledger/hot.csv");
    let last = edits.iter().rposition(|edit| edit.path == hot).expect("an edit");
    let before = edits[..last].iter().rposition(|edit| edit.path == hot).expect("an edit");
    edits.swap(before, last);
    let refused = edits.iter().filter(|e| mismatch(bench.store.apply(e, false, &bench.blobs)));
    assert_eq!(refused.count(), 1, "the one that came too early");
    assert_eq!(bench.differences().into_keys().collect::<Vec<_>>(), [hot]);
    assert_eq!(Report::read(&bench.store).expect("a report").order_violations, 1);
}
