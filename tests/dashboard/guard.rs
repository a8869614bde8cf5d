//! Who is let in, and who may change something.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use keylane::{Connect, DeadLetters, Namespace};
use serde_json::Value;

use super::http::{ask, begin};
use super::served::Served;
use super::user::User;

const TOKEN: &str = "a-token-of-enough-characters";

#[tokio::test(flavor = "multi_thread")]
async fn only_the_page_itself_changes_something() {
    let user = User::with_partitions(1).await;
    user.file("one.ndjson", "{\"r\":\"a\",\"id\":\"one\"}\n{\"r\":\"a\",\"id\":\"two\"}\n");
    user.succeeds(&["publish", "one.ndjson", "--resource", "/r", "--id", "/id"]);
    let worker = user.starts(&["work", "--exec", "exit 1", "--attempts", "1"]);
    user.waits_for("dead letters", || user.status()["dead"] == 2);
    worker.signal("TERM");
    worker.ends();
    let served = Served::start(&user, &[]);
    let word = served.page_word();
    let ours = format!("http://{}", served.address);
    let post = |headers: &[(&str, &str)], body: &str| {
        let headers = [&[("Content-Type", "application/json")], headers].concat();
        ask(&served.address, "POST /api/dead/discard", &headers, body)
    };
    let page = ("x-keylane-page", word.as_str());
    let origin = ("Origin", ours.as_str());
    let all = r#"{"all":true}"#;
    for (headers, reason) in [
        (&[][..], "not made by the page"),
        (&[origin], "not made by the page"),
        (&[origin, ("x-keylane-page", "guess")], "not made by the page"),
        (&[page, ("Origin", "http://evil.example")], "another page"),
        (&[page, ("Origin", "null")], "another page"),
        (&[page, ("Sec-Fetch-Site", "cross-site")], "another page"),
        (&[page, origin, ("Host", "evil.example")], "localhost"),
    ] {
        let refused = post(headers, all);
        assert_eq!(refused.status, 403, "{headers:?}: {refused:?}");
        assert!(refused.body.contains(reason), "{headers:?}: {refused:?}");
    }
    let other = ask(&served.address, "GET /", &[("Host", "evil.example")], "");
    assert!(other.status == 403 && !other.body.contains(&word), "{other:?}");
    let elsewhere = [("Sec-Fetch-Site", "cross-site")];
    let search = ask(&served.address, "GET /api/search?q=a", &elsewhere, "");
    assert_eq!(search.status, 403, "{search:?}");
    assert_eq!(ask(&served.address, "GET /", &elsewhere, "").status, 200, "a link leads here");
    for (body, status) in [(r#"{"some":1}"#, 422), ("nonsense", 400), (&"x".repeat(100_000), 413)] {
        assert_eq!(post(&[page, origin], body).status, status, "{body:.20}");
    }
    assert_eq!(user.status()["dead"], 2, "nothing has changed");
    // Whoever wants one takes one, and leaves the others to others.
    let namespace = Namespace::new(&user.namespace).unwrap();
    let connect = Connect::new(&user.url).unwrap().with_namespace(namespace);
    let mut oldest = DeadLetters::open_first(&connect, 1).await.unwrap();
    assert_eq!(oldest.next().await.unwrap().unwrap().id.as_deref(), Some("one"));
    assert!(oldest.next().await.unwrap().is_none() && user.status()["dead"] == 1);
    oldest.close().await;

    let listed: Value = serde_json::from_str(&served.get("/api/dead").body).unwrap();
    let letters = listed["letters"].as_array().unwrap();
    assert_eq!((letters.len(), &letters[0]["id"]), (2, &"one".into()));
    let first = serde_json::json!({ "keys": [letters[0]["key"]] }).to_string();
    for (body, done) in [(first.as_str(), 1), (&first, 0), (all, 1)] {
        let answer = post(&[page, origin], body);
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(answer["done"], done, "{body}");
    }
    assert_eq!(user.status()["dead"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_protects_the_page() {
    let user = User::with_partitions(1).await;
    let served = Served::start(&user, &[]);
    for path in ["/", "/page/app.js", "/api/snapshot", "/login", "/nothing", "/page/nothing"] {
        let answer = served.get(path);
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(policy.starts_with("default-src 'none'"), "{path}: {answer:?}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("x-frame-options"), Some("DENY"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    }
    let page = served.get("/").body;
    assert!(!page.contains("<script>") && !page.contains("style=") && !page.contains(" onclick"));
}

#[tokio::test(flavor = "multi_thread")]
async fn off_this_machine_a_token_is_needed() {
    let user = User::with_partitions(1).await;
    let words = ["other machines", "KEYLANE_DASHBOARD_TOKEN", "127.0.0.1"];
    // One that starts does not end by itself.
    let refuses = |args: &[&str], words: &[&str]| {
        let ran = user.starts(&[&["dashboard", "--listen"], args].concat()).ends();
        assert_eq!((ran.code, ran.err.lines().count()), (Some(1), 1), "{args:?}: {ran:?}");
        assert!(words.iter().all(|word| ran.err.contains(word)), "{args:?}: {ran:?}");
    };
    refuses(&["0.0.0.0:0"], &words);
    refuses(&["[::]:0"], &words);
    refuses(&["0.0.0.0:0", "--token", "short"], &["16 characters"]);
    user.fails(2, &["dashboard", "--listen", "nowhere"], &["--listen"]);

    let served = Served::start(&user, &["--listen", "0.0.0.0:0", "--token", TOKEN]);
    let address = served.address.replace("0.0.0.0", "127.0.0.1");
    let get =
        |path: &str, headers: &[(&str, &str)]| ask(&address, &format!("GET {path}"), headers, "");
    for path in ["/api/snapshot", "/api/events", "/api/dead", "/api/search?q=a", "/page/app.js"] {
        let refused = get(path, &[]);
        assert_eq!(refused.status, 401, "{path}: {refused:?}");
        assert!(!refused.body.contains("topology"), "{refused:?}");
    }
    let sent = get("/", &[]);
    assert_eq!((sent.status, sent.header("location")), (303, Some("/login")));
    assert!(get("/login", &[]).body.contains("type=\"password\""));
    assert_eq!(get("/page/style.css", &[]).status, 200, "for the page that asks");
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(get("/api/snapshot", &[("Authorization", &bearer)]).status, 200);
    assert_eq!(get("/api/snapshot", &[("Authorization", "Bearer wrong")]).status, 401);

    let form = ("Content-Type", "application/x-www-form-urlencoded");
    let log_in = |headers: &[(&str, &str)], token: &str| {
        ask(&address, "POST /login", headers, &format!("token={token}"))
    };
    let wrong = log_in(&[form], "wrong-token-of-characters");
    assert!(wrong.status == 401 && wrong.header("set-cookie").is_none(), "{wrong:?}");
    let forged = log_in(&[form, ("Origin", "http://evil.example")], TOKEN);
    assert_eq!(forged.status, 403, "{forged:?}");
    let right = log_in(&[form], TOKEN);
    let cookie = right.header("set-cookie").unwrap();
    assert_eq!((right.status, right.header("location")), (303, Some("/")));
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    assert!(!cookie.contains(TOKEN));
    let cookie = ("Cookie", cookie.split(';').next().unwrap());
    assert_eq!(get("/api/snapshot", &[cookie]).status, 200);
    // A cookie alone changes nothing: a browser would send it along with anything.
    let post = ask(&address, "POST /api/dead/discard", &[cookie], "");
    assert_eq!(post.status, 403, "{post:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dashboard_that_only_shows_changes_nothing() {
    let user = User::with_partitions(1).await;
    let served = Served::start(&user, &["--read-only"]);
    assert!(served.get("/").body.contains(r#"name="keylane-read-only" content="yes""#));
    let word = served.page_word();
    let page = ("x-keylane-page", word.as_str());
    let refused = ask(&served.address, "POST /api/dead/replay", &[page], r#"{"all":true}"#);
    assert!(refused.status == 403 && refused.body.contains("--read-only"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_room_for_so_many_pages() {
    let user = User::with_partitions(1).await;
    let served = Served::start(&user, &[]);
    let mut pages = Vec::new();
    for page in 0..32 {
        let (stream, first) = begin(&served.address, "GET /api/events");
        assert!(first.contains("200"), "page {page}: {first}");
        pages.push(stream);
    }
    let (_none, first) = begin(&served.address, "GET /api/events");
    assert!(first.contains("503"), "one more: {first}");
    assert_eq!(served.get("/api/snapshot").status, 200, "whoever asks once is answered");
    drop(pages);
    user.waits_for("a place", || {
        let (_stream, first) = begin(&served.address, "GET /api/events");
        first.contains("200")
    });
    served.running.signal("INT");
    assert_eq!(served.running.ends().code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_told_at_once() {
    let user = User::new().await;
    let words = ["no topology", "keylane init"];
    user.fails(1, &["dashboard", "--listen", "127.0.0.1:0"], &words);
    user.fails(1, &["top", "--once"], &words);
    user.succeeds(&["init", "--partitions", "1"]);
    let served = Served::start(&user, &[]);
    let taken = ["dashboard", "--listen", &served.address];
    user.fails(1, &taken, &["cannot listen", "--listen"]);
    assert_eq!(served.snapshot()["namespace"], user.namespace.as_str());
}
