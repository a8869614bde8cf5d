//! Letters that the broker itself made: what a policy has it drop goes to the dead letters with the
//! header `x-death`, and without ours.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

/// The broker's header: an array of tables, the newest first.
pub(super) const X_DEATH: &str = "x-death";

/// The last time that the broker dropped a message from a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Death {
    /// Why, with the policy that is to be looked for.
    pub(super) reason: String,
    /// The queue that it was in.
    pub(super) queue: Option<String>,
    /// When, in milliseconds since 1970; the broker tells seconds.
    pub(super) at_ms: Option<i64>,
}

impl Death {
    /// The broker's word; `None` if a worker or a router wrote the letter.
    pub(super) fn of(properties: &BasicProperties) -> Option<Self> {
        let deaths = properties.headers().as_ref()?.inner().get(X_DEATH)?;
        let AMQPValue::FieldArray(deaths) = deaths else { return None };
        let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else { return None };
        let at_ms = match last.inner().get("time") {
            Some(AMQPValue::Timestamp(seconds)) => i64::try_from(*seconds).ok(),
            _ => None,
        };
        Some(Self {
            reason: reason(text(last, "reason").unwrap_or("unknown")),
            queue: text(last, "queue").map(str::to_owned),
            at_ms: at_ms.and_then(|seconds| seconds.checked_mul(1_000)),
        })
    }
}

fn reason(word: &str) -> String {
    let why = match word {
        "expired" => "a policy of the broker has `message-ttl`, or its publisher set `expiration`",
        "maxlen" => "a policy of the broker has `max-length` or `max-length-bytes`",
        "delivery_limit" => "a policy of the broker has `delivery-limit`",
        "rejected" => "a consumer that is no worker rejected it",
        _ => "look at the policies of the broker",
    };
    format!("dropped by the broker ({word}): {why}")
}

fn text<'a>(table: &'a FieldTable, name: &str) -> Option<&'a str> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}
