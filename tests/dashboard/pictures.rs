//! Takes the pictures of the manual, of a real fleet under a load that is not all
//! well.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use keylane::{PartitionCount, Resource, Topology};
use serde_json::json;

use super::browser::Browser;
use super::screen::Screen;
use super::served::Served;
use super::user::{Running, User};

/// Most are quick, some take long, and two carriers' never succeed.
const HANDLER: &str = r#"while read -r line; do
    case $line in
        *'"resource":"carrier-7"'*) echo '{"status":"dead","reason":"no such carrier: 7 was dissolved in March"}' ;;
        *'"resource":"carrier-3"'*) echo '{"status":"retry","after_ms":4000,"reason":"HTTP 503 from the carrier: maintenance"}' ;;
        *'"resource":"account-0012"'*) sleep 0.35; echo '{"status":"executed"}' ;;
        *'"resource":"account-00'*) sleep 0.04; echo '{"status":"executed"}' ;;
        *) sleep 0.01; echo '{"status":"executed"}' ;;
    esac
done"#;

fn load(user: &User) -> Running {
    let mut lines = String::new();
    for n in 0..60_000_usize {
        let resource = match n {
            _ if n.is_multiple_of(9_000) => "carrier-7".to_owned(),
            _ if n.is_multiple_of(7_001) => "carrier-3".to_owned(),
            _ if n.is_multiple_of(40) => "account-0012".to_owned(),
            _ => format!("account-{:04}", n * 7_919 % 3_000),
        };
        let id = format!("order-{n:06}");
        lines +=
            &format!("{{\"resource\":\"{resource}\",\"id\":\"{id}\",\"amount\":{}}}\n", n % 97);
    }
    let input = user.file("orders.ndjson", lines);
    user.starts(&["publish", input.to_str().unwrap(), "--resource", "/resource", "--id", "/id"])
}

fn worker(user: &User, name: &str) -> Running {
    user.starts(&["work", "--pipe", HANDLER, "--id", name, "--slots", "8", "--attempts", "0"])
}

/// `cargo test --test dashboard pictures -- --ignored`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes docs/images"]
async fn pictures() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images");
    std::fs::create_dir_all(&folder).unwrap();
    let mut user = User::new().await;
    user.namespace = "orders".to_owned();
    user.succeeds(&["init", "--partitions", "64"]);
    let served = Served::start(&user, &[]);
    let browser = Browser::start().await;
    browser.client.goto(&served.url()).await.unwrap();
    let mut fleet = vec![worker(&user, "berlin-1"), worker(&user, "berlin-2")];
    let publisher = load(&user);
    browser.until("flow", "verdict.dataset.state === 'flowing'").await;
    for name in ["oslo-1", "oslo-2", "porto-1"] {
        tokio::time::sleep(Duration::from_secs(12)).await;
        fleet.push(worker(&user, name));
    }
    browser.until("five workers", "fleet.querySelectorAll('tbody tr').length === 5").await;
    browser.until("a dead letter", "document.querySelector('#dead li') !== null").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let moved = served.snapshot()["handovers"][0]["partition"].as_u64().unwrap();
    let topology = Topology::from(PartitionCount::new(64).unwrap());
    let names = (0..3_000).map(|n| format!("account-{n:04}"));
    let mut of_it = names.filter(|name| {
        u64::from(topology.partition_of(&Resource::new(name).unwrap()).number()) == moved
    });
    let changed_hands = format!("q={}", of_it.next().unwrap());
    let screen = Screen::open(&user, 40, 132);
    let shots = [
        ("dashboard-light.png", "light", 1_440, 1_000, ""),
        ("dashboard-dark.png", "dark", 1_440, 1_000, ""),
        ("dashboard-search.png", "light", 1_440, 760, changed_hands.as_str()),
        ("dashboard-phone.png", "dark", 390, 844, ""),
    ];
    for (name, scheme, width, height, hash) in shots {
        browser.resize(width, height, width < 500).await;
        browser.prefer(scheme).await;
        browser.run("location.hash = given[0]", vec![json!(hash)]).await;
        if !hash.is_empty() {
            browser.until("findings", "document.querySelector('.timeline') !== null").await;
        }
        browser.value("scrollTo(0, 0)").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let picture = browser.client.screenshot().await.unwrap();
        println!("{name}: {} kB", picture.len() / 1_024);
        std::fs::write(folder.join(name), picture).unwrap();
    }
    let drawn = Command::new("scripts/terminal-svg.py")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(File::create(folder.join("top.svg")).unwrap())
        .spawn();
    let mut drawn = drawn.unwrap();
    drawn.stdin.take().unwrap().write_all(screen.painted().as_bytes()).unwrap();
    assert!(drawn.wait().unwrap().success());
    drop((publisher, fleet));
    browser.close().await;
}
