//! ZooKeeper, one server, as it comes: every write is on the disk before it is answered.

use std::path::PathBuf;

use rustix::process::Signal;

use super::{Running, bound_to_us, find_program, free_port, new_folder, spawn};
use crate::plan::Endpoints;

/// Where Debian has it; the file names all the others that it needs.
const JAR: &str = "/usr/share/java/zookeeper.jar";

/// Where Debian has it once more, with its version.
const BESIDE: &str = "/usr/share/java";

/// The unit of ZooKeeper's times: sessions last two of these at least, so that the leases of
/// the comparison (2 s) are allowed, and are looked at this often.
const TICK_MS: u32 = 500;

pub(super) fn jar() -> Option<PathBuf> {
    Some(PathBuf::from(JAR)).filter(|jar| jar.is_file())
}

/// The version, which the name of a file has: zookeeper-3.8.0.jar.
fn number() -> Option<String> {
    let names = std::fs::read_dir(BESIDE).ok()?.flatten();
    names.filter_map(|entry| entry.file_name().into_string().ok()).find_map(|name| {
        let number = name.strip_prefix("zookeeper-")?.strip_suffix(".jar")?;
        number.starts_with(|first: char| first.is_ascii_digit()).then(|| number.to_owned())
    })
}

pub(super) async fn start(endpoints: &mut Endpoints) -> anyhow::Result<Running> {
    let java = find_program("java").unwrap_or_default();
    let version = format!("ZooKeeper {}, one server, fsync on", number().unwrap_or_default());
    let (folder, port) = (new_folder("zookeeper")?, free_port()?);
    let settings = folder.path().join("zoo.cfg");
    let data = folder.path().join("data");
    let lines = format!(
        "dataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\ntickTime={TICK_MS}\n\
         admin.enableServer=false\nmaxClientCnxns=0\n",
        data.display()
    );
    std::fs::write(&settings, lines)?;
    let mut command = bound_to_us(&java, Signal::KILL, None);
    command.args(["-Xmx512m", "-cp"]).arg(JAR);
    command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(settings);
    endpoints.zookeeper = port;
    spawn(command, Signal::KILL, folder, port, version).await
}
