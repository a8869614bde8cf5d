//! That no order is lost, whoever reads from wherever.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::protocol::partition::PartitionCount;

fn resource(number: u8) -> Resource {
    Resource::new(format!("r{number}")).expect("a resource")
}

fn task(number: u8) -> TaskId {
    TaskId::new(format!("t{number}")).expect("an id")
}

fn signed(at_ms: u64) -> Signature {
    Signature { by: "anna@ops".to_owned(), at_ms }
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        1 => Just(Scope::All),
        2 => (0u32..4).prop_map(|number| Scope::Partition(PartitionId::new(number))),
        4 => (0u8..6).prop_map(|number| Scope::Resource(resource(number))),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let tasks = || vec(0u8..6, 1..3).prop_map(|tasks| tasks.into_iter().map(task).collect());
    prop_oneof![
        1 => Just(Change::Nothing),
        4 => scope().prop_map(Change::Pause),
        3 => scope().prop_map(Change::Resume),
        3 => (tasks(), 0u64..200)
            .prop_map(|(tasks, until_ms)| {
                let abort = until_ms % 2 == 0;
                Change::Cancel { tasks, until_ms, abort }
            }),
        1 => tasks().prop_map(|tasks| Change::Reinstate { tasks }),
    ]
}

/// What stands in the log; `None` is something that is no order.
type Log = Vec<Option<Order>>;

/// Reads from a position to the end, as one who is told to go back does.
fn read(log: &Log, ledger: &mut Ledger, mut from: usize) {
    while let Some(record) = log.get(from) {
        match record {
            None => ledger.skip(from as u64),
            Some(order) => {
                if let Taken::ReadFrom(earlier) = ledger.take(from as u64, order) {
                    assert!((earlier as usize) < from, "it goes back");
                    from = earlier as usize;
                    continue;
                }
            }
        }
        from += 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Writers read the log to its end, or not, and write what they will.
    #[test]
    fn no_order_is_lost(
        writes in vec((0usize..3, prop::bool::weighted(0.6), prop::option::weighted(0.9, change())), 1..30),
        start in any::<Index>(),
    ) {
        let (mut log, mut writers) = (Log::new(), vec![Ledger::default(); 3]);
        let mut expected = Steering::default();
        for (number, (writer, reads, change)) in writes.into_iter().enumerate() {
            let writer = &mut writers[writer];
            if reads {
                read(&log, writer, 0);
            }
            let at = signed(number as u64 * 10);
            if let Some(change) = &change {
                expected.apply(change, &at);
            }
            log.push(change.map(|change| writer.order(number.to_string(), change, at)));
        }
        for from in [0, start.index(log.len()), log.len() - 1] {
            let mut ledger = Ledger::default();
            read(&log, &mut ledger, from);
            // Who begins with what is no order has nothing to begin with.
            if log[from..].iter().any(Option::is_some) {
                prop_assert_eq!(ledger.steering(), &expected);
                prop_assert_eq!(ledger.position(), Some(log.len() as u64 - 1));
            }
        }
    }

    #[test]
    fn an_order_that_changes_nothing_says_so(changes in vec(change(), 0..12), last in change()) {
        let mut steering = Steering::default();
        for change in &changes {
            steering.apply(change, &signed(50));
        }
        let mut after = steering.clone();
        after.apply(&last, &signed(60));
        let mut twice = after.clone();
        twice.apply(&last, &signed(70));
        prop_assert_eq!(after.would_change(&last, &signed(60)), Ok(false), "the same again");
        let mut later = after.clone();
        later.apply(&Change::Nothing, &signed(70));
        prop_assert_eq!(twice, later);
        steering.apply(&Change::Nothing, &signed(60));
        prop_assert_eq!(steering.would_change(&last, &signed(60)), Ok(steering != after));
    }

    #[test]
    fn an_order_is_read_as_it_was_written(changes in vec(change(), 0..12), base in any::<Option<u64>>()) {
        let mut ledger = Ledger::default();
        for (position, change) in changes.into_iter().enumerate() {
            let order = ledger.order("x".to_owned(), change, signed(7));
            ledger.take(position as u64, &order);
        }
        let order = Order { base, ..ledger.order("x".to_owned(), Change::Nothing, signed(7)) };
        let bytes = serde_json::to_vec(&order).expect("JSON");
        prop_assert_eq!(Order::read(&bytes).expect("an order"), order);
    }

    /// What is paused in a partition is what is paused of it by any of the three.
    #[test]
    fn every_scope_pauses_by_itself(changes in vec(change(), 0..12)) {
        let topology = Topology::first(PartitionCount::new(4).expect("a count"));
        let mut steering = Steering::default();
        changes.iter().for_each(|change| steering.apply(change, &signed(0)));
        for resource in (0..6).map(resource) {
            let partition = topology.partition_of(&resource);
            let paused = steering.all.is_some()
                || steering.partitions.contains_key(&partition)
                || steering.resources.contains_key(&resource);
            for other in topology.partitions() {
                let held = steering.paused_in(&topology, other);
                if other == partition {
                    prop_assert_eq!(held.holds(&resource), paused);
                } else {
                    prop_assert!(!held.resources.contains(&resource), "not of this partition");
                }
            }
        }
    }
}

#[test]
fn to_resume_everything_lifts_every_pause() {
    let mut steering = Steering::default();
    let scopes = [Scope::All, Scope::Partition(PartitionId::new(1)), Scope::Resource(resource(1))];
    for scope in scopes.clone() {
        steering.apply(&Change::Pause(scope), &signed(0));
    }
    steering.apply(&Change::Resume(Scope::Partition(PartitionId::new(1))), &signed(1));
    assert!(steering.all.is_some() && steering.partitions.is_empty());
    steering.apply(&Change::Resume(Scope::All), &signed(2));
    assert!(steering.is_empty());
}

#[test]
fn a_cancellation_is_forgotten_in_time() {
    let mut steering = Steering::default();
    let cancel = |until_ms| Change::Cancel { tasks: vec![task(1)], until_ms, abort: false };
    steering.apply(&cancel(100), &signed(0));
    let found = steering.cancellation(&task(1), 99).expect("it is cancelled");
    assert_eq!(found.reason(), "cancelled by anna@ops");
    assert_eq!(steering.cancellation(&task(1), 100), None);
    assert_eq!(steering.cancellation(&task(2), 99), None);
    steering.apply(&cancel(150), &signed(10));
    assert!(steering.cancellation(&task(1), 120).is_some(), "the later time counts");
    steering.apply(&Change::Nothing, &signed(150));
    assert!(steering.is_empty(), "and nothing is left of it");
}

#[test]
fn there_is_a_most() {
    let mut steering = Steering::default();
    for number in 0..Steering::MAX_RESOURCES {
        let resource = Resource::new(number.to_string()).expect("a resource");
        steering.apply(&Change::Pause(Scope::Resource(resource)), &signed(0));
    }
    let pause = |number| Change::Pause(Scope::Resource(resource(number)));
    let more = steering.would_change(&pause(1), &signed(0));
    assert_eq!(more, Err(SteeringError::TooManyResources));
    assert_eq!(steering.would_change(&Change::Pause(Scope::All), &signed(0)), Ok(true));
    let tasks = (0..=Steering::MAX_CANCELLED)
        .map(|number| TaskId::new(number.to_string()).expect("an id"))
        .collect();
    let many = Change::Cancel { tasks, until_ms: 1, abort: false };
    assert_eq!(steering.would_change(&many, &signed(0)), Err(SteeringError::TooManyCancelled));
}

#[test]
fn what_a_newer_keylane_wrote_is_refused() {
    let order = Ledger::default().order("x".to_owned(), Change::Nothing, signed(0));
    let mut json = serde_json::to_value(order).expect("JSON");
    json["v"] = 2.into();
    json["change"] = "explode".into();
    let newer = Order::read(json.to_string().as_bytes());
    assert!(matches!(newer, Err(OrderError::Version { version: 2 })), "{newer:?}");
    assert!(matches!(Order::read(b"{}"), Err(OrderError::Malformed(_))));
}

#[test]
fn an_order_that_read_the_future_is_none() {
    let mut ledger = Ledger::default();
    let order = ledger.order("x".to_owned(), Change::Pause(Scope::All), signed(0));
    ledger.take(0, &order);
    let absurd = Order { base: Some(u64::MAX), ..order };
    assert_eq!(ledger.take(1, &absurd), Taken::Known);
    let next = ledger.order("y".to_owned(), Change::Resume(Scope::All), signed(0));
    assert_eq!(ledger.take(2, &next), Taken::Applied);
    assert!(ledger.steering().is_empty());
}
