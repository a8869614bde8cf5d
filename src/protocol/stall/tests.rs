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
        crowd: None,
        refused: None,
    }
}

/// Tasks wait, and a worker answers.
fn look() -> Look {
    Look {
        partition: PartitionId::new(7),
        counted: true,
        ready: 5,
        consumed: true,
        paused: false,
        holder: None,
        answering: vec![worker("a")],
        stray: None,
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
        (
            held(Holder { startable: 1, refused: Some(Lack::Handler), ..holder("a") }),
            Cause::HandlerUnavailable { worker: a() },
        ),
        (
            held(Holder { startable: 1, refused: Some(Lack::FencingToken), ..holder("a") }),
            Cause::NoFencingToken { worker: a() },
        ),
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

/// A worker that executes thousands a second holds nothing at times, and has settled much.
#[test]
fn a_partition_that_settles_is_not_stalled_however_it_looks_in_between() {
    let mut watch = Watch::new(Duration::from_millis(1));
    for second in 0..20 {
        let holder = Holder { unsettled: 0, settled: second * 1_000, ..holder("a") };
        let ready = 5 + u32::try_from(second).expect("few");
        let events = watch.note(second * 1_000, [Look { ready, ..held(holder) }]);
        assert_eq!(events, [], "second {second}");
    }
    assert_eq!(watch.stalled().count(), 0);
}

#[test]
fn what_belongs_to_nobody_is_told_though_the_others_go_on() {
    let mut watch = Watch::new(Duration::from_secs(1));
    let stray = Stray::seen(1, Some(5)).expect("a stray");
    let at = |second: u64, stray| {
        let holder = Holder { running: 1, settled: second, ..holder("a") };
        Look { stray, ..held(holder) }
    };
    assert_eq!(watch.note(0, [at(0, None)]), []);
    assert_eq!(watch.note(5_000, [at(5, Some(stray))]), [], "it may be on its way");
    let told = watch.note(6_000, [at(6, Some(stray))]);
    let [Event::Stalled { cause, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*cause, Cause::Stray(stray));
    assert!(cause.to_string().starts_with("5 of its tasks"), "{cause}");
    let told = watch.note(7_000, [at(7, None)]);
    assert!(matches!(told[..], [Event::Moves { .. }]), "{told:?}");
    assert_eq!(Stray::seen(0, Some(0)), None);
    assert_eq!(Stray::seen(0, None), None);
}

fn crowd(name: &str) -> Option<Crowd> {
    let resource = crate::protocol::task::Resource::new(name).expect("a resource");
    Some(Crowd { resource, tasks: 2, head: Head::Retrying })
}

/// A retry runs at times, and then something of the partition has moved.
#[test]
fn a_window_that_is_full_of_one_resource_is_told_although_it_moves() {
    let mut watch = Watch::new(Duration::from_millis(100));
    let full =
        |settled, running| held(Holder { settled, running, crowd: crowd("hot"), ..holder("a") });
    assert_eq!(watch.note(0, [full(0, 0)]), []);
    assert_eq!(watch.note(50, [full(1, 1)]), []);
    let told = watch.note(150, [full(2, 0)]);
    let [Event::Stalled { cause: Cause::Crowded { by, .. }, .. }] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(by.resource.as_str(), "hot");
    let text = told[0].to_string();
    assert!(text.contains("is held up") && text.contains("2 tasks of \"hot\""), "{text}");
    // Nothing waits behind it, or another resource fills the window now.
    let alone = Look { ready: 0, ..full(3, 1) };
    assert!(matches!(watch.note(200, [alone])[..], [Event::Moves { .. }]));
    assert_eq!(watch.note(250, [full(3, 1)]), []);
    let other = held(Holder { settled: 4, running: 1, crowd: crowd("other"), ..holder("a") });
    assert_eq!(watch.note(400, [other]), [], "for a moment only, as yet");
}

#[test]
fn a_queue_that_does_not_answer_is_not_called_empty() {
    let mut watch = Watch::new(Duration::from_millis(100));
    let silent = || Look { counted: false, ready: 0, consumed: false, ..look() };
    assert_eq!(silent().cause(None), Some(Cause::QueueSilent));
    assert_eq!(watch.note(0, [look()]), []);
    assert_eq!(watch.note(10, [silent()]), []);
    assert!(matches!(
        watch.note(200, [silent()])[..],
        [Event::Stalled { cause: Cause::QueueSilent, .. }]
    ));
}
