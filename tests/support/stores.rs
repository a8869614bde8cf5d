//! Stores for tests: a Postgres and a Redis of one's own, from what is installed
//! on this machine, on private ports and with their data in a folder that goes
//! with them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::eventually;
use super::programs::free_port;
pub(crate) use super::programs::program;

/// A server that a test has started; killed with the test.
pub(crate) struct Store {
    /// For its clients.
    pub(crate) address: String,
    child: Child,
    /// The signal that ends it at once, with all its processes.
    signal: &'static str,
    _folder: tempfile::TempDir,
}

impl Drop for Store {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        Command::new("kill").args([self.signal, &pid]).status().ok();
        self.child.wait().ok();
    }
}

/// Redis, empty.
pub(crate) async fn redis() -> Store {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port().to_string());
    let child = Command::new(program("redis-server", "redis-server"))
        .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .current_dir(&folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let address = format!("redis://127.0.0.1:{port}/");
    let client = redis::Client::open(address.as_str()).unwrap();
    let store = Store { address, child, signal: "-KILL", _folder: folder };
    eventually("Redis", async || client.get_multiplexed_async_connection().await.ok()).await;
    store
}

/// Postgres, with an empty database.
pub(crate) async fn postgres() -> Store {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port().to_string());
    let data = folder.path().join("data");
    let made = as_user(&program("initdb", "postgresql"), folder.path())
        .args(["--no-sync", "--auth", "trust", "--username", "postgres", "--pgdata"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let child = as_user(&program("postgres", "postgresql"), folder.path())
        .arg("-D")
        .arg(&data)
        .args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-p", &port, "-k"])
        .arg(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let address = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    let store = Store { address, child, signal: "-QUIT", _folder: folder };
    let connects =
        async || tokio_postgres::connect(&store.address, tokio_postgres::NoTls).await.ok();
    drop(eventually("Postgres", connects).await);
    store
}

/// Postgres refuses to run as root; then it runs as the user that its package
/// made, in a folder that is given to that user.
fn as_user(program: &Path, folder: &Path) -> Command {
    let root = rustix::process::geteuid().is_root();
    let mut command = if root {
        let given = Command::new("chown").arg("postgres").arg(folder).status().unwrap();
        assert!(given.success(), "no user postgres: apt-get install postgresql");
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir(folder).stdin(Stdio::null());
    command
}
