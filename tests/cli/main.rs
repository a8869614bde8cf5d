//! keylane as a user runs it: the real binary, a real broker, right and wrong
//! input.

#[path = "../dashboard/http.rs"]
#[allow(dead_code, reason = "no test binary uses all of it")]
mod http;
#[path = "../support/proxy.rs"]
#[allow(dead_code, reason = "no test binary uses all of it")]
#[allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]
mod proxy;
#[path = "../dashboard/served.rs"]
#[allow(dead_code, reason = "no test binary uses all of it")]
mod served;

mod bad_days;
mod bad_input;
mod config;
mod deploy;
mod handlers;
mod journal;
mod processes;
mod security;
mod steering;
mod strays;
mod tls;
mod user;
