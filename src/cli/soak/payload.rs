//! What the tasks of a soak carry.

/// A payload: `17` is the 18th task of its resource, `17 inbox` the same through the
/// inbox, `poison 2` the third task that kills whoever executes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payload {
    Number { sequence: u64, inbox: bool },
    Poison(u64),
}

impl Payload {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        if let Some(number) = text.strip_prefix("poison ") {
            return Some(Self::Poison(number.parse().ok()?));
        }
        let number = text.strip_suffix(" inbox");
        let sequence = number.unwrap_or(text).parse().ok()?;
        Some(Self::Number { sequence, inbox: number.is_some() })
    }

    pub(super) fn text(self) -> String {
        match self {
            Self::Number { sequence, inbox: false } => sequence.to_string(),
            Self::Number { sequence, inbox: true } => format!("{sequence} inbox"),
            Self::Poison(number) => format!("poison {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let number = |inbox| Payload::Number { sequence: 17, inbox };
        for payload in [number(false), number(true), Payload::Poison(3)] {
            assert_eq!(Payload::read(payload.text().as_bytes()), Some(payload));
        }
        for other in ["", "x", "poison", "17 box"] {
            assert_eq!(Payload::read(other.as_bytes()), None);
        }
    }
}
