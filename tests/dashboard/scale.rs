//! The largest namespace that there can be.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use std::time::Instant;

use keylane::dashboard::sample;
use serde_json::json;

use super::browser::Browser;
use super::served::Served;
use super::user::User;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_partitions_and_two_hundred_workers_can_be_read() {
    let user = User::with_partitions(1).await;
    let served = Served::start(&user, &[]);
    let browser = Browser::start().await;
    browser.client.goto(&served.url()).await.unwrap();
    browser.until("a picture", "document.querySelectorAll('.cell').length === 1").await;
    let page = "import('/page/app.js')";
    browser.value(&format!("{page}.then(({{ freeze }}) => freeze())")).await;
    let snapshot = serde_json::to_value(sample::snapshot(1_024, 200)).unwrap();
    let render = format!("{page}.then(({{ show, timing }}) => (show(given[0]), timing.last))");
    for picture in ["the first", "the next", "the one after it"] {
        let took = browser.run(&render, vec![snapshot.clone()]).await;
        println!("{picture} picture of 1,024 partitions and 200 workers: {took} ms of script");
    }
    let frame = "new Promise((drawn) => {
        const began = performance.now();
        requestAnimationFrame(() => requestAnimationFrame(() => drawn(performance.now() - began)));
    })";
    println!("layout and paint: {} ms", browser.value(frame).await);

    let count = async |selector: &str| {
        browser.value(&format!("document.querySelectorAll({selector:?}).length")).await
    };
    assert_eq!(count(".cell").await, 1_024);
    assert_eq!(count("#fleet tbody tr").await, 200);
    assert_eq!(count(".cell[data-state=stuck]").await, 1);
    assert!(count(".cell.owned").await.as_u64().unwrap() > 1_000);
    for (width, height) in [(1_440, 900), (360, 740)] {
        browser.resize(width, height, width == 360).await;
        let wide = browser.value("document.documentElement.scrollWidth").await;
        assert!(wide.as_u64().unwrap() <= width.into(), "{wide} at {width}: it scrolls sideways");
        let cell = "document.querySelector('.cell').getBoundingClientRect().width";
        let cell = browser.value(cell).await.as_f64().unwrap();
        assert!(cell >= 10.0, "a cell of {cell} px at {width} cannot be seen");
    }
    let verdict = browser.value("verdict.innerText").await;
    assert!(verdict.as_str().unwrap().contains("1 partition stands still"), "{verdict}");
    browser.close().await;
}

/// `cargo test --test dashboard partitions_open -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: makes 1,024 partitions on a broker"]
async fn how_fast_a_thousand_partitions_open() {
    let user = User::with_partitions(1_024).await;
    let began = Instant::now();
    let served = Served::start(&user, &[]);
    println!("the dashboard started in {:?}", began.elapsed());
    let browser = Browser::start().await;
    for visit in ["the first", "the second"] {
        browser.client.goto(&served.url()).await.unwrap();
        browser.until("the grid", "document.querySelectorAll('.cell').length === 1024").await;
        let first = "import('/page/app.js').then(({ timing }) => timing.first)";
        println!("{visit} visit: {} ms from GET to a grid", browser.value(first).await);
    }
    browser.close().await;
}

/// `cargo test --test dashboard memory -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: executes 100,000 tasks"]
async fn memory_after_a_hundred_thousand_executions() {
    const TASKS: usize = 100_000;
    let user = User::with_partitions(16).await;
    let served = Served::start(&user, &[]);
    let browser = Browser::start().await;
    browser.client.goto(&served.url()).await.unwrap();
    let rss = || {
        let status = format!("/proc/{}/status", served.running.0.id());
        let status = std::fs::read_to_string(status).unwrap();
        status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned()
    };
    println!("before: {}", rss());
    let answers =
        user.file("answers.sh", "while read -r line; do echo '{\"status\":\"executed\"}'; done");
    let pipe = format!("sh {}", answers.display());
    let worker = user.starts(&["work", "--pipe", &pipe, "--json"]);
    for round in 0..4 {
        let lines: String =
            (0..TASKS / 4).map(|n| format!("{{\"r\":\"r{}\"}}\n", round * TASKS + n)).collect();
        let input = user.file("tasks.ndjson", lines);
        user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r"]);
        user.waits_for_quiet();
        println!(
            "after {} tasks, each of a resource of its own: {}",
            (round + 1) * TASKS / 4,
            rss()
        );
    }
    worker.signal("TERM");
    let done: serde_json::Value = serde_json::from_str(&worker.ends().out).unwrap();
    assert_eq!(done["executed"], json!(TASKS));
    browser.close().await;
}
