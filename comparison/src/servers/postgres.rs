//! Postgres, as it comes: every commit is on the disk before it is answered.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio_postgres::NoTls;

use super::{
    READY_TIMEOUT, Running, User, bound_to_us, find_program, free_port, new_folder, spawn,
    version_of,
};
use crate::plan::Endpoints;
use rustix::process::Signal;

/// Where Debian has the versions that are installed, none of them on the PATH.
const VERSIONS: &str = "/usr/lib/postgresql";

/// How long a request waits before Postgres looks for a deadlock. Its default is a second;
/// this is for those who expect deadlocks, and without it the contestant that has them would
/// do nothing but wait.
const DEADLOCK_TIMEOUT: &str = "deadlock_timeout=100ms";

/// The folder with `postgres` and `initdb`, of the newest version that is installed.
pub(super) fn binaries() -> Option<PathBuf> {
    let installed = std::fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = installed.map(|entry| entry.path()).max_by_key(number);
    let of_debian = newest.map(|path| path.join("bin"));
    let on_path = find_program("postgres").and_then(|file| Some(file.parent()?.to_owned()));
    of_debian.into_iter().chain(on_path).find(|folder| folder.join("initdb").is_file())
}

/// Postgres refuses to run as root. Debian's package has made a user for it.
fn user() -> anyhow::Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").context("cannot read the users")?;
    let of = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2).map(str::parse);
        Some(User { uid: numbers.next()?.ok()?, gid: numbers.next()?.ok()? })
    };
    let user = of("postgres").or_else(|| of("nobody"));
    Ok(Some(user.context("root cannot run Postgres, and there is no user `postgres`")?))
}

pub(super) async fn start(endpoints: &mut Endpoints) -> anyhow::Result<Running> {
    let binaries = binaries().unwrap_or_default();
    let (server, user) = (binaries.join("postgres"), user()?);
    let words = version_of(&server, "--version").await?;
    let number = words.split(' ').nth(2).unwrap_or("?");
    let version = format!("PostgreSQL {number}, fsync on");
    let (folder, port) = (new_folder("postgres")?, free_port()?);
    if let Some(User { uid, gid }) = user {
        chown(folder.path(), Some(uid), Some(gid))?;
    }
    initialize(&binaries, folder.path(), user).await?;
    let mut command = bound_to_us(&server, Signal::QUIT, user.as_ref());
    command.arg("-D").arg(folder.path().join("data")).args(["-p", &port.to_string()]);
    command.args(["-h", "127.0.0.1", "-k", "", "-c", "max_connections=200"]);
    // Shared memory in its folder, which is removed.
    command.args(["-c", DEADLOCK_TIMEOUT, "-c", "dynamic_shared_memory_type=mmap"]);
    endpoints.postgres = port;
    let running = spawn(command, Signal::QUIT, folder, port, version).await?;
    serves(port).await?;
    Ok(running)
}

async fn initialize(binaries: &Path, folder: &Path, user: Option<User>) -> anyhow::Result<()> {
    let mut command = bound_to_us(&binaries.join("initdb"), Signal::QUIT, user.as_ref());
    command.arg("-D").arg(folder.join("data")).current_dir(folder);
    command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
    let output = command.output().await.context("cannot run initdb")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "initdb failed: {}", said.trim());
    Ok(())
}

/// It listens before it takes anybody.
async fn serves(port: u16) -> anyhow::Result<()> {
    let since = Instant::now();
    let address = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    while let Err(error) = tokio_postgres::connect(&address, NoTls).await {
        ensure!(since.elapsed() < READY_TIMEOUT, "it takes nobody: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
