use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::handler::exec::tests::{PATIENCE, attempt, eventually, is_dead, is_reaped, pids};

fn scratch() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    (directory, file)
}

async fn handle(pipe: &Pipe, payload: impl Into<Bytes>) -> Result<(), Failure> {
    timeout(PATIENCE, pipe.handle(attempt(payload))).await.expect("the process hangs")
}

/// What comes of a process that meets its first task with this script.
async fn failure(script: &str) -> String {
    match handle(&Pipe::new(script, 1), "").await {
        Err(Failure::Failed { reason }) => reason,
        other => panic!("not failed: {other:?}"),
    }
}

/// A process that notes its id at its start and then answers with `answer`.
fn answering(file: &Path, answer: &str) -> String {
    format!("echo $$ >> {}; while read -r task; do {answer}; done", file.display())
}

#[tokio::test]
async fn one_process_executes_task_after_task() {
    let (_directory, file) = scratch();
    let pipe = Pipe::new(answering(&file, r#"echo '{"status":"executed","id":"t-1"}'"#), 3);
    for _ in 0..5 {
        assert_eq!(handle(&pipe, "{}").await, Ok(()));
    }
    assert_eq!(pids(&file).await.len(), 1, "started when needed, then kept");
}

#[tokio::test]
async fn the_process_decides() {
    let retry = r#"read t; echo '{"status":"retry","after_ms":1500,"reason":"busy"}'; read t"#;
    let after = Some(Duration::from_millis(1500));
    assert_eq!(handle(&Pipe::new(retry, 1), "").await, Err(Failure::retry(after, "busy")));
    let dead = r#"read t; echo '{"status":"dead","reason":"no such account"}'; read t"#;
    assert_eq!(handle(&Pipe::new(dead, 1), "").await, Err(Failure::dead("no such account")));
}

#[tokio::test]
async fn a_large_task_is_handed_over_whole_while_the_process_writes() {
    let (_directory, file) = scratch();
    // The answer is larger than a pipe holds, and comes before the task is read.
    let blanks = "head -c 500000 /dev/zero | tr '\\0' ' '";
    let script =
        format!(r#"{blanks}; head -n 1 > {}; echo '{{"status":"executed"}}'"#, file.display());
    let attempt = attempt(vec![b'x'; 1 << 20]);
    let expected = protocol::request(&attempt, None).expect("a line");
    assert_eq!(handle(&Pipe::new(script, 1), attempt.task.payload).await, Ok(()));
    assert!(fs::read(file).expect("the task") == expected);
}

#[tokio::test]
async fn a_process_that_ends_mid_task_failed() {
    assert_eq!(
        failure("read task; exit 3").await,
        "`read task; exit 3` ended before it had answered: exit status 3"
    );
    let cut = failure("read task; printf '{\"status\":\"executed\"}'; kill -9 $$").await;
    assert!(cut.ends_with("ended before it had answered: killed by signal 9"), "{cut}");
    let held = failure("read task; sleep 2 & exit 4").await;
    assert!(held.ends_with("ended before it had answered: exit status 4"), "{held}");
    let closed = failure("read task; exec >&-; sleep 1000").await;
    assert!(closed.ends_with("closed its stdout before it had answered"), "{closed}");
}

#[tokio::test]
async fn what_is_no_answer_is_shown() {
    let malformed = failure("read task; echo Traceback: oh no; read task").await;
    assert!(malformed.contains("` gave no valid answer (expected value"), "{malformed}");
    assert!(malformed.ends_with("): Traceback: oh no"), "{malformed}");
    let long = failure("read task; head -c 2000000 /dev/zero | tr '\\0' x; read task").await;
    let expected = format!("1048576 bytes, beginning with: {}", "x".repeat(200));
    assert!(long.ends_with(&expected), "{long}");
    let deaf = Pipe::new(r#"exec <&-; echo '{"status":"executed"}'; exec sleep 1000"#, 1);
    let Err(Failure::Failed { reason }) = handle(&deaf, vec![0; 1 << 20]).await else {
        panic!("not failed")
    };
    assert!(reason.contains("answered before it had read the whole task"), "{reason}");
}

#[tokio::test]
async fn a_command_that_is_missing_is_not_the_tasks_fault() {
    let Err(Failure::Unavailable { reason, .. }) =
        handle(&Pipe::new("no-such-command", 1), "").await
    else {
        panic!("not unavailable")
    };
    assert!(reason.contains("exit status 127") && reason.contains("not found"), "{reason}");
}

#[tokio::test]
async fn what_a_process_says_on_stderr_is_a_part_of_the_reason() {
    let reason = failure("read task; echo starting >&2; echo no such account >&2; exit 3").await;
    assert!(reason.ends_with("exit status 3; stderr: starting\nno such account"), "{reason}");
    let twice = r#"read task; echo old >&2; sleep 0.1; echo '{"status":"executed"}'
        read task; echo new >&2; exit 3"#;
    let pipe = Pipe::new(twice, 1);
    assert_eq!(handle(&pipe, "").await, Ok(()));
    let Err(Failure::Failed { reason }) = handle(&pipe, "").await else { panic!("not failed") };
    assert!(reason.ends_with("; stderr: new"), "of this task alone: {reason}");
}

#[tokio::test]
async fn a_process_that_does_not_flush_is_told_so() {
    let attempt = attempt("");
    let words = Arc::clone(&attempt.last_words);
    let pipe = Pipe::new("read task; echo busy >&2; sleep 1000", 1);
    timeout(Duration::from_millis(300), pipe.handle(attempt)).await.expect_err("no answer");
    let words = words.lock().expect("no panic").take().expect("some words");
    assert!(words.contains("flush") && words.ends_with("; stderr: busy"), "{words}");
}

#[tokio::test]
async fn a_process_that_broke_the_protocol_is_killed_and_replaced() {
    let (_directory, file) = scratch();
    let answer = r#"echo '{"status":"executed","id":"t-2"}'"#;
    let pipe = Pipe::new(answering(&file, answer), 1);
    for started in 1..=2 {
        let Err(Failure::Failed { reason }) = handle(&pipe, "").await else { panic!("not failed") };
        assert!(reason.contains("for the task t-2 instead of t-1"), "{reason}");
        let pids = pids(&file).await;
        assert_eq!(pids.len(), started);
        eventually("it is reaped", || is_reaped(pids[started - 1]).then_some(())).await;
    }
}

#[tokio::test]
async fn an_answer_too_many_is_not_taken_for_the_next_task() {
    let (_directory, file) = scratch();
    let answer = r#"printf '{"status":"executed"}\n{"status":"executed"}\n'"#;
    let pipe = Pipe::new(answering(&file, answer), 1);
    assert_eq!(handle(&pipe, "").await, Ok(()));
    assert_eq!(handle(&pipe, "").await, Ok(()));
    assert_eq!(pids(&file).await.len(), 2, "the talkative one was replaced");
}

#[tokio::test]
async fn a_process_that_ended_while_idle_is_replaced() {
    let (_directory, file) = scratch();
    let script =
        format!(r#"echo $$ >> {}; read t; echo '{{"status":"executed"}}'"#, file.display());
    let pipe = Pipe::new(script, 1);
    for started in 1..=3 {
        assert_eq!(handle(&pipe, "").await, Ok(()));
        let pids = pids(&file).await;
        assert_eq!(pids.len(), started);
        eventually("it ended", || is_dead(pids[started - 1]).then_some(())).await;
    }
}

#[tokio::test]
async fn there_are_never_more_processes_than_slots() {
    let (directory, file) = scratch();
    let gate = directory.path().join("gate");
    let answer = format!(
        r#"echo >> {file}; until [ -e {gate} ]; do sleep 0.01; done; echo '{{"status":"executed"}}'"#,
        file = directory.path().join("begun").display(),
        gate = gate.display(),
    );
    let pipe = Arc::new(Pipe::new(answering(&file, &answer), 2));
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let pipe = Arc::clone(&pipe);
            tokio::spawn(async move { pipe.handle(attempt("")).await })
        })
        .collect();
    eventually("two tasks have begun", || {
        let begun = fs::read(directory.path().join("begun")).ok()?;
        (begun.len() == 2).then_some(())
    })
    .await;
    fs::write(gate, "").expect("the gate");
    for task in tasks {
        let result = timeout(PATIENCE, task).await.expect("in time").expect("no panic");
        assert_eq!(result, Ok(()));
    }
    assert_eq!(pids(&file).await.into_iter().collect::<HashSet<_>>().len(), 2);
}

#[tokio::test]
async fn dropping_the_future_kills_that_process_group_and_frees_its_slot() {
    let (directory, file) = scratch();
    let second = directory.path().join("second");
    let script = format!(
        r#"read t; [ -e {second} ] && echo '{{"status":"executed"}}' && exit
        > {second}; sleep 1000 & echo $$ $! > {file}; wait"#,
        second = second.display(),
        file = file.display(),
    );
    let pipe = Arc::new(Pipe::new(script, 1));
    let running = tokio::spawn({
        let pipe = Arc::clone(&pipe);
        async move { pipe.handle(attempt("")).await }
    });
    let pids = pids(&file).await;
    let [child, grandchild] = pids[..] else { panic!("two processes, not {pids:?}") };
    assert!(!is_dead(child) && !is_dead(grandchild));

    running.abort();

    eventually("the child is reaped", || is_reaped(child).then_some(())).await;
    eventually("the grandchild is dead", || is_dead(grandchild).then_some(())).await;
    assert_eq!(handle(&pipe, "").await, Ok(()), "a fresh process in the freed slot");
}

#[tokio::test]
async fn dropping_the_pipe_kills_the_idle_processes() {
    let (_directory, file) = scratch();
    let pipe = Pipe::new(answering(&file, r#"echo '{"status":"executed"}'"#), 1);
    assert_eq!(handle(&pipe, "").await, Ok(()));
    let pids = pids(&file).await;
    assert!(!is_dead(pids[0]));
    drop(pipe);
    eventually("it is reaped", || is_reaped(pids[0]).then_some(())).await;
}
