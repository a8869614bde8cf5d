//! Histories that a real git made, read from everywhere.

use std::path::Path;

use super::Repository;
use super::git::GitError;
use super::history::HistoryError;
use super::testing::{Bench, Fixture, edits, everything};

#[test]
fn every_sort_of_change_is_told() {
    let fixture = Fixture::new();
    everything(&fixture);
    let expected = [
        "#0 a - file",
        "#0 empty - file",
        "#0 kept - file",
        "#1 a file file",
        "#2 side - file",
        "#4 a file -",
        "#5 a/b - file",
        "#6 link - symlink",
        "#7 link symlink file",
        "#8 kept file executable",
        "#9 new\\nline \\\"quoted\\\"\\t\\\\ - file",
        "#9 ä ö - file",
        "#9 \\xff\\xfe - file",
        "#10 vendor/lib - submodule",
        "#11 vendor/lib submodule submodule",
    ];
    assert_eq!(fixture.story(), expected, "#3 is a commit that changes nothing");
    assert_eq!(fixture.repository().count().expect("counts"), 15);
    assert_eq!(fixture.repository().commits().expect("counts"), 12);
}

#[test]
fn a_sha256_repository_is_replayed() {
    let fixture = Fixture::with(&["--object-format=sha256"]);
    fixture.write(b"a", b"one").commit().write(b"a", b"two").commit();
    assert_eq!(fixture.repository().head().as_str().len(), 64);
    Bench::new(fixture.repository()).replay().verify().expect("all as git has it");
}

#[test]
fn the_repositorys_own_settings_change_nothing() {
    let fixture = Fixture::new();
    everything(&fixture);
    let story = fixture.story();
    let settings = [
        ("diff.renames", "copies"),
        ("diff.ignoreSubmodules", "all"),
        ("diff.relative", "true"),
        ("submodule.vendor/lib.ignore", "all"),
        ("log.showRoot", "false"),
        ("log.diffMerges", "off"),
        ("log.showSignature", "true"),
        ("log.decorate", "full"),
        ("color.ui", "always"),
        ("core.abbrev", "5"),
        ("format.pretty", "full"),
        ("core.autocrlf", "true"),
    ];
    for (key, value) in settings {
        fixture.git("config", &[key, value]);
    }
    std::fs::write(fixture.place(b".git/info/attributes"), "* text ident\n").expect("a file");
    assert_eq!(fixture.story(), story);
    Bench::new(fixture.repository()).replay().verify().expect("all as git has it");
}

#[test]
fn a_repository_opens_from_wherever_it_is_seen() {
    let fixture = Fixture::new();
    fixture.write(b"deep/er/a", b"one").commit().write(b"deep/er/a", b"two").commit();
    let head = fixture.repository().head().clone();
    let clone = |name: &str, args: &[&str]| {
        let source = format!("file://{}", fixture.path().display());
        fixture.git("clone", &[args, &["--quiet", &source, name]].concat());
        Repository::open(fixture.place(name.as_bytes())).expect("opens")
    };
    let subfolder = Repository::open(fixture.place(b"deep/er")).expect("opens");
    assert_eq!(subfolder.git_dir(), fixture.repository().git_dir());
    assert_eq!(*clone("bare\n", &["--bare"]).head(), head);
    fixture.git("worktree", &["add", "--quiet", "linked", "HEAD~1"]);
    let linked = Repository::open(fixture.place(b"linked")).expect("opens");
    assert_ne!(*linked.head(), head);
    Bench::new(linked).replay().verify().expect("all as git has it");
    let shallow = clone("shallow", &["--depth=1"]);
    assert_eq!(shallow.count().expect("counts"), 1, "it begins with its oldest commit");
    Bench::new(shallow).replay().verify().expect("all as git has it");
}

#[test]
fn a_history_can_be_cut() {
    let fixture = Fixture::new();
    everything(&fixture);
    let oldest = fixture.repository().oldest(5).expect("cuts");
    assert_eq!(oldest.commits().expect("counts"), 5);
    Bench::new(oldest).replay().verify().expect("all as git has it");
    let all = fixture.repository().oldest(1_000).expect("cuts");
    assert_eq!(all.head(), fixture.repository().head());
}

#[test]
fn what_cannot_be_opened_says_why() {
    let nowhere = tempfile::tempdir().expect("a directory");
    for place in [nowhere.path(), Path::new("/no/such/place")] {
        let error = Repository::open(place).expect_err("no repository");
        assert!(matches!(error, HistoryError::NotARepository { .. }), "{error}");
    }
    let empty = Fixture::new();
    let error = Repository::open(empty.path()).expect_err("no commit");
    assert!(matches!(error, HistoryError::NoCommit { .. }), "{error}");
}

#[test]
fn a_history_that_breaks_off_ends_in_an_error() {
    let fixture = Fixture::new();
    fixture.write(b"a", b"one").commit().write(b"a", b"two").commit();
    let first = &edits(&fixture.repository())[0];
    let (folder, file) = first.commit.as_str().split_at(2);
    std::fs::remove_file(fixture.path().join(".git/objects").join(folder).join(file))
        .expect("an object");
    let last = fixture.repository().edits().expect("starts").last().expect("an item");
    let error = last.expect_err("half a history");
    assert!(matches!(error, HistoryError::Git(GitError::Failed { .. })), "{error}");
}

#[test]
fn this_repository_is_replayed() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    // A packaged crate has no history.
    if here.join(".git").exists() {
        let repository = Repository::open(here.join("src")).expect("opens");
        Bench::new(repository).replay().verify().expect("all as git has it");
    }
}
