//! keylane as a user runs it: the real binary, a real broker, right and wrong
//! input.

mod bad_days;
mod bad_input;
mod config;
mod handlers;
mod journal;
mod security;
mod steering;
mod tls;
mod user;
