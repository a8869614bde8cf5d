//! What `deploy/` has keylane run: these very command lines, on a real broker.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use std::collections::BTreeSet;
use std::net::TcpListener;

use serde_json::Value;

use super::user::User;

const SYSTEMD: &str = include_str!("../../deploy/keylane-worker.service");
const KUBERNETES: &str = include_str!("../../deploy/kubernetes/keylane.yaml");
const KEDA: &str = include_str!("../../deploy/kubernetes/keda.yaml");
const DOCKERFILE: &str = include_str!("../../Dockerfile");
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// The `args` of the containers, in order.
fn args_of(manifest: &str) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    let mut lines = manifest.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    while let Some(line) = lines.next() {
        let Some(list) = line.strip_prefix("args:") else { continue };
        all.push(match list.trim() {
            "" => {
                let items = lines.by_ref().map_while(|line| line.strip_prefix("- "));
                items.map(str::to_owned).collect()
            }
            list => serde_json::from_str(list).unwrap(),
        });
    }
    all
}

/// Starts a worker with these arguments, sees it among the workers, and stops it.
fn works(user: &User, args: &[String], id: &str) {
    // Somebody else may have that port.
    let args: Vec<_> = args.iter().map(|arg| arg.replace(":9464", ":0")).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let worker = user.starts(&args);
    user.waits_for(id, || {
        let status = user.status();
        status["workers"].as_array().unwrap().iter().any(|worker| worker["worker"] == id)
    });
    worker.signal("TERM");
    let ran = worker.ends();
    assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_lines_run() {
    let user = User::new().await;
    let kubernetes = args_of(KUBERNETES);
    let [init, work] = &kubernetes[..] else { panic!("{kubernetes:?}") };
    let init: Vec<_> = init.iter().map(String::as_str).collect();
    user.succeeds(&init);
    // The application: it need not answer to be there.
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!(":{}/", application.local_addr().unwrap().port());
    std::thread::spawn(move || application.incoming().for_each(drop));
    let work = work.iter().map(|arg| arg.replace("$(POD_NAME)", "pod-7"));
    let work: Vec<_> = work.map(|arg| arg.replace(":8080/", &port)).collect();
    works(&user, &work, "pod-7");

    let start = SYSTEMD.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let work = start.strip_prefix("/usr/local/bin/keylane ").unwrap().replace("%H", "host-7");
    let work: Vec<_> = work.split(' ').map(str::to_owned).collect();
    works(&user, &work, "host-7");
}

/// A variable that nobody reads would be set in vain, and in silence.
#[tokio::test]
async fn the_variables_are_read() {
    let user = User::at("amqp://localhost", "variables");
    let mut known = BTreeSet::new();
    for command in ["init", "publish", "work", "route", "dashboard", "status", "watch"] {
        let shown: Value =
            serde_json::from_str(&user.succeeds(&["config", command, "--json"]).out).unwrap();
        let settings = shown["settings"].as_array().unwrap();
        known.extend(settings.iter().map(|s| s["variable"].as_str().unwrap().to_owned()));
    }
    for text in [SYSTEMD, KUBERNETES, KEDA, DOCKERFILE, OPERATIONS] {
        let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let unknown = words.find(|word| word.starts_with("KEYLANE_") && !known.contains(*word));
        assert_eq!(unknown, None);
    }
}
