use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, test_kill_process};
use tokio::time::{interval, timeout};

use super::*;
use crate::protocol::task::{Task, TaskId};

/// Far beyond what anything here takes, far below a hanging build.
pub(in crate::handler) const PATIENCE: Duration = Duration::from_secs(30);

pub(in crate::handler) fn attempt(payload: impl Into<Bytes>) -> Attempt {
    let task = Task::new("account/7", payload).expect("a resource");
    Attempt::new(TaskId::new("t-1").expect("an id"), task)
}

/// Waits until `look` finds something.
pub(in crate::handler) async fn eventually<T>(
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let mut pace = interval(Duration::from_millis(5));
    let look = async {
        loop {
            pace.tick().await;
            if let Some(found) = look() {
                return found;
            }
        }
    };
    timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// The process ids in a file, once it has a whole line.
pub(in crate::handler) async fn pids(file: &Path) -> Vec<Pid> {
    eventually("a file of process ids", || {
        let text = fs::read_to_string(file).ok().filter(|text| text.ends_with('\n'))?;
        text.split_whitespace().map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    })
    .await
}

pub(in crate::handler) fn is_reaped(pid: Pid) -> bool {
    test_kill_process(pid).is_err()
}

/// Dead; whoever adopted it may not have reaped it yet.
pub(in crate::handler) fn is_dead(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    is_reaped(pid) || stat.contains(") Z ")
}

async fn exec(command: &str, attempt: Attempt) -> Result<(), Failure> {
    timeout(PATIENCE, Exec::new(command).handle(attempt)).await.expect("the command hangs")
}

#[tokio::test]
async fn the_exit_status_decides() {
    assert_eq!(exec("exit 0", attempt("")).await, Ok(()));
    assert_eq!(exec("exit 75", attempt("")).await, Err(Failure::retry(None, "exit status 75")));
    assert_eq!(exec("exit 3", attempt("")).await, Err(Failure::failed("exit status 3")));
    let killed = exec("kill -9 $$", attempt("")).await;
    assert_eq!(killed, Err(Failure::failed("killed by signal 9")));
}

#[tokio::test]
async fn the_end_of_stderr_is_the_reason() {
    let command = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i >&2; done; exit 75";
    let expected = (2991..=3000).map(|i| format!("line {i}")).collect::<Vec<_>>().join("\n");
    assert_eq!(exec(command, attempt("")).await, Err(Failure::retry(None, expected)));
}

#[tokio::test]
async fn a_large_payload_arrives_whole() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("payload");
    let payload: Vec<u8> = (0..1 << 20).map(|i: u32| i.to_le_bytes()[i as usize % 3]).collect();
    let command = format!("cat > {}", file.display());
    assert_eq!(exec(&command, attempt(payload.clone())).await, Ok(()));
    assert!(fs::read(file).expect("the payload") == payload);
}

#[tokio::test]
async fn stdin_and_stderr_flow_at_the_same_time() {
    let reason = exec("cat >&2; exit 1", attempt(vec![b'x'; 1 << 20])).await;
    assert_eq!(reason, Err(Failure::failed("x".repeat(2048))));
}

#[tokio::test]
async fn a_large_payload_may_stay_unread() {
    assert_eq!(exec("exit 0", attempt(vec![0; 8 << 20])).await, Ok(()));
    let closed = exec("exec <&-; exit 4", attempt(vec![0; 8 << 20])).await;
    assert_eq!(closed, Err(Failure::failed("exit status 4")));
}

#[tokio::test]
async fn the_facts_are_in_the_environment() {
    let mut attempt = attempt("");
    attempt.task = attempt.task.with_kind("transfer").with_content_type("text/plain");
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    attempt.task.trace_context = TraceContext::new(parent, Some("a=1")).ok();
    attempt.number = 2;
    attempt.redelivered = true;
    attempt.timeout = Some(Duration::from_millis(1500));
    let command = "echo $KEYLANE_TASK_ID $KEYLANE_RESOURCE $KEYLANE_KIND $KEYLANE_CONTENT_TYPE \
        $KEYLANE_PARTITION $KEYLANE_ATTEMPT $KEYLANE_REDELIVERED $KEYLANE_TIMEOUT_MS \
        $KEYLANE_FENCING_TOKEN $TRACEPARENT $TRACESTATE >&2; exit 1";
    let token = FencingToken::try_from((3 << 40) + 5).expect("a token");
    let attempt = attempt.with_fencing_token(token);
    let expected =
        format!("t-1 account/7 transfer text/plain 0 2 1 1500 3298534883333 {parent} a=1");
    assert_eq!(exec(command, attempt).await, Err(Failure::failed(expected)));
}

#[test]
fn what_a_task_lacks_is_not_inherited_nor_a_password() {
    let command = Exec::new("true").command(&attempt(""), None).expect("a command");
    let removed: Vec<_> =
        command.as_std().get_envs().filter(|(_, value)| value.is_none()).map(|(n, _)| n).collect();
    let optional = [
        "KEYLANE_CONTENT_TYPE",
        "KEYLANE_FENCING_TOKEN",
        "KEYLANE_KIND",
        "KEYLANE_TIMEOUT_MS",
        "TRACEPARENT",
        "TRACESTATE",
    ];
    assert_eq!(removed, [&["KEYLANE_AMQP_URL"], &optional[..]].concat());
}

#[tokio::test]
async fn a_fact_with_a_nul_byte_is_dead() {
    let task = Task::new("a\0b", "").expect("a resource");
    let attempt = Attempt::new(TaskId::new("t-1").expect("an id"), task);
    let Err(Failure::Dead { reason }) = exec("true", attempt).await else { panic!("not dead") };
    assert!(reason.contains("KEYLANE_RESOURCE"), "{reason}");
}

#[tokio::test]
async fn a_command_that_cannot_run_is_named() {
    let exec = Exec { shell: "no-such-shell", command: "work --hard".into() };
    let Err(Failure::Unavailable { reason, .. }) = exec.handle(attempt("")).await else {
        panic!("not unavailable")
    };
    assert!(reason.starts_with("cannot run `no-such-shell -c work --hard`: "), "{reason}");
}

#[tokio::test]
async fn a_command_that_is_missing_is_not_the_tasks_fault() {
    for (command, words) in [("no-such-command", "not found"), ("/", "ermission denied")] {
        let Err(Failure::Unavailable { reason, .. }) = exec(command, attempt("")).await else {
            panic!("not unavailable")
        };
        assert!(reason.contains(words), "{reason}");
    }
}

#[tokio::test]
async fn nobody_waits_for_what_is_left_in_the_background() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pid");
    for (exit, expected) in [(0, Ok(())), (1, Err(Failure::failed("why")))] {
        let command =
            format!("sleep 1000 & echo $! > {}; echo why >&2; exit {exit}", file.display());
        // Far less than the `sleep` that holds stdin's and stderr's other end.
        assert_eq!(exec(&command, attempt(vec![0; 1 << 20])).await, expected);
        for pid in pids(&file).await {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("still runs");
        }
        fs::remove_file(&file).expect("the file");
    }
}

#[tokio::test]
async fn dropping_the_future_kills_the_whole_group_and_reaps_the_child() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pids");
    let command = format!("(sleep 1000 & echo $$ $! > {}; wait) & wait", file.display());
    let running = tokio::spawn(async move { Exec::new(command).handle(attempt("")).await });
    let pids = pids(&file).await;
    let [child, grandchild] = pids[..] else { panic!("two processes, not {pids:?}") };
    assert!(!is_dead(child) && !is_dead(grandchild));

    running.abort();

    eventually("the child is reaped", || is_reaped(child).then_some(())).await;
    eventually("the grandchild is dead", || is_dead(grandchild).then_some(())).await;
}
