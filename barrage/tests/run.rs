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
    let mut server = Server::run(directory.path(), &[("connector.drain_s", "3")]);
    let mut client = Native::connect(server.clients(), "");
    client.subscribe("room:1", 0);
    let ending = std::thread::spawn(move || server.end(Duration::from_secs(30)));
    let deadline = Instant::now() + DEADLINE;
    let goodbye = loop {
        if let Some(server_frame::Body::Goodbye(goodbye)) = client.next_before(deadline).expect("it says goodbye").body
        {
            break goodbye;
        }
    };
    assert_eq!(goodbye.code(), ErrorCode::Draining);
    assert!(goodbye.retry);
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
