//! A time in the past, as people write it.

use std::str::FromStr;
use std::time::SystemTime;

/// From when on: so long ago (`90s`, `2h`), or at a time (`2026-05-01T12:00:00Z`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Since(pub(super) SystemTime);

impl FromStr for Since {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let ago = humantime::parse_duration(text).ok();
        let ago = ago.and_then(|ago| SystemTime::now().checked_sub(ago));
        let time = ago.or_else(|| humantime::parse_rfc3339_weak(text).ok());
        time.map(Self).ok_or_else(|| {
            "neither a time ago (90s, 2h, 3days) nor a UTC time (2026-05-01T12:00:00Z)".to_owned()
        })
    }
}

/// Microseconds since 1970, as `2026-05-01T12:00:00.000250Z`.
pub(super) fn time(us: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_micros(us);
    humantime::format_rfc3339_micros(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let hour = Since::from_str("1h").expect("a duration").0.elapsed().expect("in the past");
        assert!((3599..3700).contains(&hour.as_secs()), "{hour:?}");
        let day = Since::from_str("1970-01-02 00:00:00").expect("a time").0;
        assert_eq!(time(86_400_000_000), "1970-01-02T00:00:00.000000Z");
        assert_eq!(day.duration_since(SystemTime::UNIX_EPOCH).expect("after").as_secs(), 86_400);
        assert!(Since::from_str("yesterday").is_err());
    }
}
