//! Fencing tokens: what a store compares to tell an owner from a former one.
//!
//! A partition's *epoch* rises with every period of its ownership, and a token
//! is an epoch with the generation of the layout in front: later owners have
//! higher tokens, whatever becomes of the layout. A store keeps the highest
//! token that it has seen of each *resource* and refuses lower ones; an equal
//! one is admitted, since an owner executes many tasks in one period.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A period of ownership of one partition, as a number that only rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch of this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A proof of ownership that a store can compare: one whole number from 0 to
/// 2⁵³ - 1, so that a `BIGINT`, a JSON number, JavaScript and Lua all hold it
/// exactly. Displayed, parsed and serialised as that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct FencingToken {
    // The derived order is that of the number: the generation decides.
    generation: u32,
    epoch: Epoch,
}

impl FencingToken {
    /// Bits of the epoch. At a hundred hand-overs a second they last for three
    /// hundred years.
    const EPOCH_BITS: u32 = 40;
    /// The last generation: with it, a token still fits into a double.
    pub const MAX_GENERATION: u32 = (1 << (53 - Self::EPOCH_BITS)) - 1;
    /// The last epoch.
    pub const MAX_EPOCH: Epoch = Epoch((1 << Self::EPOCH_BITS) - 1);

    /// The token of an epoch in a generation of the layout.
    ///
    /// # Errors
    /// [`TokenError`] beyond [`MAX_GENERATION`](Self::MAX_GENERATION) or
    /// [`MAX_EPOCH`](Self::MAX_EPOCH).
    pub const fn new(generation: u32, epoch: Epoch) -> Result<Self, TokenError> {
        if generation > Self::MAX_GENERATION || epoch.0 > Self::MAX_EPOCH.0 {
            return Err(TokenError::Exhausted { generation, epoch });
        }
        Ok(Self { generation, epoch })
    }

    /// The generation of the layout.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.generation
    }

    /// The period of ownership.
    #[must_use]
    pub const fn epoch(self) -> Epoch {
        self.epoch
    }

    /// The number that a store compares: `generation × 2⁴⁰ + epoch`.
    #[must_use]
    pub const fn number(self) -> i64 {
        ((self.generation as i64) << Self::EPOCH_BITS) | self.epoch.0.cast_signed()
    }
}

impl TryFrom<i64> for FencingToken {
    type Error = TokenError;
    fn try_from(number: i64) -> Result<Self, TokenError> {
        let unsigned = u64::try_from(number).map_err(|_| TokenError::OutOfRange { number })?;
        let epoch = Epoch(unsigned & Self::MAX_EPOCH.0);
        let generation = u32::try_from(unsigned >> Self::EPOCH_BITS);
        let token = generation.ok().and_then(|generation| Self::new(generation, epoch).ok());
        token.ok_or(TokenError::OutOfRange { number })
    }
}

impl From<FencingToken> for i64 {
    fn from(token: FencingToken) -> Self {
        token.number()
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl FromStr for FencingToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let number = text.parse::<i64>().map_err(|_| TokenError::NoNumber(text.to_owned()))?;
        Self::try_from(number)
    }
}

/// Something that is no fencing token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It has more bits than a token.
    #[error("generation {generation}, epoch {epoch} is beyond the last fencing token")]
    Exhausted {
        /// The generation of the layout.
        generation: u32,
        /// The period of ownership.
        epoch: Epoch,
    },
    /// A number that is negative or too large.
    #[error("{number} is no fencing token: they go from 0 to 9007199254740991")]
    OutOfRange {
        /// The number.
        number: i64,
    },
    /// A text that is no number.
    #[error("{0:?} is no fencing token: it is no whole number")]
    NoNumber(String),
}

/// What a store says to a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The write may happen, and the token is the highest from now on.
    Admitted,
    /// A later owner has been there: the write must not happen.
    Stale {
        /// The token of that owner.
        highest: FencingToken,
    },
}

/// What every guard does: decides by the highest token that a store has seen of
/// a resource. Reading it, deciding, writing it and the write itself have to be
/// one atomic step of the store.
#[must_use]
pub fn admit(highest: Option<FencingToken>, token: FencingToken) -> Admission {
    match highest {
        Some(highest) if highest > token => Admission::Stale { highest },
        Some(_) | None => Admission::Admitted,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> impl Strategy<Value = FencingToken> {
        let generation = prop_oneof![0..4u32, 0..=FencingToken::MAX_GENERATION];
        let epoch = prop_oneof![0..4u64, 0..=FencingToken::MAX_EPOCH.0];
        (generation, epoch).prop_map(|(g, e)| FencingToken::new(g, Epoch(e)).expect("in range"))
    }

    proptest! {
        #[test]
        fn tokens_and_their_numbers_have_one_order(a in token(), b in token()) {
            prop_assert_eq!(a.cmp(&b), a.number().cmp(&b.number()));
            let by_parts = (a.generation(), a.epoch()).cmp(&(b.generation(), b.epoch()));
            prop_assert_eq!(a.cmp(&b), by_parts);
        }

        #[test]
        fn every_form_comes_back(token in token()) {
            prop_assert_eq!(token.to_string().parse(), Ok(token));
            prop_assert_eq!(FencingToken::try_from(token.number()), Ok(token));
            let json = serde_json::to_string(&token).expect("JSON");
            prop_assert_eq!(&json, &token.to_string());
            prop_assert_eq!(serde_json::from_str::<FencingToken>(&json).ok(), Some(token));
            // A double holds it exactly.
            prop_assert_eq!(token.number() as f64 as i64, token.number());
        }

        #[test]
        fn numbers_are_tokens_or_refused(number: i64) {
            match FencingToken::try_from(number) {
                Ok(token) => prop_assert_eq!(token.number(), number),
                Err(_) => prop_assert!(!(0..1 << 53).contains(&number)),
            }
        }

        /// Whatever writes arrive in whatever order, those that are admitted
        /// have tokens that never fall.
        #[test]
        fn what_is_admitted_never_falls(writes in prop::collection::vec(token(), 0..40)) {
            let mut highest = None;
            for token in writes {
                match admit(highest, token) {
                    Admission::Admitted => {
                        prop_assert!(highest.is_none_or(|h| h <= token));
                        highest = Some(token);
                    }
                    Admission::Stale { highest: seen } => {
                        prop_assert!(token < seen);
                        prop_assert_eq!(Some(seen), highest);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let last = FencingToken::new(FencingToken::MAX_GENERATION, FencingToken::MAX_EPOCH);
        assert_eq!(last.map(FencingToken::number), Ok((1 << 53) - 1));
        assert!(FencingToken::new(FencingToken::MAX_GENERATION + 1, Epoch(0)).is_err());
        assert!(FencingToken::new(1, Epoch(1 << 40)).is_err());
        for bad in ["", "-1", "1.0", "9007199254740992", "x"] {
            assert!(bad.parse::<FencingToken>().is_err(), "{bad}");
        }
    }
}
