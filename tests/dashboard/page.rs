//! What somebody sees who opens the page.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use keylane::testing::Broker;

use super::browser::Browser;
use super::served::Served;
use super::user::User;

/// A resource whose name would be a picture, and a script, on a careless page.
const EVIL: &str = "<img src=x onerror=document.title='owned'>";

/// Tasks of four resources, and one of the evil one whose handler fails until there
/// is a file `mended`.
fn publish(user: &User) {
    let mut lines = String::new();
    for n in 0..80 {
        lines += &format!("{{\"r\":\"account-{}\",\"id\":\"task-{n}\"}}\n", n % 4);
    }
    lines += &format!("{{\"r\":\"{EVIL}\",\"id\":\"bad\"}}\n");
    let input = user.file("tasks.ndjson", lines);
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r", "--id", "/id"]);
}

const HANDLER: &str = r#"
    if [ "$KEYLANE_TASK_ID" = bad ] && [ ! -e mended ]; then
        echo "<b>no such account</b>" >&2; exit 1
    fi
    sleep 0.02
"#;

#[tokio::test(flavor = "multi_thread")]
async fn work_is_seen_and_a_dead_letter_is_replayed() {
    let user = User::with_partitions(16).await;
    let served = Served::start(&user, &[]);
    let browser = Browser::start().await;
    browser.client.goto(&served.url()).await.unwrap();
    browser.until("a live page", "document.getElementById('link').textContent === 'live'").await;
    let cells = browser.value("document.querySelectorAll('#partitions .cell').length").await;
    assert_eq!(cells, 16);
    browser.until("an idle namespace", "verdict.dataset.state === 'idle'").await;

    // What was shown and is over by the time of a look counts, too.
    let remembers = "(window.states = new Set(), new MutationObserver(\
        () => states.add(verdict.dataset.state)).observe(verdict, { attributes: true }), true)";
    browser.value(remembers).await;
    let worker = user.starts(&["work", "--exec", HANDLER, "--attempts", "1", "--id", "first"]);
    publish(&user);
    browser.until("the worker", "fleet.innerText.includes('first')").await;
    browser.until("a task", "recent.innerText.includes('account-1')").await;
    browser.until("flow", "states.has('flowing')").await;
    browser.until("hot resources", "hot.innerText.includes('account-')").await;
    browser.until("owners", "document.querySelectorAll('.cell.owned').length === 16").await;

    let letter = "document.querySelector('#dead li[data-id=bad]')";
    browser.until("the dead letter", &format!("{letter} !== null")).await;
    let text = browser.value(&format!("{letter}.innerText")).await;
    let text = text.as_str().unwrap();
    assert!(text.contains(EVIL) && text.contains("<b>no such account</b>"), "as it is: {text}");
    assert_eq!(
        browser.value("document.querySelector('main img, main b b')").await,
        serde_json::Value::Null
    );
    let shown = browser.value("document.getElementById('f-dead').innerText").await;
    assert_eq!(shown, "1");

    user.file("mended", "");
    browser.click("#dead li[data-id=bad] button").await;
    browser.until("no dead letter", &format!("{letter} === null")).await;
    browser.until("none counted", "document.getElementById('f-dead').innerText === '0'").await;
    let executed = "[...recent.querySelectorAll('tr')].some((row) => \
        row.innerText.includes('bad') && row.innerText.includes('executed'))";
    browser.until("its execution", executed).await;
    assert!(user.succeeds(&["task", "bad"]).out.contains("Executed"));
    assert_eq!(browser.value("document.title.includes('owned')").await, false);
    worker.signal("TERM");
    worker.ends();
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_shows_a_time_line_without_overlaps() {
    let user = User::with_partitions(4).await;
    publish(&user);
    user.file("mended", "");
    // One after another, so that the resource has two owners.
    for name in ["one", "two"] {
        let worker = user.starts(&["work", "--exec", HANDLER, "--id", name]);
        user.waits_for_quiet();
        worker.signal("TERM");
        worker.ends();
        if name == "one" {
            publish(&user);
        }
    }
    let served = Served::start(&user, &[]);
    let browser = Browser::start().await;
    browser.client.goto(&served.url()).await.unwrap();
    browser.types("#query", "account-2\n").await;
    browser.until("the findings", "document.getElementById('overlaps') !== null").await;
    let verdict = browser.value("overlaps.innerText").await;
    assert_eq!(verdict, "Resource account-2: 40 attempts by 2 workers, no two of them at once.");
    // One for the resource, one for the worker, in rows of their own.
    let bars = browser.value("document.querySelectorAll('.timeline rect').length").await;
    assert_eq!(bars, 80);
    let overlap = "(() => {
        const bars = [...document.querySelectorAll('.timeline rect')];
        const first = Math.min(...bars.map((bar) => bar.y.baseVal.value));
        const row = bars.filter((bar) => bar.y.baseVal.value === first)
            .map((bar) => [bar.x.baseVal.value, bar.width.baseVal.value]).sort((a, b) => a[0] - b[0]);
        const ends = row.map(([x, width]) => x + width);
        return row.length === 40 && row.every(([x], n) => n === 0 || x >= ends[n - 1] - 0.1);
    })()";
    assert_eq!(browser.value(overlap).await, true, "the bars of the resource do not overlap");
    assert_eq!(browser.value("document.querySelector('.clash')").await, serde_json::Value::Null);

    browser.types("#query", "task-6\n").await;
    let task =
        "document.querySelector('#findings .task')?.innerText === 'Task task-6 is executed.'";
    browser.until("the task", task).await;
    browser.until("its resource", "overlaps.innerText.includes('account-2')").await;
    let marked = browser.value("document.querySelectorAll('tr.wanted').length").await;
    assert_eq!(marked, 2, "it was published twice");
    browser.client.back().await.unwrap();
    browser.until("the way back", "findings.innerText.startsWith('account-2')").await;
    browser.types("#query", "nobody\n").await;
    browser.until("nothing", "findings.innerText.includes('Nothing of that name')").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_is_paused_and_resumed_by_clicking() {
    let user = User::with_partitions(4).await;
    user.file("mended", "");
    publish(&user);
    let worker = user.starts(&["work", "--exec", HANDLER, "--id", "w"]);
    user.waits_for_quiet();
    let served = Served::start(&user, &[]);
    let browser = Browser::start().await;
    browser.client.goto(&served.url()).await.unwrap();
    browser.types("#query", "account-1\n").await;
    browser.until("the findings", "document.getElementById('pause') !== null").await;
    browser.click("#pause").await;
    browser.until("the pause", "attention.innerText.includes('by the dashboard')").await;

    publish(&user);
    let executed = |resource: &str| {
        let shown = user.succeeds(&["history", "--resource", resource, "--json"]).out;
        shown.lines().filter(|line| line.contains("executed")).count()
    };
    // The others go on.
    user.waits_for("what is not paused", || executed("account-2") >= 40);
    assert_eq!(executed("account-1"), 20, "what is paused waits");

    browser.click("#attention li button").await;
    browser.until("no pause", "!attention.innerText.includes('by the dashboard')").await;
    user.waits_for_quiet();
    assert_eq!(executed("account-1"), 40);
    worker.signal("TERM");
    worker.ends();
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn themes_phones_and_keys_are_served() {
    let user = User::with_partitions(64).await;
    let served = Served::start(&user, &[]);
    let browser = Browser::start().await;
    browser.prefer("dark").await;
    browser.client.goto(&served.url()).await.unwrap();
    browser.until("cells", "document.querySelectorAll('.cell').length === 64").await;
    let ground = "getComputedStyle(document.body).backgroundColor";
    let dark = browser.value(ground).await;
    browser.prefer("light").await;
    browser.until("light", &format!("{ground} !== {dark}")).await;
    let light = browser.value(ground).await;
    browser.click("#theme").await;
    assert_eq!(browser.value(ground).await, dark, "the button wins");
    browser.client.refresh().await.unwrap();
    assert_eq!(browser.value(ground).await, dark, "and is remembered");
    assert_ne!(dark, light);

    for width in [360, 800, 1_440] {
        browser.resize(width, 800, width == 360).await;
        browser.until("cells", "document.querySelectorAll('.cell').length === 64").await;
        let wide = browser.value("document.documentElement.scrollWidth").await;
        assert!(wide.as_u64().unwrap() <= width.into(), "{wide} at {width}: it scrolls sideways");
    }

    // Where the tab key leads, and what is said of it.
    let tabs = "[...document.querySelectorAll('a, button, input, select, [tabindex=\"0\"]')]
        .filter((e) => e.tabIndex >= 0 && e.offsetParent !== null)
        .filter((e) => !(e.innerText || e.ariaLabel || e.getAttribute('aria-labelledby')))
        .map((e) => e.outerHTML)";
    assert_eq!(browser.value(tabs).await, serde_json::json!([]), "without a name");
    browser.value("document.getElementById('partitions').focus()").await;
    let active = "document.getElementById('partitions').getAttribute('aria-activedescendant')";
    assert_eq!(browser.value(active).await, "partition-0");
    browser
        .value(
            "document.activeElement.dispatchEvent(\
             new KeyboardEvent('keydown', { key: 'End', bubbles: true }))",
        )
        .await;
    assert_eq!(browser.value(active).await, "partition-63");
    let note = browser.value("document.getElementById('partition-note').innerText").await;
    assert!(note.as_str().unwrap().starts_with("Partition 63 · nobody owns it"), "{note}");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_broker_and_a_lost_server_are_found_again() {
    let broker = Broker::start().await.unwrap();
    let user = User::on(&broker);
    user.succeeds(&["init", "--partitions", "4"]);
    let served = Served::start(&user, &[]);
    let (url, address) = (served.url(), served.address.clone());
    let browser = Browser::start().await;
    browser.client.goto(&url).await.unwrap();
    browser.until("an idle namespace", "verdict.dataset.state === 'idle'").await;
    broker.kill().await.unwrap();
    browser.until("a lost broker", "verdict.dataset.state === 'lost'").await;
    let said = browser.value("verdict.innerText").await;
    assert!(said.as_str().unwrap().contains("out of reach"), "{said}");
    broker.restart().await.unwrap();
    browser.until("the broker again", "verdict.dataset.state === 'idle'").await;

    served.running.signal("TERM");
    assert_eq!(served.running.ends().code, Some(0), "open pages do not keep it");
    browser.until("a lost server", "link.dataset.state === 'lost'").await;
    // The browser says itself that there is no server.
    browser.errors().await;
    let _again = Served::start(&user, &["--listen", &address]);
    browser.until("the server again", "link.dataset.state === 'live'").await;
    browser.errors().await;
    browser.close().await;
}
