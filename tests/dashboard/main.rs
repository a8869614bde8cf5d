//! `keylane dashboard` in a real browser, with a real broker, and as a stranger
//! meets it.

#[path = "../cli/user.rs"]
#[allow(dead_code, reason = "no test binary uses all of it")]
mod user;

#[path = "../support/screen.rs"]
#[allow(dead_code, reason = "no test binary uses all of it")]
mod screen;

#[path = "../support/programs.rs"]
mod programs;

mod browser;
mod guard;
mod http;
mod page;
mod pictures;
mod scale;
mod served;
