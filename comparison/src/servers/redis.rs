//! redis-server, five times, with the defaults of Redis but for the snapshots.

use std::path::PathBuf;

use rustix::process::Signal;

use super::{Running, bound_to_us, find_program, free_port, new_folder, spawn, version_of};
use crate::plan::Endpoints;

/// As many as Redlock is described with.
const COUNT: usize = 5;

pub(super) fn binary() -> Option<PathBuf> {
    find_program("redis-server")
}

pub(super) async fn start(endpoints: &mut Endpoints) -> anyhow::Result<Vec<Running>> {
    let binary = binary().unwrap_or_default();
    let words = version_of(&binary, "--version").await?;
    let number = words.split(' ').find_map(|word| word.strip_prefix("v=")).unwrap_or("?");
    let version = format!("Redis {number}, nothing written to disk");
    let mut started = Vec::new();
    for _ in 0..COUNT {
        let (folder, port) = (new_folder("redis")?, free_port()?);
        let mut command = bound_to_us(&binary, Signal::KILL, None);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "no"]);
        started.push(spawn(command, Signal::KILL, folder, port, version.clone()).await?);
        endpoints.redis.push(port);
    }
    Ok(started)
}
