//! One clear line, a non-zero exit code, no panic, no loss.

use keylane::testing::{Broker, Version};

use super::user::User;

#[tokio::test(flavor = "multi_thread")]
async fn init_is_idempotent_and_refuses_another_count() {
    let user = User::new().await;
    let first = user.succeeds(&["init", "--partitions", "8", "--json"]);
    assert_eq!(
        first.out.trim(),
        r#"{"generation":1,"partitions":8,"hash":"xxh3_64","prefetch":256}"#
    );
    user.succeeds(&["init", "--partitions", "8"]);
    user.fails(1, &["init", "--partitions", "16"], &["stored is", "8 partitions", "16 partitions"]);
    for count in ["0", "16385", "many"] {
        user.fails(2, &["init", "--partitions", count], &[count]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_was_never_set_up_is_named_with_the_way_out() {
    let user = User::new().await;
    let words = [user.namespace.as_str(), "keylane init"];
    for args in [
        &["status"][..],
        &["publish", "/dev/null", "--resource", "/r"],
        &["work", "--exec", "true"],
        &["route"],
        &["dead", "list"],
        &["task", "id"],
        &["history", "--resource", "r"],
        &["verify"],
        &["cancel", "id"],
        &["pause", "--all"],
        &["drain", "worker"],
        &["watch"],
        &["top", "--once"],
        &["dashboard", "--listen", "127.0.0.1:0"],
    ] {
        user.fails(1, args, &words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_refuses_us_is_named_without_its_password() {
    let user = User::new().await;
    let host = user.url.rsplit('@').next().unwrap().to_owned();
    let wrong = format!("amqp://guest:wr0ng-passw0rd@{host}");
    let ran = user.fails(1, &["init", "--amqp-url", &wrong], &["guest", "user and password"]);
    assert!(!ran.err.contains("wr0ng"), "{ran:?}");
    let vhost = format!("amqp://guest:guest@{}/nope", host.split('/').next().unwrap());
    user.fails(1, &["init", "--amqp-url", &vhost], &["nope", "virtual host"]);
    user.fails(1, &["init", "--amqp-url", "amqp://127.0.0.1:1"], &["127.0.0.1:1", "running"]);
    user.fails(1, &["init", "--amqp-url", "http://s3cret@h"], &["amqp or amqps"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_is_named() {
    let user = User::new().await;
    let broker = Broker::shared().await.unwrap();
    let name = format!("limited-{}", user.namespace);
    broker.exec(["rabbitmqctl", "add_user", &name, "pw"]).await.unwrap();
    broker.exec(["rabbitmqctl", "set_permissions", &name, "^$", "^$", ".*"]).await.unwrap();
    let host = user.url.rsplit('@').next().unwrap();
    let limited = format!("amqp://{name}:pw@{host}");
    user.fails(1, &["init", "--amqp-url", &limited], &["not permitted", "configure"]);
    user.succeeds(&["init", "--partitions", "4"]);
    let input = user.file("one.ndjson", "{\"r\":\"a\"}\n");
    let args = ["publish", input.to_str().unwrap(), "--resource", "/r", "--amqp-url", &limited];
    user.fails(1, &args, &["not permitted", "write access"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_older_than_4_is_refused() {
    let broker = Broker::start_version(Version::V3_10).await.unwrap();
    let user = User::on(&broker);
    user.fails(1, &["init"], &["3.10", "4.0 or newer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_no_task_stops_publishing_with_its_number() {
    let user = User::with_partitions(4).await;
    for (line, words) in [
        ("nope", &["no JSON"][..]),
        ("{}", &["nothing at /r"]),
        (r#"{"r":""}"#, &["empty"]),
        (r#"{"r":null}"#, &["null at /r"]),
        (&format!(r#"{{"r":"{}"}}"#, "x".repeat(1025)), &["1025 bytes", "1024"]),
        ("{\"r\":\"\u{fffd}\u{1}\"", &["no JSON"]),
    ] {
        let input =
            user.file("bad.ndjson", format!("{{\"r\":\"a\"}}\n\n{line}\n{{\"r\":\"b\"}}\n"));
        let path = input.to_str().unwrap().to_owned();
        let ran = user.fails(1, &["publish", &path, "--resource", "/r"], words);
        assert!(ran.err.contains(&format!("{path}, line 3: ")), "{ran:?}");
        assert!(ran.out.contains("published 1 task in"), "{ran:?}");
        let ran = user.run(&["publish", &path, "--resource", "/r", "--skip-invalid", "--json"]);
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert!(ran.out.starts_with(r#"{"published":2,"skipped":1,"#), "{ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_are_passed_over_are_named_and_kept() {
    let user = User::with_partitions(1).await;
    let long = "k".repeat(256);
    let deep = "[".repeat(200);
    let lines = [
        "\u{feff}{\"r\":\"a\"}",
        "",
        "nope",
        &format!("{{\"r\":\"a\",\"k\":\"{long}\"}}"),
        &deep,
        "{\"r\":\"b\",\"k\":\"k\"}",
    ];
    user.file("mixed.ndjson", lines.join("\n"));
    let mixed = ["publish", "mixed.ndjson", "--resource", "/r", "--json"];
    let dry = user.run(&[&mixed[..], &["--dry-run", "--amqp-url", "amqp://127.0.0.1:1"]].concat());
    assert_eq!(dry.code, Some(3), "{dry:?}");
    assert!(dry.out.starts_with(r#"{"published":3,"skipped":2,"#), "{dry:?}");
    let args = [&mixed[..], &["--kind", "/k", "--skip-invalid", "--rejects", "rejects"]].concat();
    let ran = user.run(&args);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    // A task without a kind where one is wanted is none.
    assert!(ran.out.starts_with(r#"{"published":1,"skipped":4,"#), "{ran:?}");
    assert!(ran.out.contains(r#""blank":1"#) && !ran.out.contains("next_line"), "{ran:?}");
    for words in ["line 1: has nothing at /k", "line 3: no JSON", "line 4: has a kind of 256 bytes"]
    {
        assert!(ran.err.contains(words), "{ran:?}");
    }
    assert!(ran.err.contains("line 5: is nested more than 127 levels deep"), "{ran:?}");
    let kept = user.lines_of("rejects");
    let kept: Vec<serde_json::Value> =
        kept.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<_> = kept.iter().map(|kept| kept["line"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 3, 4, 5]);
    assert_eq!((&kept[1]["text"], &kept[3]["text"]), (&"nope".into(), &deep.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_goes_on_at_the_line_that_it_was_stopped_at() {
    let user = User::with_partitions(1).await;
    user.file("tasks.ndjson", "{\"r\":1}\n\n{\"r\":2}\nnope\n{\"r\":3}\n");
    let args = ["publish", "tasks.ndjson", "--resource", "/r"];
    let ran = user.fails(1, &args, &["line 4: no JSON"]);
    assert!(ran.out.contains("published 2 tasks") && ran.out.contains("; 1 blank line"), "{ran:?}");
    assert!(ran.out.contains("go on with --from-line 4"), "{ran:?}");
    let ran = user.succeeds(&[&args[..], &["--from-line", "5", "--json"]].concat());
    assert!(ran.out.starts_with(r#"{"published":1,"skipped":0,"#), "{ran:?}");
    user.fails(2, &[&args[..], &["--from-line", "0"]].concat(), &["--from-line"]);

    // One that is interrupted has published all that it has read.
    let mut command = user.command(&["publish", "--resource", "/r", "--json"]);
    command.stdin(std::process::Stdio::piped());
    let mut publish = super::user::Running(command.spawn().unwrap());
    publish.types("{\"r\":1}\n{\"r\":2}\n\n");
    let ready = |user: &User| user.status()["partitions"][0]["ready"].as_u64();
    user.waits_for("two more tasks", || ready(&user) == Some(5));
    publish.signal("INT");
    let ran = publish.ends();
    assert!(ran.out.contains(r#""published":2"#), "{ran:?}");
    assert!(
        ran.out.contains(r#""next_line":4"#) || ran.out.contains(r#""next_line":3"#),
        "{ran:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_queues_is_named_as_one() {
    let broker = Broker::shared().await.unwrap();
    let user = User::on(broker);
    let vhost = user.namespace.clone();
    let limits = ["set_vhost_limits", "-p", &vhost, r#"{"max-queues": 3}"#];
    let rights = ["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"];
    for words in [&["add_vhost", &vhost][..], &rights, &limits] {
        let done = broker.exec([&["rabbitmqctl"], words].concat()).await.unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    let url = format!("{}/{vhost}", user.url.rsplit_once('/').unwrap().0);
    let ran = user.fails(1, &["init", "--amqp-url", &url], &["queue limit in vhost", "raise"]);
    assert!(!ran.err.contains("other properties"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_over_the_limit_is_named_and_nothing_else_is_lost() {
    let user = User::with_partitions(4).await;
    let long = "x".repeat(3000);
    let input = user.file("long.ndjson", format!("{{\"r\":\"a\"}}\n{{\"r\":\"{long}\"}}\n"));
    let args = ["publish", input.to_str().unwrap(), "--resource", "/r", "--max-payload", "2000"];
    user.fails(1, &args, &["line 2", "2000 bytes"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_named() {
    let user = User::with_partitions(4).await;
    user.fails(
        1,
        &["publish", "missing.ndjson", "--resource", "/r"],
        &["missing.ndjson", "No such"],
    );
    user.fails(1, &["publish", ".", "--resource", "/r"], &["folder"]);
    user.fails(2, &["publish", "x", "--resource", "r"], &["JSON pointer", "/r"]);
    user.fails(2, &["work"], &["--exec", "--pipe", "--http"]);
    user.fails(2, &["work", "--exec", "a", "--http", "b"], &["cannot be used with"]);
    user.fails(1, &["work", "--http", "ftp://h"], &["http"]);
    user.fails(2, &["status", "--namespace", "a b"], &["namespace"]);
    user.fails(1, &["dead", "show", "nobody"], &["nobody", "dead list"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_gets_clean_output() {
    let user = User::with_partitions(4).await;
    let mut command = user.command(&["publish", "--resource", "/r"]);
    command.stdin(std::process::Stdio::piped());
    let mut publish = super::user::Running(command.spawn().unwrap());
    for n in 0..10_000 {
        publish.types(&format!("{{\"r\":{},\"n\":{n}}}\n", n % 7));
    }
    drop(publish.0.stdin.take());
    let ran = publish.ends();
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
    assert!(ran.out.starts_with("published 10,000 tasks in "), "{ran:?}");
    let ready = |p: &serde_json::Value| p["ready"].as_u64().unwrap();
    let total: u64 = user.status()["partitions"].as_array().unwrap().iter().map(ready).sum();
    assert_eq!(total, 10_000);
    let table = user.succeeds(&["status"]);
    assert!(table.out.contains("10,000 ready") && !table.out.contains('\u{1b}'), "{table:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_and_manuals_know_every_command() {
    let user = User::new().await;
    let help = user.succeeds(&["--help"]).out;
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    // What is indented further goes on with the line before.
    let named = lines.filter_map(|line| line.strip_prefix("  ").filter(|l| !l.starts_with(' ')));
    let commands = named.filter_map(|line| line.split_whitespace().next());
    let commands: Vec<_> = commands.filter(|command| *command != "help").collect();
    assert!(commands.len() > 10 && commands.contains(&"verify"), "{help}");
    user.succeeds(&["man", "--out", "pages"]);
    let page = user.succeeds(&["man"]).out;
    let scripts = ["bash", "zsh", "fish"].map(|shell| user.succeeds(&["completions", shell]).out);
    for command in commands {
        let page_of_it = format!("pages/keylane-{command}.1");
        assert!(!user.lines_of(&page_of_it).is_empty(), "{page_of_it}");
        assert!(page.contains(command), "{command}");
        assert!(scripts.iter().all(|script| script.contains(command)), "{command}");
    }
    for hidden in ["demo-worker", "bench-worker"] {
        assert!(!page.contains(hidden), "{hidden}");
    }
    let script = user.file("keylane.bash", &scripts[0]);
    let checked = std::process::Command::new("bash").arg("-n").arg(script).status().unwrap();
    assert!(checked.success());
    user.fails(1, &["man", "--out", "/dev/null/pages"], &["/dev/null/pages"]);
}
