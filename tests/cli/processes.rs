//! Processes and signals: what a worker leaves behind, and what it does not.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use std::path::Path;
use std::process::Command;

use keylane::testing::Broker;

use super::user::User;

fn publish(user: &User, tasks: usize) {
    let input: String = (0..tasks).map(|n| format!("{{\"r\":\"r{n}\"}}\n")).collect();
    let input = user.file("tasks.ndjson", input);
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r"]);
}

fn lives(process: &str) -> bool {
    // A zombie has ended.
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    Path::new(&format!("/proc/{process}")).exists() && !stat.contains(") Z ")
}

#[tokio::test(flavor = "multi_thread")]
async fn children_die_with_a_worker_that_is_killed() {
    let user = User::with_partitions(1).await;
    let script = "echo $$ >>pids; (echo $BASHPID >/dev/null; sleep 600) & sleep 600; true";
    for handler in ["--exec", "--pipe"] {
        publish(&user, 3);
        let worker = user.starts(&["work", handler, script, "--log", "off"]);
        user.waits_for("three children", || user.lines_of("pids").len() == 3);
        let children = user.lines_of("pids");
        worker.signal("KILL");
        user.waits_for("their end", || !children.iter().any(|child| lives(child)));
        std::fs::remove_file(user.folder.path().join("pids")).unwrap();
        // What was killed half-way comes again, and is done with.
        let worker = user.starts(&["work", "--exec", "true", "--log", "off"]);
        user.waits_for_quiet();
        worker.signal("TERM");
        worker.ends();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_signal_that_ends_a_process_is_a_wish_for_a_clean_end() {
    let user = User::with_partitions(1).await;
    publish(&user, 1);
    let first = user.starts(&["work", "--exec", "echo x >>ran; sleep 1; echo end >>ran"]);
    user.waits_for("a running task", || user.lines_of("ran").len() == 1);
    first.signal("HUP");
    assert_eq!(first.ends().code, Some(0));
    assert_eq!(user.lines_of("ran"), ["x", "end"], "what runs finishes");
    let signals = ["QUIT", "USR1", "USR2", "ALRM", "HUP"];
    let workers: Vec<_> = signals
        .iter()
        .map(|signal| user.starts(&["work", "--exec", "true", "--log", "off", "--id", signal]))
        .collect();
    let ignores = r#"trap "" HUP; exec "$0" work --exec true --log off --id nohup"#;
    let mut command = user.command(&[]);
    let program = command.get_program().to_owned();
    let environment: Vec<_> =
        command.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
    command = Command::new("sh");
    command.args(["-c", ignores]).arg(program).current_dir(user.folder.path());
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let nohup = super::user::Running(command.spawn().unwrap());
    user.waits_for("all workers", || {
        user.status()["workers"].as_array().unwrap().len() == signals.len() + 1
    });
    nohup.signal("HUP");
    for (signal, worker) in signals.iter().zip(workers) {
        worker.signal(signal);
        assert_eq!(worker.ends().code, Some(0), "{signal}");
    }
    let left = user.status()["workers"].clone();
    assert_eq!(left[0]["worker"], "nohup", "it was told to ignore that: {left}");
}

/// A container with a name of its own, removed at the end.
struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        Command::new("docker").args(["rm", "-f", &self.0]).output().ok();
    }
}

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn as_the_first_process_of_a_container_it_reaps_what_handlers_leave_behind() {
    let broker = Broker::shared().await.unwrap();
    let user = User::with_partitions(2).await;
    publish(&user, 40);
    // Any image with a C library will do, and that of the broker is there.
    let inspect = ["inspect", "--format", "{{.Config.Image}}", broker.container()];
    let image = docker(&inspect).trim().to_owned();
    let container = Container(format!("{}-one", user.namespace));
    let program = format!("{}:/keylane:ro", env!("CARGO_BIN_EXE_keylane"));
    let (url, namespace) = (&user.url, &user.namespace);
    let (url, namespace) =
        (format!("KEYLANE_AMQP_URL={url}"), format!("KEYLANE_NAMESPACE={namespace}"));
    docker(&[
        "run",
        "-d",
        "--name",
        &container.0,
        "--network",
        "host",
        "-v",
        &program,
        "-e",
        &url,
        "-e",
        &namespace,
        "--entrypoint",
        "/keylane",
        &image,
        "work",
        "--exec",
        "(sleep 0.1 &); true",
    ]);
    user.waits_for_quiet();
    let count = "cat /proc/[0-9]*/stat | grep -c ') Z '; true";
    user.waits_for("no zombie", || {
        docker(&["exec", &container.0, "sh", "-c", count]).trim() == "0"
    });
    docker(&["stop", "-t", "30", &container.0]);
    let code = docker(&["inspect", "--format", "{{.State.ExitCode}}", &container.0]);
    assert_eq!(code.trim(), "0", "its signals reach the worker, and its exit code comes back");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_payloads_wait_on_disk_and_come_whole() {
    const TASKS: usize = 40;
    const PAYLOAD: usize = 3 << 20;
    let user = User::with_partitions(1).await;
    let filling = "x".repeat(PAYLOAD);
    let input: String =
        (0..TASKS).map(|n| format!("{{\"r\":\"r{n}\",\"x\":\"{filling}\"}}\n")).collect();
    let input = user.file("tasks.ndjson", input);
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r"]);
    let script = r#"sleep 0.05; [ "$(wc -c)" = "$KEYLANE_PAYLOAD_BYTES" ] && echo whole >>log"#;
    let limits = ["--window-bytes", "16MiB", "--slots", "2", "--spill-directory", "."];
    let worker = user.starts(&[&["work", "--exec", script, "--log", "off"], &limits[..]].concat());
    user.waits_for("all tasks", || user.lines_of("log").len() == TASKS);
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.0.id())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let most: usize = most.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    // The program itself has 60 MiB in a build for tests.
    assert!(most < 150 << 10, "{most} KiB, of {} KiB", (TASKS * PAYLOAD) >> 10);
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));
}
