//! One partition of a small fleet, with everything that can happen to it.
//!
//! The workers run the real [`Lanes`](keylane::protocol::lanes::Lanes). Around
//! them, [`broker`] follows RabbitMQ's source with the [`consumer`]s that it
//! knows, [`tenure`] is a worker with its channel, and [`store`] is what the
//! handlers write to, with fencing tokens. [`step`] lists what may happen next,
//! [`state`] makes it happen, [`properties`] says what must hold. A [`scene`]
//! bounds it all, and can break the rules on purpose; [`scenes`] are those that
//! are checked, and [`verdict`] is what comes of it.
//!
//! Nobody plans in the model. Any worker may leave its place at any moment and
//! come back, which is what every plan comes to, two plans at once, and none.
//!
//! Every step uses something up (a task, a fault, a move, a channel), so every
//! path ends, and "eventually" is checked to the end of each.

pub(crate) mod broker;
pub(crate) mod consumer;
pub(crate) mod properties;
pub(crate) mod scene;
pub(crate) mod scenes;
pub(crate) mod state;
pub(crate) mod step;
pub(crate) mod store;
pub(crate) mod tenure;
pub(crate) mod verdict;
