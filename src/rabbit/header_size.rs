//! Sizes of message headers on the wire: the properties of a message have to fit into one frame.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// Type, channel and length before the payload of a frame, and one byte behind it.
const FRAME: usize = 8;

/// Class, weight, size of the body and flags, before the properties.
const CONTENT_HEADER: usize = 14;

/// Bytes of the frame that carries these properties.
pub(super) fn frame_bytes(properties: &BasicProperties) -> usize {
    let short =
        |text: &Option<ShortString>| text.as_ref().map_or(0, |text| 1 + text.as_str().len());
    let shorts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let octets = [properties.delivery_mode(), properties.priority()];
    FRAME
        + CONTENT_HEADER
        + shorts.map(short).iter().sum::<usize>()
        + octets.iter().filter(|octet| octet.is_some()).count()
        + properties.timestamp().map_or(0, |_| 8)
        + properties.headers().as_ref().map_or(0, table_bytes)
}

/// Bytes that a header adds.
pub(super) fn entry_bytes(name: &ShortString, value: &AMQPValue) -> usize {
    1 + name.as_str().len() + value_bytes(value)
}

fn table_bytes(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, value)| entry_bytes(name, value)).sum::<usize>()
}

fn value_bytes(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(array) => 4 + array.as_slice().iter().map(value_bytes).sum::<usize>(),
        AMQPValue::FieldTable(table) => table_bytes(table),
    }
}

/// Checks the size against what the client library writes.
#[cfg(feature = "fuzzing")]
pub(super) fn check(properties: &BasicProperties) {
    let bytes = frame_bytes(properties);
    let mut buffer = vec![0; bytes + 64];
    let written = lapin::protocol::basic::gen_properties(properties)(buffer.as_mut_slice().into());
    let flags = 2;
    let written = written.map(|written| FRAME + CONTENT_HEADER - flags + written.position as usize);
    assert_eq!(written.ok(), Some(bytes), "{properties:?}");
}
