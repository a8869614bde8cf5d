//! Giving a message up: it goes to the dead letters as it came, with headers that say what
//! happened.
//!
//! Properties that would make the broker do something else with it (expire it, sort it, copy it,
//! check its user) are kept as headers too.

use std::time::SystemTime;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use super::envelope::{self, BROKERS_OWN};
use super::header_size::{entry_bytes, frame_bytes};
use super::publisher::{PublishError, Publisher, Route};
use super::sieve::{PROPERTIES_BYTES, parts};
use crate::protocol::envelope::RESOURCE_HEADER;
use crate::protocol::text;

/// Header: why it was given up.
pub(super) const REASON: &str = "x-keylane-reason";
/// Header: how often it was tried.
pub(super) const ATTEMPTS: &str = "x-keylane-attempts";
/// Header: the worker or router.
pub(super) const BY: &str = "x-keylane-by";
/// Header: when, in milliseconds since 1970.
pub(super) const AT: &str = "x-keylane-at-ms";
/// Header: the queue that it was in.
pub(super) const FROM: &str = "x-keylane-from";
/// Header: names of headers that did not fit into a frame.
const DROPPED: &str = "x-keylane-dropped";

/// Longest list of dropped headers, in bytes.
const MAX_DROPPED_BYTES: usize = 1024;

/// Why and by whom a message was given up.
#[derive(Debug, Clone)]
pub(crate) struct Obituary {
    /// Why.
    pub(crate) reason: String,
    /// How often it was tried.
    pub(crate) attempts: u32,
    /// The worker or router.
    pub(crate) by: String,
    /// The queue that it was in.
    pub(crate) from: String,
}

/// Publishes a message to the dead letters and waits for the confirm. Headers that do not fit
/// beside the reason are left out, and named.
pub(crate) async fn bury(
    publisher: &Publisher,
    dead: &Route,
    properties: &BasicProperties,
    payload: &Bytes,
    obituary: &Obituary,
) -> Result<(), PublishError> {
    let whole = letter(properties, obituary, usize::MAX);
    match send(publisher, dead, whole, payload.clone()).await {
        Err(PublishError::HeadersTooLarge { limit, .. }) => {
            let fitting = letter(properties, obituary, limit);
            send(publisher, dead, fitting, payload.clone()).await
        }
        // The body alone was not too large once.
        Err(PublishError::TooLarge { .. }) if let Some((_, body)) = parts(properties, payload) => {
            let cut = letter(&without_parts(properties), obituary, usize::MAX);
            send(publisher, dead, cut, body).await
        }
        sent => sent,
    }
}

async fn send(
    publisher: &Publisher,
    dead: &Route,
    letter: BasicProperties,
    payload: Bytes,
) -> Result<(), PublishError> {
    publisher.send(dead, letter, payload, None).await?.confirmed().await
}

/// The properties of a dead letter, in a frame of at most `limit` bytes.
fn letter(properties: &BasicProperties, obituary: &Obituary, limit: usize) -> BasicProperties {
    let kept = envelope::kept(properties).with_delivery_mode(2);
    let own = own_headers(properties, obituary);
    let used = frame_bytes(&kept.clone().with_headers(own.clone()));
    let note = DROPPED.len() + MAX_DROPPED_BYTES + 64;
    let mut theirs = foreign_headers(properties);
    let all: usize = theirs.iter().map(|(name, value)| entry_bytes(name, value)).sum();
    let mut headers = own;
    let mut dropped = Vec::new();
    if used + all > limit {
        let mut room = limit.saturating_sub(used + note);
        theirs.sort_by_key(|(name, value)| {
            (name.as_str() != RESOURCE_HEADER, entry_bytes(name, value))
        });
        theirs.retain(|(name, value)| {
            let bytes = entry_bytes(name, value);
            let fits = bytes <= room;
            if fits {
                room -= bytes;
            } else {
                dropped.push(format!("{} ({bytes} bytes)", name.as_str()));
            }
            fits
        });
    }
    for (name, value) in theirs {
        // Whatever somebody else has written there, ours is true.
        if !headers.inner().contains_key(&name) {
            headers.insert(name, value);
        }
    }
    if !dropped.is_empty() {
        let mut note = dropped.join(", ");
        text::cut(&mut note, MAX_DROPPED_BYTES);
        headers.insert(DROPPED.into(), long(&note));
    }
    kept.with_headers(headers)
}

/// The same for a body that has the unreadable properties no more.
fn without_parts(properties: &BasicProperties) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(PROPERTIES_BYTES.into(), AMQPValue::LongLongInt(0));
    headers.insert(DROPPED.into(), long("its properties, with which it is too large a message"));
    properties.clone().with_headers(headers)
}

/// What happened.
fn own_headers(properties: &BasicProperties, obituary: &Obituary) -> FieldTable {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    let mut headers = FieldTable::default();
    headers.insert(REASON.into(), long(&obituary.reason));
    headers.insert(ATTEMPTS.into(), AMQPValue::LongLongInt(i64::from(obituary.attempts)));
    headers.insert(BY.into(), long(&obituary.by));
    headers.insert(FROM.into(), long(&obituary.from));
    headers.insert(AT.into(), AMQPValue::LongLongInt(now_ms));
    for (name, value) in
        [("expiration", properties.expiration()), ("user-id", properties.user_id())]
    {
        if let Some(value) = value {
            headers.insert(was(name), long(value.as_str()));
        }
    }
    if let Some(priority) = properties.priority() {
        headers.insert(was("priority"), AMQPValue::ShortShortUInt(*priority));
    }
    headers
}

/// The message's headers; those that the broker would act upon by another name.
fn foreign_headers(properties: &BasicProperties) -> Vec<(ShortString, AMQPValue)> {
    let Some(original) = properties.headers() else { return Vec::new() };
    let renamed = original.inner().iter().map(|(name, value)| {
        let own = BROKERS_OWN.contains(&name.as_str());
        let name = if own { was(&name.as_str().to_lowercase()) } else { name.clone() };
        (name, value.clone())
    });
    renamed.collect()
}

fn was(name: &str) -> ShortString {
    format!("x-keylane-was-{name}").as_str().into()
}

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_do_not_fit_are_dropped_and_named() {
        let mut headers = FieldTable::default();
        headers.insert(RESOURCE_HEADER.into(), long(&"r".repeat(1000)));
        headers.insert("small".into(), long("s"));
        headers.insert("huge".into(), long(&"h".repeat(100_000)));
        headers.insert(REASON.into(), long("forged"));
        let properties = BasicProperties::default().with_headers(headers).with_priority(7);
        let (reason, by, from) = ("no".to_owned(), "w".to_owned(), "q".to_owned());
        let obituary = Obituary { reason, attempts: 1, by, from };
        let text = |letter: &BasicProperties, name| {
            let headers = letter.headers().clone().unwrap_or_default();
            headers
                .inner()
                .get(name)
                .and_then(|value| value.as_long_string())
                .map(|t| t.to_string())
        };
        let whole = letter(&properties, &obituary, 131_072);
        assert_eq!(text(&whole, "huge").map(|text| text.len()), Some(100_000));
        assert_eq!(text(&whole, DROPPED), None);
        assert_eq!(text(&whole, REASON).as_deref(), Some("no"));
        assert_eq!(*whole.priority(), None, "the dead letters are not sorted either");
        let cut = letter(&properties, &obituary, 8_192);
        assert!(frame_bytes(&cut) <= 8_192);
        assert_eq!(text(&cut, "huge"), None);
        assert_eq!(text(&cut, "small").as_deref(), Some("s"));
        assert_eq!(text(&cut, RESOURCE_HEADER).map(|text| text.len()), Some(1000));
        assert_eq!(text(&cut, DROPPED).as_deref(), Some("huge (100010 bytes)"));
    }
}
