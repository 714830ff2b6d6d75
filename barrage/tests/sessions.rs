//! `barrage bench idle` and `storm` with their worker processes, against the real server.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod server;

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use server::Server;

/// Of the run's users.
const KEY: &str = "a key of at least thirty-two characters";

fn server(directory: &std::path::Path) -> Server {
    let keys = format!(r#"[{{ kid = "bench", alg = "HS256", key = "{KEY}" }}]"#);
    // Guests are not let in: whoever comes in has shown a token.
    Server::run(directory, &[("connector.cores", "1"), ("logic.token.keys", &keys), ("logic.guests", r#""refuse""#)])
}

fn bench(server: &Server, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_barrage"))
        .args(["bench"])
        .args(line.split_whitespace())
        .args(["--connect", &server.clients().to_string()])
        .env("BARRAGE_TOKEN_KEY", KEY)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn report(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn idle_sessions_of_several_workers_are_held_and_reached() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    for dialect in ["native", "native --tcp", "goim", "bilibili --tcp"] {
        let line = format!(
            "idle --json --sessions 60 --rooms 7 --workers 3 --seconds 3 --heartbeat 0.5 --push-all --dialect {dialect} \
             --http http://{}",
            server.http()
        );
        let report = report(&bench(&server, &line));
        assert_eq!((report["sessions"].as_u64(), report["closed"].as_u64()), (Some(60), Some(0)), "{report}");
        assert_eq!(
            (report["push"]["reached"].as_u64(), report["unanswered"].as_u64()),
            (Some(60), Some(0)),
            "{report}"
        );
        let [beats, answered] = ["heartbeats", "answered"].map(|name| report[name].as_u64().unwrap());
        assert!(beats >= 120 && answered >= 120, "{report}");
        assert_eq!(report["after"]["kinds"]["run"]["processes"], 1, "{report}");
        assert!(report["settings"].get("token_key").is_none() && report["user_bytes_a_session"].is_number());
    }
}

#[test]
fn a_storm_comes_drops_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    let report = report(&bench(&server, "storm --json --sessions 200 --rooms 5 --workers 2 --at-once 32"));
    for wave in ["first", "back"] {
        let wave = &report[wave];
        assert_eq!((wave["sessions"].as_u64(), wave["given_up"].as_u64()), (Some(200), Some(0)), "{report}");
        assert!(wave["sessions_per_s"].as_f64().unwrap() > 0.0 && wave["entering"]["p99"].as_f64().unwrap() > 0.0);
        assert!(wave["cpu"]["connector_us"].as_f64().unwrap() > 0.0, "{report}");
    }
    // After the first wait, at the earliest.
    assert!(report["back"]["seconds"].as_f64().unwrap() >= 0.25, "{report}");
    assert_eq!(report["closed"], 0);
}

#[test]
fn who_is_not_let_in_is_said_so() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    let output = bench(&server, "storm --sessions 4 --rooms 2 --workers 2 --token-kid another");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("4 sessions did not get in"), "{error}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("tries that failed"), "{said}");
}
