//! What reads bytes from outside, for fuzzers and property tests: each function
//! reads its input as keylane does, and panics where a promise is broken.

pub use crate::cli::lines::fuzz::lines;
pub use crate::handler::pipe::fuzz::{answer, request};
pub use crate::rabbit::claims::fuzz::claims;
pub use crate::rabbit::control::fuzz::control;
pub use crate::rabbit::envelope::fuzz::{envelope, message};
pub use crate::rabbit::journal::fuzz::journal;
pub use crate::rabbit::sieve::fuzz::frames;
pub use crate::rabbit::steering::fuzz::order;
pub use crate::rabbit::topology::fuzz::topology;
pub use crate::rabbit::version::fuzz::greeting;
