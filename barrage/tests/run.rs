//! `barrage run` as its user sees it: the real binary, clients of every dialect.

mod server;
mod viewer;

use std::process::Command;
use std::time::{Duration, Instant};

use proto::client::{ErrorCode, Position, Subscribe, client_frame, server_frame};
use server::Server;
use viewer::{DEADLINE, GOIM, Native, Packets, Wire, bilibili_auth, goim_auth, text};

fn get(url: &str) -> (u16, String) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut response = agent.get(url).call().expect("it answers");
    (response.status().as_u16(), response.body_mut().read_to_string().expect("a body"))
}

#[test]
fn a_push_by_curl_reaches_a_viewer_of_every_dialect() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::run(directory.path(), &[]);
    let clients = server.clients();

    let mut native = Native::connect(clients, "");
    native.subscribe("room:1000", 0);
    let (mut goim_tcp, _) = Packets::connect(Wire::tcp(clients), GOIM, &goim_auth("1000"));
    let (mut goim_ws, _) = Packets::connect(Wire::web_socket(clients, None), GOIM, &goim_auth("1000"));
    let mut bilibili: Vec<Packets> = Vec::new();
    for protover in [0, 2, 3] {
        for wire in [Wire::tcp(clients), Wire::web_socket(clients, None)] {
            let (client, reply) = Packets::connect(wire, 1, &bilibili_auth("1000", protover));
            assert_eq!(reply, br#"{"code":0}"#);
            bilibili.push(client);
        }
    }

    let url = format!("http://{}/goim/push/room?operation=1000&type=live&room=1000", server.http());
    let output = Command::new("curl").args(["-sS", "-d", "hello", &url]).output().expect("curl is installed");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["code"], 0, "{answer}");

    assert_eq!(text(&native.message()), "hello");
    assert_eq!(goim_tcp.wait_for(1000), b"hello");
    assert_eq!(goim_ws.wait_for(1000), b"hello");
    for client in &mut bilibili {
        let danmaku: serde_json::Value = serde_json::from_slice(&client.wait_for(5)).expect("JSON");
        assert_eq!((&danmaku["cmd"], &danmaku["info"][1]), (&"DANMU_MSG".into(), &"hello".into()));
    }
}

#[test]
fn a_message_sent_twice_has_one_effect_and_one_id() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::run(directory.path(), &[]);
    let (mut sender, mut viewer) = (Native::connect(server.clients(), ""), Native::connect(server.clients(), ""));
    sender.subscribe("room:7", 0);
    viewer.subscribe("room:7", 0);
    let mut id_of = |id: &str, words: &str| match sender.publish("room:7", id, words) {
        server_frame::Body::Published(published) => published.id,
        other => panic!("not accepted: {other:?}"),
    };
    let (first, again, other) = (id_of("m-1", "one"), id_of("m-1", "one"), id_of("m-2", "two"));
    assert_eq!(first, again);
    assert_ne!(first, other);
    let (one, two) = (viewer.message(), viewer.message());
    assert_eq!((text(&one), text(&two)), ("one", "two"));
    assert_eq!(one.id, first);
    assert!(one.offset < two.offset);
}

#[test]
fn history_is_seen_on_joining_and_a_client_resumes_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::run(directory.path(), &[]);
    let mut sender = Native::connect(server.clients(), "");
    for number in 0..5 {
        sender.publish("room:h", "", &format!("before {number}"));
    }
    let mut viewer = Native::connect(server.clients(), "");
    let subscribed = viewer.subscribe("room:h", 3);
    let seen: Vec<_> = (0..3).map(|_| viewer.message()).collect();
    assert_eq!(seen.iter().map(text).collect::<Vec<_>>(), ["before 2", "before 3", "before 4"]);
    let position = Position { normal: seen[2].offset, ..subscribed.position.expect("a position") };
    drop(viewer);

    for number in 0..4 {
        sender.publish("room:h", "", &format!("away {number}"));
    }
    let mut viewer = Native::connect(server.clients(), "");
    let resume = Subscribe { channel: "room:h".into(), resume: Some(position), history: 0 };
    let answer = viewer.ask(client_frame::Body::Subscribe(resume));
    assert!(matches!(answer, server_frame::Body::Subscribed(_)), "{answer:?}");
    let seen: Vec<String> = (0..4).map(|_| text(&viewer.message()).to_owned()).collect();
    assert_eq!(seen, ["away 0", "away 1", "away 2", "away 3"]);
}

#[test]
fn the_operators_port_tells_health_metrics_and_version() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::run(directory.path(), &[]);
    let admin = server.admin();
    assert_eq!(get(&format!("http://{admin}/health")).0, 200);
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (status, body) = get(&format!("http://{admin}/ready"));
        if status == 200 {
            break;
        }
        assert!(Instant::now() < deadline, "not ready: {body}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (_, metrics) = get(&format!("http://{admin}/metrics"));
    assert!(metrics.contains("# HELP barrage_") && metrics.ends_with("# EOF\n"), "{metrics}");
    let readme = include_str!("../../README.md");
    for (name, meaning) in metrics.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' ')) {
        let listed = readme
            .lines()
            .any(|line| line.starts_with(&format!("| `{name}` |")) && line.contains(meaning.trim_end_matches('.')));
        assert!(listed, "README.md does not list {name}: {meaning}");
    }
    let (_, version) = get(&format!("http://{admin}/version"));
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

#[test]
fn sigterm_tells_clients_to_go_elsewhere_and_ends_well() {
    let directory = tempfile::tempdir().unwrap();
    // One client does not wait for the time that a million have.
    let mut server = Server::run(directory.path(), &[("connector.drain_s", "600")]);
    let mut client = Native::connect(server.clients(), "");
    client.subscribe("room:1", 0);
    let ending = std::thread::spawn(move || server.end(Duration::from_secs(60)));
    let deadline = Instant::now() + DEADLINE;
    let goodbye = loop {
        if let Some(server_frame::Body::Goodbye(goodbye)) = client.next_before(deadline).expect("it says goodbye").body
        {
            break goodbye;
        }
    };
    assert_eq!(goodbye.code(), ErrorCode::Draining);
    assert!(goodbye.retry && goodbye.delay_ms < 1000, "{goodbye:?}");
    assert_eq!(ending.join().unwrap(), Some(0));
}

#[test]
fn a_directory_in_use_is_refused_with_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let _server = Server::run(directory.path(), &[]);
    let ports = ["connector.listen=[\"127.0.0.1:0\"]", "logic.http=127.0.0.1:0", "admin.listen=127.0.0.1:0"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_barrage"));
    command.arg("run").current_dir(directory.path());
    for port in ports {
        command.args(["--set", port]);
    }
    let output = command.output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("in use") || said.contains("lock"), "{said}");
}

/// A call of the API that must succeed; the answer.
fn post(server: &Server, path: &str, body: &serde_json::Value) -> serde_json::Value {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut response = agent.post(format!("http://{}{path}", server.http())).send_json(body).expect("it answers");
    let status = response.status();
    let answer = response.body_mut().read_to_string().expect("a body");
    assert!(status.is_success(), "{path}: {status} {answer}");
    serde_json::from_str(&answer).expect("JSON")
}

/// A token, as a newcomer makes it: in the directory in which the server runs.
fn token(directory: &std::path::Path, uid: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_barrage"));
    let output =
        command.args(["token", uid, "--name", "Ann"]).current_dir(directory).output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("ASCII").trim().to_owned()
}

/// The next push that `wanted` knows, others being passed over.
fn pushed<T>(client: &mut Native, what: &str, wanted: impl Fn(&server_frame::Body) -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let frame = client.next_before(deadline).unwrap_or_else(|| panic!("{what} does not come"));
        if let Some(found) = frame.body.as_ref().filter(|_| frame.request == 0).and_then(&wanted) {
            return found;
        }
    }
}

#[test]
fn a_platform_pushes_to_its_users_mutes_bans_and_kicks_them() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::run(directory.path(), &[]);
    let mut ann = Native::connect(server.clients(), &token(directory.path(), "ann"));
    assert_eq!((ann.connected.uid.as_str(), ann.connected.name.as_str()), ("ann", "Ann"));
    ann.subscribe("room:p", 0);

    // Routes are written in batches: a push goes to who is known to be there.
    let on_channel = |channel: &'static str| {
        move |body: &server_frame::Body| match body {
            server_frame::Body::Message(message) if message.channel == channel => Some(text(message).to_owned()),
            _ => None,
        }
    };
    let push = serde_json::json!({ "users": ["ann"], "message": { "type": "text", "text": "for you" } });
    let deadline = Instant::now() + DEADLINE;
    loop {
        post(&server, "/v1/users/messages", &push);
        let soon = Instant::now() + Duration::from_millis(500);
        match ann.next_before(soon).and_then(|frame| frame.body) {
            Some(body) if on_channel("user:ann")(&body).as_deref() == Some("for you") => break,
            _ => assert!(Instant::now() < deadline, "no push to the user comes"),
        }
    }
    post(&server, "/v1/all/messages", &serde_json::json!({ "message": { "type": "text", "text": "for all" } }));
    assert_eq!(pushed(&mut ann, "the push to all", on_channel("all")), "for all");

    post(&server, "/v1/sessions/subscribe", &serde_json::json!({ "users": ["ann"], "rooms": ["q"] }));
    let joined = |body: &server_frame::Body| match body {
        server_frame::Body::Subscribed(subscribed) => Some(subscribed.channel.clone()),
        _ => None,
    };
    assert_eq!(pushed(&mut ann, "the room that the platform chose", joined), "room:q");
    post(&server, "/v1/rooms/q/messages", &serde_json::json!({ "type": "text", "text": "in q" }));
    assert_eq!(pushed(&mut ann, "a message there", on_channel("room:q")), "in q");

    let sentence = |kind: &str, seconds: u32| {
        let body = serde_json::json!({ "uid": "ann", "room": "p", "kind": kind, "seconds": seconds });
        post(&server, "/v1/penalties", &body);
    };
    let code = |answer: &server_frame::Body| match answer {
        server_frame::Body::Error(error) => error.code(),
        _ => ErrorCode::None,
    };
    sentence("mute", 60);
    assert_eq!(code(&ann.publish("room:p", "", "hm")), ErrorCode::Muted);
    sentence("mute", 0);
    assert_eq!(code(&ann.publish("room:p", "", "hello again")), ErrorCode::None);

    sentence("ban", 60);
    let left = |body: &server_frame::Body| match body {
        server_frame::Body::Unsubscribed(unsubscribed) => Some(unsubscribed.clone()),
        _ => None,
    };
    let left = pushed(&mut ann, "the end of the room", left);
    assert_eq!((left.channel.as_str(), left.reason()), ("room:p", ErrorCode::Banned));
    assert!((30_000..=60_000).contains(&left.retry_after_ms), "until when: {left:?}");
    let again = Subscribe { channel: "room:p".into(), ..Subscribe::default() };
    assert_eq!(code(&ann.ask(client_frame::Body::Subscribe(again))), ErrorCode::Banned);

    post(&server, "/v1/sessions/kick", &serde_json::json!({ "users": ["ann"], "reason": "enough" }));
    let goodbye = |body: &server_frame::Body| match body {
        server_frame::Body::Goodbye(goodbye) => Some((goodbye.code(), goodbye.reason.clone())),
        _ => None,
    };
    assert_eq!(pushed(&mut ann, "the goodbye", goodbye), (ErrorCode::Kicked, "enough".to_owned()));
}

#[test]
fn online_numbers_are_at_most_five_seconds_old() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::run(directory.path(), &[]);
    let viewers: Vec<Native> = (0..3)
        .map(|_| {
            let mut viewer = Native::connect(server.clients(), "");
            viewer.subscribe("room:o", 0);
            viewer
        })
        .collect();
    let online = || {
        let (_, body) = get(&format!("http://{}/v1/rooms/o/online", server.http()));
        serde_json::from_str::<serde_json::Value>(&body).expect("JSON")["sessions"].as_u64().expect("a number")
    };
    // The promise, and room for a busy machine.
    let settles = |number: u64| {
        let began = Instant::now();
        while online() != number {
            assert!(began.elapsed() < DEADLINE, "{} are online, not {number}", online());
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("{number} online after {:?}", began.elapsed());
    };
    settles(3);
    drop(viewers);
    settles(0);
}
