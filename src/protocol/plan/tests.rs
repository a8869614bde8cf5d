//! Examples of plans, and the serialised form. The submodules have the rules.

mod fleet;
mod levelling;
mod membership;
mod standbys;

use serde_json::json;

use self::fleet::{fleet, moves, names};
use super::*;

fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).expect("a name")
}

#[test]
fn every_partition_has_an_owner_and_two_standbys() {
    let plan = Plan::next(None, &fleet(4), 8, &[]);
    assert_eq!((plan.number, plan.members.len(), plan.lines.len()), (1, 4, 8));
    for p in (0..8).map(PartitionId::new) {
        let line: Vec<_> = plan.line(p).collect();
        assert_eq!(line.len(), 3);
        assert_eq!(plan.owner(p), Some(line[0]));
        assert_eq!(plan.role(line[0], p), Role::Owner);
        assert_eq!(plan.role(line[1], p), Role::Standby(1));
        assert_eq!(plan.role(line[2], p), Role::Standby(2));
        let rest = plan.members.iter().find(|m| !line.contains(m)).expect("a fourth");
        assert_eq!(plan.role(rest, p), Role::InLine);
    }
}

#[test]
fn a_stranger_and_an_unknown_partition_have_no_role() {
    let plan = Plan::next(None, &fleet(4), 8, &[]);
    assert_eq!(plan.role(&worker("stranger"), PartitionId::new(0)), Role::Absent);
    assert_eq!(plan.role(&plan.members[0], PartitionId::new(8)), Role::Absent);
    assert_eq!(plan.owner(PartitionId::new(8)), None);
}

#[test]
fn a_large_fleet_stands_in_its_own_lines_only() {
    for (members, partitions, everyone) in [(10, 1_000, true), (11, 1_000, false)] {
        let plan = Plan::next(None, &fleet(members), partitions, &[]);
        assert_eq!(plan.everyone, everyone);
        let p = PartitionId::new(0);
        let outside = plan.members.iter().find(|m| !plan.line(p).any(|in_line| in_line == *m));
        let role = plan.role(outside.expect("one more"), p);
        assert_eq!(role, if everyone { Role::InLine } else { Role::Absent });
    }
}

#[test]
fn small_fleets_have_the_standbys_that_there_are() {
    for (members, in_line) in [(1, 1), (2, 2), (3, 3), (4, 3)] {
        let plan = Plan::next(None, &fleet(members), 5, &[]);
        assert!((0..5).all(|p| plan.line(PartitionId::new(p)).count() == in_line));
    }
}

#[test]
fn no_members_and_no_partitions_are_plans_too() {
    let first = Plan::next(None, &fleet(2), 4, &[]);
    let empty = Plan::next(Some(&first), &[], 4, &[1.0; 4]);
    assert_eq!((empty.number, empty.members.len(), empty.lines.len()), (2, 0, 0));
    assert_eq!(empty.role(&first.members[0], PartitionId::new(0)), Role::Absent);
    assert_eq!(Plan::next(Some(&empty), &[], 4, &[]), empty);
    let again = Plan::next(Some(&empty), &fleet(2), 4, &[]);
    assert_eq!((again.number, again.lines), (3, first.lines));
    assert_eq!(Plan::next(None, &fleet(2), 0, &[]).lines, []);
}

#[test]
fn the_first_standby_inherits() {
    let before = Plan::next(None, &fleet(5), 20, &[]);
    let after = Plan::next(Some(&before), &fleet(5)[1..], 20, &[]);
    assert_eq!(after.number, 2);
    let orphans =
        (0..20).map(PartitionId::new).filter(|p| before.owner(*p) == before.members.first());
    for p in orphans {
        assert_eq!(after.owner(p), before.line(p).nth(1), "partition {p}");
    }
}

#[test]
fn a_worker_that_is_listed_twice_counts_once() {
    let twice: Vec<_> = fleet(3).into_iter().rev().chain(fleet(3)).collect();
    assert_eq!(Plan::next(None, &twice, 9, &[]), Plan::next(None, &fleet(3), 9, &[]));
}

#[test]
fn more_partitions_go_to_the_same_members() {
    let before = Plan::next(None, &fleet(4), 16, &[]);
    let after = Plan::next(Some(&before), &fleet(4), 32, &[]);
    assert_eq!(after.lines.len(), 32);
    assert_eq!(moves(&before, &after), 0);
    assert_eq!(names(&after).values().copied().collect::<Vec<_>>(), [8; 4]);
}

#[test]
fn weights_that_all_double_change_nothing() {
    let mut members = fleet(3);
    let before = Plan::next(None, &members, 10, &[]);
    members.iter_mut().for_each(|m| m.weight = Weight::new(2.0).expect("a weight"));
    assert_eq!(Plan::next(Some(&before), &members, 10, &[]), before);
    members[0].weight = Weight::new(4.0).expect("a weight");
    let after = Plan::next(Some(&before), &members, 10, &[]);
    assert_eq!(names(&after).values().copied().collect::<Vec<_>>(), [5, 3, 2]);
    assert_eq!(moves(&before, &after), 1);
}

#[test]
fn a_plan_survives_its_serialised_form() {
    let mut members = fleet(3);
    let plan = Plan::next(None, &members, 4, &[]);
    let text = serde_json::to_value(&plan).expect("serialises");
    assert_eq!(text["members"], json!(["w000", "w001", "w002"]));
    assert!(text["lines"][0].as_array().is_some_and(|line| line.len() == 3));
    assert_eq!(text.as_object().map(serde_json::Map::len), Some(4));
    assert_eq!(serde_json::from_value::<Plan>(text).expect("a plan"), plan);

    members[1].weight = Weight::new(2.5).expect("a weight");
    let plan = Plan::next(Some(&plan), &members, 4, &[9.0, 1.0]);
    let text = serde_json::to_string(&plan).expect("serialises");
    assert_eq!(serde_json::from_str::<Plan>(&text).expect("a plan"), plan);
}

#[test]
fn a_plan_that_lacks_standbys_gets_them() {
    let text = r#"{"number": 7, "members": ["a", "b", "c"], "everyone": true,
        "lines": [[0], [1, 0], [2, 1, 0]]}"#;
    let plan: Plan = serde_json::from_str(text).expect("a plan");
    let members: Vec<_> = ["a", "b", "c"].map(worker).into();
    let member = |worker| Member { worker, weight: Weight::ONE };
    let members: Vec<_> = members.into_iter().map(member).collect();
    let next = Plan::next(Some(&plan), &members, 3, &[]);
    assert_eq!((next.number, moves(&plan, &next)), (8, 0));
    assert_eq!(next.lines[2], plan.lines[2]);
    fleet::assert_valid(&next, 3, 3);
}

#[test]
fn plans_that_contradict_themselves_are_refused() {
    let plan = |members: &[&str], lines: serde_json::Value| {
        let text = json!({ "number": 1, "members": members, "everyone": true, "lines": lines });
        serde_json::from_value::<Plan>(text).map_err(|e| e.to_string())
    };
    let two = ["a", "b"];
    assert!(plan(&two, json!([[0, 1], [1], [1, 0]])).is_ok());
    for (refused, why) in [
        (plan(&["b", "a"], json!([])), "sorted and unique"),
        (plan(&["a", "a"], json!([])), "sorted and unique"),
        (plan(&["a b"], json!([])), "no worker name"),
        (plan(&two, json!([[0, 1], []])), "must name an owner"),
        (plan(&two, json!([[0, 1], [0, 2]])), "partition 1 names member 2, which does not exist"),
        (plan(&two, json!([[2]])), "partition 0 names member 2"),
        (plan(&two, json!([[0, 1, 0]])), "partition 0 names a member twice"),
        (plan(&two, json!([[0, -1]])), "invalid value"),
        (plan(&two, json!([[0, 65_536]])), "invalid value"),
    ] {
        let error = refused.expect_err(why);
        assert!(error.contains(why), "{error}, not {why}");
    }
    for weights in [json!([1]), json!([1, 0]), json!([1, 2, 3])] {
        let text = json!({ "number": 1, "members": two, "everyone": true, "lines": [[0, 1]],
            "weights": weights });
        let error = serde_json::from_value::<Plan>(text).expect_err("weights").to_string();
        assert!(error.contains("a weight above 0 for each member"), "{error}");
    }
}

#[test]
fn a_fleet_has_as_many_members_as_an_index_can_name() {
    let members: Vec<_> = (0..=Plan::MAX_MEMBERS).map(|i| format!("w{i:05}")).collect();
    let plan = |members: &[String]| {
        let text =
            json!({ "number": 1, "members": members, "everyone": false, "lines": [[65_534]] });
        serde_json::from_value::<Plan>(text).map_err(|e| e.to_string())
    };
    assert!(plan(&members[1..]).is_ok());
    let error = plan(&members).expect_err("one too many");
    assert!(error.contains("up to 65535 members, not 65536"), "{error}");
}
