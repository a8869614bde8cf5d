//! The program as one calls it.

#![allow(clippy::expect_used, reason = "clippy spares #[test] functions only")]

use std::fs;
use std::process::{Command, Output};

use comparison::report::Report;

fn comparison(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_comparison"));
    command.args(arguments).envs(environment.iter().copied());
    command.output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_run_with_what_there_is_writes_it_all_down() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/comparison.md");
    fs::copy(docs, path("docs.md")).expect("the documents");
    fs::create_dir(path("tmp")).expect("a folder");
    let arguments = ["--only", "redis", "--contestants", "keylane,redis-lock,etcd-lock"];
    let short = ["--workloads", "hot90,transfers", "--tasks", "1=60", "--rounds", "1"];
    let (out, docs) = (path("out"), path("docs.md"));
    let rest = ["--stress-rounds", "0", "--resources", "20", "--out", &out, "--docs", &docs];
    let arguments = [&arguments[..], &short[..], &rest[..]].concat();
    let output = comparison(&arguments, &[("TMPDIR", &path("tmp"))]);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let printed = text(&output.stdout);
    assert!(printed.contains("redis-lock") && printed.contains("Left out: etcd-lock, by --only"));
    let json = fs::read_to_string(path("out/comparison.json")).expect("the JSON");
    let report: Report = serde_json::from_str(&json).expect("a report");
    let rows: Vec<_> = report
        .measured
        .iter()
        .map(|one| (one.contestant.as_str(), one.completed, one.lost))
        .collect();
    let expected =
        [("keylane", 1, 0), ("redis-lock", 1, 0), ("keylane", 1, 0), ("redis-lock", 1, 0)];
    assert_eq!(rows, expected);
    let page = fs::read_to_string(path("out/comparison.html")).expect("the page");
    for elsewhere in ["http:", "https:", "<script", "<link", "@import", "url("] {
        assert!(!page.contains(elsewhere), "the page needs {elsewhere}");
    }
    let written = fs::read_to_string(path("docs.md")).expect("the documents");
    assert!(written.contains("--workloads hot90,transfers"), "the tables are those of this run");

    let left: Vec<_> = fs::read_dir(path("tmp")).expect("the folder").flatten().collect();
    assert!(left.is_empty(), "left behind: {left:?}");

    let again = path("again");
    let output = comparison(&["--out", &again, "render", &path("out/comparison.json")], &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(path("again/comparison.html")).expect("the page"), page);
}

#[test]
fn what_is_missing_is_named_with_the_line_that_installs_it() {
    let output = comparison(&["--contestants", "etcd-lock"], &[("PATH", "/nowhere")]);
    let said = text(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("apt-get install --no-install-recommends etcd-server"), "{said}");
}

#[test]
fn wrong_input_is_named() {
    for (arguments, named) in [
        (["--contestants", "magic"], "keylane, redis-lock"),
        (["--tasks", "2"], "MS=TASKS"),
        (["--workers", "1"], "2..64"),
        (["render", "/nowhere.json"], "/nowhere.json"),
    ] {
        let output = comparison(&arguments, &[]);
        assert!(!output.status.success());
        let said = text(&output.stderr);
        assert!(said.contains(named), "{said}");
    }
}
