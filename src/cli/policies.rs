//! Policies of the broker that are in the way of a namespace. A policy wins over most of what a
//! queue was declared with, and nothing that is said over AMQP shows it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::protocol::names::Namespace;

/// A queue as the management interface shows it.
#[derive(Debug, Deserialize)]
pub(super) struct PolicedQueue {
    name: String,
    #[serde(default)]
    policy: Option<String>,
    #[serde(default)]
    operator_policy: Option<String>,
    /// A list if it is empty; missing until the broker has collected it for the first time.
    #[serde(default)]
    effective_policy_definition: Option<Value>,
}

/// A setting of a policy that is in the way, and the queues that it applies to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Policy {
    /// Name of the policy, of the operator's one, or of both.
    policy: String,
    /// `message-ttl`, say.
    setting: String,
    value: Value,
    /// What comes of it.
    harm: &'static str,
    queues: Vec<String>,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, setting, value, harm, queues } = self;
        let first = queues.first().map_or("", String::as_str);
        write!(f, "policy {policy:?} of the broker sets {setting} {value} on {first}")?;
        if queues.len() > 1 {
            write!(f, " and {} more", queues.len() - 1)?;
        }
        write!(f, ": {harm}")
    }
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tasks,
    Dead,
    /// A counter of epochs, or claims.
    Records,
    /// A stream that is read from its beginning, or whose last record counts.
    Log,
}

impl Kind {
    fn of(namespace: &Namespace, queue: &str) -> Option<Self> {
        let own = queue.strip_prefix(namespace.as_str())?.strip_prefix('.')?;
        match own {
            "inbox" => Some(Self::Tasks),
            "dead" => Some(Self::Dead),
            "topology" | "steering" => Some(Self::Log),
            _ => {
                let (generation, partition) = own.strip_prefix('g')?.split_once(".p")?;
                let (number, of) = partition.split_once('.').unwrap_or((partition, ""));
                let is_number = |text: &str| text.parse::<u32>().is_ok();
                let kind = match of {
                    "" => Self::Tasks,
                    "epoch" | "claims" => Self::Records,
                    _ => return None,
                };
                (is_number(generation) && is_number(number)).then_some(kind)
            }
        }
    }
}

/// Whether the policies of all queues of a namespace are known. One that was just set up is not in
/// the list at all at first.
pub(super) fn are_known(namespace: &Namespace, queues: &[PolicedQueue]) -> bool {
    let ours = |queue: &&PolicedQueue| Kind::of(namespace, &queue.name).is_some();
    let mut ours = queues.iter().filter(ours).peekable();
    ours.peek().is_some() && ours.all(|queue| queue.effective_policy_definition.is_some())
}

/// The policies that are in the way of a namespace, by name and setting.
pub(super) fn in_the_way(namespace: &Namespace, queues: &[PolicedQueue]) -> Vec<Policy> {
    let mut found = BTreeMap::<(String, String, String, &str), Policy>::new();
    for queue in queues {
        let Some(kind) = Kind::of(namespace, &queue.name) else { continue };
        let settings = queue.effective_policy_definition.as_ref().and_then(Value::as_object);
        let Some(settings) = settings else { continue };
        let names = [&queue.policy, &queue.operator_policy];
        let names: Vec<_> = names.into_iter().flatten().filter(|name| !name.is_empty()).collect();
        let policy = names.into_iter().map(String::as_str).collect::<Vec<_>>().join(" and ");
        for (setting, value) in settings {
            let Some(harm) = harm(kind, setting, value) else { continue };
            let key = (policy.clone(), setting.clone(), value.to_string(), harm);
            let (policy, setting, value) = (policy.clone(), setting.clone(), value.clone());
            let new = || Policy { policy, setting, value, harm, queues: Vec::new() };
            found.entry(key).or_insert_with(new).queues.push(queue.name.clone());
        }
    }
    found.into_values().collect()
}

/// What comes of a setting; `None` if it does no harm.
fn harm(kind: Kind, setting: &str, value: &Value) -> Option<&'static str> {
    let below = |least: i64| value.as_i64().is_some_and(|number| number < least);
    match (kind, setting) {
        (_, "delivery-limit") if below(0) => None,
        (_, "consumer-timeout") if !below(WEEK_MS) => None,
        (Kind::Tasks, "consumer-disconnected-timeout") if !below(DISCONNECTED_MS) => None,
        (Kind::Tasks, "overflow") if value == "reject-publish" => None,
        (Kind::Tasks, "delayed-retry-type") if value == "disabled" => None,

        (Kind::Tasks, "message-ttl") => Some(
            "a task that has waited for so many milliseconds goes to the dead letters, \
             and those behind it overtake it",
        ),
        (Kind::Tasks, "delivery-limit") => Some(
            "a task whose workers were lost, or gave their partition up, so often goes to the \
             dead letters, whoever's fault it was",
        ),
        (Kind::Tasks, "max-length" | "max-length-bytes") => {
            Some("publishes are refused when there is so much")
        }
        (Kind::Tasks, "overflow") => {
            Some("with a limit of the length, the oldest tasks go to the dead letters, or are lost")
        }
        (Kind::Tasks, "consumer-timeout") => Some(
            "before RabbitMQ 4.3, a task that takes so many milliseconds, or is paused for so \
             long, is begun again elsewhere, with all that its worker holds of the partition",
        ),
        (Kind::Tasks, "consumer-disconnected-timeout") => {
            Some("two workers may execute a task at once when a node is cut off")
        }
        (Kind::Tasks, "delayed-retry-type") => {
            Some("tasks that a worker gives back are overtaken by later ones")
        }
        (Kind::Dead, "message-ttl" | "delivery-limit") => {
            Some("dead letters are lost without a trace: by age, or by being looked at")
        }
        (Kind::Dead, "max-length" | "max-length-bytes") => {
            Some("with so many dead letters, resources whose task fails wait for ever")
        }
        (Kind::Records, "message-ttl" | "delivery-limit" | "max-length" | "max-length-bytes") => {
            Some("fencing tokens and the evidence about tasks that kill workers are lost")
        }
        (Kind::Log, "max-age" | "max-length-bytes") => {
            Some("the layout, or what is paused and cancelled, may be forgotten")
        }
        (_, "expires") => Some("the queue is deleted, with what is in it, when nobody uses it"),
        _ => None,
    }
}

/// As `init` sets them.
const WEEK_MS: i64 = 7 * 24 * 3600 * 1000;
const DISCONNECTED_MS: i64 = 12_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(definition: &Value, queues: &[&str]) -> Vec<String> {
        let queue = |name: &&str| PolicedQueue {
            name: (*name).to_owned(),
            policy: Some("house".to_owned()),
            operator_policy: Some(String::new()),
            effective_policy_definition: Some(definition.clone()),
        };
        let queues: Vec<_> = queues.iter().map(queue).collect();
        in_the_way(&Namespace::default(), &queues).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_setting_is_named_once_with_its_queues() {
        let all = ["keylane.g1.p0", "keylane.g1.p1", "keylane.inbox", "other.g1.p0", "keylane.x"];
        let said = found(&json!({"message-ttl": 1000, "max-length": 10}), &all);
        assert_eq!(said.len(), 2, "{said:?}");
        let start = "policy \"house\" of the broker sets max-length 10 on keylane.g1.p0 and 2 more";
        assert!(said[0].starts_with(start), "{said:?}");
        assert!(said[1].contains("message-ttl 1000") && said[1].contains("dead letters"));
    }

    #[test]
    fn a_queue_that_was_just_made_is_waited_for() {
        let queue = |name: &str, definition| PolicedQueue {
            name: name.to_owned(),
            policy: None,
            operator_policy: None,
            effective_policy_definition: definition,
        };
        let known = |queues: &[PolicedQueue]| are_known(&Namespace::default(), queues);
        assert!(!known(&[queue("other.inbox", Some(json!([])))]));
        assert!(!known(&[queue("keylane.inbox", None), queue("keylane.dead", Some(json!({})))]));
        assert!(known(&[queue("keylane.inbox", Some(json!({}))), queue("other.inbox", None)]));
    }

    #[test]
    fn what_does_no_harm_is_not_told() {
        let tasks = ["keylane.g1.p0"];
        assert_eq!(found(&json!([]), &tasks), Vec::<String>::new());
        for (setting, harmless, harmful) in [
            ("delivery-limit", json!(-1), json!(20)),
            ("consumer-timeout", json!(WEEK_MS), json!(1_800_000)),
            ("consumer-disconnected-timeout", json!(60_000), json!(5_000)),
            ("overflow", json!("reject-publish"), json!("drop-head")),
        ] {
            assert_eq!(found(&json!({ setting: harmless }), &tasks), Vec::<String>::new());
            assert_eq!(found(&json!({ setting: harmful }), &tasks).len(), 1, "{setting}");
        }
        for (queue, setting) in [
            ("keylane.g1.p0", "dead-letter-exchange"),
            ("keylane.journal", "max-age"),
            ("keylane.planner", "max-length"),
            ("keylane.g1.px", "message-ttl"),
        ] {
            assert_eq!(found(&json!({ setting: 5 }), &[queue]), Vec::<String>::new(), "{queue}");
        }
        assert_eq!(found(&json!({"max-age": "1D"}), &["keylane.topology"]).len(), 1);
        assert_eq!(found(&json!({"delivery-limit": 3}), &["keylane.g1.p17.epoch"]).len(), 1);
    }
}
