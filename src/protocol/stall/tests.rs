use super::*;

fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).expect("a name")
}

/// A worker that holds two tasks and does nothing with them.
fn holder(name: &str) -> Holder {
    Holder {
        worker: worker(name),
        unsettled: 2,
        running: 0,
        paused: 0,
        retrying: 0,
        retry_in_ms: None,
        startable: 0,
        settled: 0,
        busy: false,
    }
}

/// Tasks wait, and a worker answers.
fn look() -> Look {
    Look {
        partition: PartitionId::new(7),
        ready: 5,
        consumed: true,
        paused: false,
        holder: None,
        answering: vec![worker("a")],
    }
}

fn held(holder: Holder) -> Look {
    Look { holder: Some(holder), ..look() }
}

#[test]
fn every_cause_is_told_from_the_others() {
    let a = || worker("a");
    let causes = [
        (Look { consumed: false, answering: vec![], ..look() }, Cause::NotConsumed),
        (Look { paused: true, ..look() }, Cause::Paused),
        (
            held(Holder { paused: 2, ..holder("a") }),
            Cause::ResourcesPaused { worker: a(), tasks: 2, window_full: true },
        ),
        (
            Look { ready: 0, ..held(Holder { paused: 2, ..holder("a") }) },
            Cause::ResourcesPaused { worker: a(), tasks: 2, window_full: false },
        ),
        (
            held(Holder { retrying: 1, paused: 1, retry_in_ms: Some(70), ..holder("a") }),
            Cause::Retrying { worker: a(), tasks: 1, next_in_ms: 70 },
        ),
        (held(Holder { startable: 1, busy: true, ..holder("a") }), Cause::NoSlot { worker: a() }),
        (held(holder("a")), Cause::Settling { worker: a() }),
        (Look { answering: vec![], ..look() }, Cause::OwnerSilent { worker: None }),
        (look(), Cause::NotHandedOut),
    ];
    for (look, cause) in causes {
        assert_eq!(look.cause(None), Some(cause.clone()), "{look:?}");
        assert!(!cause.to_string().is_empty());
    }
    let silent = Cause::OwnerSilent { worker: Some(worker("b")) };
    assert_eq!(look().cause(Some(&worker("b"))), Some(silent));
    assert_eq!(
        look().cause(Some(&a())),
        Some(Cause::NotHandedOut),
        "it answers, and holds nothing"
    );
}

#[test]
fn what_runs_or_is_empty_does_not_stand_still() {
    let empty = Look { ready: 0, ..look() };
    let runs = held(Holder { running: 1, paused: 1, ..holder("a") });
    let starts = held(Holder { startable: 1, ..holder("a") });
    for look in [empty, runs, starts] {
        assert_eq!(look.cause(None), None, "{look:?}");
    }
}

fn stalled(events: &[Event]) -> Option<&Cause> {
    match events {
        [Event::Stalled { cause, .. }] => Some(cause),
        [] => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_is_told_once_and_when_it_is_over() {
    let mut watch = Watch::new(Duration::from_secs(3));
    assert_eq!(watch.note(0, [look()]), []);
    assert_eq!(watch.note(2_999, [look()]), []);
    assert_eq!(stalled(&watch.note(3_000, [look()])), Some(&Cause::NotHandedOut));
    assert_eq!(watch.note(9_000, [look()]), [], "it is known");
    let other = watch.note(10_000, [Look { paused: true, ..look() }]);
    assert_eq!(stalled(&other), Some(&Cause::Paused), "another cause");
    let runs = held(Holder { running: 1, ..holder("a") });
    let moves = Event::Moves { partition: PartitionId::new(7), stalled_ms: 12_000 };
    assert_eq!(watch.note(12_000, [runs]), [moves]);
}

#[test]
fn who_makes_progress_does_not_stand_still() {
    let mut watch = Watch::new(Duration::from_secs(3));
    for second in 0..20 {
        let settled = second / 2;
        let looks = [held(Holder { settled, retrying: 1, ..holder("a") })];
        assert_eq!(watch.note(second * 1_000, looks), [], "{second}");
    }
    for second in 20..40 {
        // Nobody who answers holds it at the moments of the looks, but it gets less.
        let looks = [Look { ready: 100 - second as u32, ..look() }];
        assert_eq!(watch.note(second * 1_000, looks), [], "{second}");
    }
}

#[test]
fn a_worker_that_falls_silent_is_named() {
    let mut watch = Watch::new(Duration::from_secs(3));
    watch.note(0, [held(Holder { running: 1, ..holder("b") })]);
    watch.note(1_000, [look()]);
    let silent = Cause::OwnerSilent { worker: Some(worker("b")) };
    assert_eq!(stalled(&watch.note(4_000, [look()])), Some(&silent));
}

#[test]
fn numbers_that_change_are_no_news() {
    let mut watch = Watch::new(Duration::from_millis(1));
    let retrying = |next| held(Holder { retrying: 1, retry_in_ms: Some(next), ..holder("a") });
    watch.note(0, [retrying(900)]);
    assert!(stalled(&watch.note(1, [retrying(800)])).is_some());
    assert_eq!(watch.note(2, [retrying(700)]), []);
}
