//! etcd, one member, as it comes: every write is on the disk before it is answered.

use std::path::PathBuf;

use rustix::process::Signal;

use super::{Running, bound_to_us, find_program, free_port, new_folder, spawn, version_of};
use crate::plan::Endpoints;

pub(super) fn binary() -> Option<PathBuf> {
    find_program("etcd")
}

pub(super) async fn start(endpoints: &mut Endpoints) -> anyhow::Result<Running> {
    let binary = binary().unwrap_or_default();
    let version = version_of(&binary, "--version").await?.replace(" Version:", "");
    let (folder, client, peer) = (new_folder("etcd")?, free_port()?, free_port()?);
    let [client_url, peer_url] = [client, peer].map(|port| format!("http://127.0.0.1:{port}"));
    let mut command = bound_to_us(&binary, Signal::KILL, None);
    command.arg("--data-dir").arg(folder.path().join("data"));
    command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
    command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
    command.args(["--initial-cluster", &format!("default={peer_url}"), "--log-level", "error"]);
    endpoints.etcd = client;
    spawn(command, Signal::KILL, folder, client, format!("{version}, one member, fsync on")).await
}
