//! What the platform and other servers' callers are promised, over real HTTP and gRPC and the embedded bus.

mod support;

use bus::Topic;
use logic::config::{Alg, ApiKeyConfig, KeyConfig, Scope};
use logic::{Config, Guests};
use proto::api::outcome;
use proto::client::{ErrorCode, Lane};
use proto::cluster::gate_reply::Answer;
use proto::cluster::gate_request::Ask;
use proto::cluster::{Authenticate, Join, Publish};
use proto::config::Secret;
use proto::record::record::Body;
use proto::record::{Command, Post, Push, command, push};
use rpc::api::api_client::ApiClient;
use serde_json::{Value, json};
use support::{Logic, World, connector, raw, soon, table};

async fn posts(world: &World) -> Vec<Post> {
    let post = |(_, record): (u64, proto::record::Record)| match record.body {
        Some(Body::Post(post)) => Some(post),
        _ => None,
    };
    world.records(Topic::Rooms).await.into_iter().filter_map(post).collect()
}

/// What was pushed, by the record's key.
async fn pushes(world: &World) -> Vec<(String, Push)> {
    let push = |(_, record): (u64, proto::record::Record)| match record.body {
        Some(Body::Push(push)) => Some((record.channel, push)),
        _ => None,
    };
    world.records(Topic::Pushes).await.into_iter().filter_map(push).collect()
}

async fn commands(world: &World) -> Vec<(String, Command)> {
    let command = |(_, record): (u64, proto::record::Record)| match record.body {
        Some(Body::Command(command)) => Some((record.channel, command)),
        _ => None,
    };
    world.records(Topic::Pushes).await.into_iter().filter_map(command).collect()
}

#[tokio::test]
async fn a_message_to_a_room_is_in_the_bus_when_it_is_answered() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let message = json!({
        "type": "gift", "data": "AAH/", "client_message_id": "a-1", "from": {"uid": "42", "name": " Ada\n"},
        "style": {"mode": 5, "size": 25, "colour": 255}, "lane": "high"
    });
    let answer = logic.post("/v1/rooms/game.7/messages", &message).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let records = world.records(Topic::Rooms).await;
    assert_eq!((records.len(), records[0].1.channel.as_str()), (1, "room:game.7"));
    let position = json!({"log": world.bus.log(Topic::Rooms), "offset": records[0].0});
    assert_eq!(answer.json()["position"], position);
    let post = posts(&world).await.remove(0);
    assert_eq!(answer.json()["id"], post.id);
    assert_eq!((post.r#type.as_str(), &post.payload[..], post.lane()), ("gift", &[0, 1, 255][..], Lane::High));
    let (sender, style) = (post.sender.unwrap(), post.style.unwrap());
    assert_eq!((sender.uid.as_str(), sender.name.as_str()), ("42", "Ada"));
    assert_eq!((style.mode, style.size, style.colour), (5, 25, 255));
}

#[tokio::test]
async fn the_same_client_message_id_has_the_same_id_through_any_logic_and_any_call() {
    let world = World::new().await;
    let (one, other) = (world.logic(|_| {}).await, world.logic(|_| {}).await);
    let message = json!({"text": "hi", "client_message_id": "a-1", "from": {"uid": "42"}});
    let first = one.post("/v1/rooms/7/messages", &message).await.json();
    let again = other.post("/v1/messages", &json!({"messages": [{"room": "7", "message": message}]})).await.json();
    assert_eq!(first["id"], again["outcomes"][0]["id"]);
    assert_ne!(first["position"]["offset"], again["outcomes"][0]["position"]["offset"]);
    let mut gate = other.gate().await;
    let publish = Publish {
        uid: "42".into(),
        channel: "room:7".into(),
        client_message_id: "a-1".into(),
        payload: "hi".into(),
        ..Publish::default()
    };
    let Answer::Published(published) = gate.ask(Ask::Publish(publish.clone())).await else { panic!() };
    assert_eq!(first["id"], published.id);
    // With another payload it is refused, by whichever way it comes, and the first one still has its effect.
    let changed = json!({"text": "ho", "client_message_id": "a-1", "from": {"uid": "42"}});
    let refused = one.post("/v1/rooms/7/messages", &changed).await;
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (409, Some("conflict")));
    let batch = other.post("/v1/messages", &json!({"messages": [{"room": "7", "message": changed}]})).await.json();
    assert_eq!(batch["outcomes"][0]["error"]["code"], "conflict");
    let Answer::Error(refused) = gate.ask(Ask::Publish(Publish { payload: "ho".into(), ..publish })).await else {
        panic!()
    };
    assert_eq!(refused.code(), proto::client::ErrorCode::Conflict);
    assert_eq!(one.post("/v1/rooms/7/messages", &message).await.json()["id"], first["id"]);
    let elsewhere = one.post("/v1/rooms/8/messages", &changed).await;
    assert_eq!(elsewhere.status, 200, "another room's IDs are its own");
}

#[tokio::test]
async fn a_batch_is_accepted_in_its_order_each_for_itself() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let messages: Vec<Value> = (0..100)
        .map(|n| match n {
            50 => json!({"room": "a b", "message": {"text": "no room"}}),
            51 => json!({"room": "7", "message": {"text": "x", "data": "AA=="}}),
            52 => json!({"room": "7", "message": {"text": 52}}),
            53 => json!("no message"),
            n => json!({"room": "7", "message": {"text": n.to_string()}}),
        })
        .collect();
    let answer = logic.post("/v1/messages", &json!({"messages": messages})).await.json();
    let outcomes = answer["outcomes"].as_array().unwrap();
    assert_eq!(outcomes.len(), 100);
    for (at, outcome) in outcomes.iter().enumerate() {
        assert_eq!(outcome["error"]["code"].as_str(), matches!(at, 50..=53).then_some("bad_request"), "{at}");
    }
    let texts: Vec<_> = posts(&world).await.into_iter().map(|post| post.payload).collect();
    let wanted: Vec<_> = (0..100).filter(|n| !matches!(n, 50..=53)).map(|n| n.to_string()).collect();
    assert_eq!(texts, wanted);
}

#[tokio::test]
async fn half_a_surrogate_pair_is_taken_as_browsers_take_it() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let body = br#"{"type":"text","text":"cut \ud83d"}"#;
    assert_eq!(logic.request("POST", "/v1/rooms/7/messages", "", body).await.status, 200);
    let posts: Vec<_> = posts(&world).await.into_iter().map(|post| post.payload).collect();
    assert_eq!(posts, ["cut \u{fffd}"]);
}

#[tokio::test]
async fn requests_over_a_limit_are_refused_by_name() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let text = |bytes: usize| json!({"text": "x".repeat(bytes)});
    assert_eq!(logic.post("/v1/rooms/7/messages", &text(65_536)).await.status, 200);
    let many = |count: usize| vec!["7"; count];
    for (path, body, status, code) in [
        ("/v1/rooms/7/messages", text(65_537), 413, "too_large"),
        ("/v1/rooms/7/messages", text(1 << 20), 413, "too_large"),
        ("/v1/rooms/7/messages", json!({"text": "x", "colour": 1}), 400, "bad_request"),
        ("/v1/rooms/7/messages", json!({"text": " "}), 400, "bad_request"),
        ("/v1/rooms/7/messages", json!({"text": "x", "client_message_id": "a b"}), 400, "bad_request"),
        ("/v1/rooms/7/messages", json!({"text": "x", "from": {"uid": ""}}), 400, "bad_request"),
        ("/v1/rooms/a%20b/messages", text(1), 400, "bad_request"),
        ("/v1/messages", json!({"messages": vec![json!({"room": "7", "message": text(1)}); 101]}), 400, "bad_request"),
        ("/v1/messages", json!({"messages": []}), 400, "bad_request"),
        ("/v1/users/messages", json!({"users": many(1_001), "message": text(1)}), 400, "bad_request"),
        ("/v1/users/messages", json!({"users": many(1_000), "message": text(65_536)}), 413, "too_large"),
        ("/v1/sessions/kick", json!({"users": ["7"], "keys": ["7"]}), 400, "bad_request"),
        ("/v1/sessions/subscribe", json!({"users": ["7"], "rooms": many(101)}), 400, "bad_request"),
        ("/v1/penalties", json!({"uid": "7", "kind": "ban", "seconds": 2_678_401}), 400, "bad_request"),
        ("/v1/rooms/online", json!({"rooms": many(101)}), 400, "bad_request"),
        ("/v1/nothing", json!({}), 404, "not_found"),
    ] {
        let answer = logic.post(path, &body).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path} {answer:?}");
    }
    let answer = logic.request("POST", "/v1/rooms/7/messages", "", b"{").await;
    let error = &answer.json()["error"];
    assert_eq!((answer.status, &error["fault"], &error["retry"]), (400, &json!("client"), &json!(false)));
    assert_eq!(posts(&world).await.len(), 1);
    assert!(world.records(Topic::Pushes).await.is_empty());
}

#[tokio::test]
async fn goims_calls_answer_as_goim_does() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let form = "\nContent-Type: application/x-www-form-urlencoded";
    let push = async |path: &str, body: &[u8]| logic.request("POST", path, form, body).await;
    let done = |answer: &support::Response| {
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"code":0,"message":""}"#), "{answer:?}");
    };
    done(&push("/goim/push/room?operation=1000&type=live&room=1000", b"hello").await);
    done(&push("/goim/push/room?operation=1001&type=game&room=7", b"a=b&c=%20").await);
    done(&push("/goim/push/mids?operation=1000&mids=1&mids=2", b"x").await);
    done(&push("/goim/push/keys?operation=1007&keys=a%20key", b"x").await);
    done(&push("/goim/push/all?operation=1000&speed=50", b"x").await);

    let records = world.records(Topic::Rooms).await;
    let mut rooms: Vec<_> = records.iter().map(|(_, record)| record.channel.as_str()).collect();
    rooms.sort_unstable();
    assert_eq!(rooms, ["room:1000", "room:game.7"]);
    let posts = posts(&world).await;
    assert!(posts.iter().any(|post| post.r#type == "text" && post.payload == "hello" && post.sender.is_none()));
    assert!(posts.iter().any(|post| post.r#type == "goim.1001" && post.payload == "a=b&c=%20"), "raw, no form");
    let mut pushes = pushes(&world).await;
    pushes.sort_by(|a, b| a.0.cmp(&b.0));
    let keys: Vec<_> = pushes.iter().map(|(key, push)| (key.as_str(), push.operation)).collect();
    assert_eq!(keys, [("all", 1000), ("key:a key", 1007), ("user:1", 1000), ("user:2", 1000)]);
    assert!(matches!(&pushes[0].1.to, Some(push::To::All(all)) if all.sessions_per_s == 50));

    for wrong in [
        "/goim/push/room?operation=1000&room=1000",
        "/goim/push/room?type=live&room=1000",
        "/goim/push/room?operation=x&type=live&room=1000",
        "/goim/push/room?operation=1000&type=live&room=a%20b",
        "/goim/push/keys?operation=1000",
        "/goim/push/all",
    ] {
        let answer = push(wrong, b"x").await;
        assert_eq!((answer.status, &answer.json()["code"]), (200, &json!(-400)), "{wrong}");
    }
    let answer = push("/goim/push/room?operation=1000&type=live&room=1000", &[b'x'; 65_537]).await;
    assert_eq!(answer.json()["code"], -400);
    assert_eq!(logic.get("/goim/online/top?type=live").await.json()["code"], -400, "limit is missing");
}

#[tokio::test]
async fn online_numbers_and_addresses_come_from_the_routes() {
    let world = World::new().await;
    let table = table(&world);
    for node in [
        connector("b", &["10.0.0.2:3101", "10.0.0.2:3102"], 9),
        connector("a", &["10.0.0.1:3101", "10.0.0.1:3102"], 4),
        routes::Lease { open: false, ..connector("c", &["10.0.0.3:3101"], 1) },
    ] {
        table.renew(&node).await.unwrap();
    }
    let counts = [("room:1".to_owned(), 3), ("room:2".to_owned(), 7), ("room:game.1".to_owned(), 5)];
    table.count("a", "a-inc", &counts).await.unwrap();
    table.count("b", "b-inc", &[("room:1".to_owned(), 6)]).await.unwrap();
    let logic = world.logic(|config| config.guests = Guests::Send).await;

    assert_eq!(logic.get("/v1/rooms/1/online").await.json(), json!({"room": "1", "sessions": 9}));
    let many = logic.post("/v1/rooms/online", &json!({"rooms": ["2", "9", "1"]})).await.json();
    let room = |room: &str, sessions: u64| json!({"room": room, "sessions": sessions});
    assert_eq!(many["rooms"], json!([room("2", 7), room("9", 0), room("1", 9)]));
    let top = logic.get("/v1/rooms/top?limit=2").await.json();
    assert_eq!(top["rooms"], json!([room("1", 9), room("2", 7)]));
    assert_eq!(logic.get("/v1/online").await.json(), json!({"sessions": 14, "addresses": 6}));
    let connect = logic.get("/v1/connect").await.json();
    let nodes = json!([
        {"addresses": ["10.0.0.1:3101", "10.0.0.1:3102"]}, {"addresses": ["10.0.0.2:3101", "10.0.0.2:3102"]}
    ]);
    assert_eq!((&connect["nodes"], &connect["heartbeat_s"], &connect["guests"]), (&nodes, &json!(30), &json!("send")));
    assert!(connect["backoff"]["max_ms"].as_u64() > connect["backoff"]["base_ms"].as_u64());

    let data = async |path: &str| {
        let answer = logic.get(path).await.json();
        assert_eq!((&answer["code"], &answer["message"]), (&json!(0), &json!("")), "{path}");
        answer["data"].clone()
    };
    assert_eq!(data("/goim/online/room?type=live&rooms=1&rooms=9").await, json!({"1": 9, "9": 0}));
    assert_eq!(data("/goim/online/room?type=game&rooms=1").await, json!({"1": 5}));
    assert_eq!(data("/goim/online/top?type=game&limit=5").await, json!([{"room_id": "1", "count": 5}]));
    assert_eq!(data("/goim/online/total").await, json!({"conn_count": 14, "ip_count": 6}));
    let weighted = data("/goim/nodes/weighted?platform=web").await;
    let wanted = json!({
        "domain": "127.0.0.1", "tcp_port": 3101, "ws_port": 3102, "wss_port": 0, "heartbeat": 240,
        "nodes": ["10.0.0.1", "10.0.0.2"], "heartbeat_max": 2,
        "backoff": {"max_delay": 300, "base_delay": 3, "factor": 1.8, "jitter": 0.3}
    });
    assert_eq!(weighted, wanted);

    // Cached for a second: polling costs little, and is soon right all the same.
    table.count("a", "a-inc", &[("room:1".to_owned(), 4)]).await.unwrap();
    support::until(async || logic.get("/v1/rooms/1/online").await.json()["sessions"] == 10).await;
}

async fn let_in(logic: &Logic, uid: &str) -> ErrorCode {
    let mut gate = logic.gate().await;
    match gate.ask(Ask::Join(Join { uid: uid.into(), channel: "room:7".into() })).await {
        Answer::Error(refused) => refused.code(),
        _ => ErrorCode::None,
    }
}

async fn writes(logic: &Logic, uid: &str, room: &str) -> ErrorCode {
    let mut gate = logic.gate().await;
    let publish =
        Publish { uid: uid.into(), channel: format!("room:{room}"), payload: "x".into(), ..Publish::default() };
    match gate.ask(Ask::Publish(publish)).await {
        Answer::Error(refused) => refused.code(),
        _ => ErrorCode::None,
    }
}

#[tokio::test]
async fn penalties_hold_on_every_logic_also_on_one_that_starts_later() {
    let world = World::new().await;
    let (one, other) = (world.logic(|_| {}).await, world.logic(|_| {}).await);
    let sentence = async |logic: &Logic, uid: &str, room: &str, kind: &str, seconds: u32| {
        let body = json!({"uid": uid, "room": room, "kind": kind, "seconds": seconds, "reason": "spam"});
        let answer = logic.post("/v1/penalties", &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["until_ms"].as_i64().unwrap()
    };
    let until_ms = sentence(&one, "muted", "7", "mute", 600).await;
    sentence(&one, "banned", "", "ban", 600).await;
    sentence(&other, "absent", "7", "ban", 600).await;
    assert_eq!(writes(&one, "muted", "7").await, ErrorCode::Muted, "at once where it was said");

    let third = world.logic(|_| {}).await;
    for logic in [&one, &other, &third] {
        support::until(async || writes(logic, "muted", "7").await == ErrorCode::Muted).await;
        support::until(async || let_in(logic, "absent").await == ErrorCode::Banned).await;
        assert_eq!(writes(logic, "muted", "8").await, ErrorCode::None);
        assert_eq!(let_in(logic, "muted").await, ErrorCode::None);
        assert_eq!(let_in(logic, "banned").await, ErrorCode::Banned);
        assert_eq!(writes(logic, "absent", "8").await, ErrorCode::None);
        let holding = logic.get("/v1/penalties?uid=muted").await.json();
        let wanted = json!([{"room": "7", "kind": "mute", "until_ms": until_ms, "reason": "spam"}]);
        assert_eq!(holding["penalties"], wanted);
    }
    let commands = commands(&world).await;
    let found = |uid: &str| commands.iter().find(|(key, _)| *key == format!("user:{uid}")).map(|(_, c)| c.act.clone());
    let Some(Some(command::Act::Kick(kick))) = found("banned") else { panic!("{commands:?}") };
    assert_eq!((kick.code(), kick.reason.as_str()), (ErrorCode::Banned, "spam"));
    let Some(Some(command::Act::Unsubscribe(leave))) = found("absent") else { panic!("{commands:?}") };
    assert_eq!((leave.reason(), leave.channels), (ErrorCode::Banned, vec!["room:7".to_owned()]));
    assert_eq!(found("muted"), None);

    assert_eq!(sentence(&other, "banned", "", "ban", 0).await, 0);
    for logic in [&one, &other, &third] {
        support::until(async || let_in(logic, "banned").await == ErrorCode::None).await;
    }
    // A ban also keeps a session out.
    let guest = Authenticate { session: "abcdefghijklm.0.1.1".into(), ..Authenticate::default() };
    let open = world.logic(|config| config.guests = Guests::Send).await;
    let mut gate = open.gate().await;
    let Answer::Admitted(admitted) = gate.ask(Ask::Authenticate(guest.clone())).await else { panic!() };
    sentence(&open, &admitted.uid, "7", "ban", 600).await;
    let asked = Authenticate { joins: vec!["room:7".into(), "room:8".into()], ..guest.clone() };
    let Answer::Admitted(again) = gate.ask(Ask::Authenticate(asked)).await else { panic!() };
    assert_eq!(again.joined, ["room:8"]);
    sentence(&open, &admitted.uid, "", "ban", 600).await;
    let Answer::Error(refused) = gate.ask(Ask::Authenticate(guest)).await else { panic!() };
    assert!(refused.code() == ErrorCode::Banned && refused.retry_after_ms > 500_000);
}

#[tokio::test]
async fn what_happens_to_sessions_is_a_command_for_each_name() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let done = async |path: &str, body: Value| assert_eq!(logic.post(path, &body).await.status, 200, "{path}");
    done("/v1/sessions/subscribe", json!({"users": ["1", "2"], "rooms": ["7", "8"]})).await;
    done("/v1/sessions/unsubscribe", json!({"sessions": ["abcdefghijklm.0.1.1"], "rooms": ["7"]})).await;
    done("/v1/sessions/kick", json!({"keys": ["a key"], "reason": "bye"})).await;
    done("/v1/users/messages", json!({"users": ["1", "2"], "message": {"text": "x"}})).await;
    let commands = commands(&world).await;
    let left = commands.iter().find_map(|(_, command)| match &command.act {
        Some(command::Act::Unsubscribe(leave)) => Some((leave.reason(), &leave.channels[..])),
        _ => None,
    });
    assert_eq!(left, Some((ErrorCode::Kicked, &["room:7".to_owned()][..])));
    let mut keys: Vec<_> = commands.into_iter().map(|(key, _)| key).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["key:a key", "session:abcdefghijklm.0.1.1", "user:1", "user:2"]);
    for (key, push) in pushes(&world).await {
        let Some(push::To::Users(names)) = push.to else { panic!() };
        assert_eq!(format!("user:{}", names.names[0]), key, "no record names two");
        assert_eq!(names.names.len(), 1);
    }
}

#[tokio::test]
async fn other_sites_pages_are_refused_even_on_loopback() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let to = logic.running.http;
    for path in ["/v1/rooms/7/messages", "/goim/push/room?operation=1000&type=live&room=7", "/msg/send"] {
        let foreign = format!("POST {path} HTTP/1.1\nHost: {to}\nOrigin: http://evil.example");
        assert_eq!(raw(to, &foreign, b"{\"text\":\"x\"}").await.status, 403, "{path}");
        let rebound = format!("POST {path} HTTP/1.1\nHost: evil.example:{}", to.port());
        assert_eq!(raw(to, &rebound, b"{\"text\":\"x\"}").await.status, 403, "{path}");
    }
    let forwarded =
        logic.request("POST", "/v1/rooms/7/messages", "\nX-Forwarded-For: 192.0.2.1", b"{\"text\":\"x\"}").await;
    assert_eq!(forwarded.status, 401, "a proxy on this machine lets nobody in without a key");
    assert!(posts(&world).await.is_empty());
    let own = format!("POST /v1/rooms/7/messages HTTP/1.1\nHost: {to}\nOrigin: http://{to}");
    assert_eq!(raw(to, &own, b"{\"text\":\"x\"}").await.status, 200);
    let answer = raw(to, &format!("OPTIONS /v1/rooms/7/messages HTTP/1.1\nHost: {to}\nOrigin: http://{to}"), b"").await;
    assert!(!answer.head.contains("access-control"), "no other site may read anything");
}

const KEY: &str = "an API key of more than 32 characters".split_at(32).0;

fn key(name: &str, letter: &str, scopes: &[Scope]) -> ApiKeyConfig {
    ApiKeyConfig { name: name.into(), key: Secret::new(letter.repeat(32)), scopes: scopes.into(), requests_per_s: 3 }
}

fn keyed(config: &mut Config) {
    config.api.keys = vec![key("chat", "a", &[Scope::Publish]), key("watch", "b", &[Scope::Online, Scope::RoomsList])];
}

#[tokio::test]
async fn api_keys_do_what_their_scopes_say() {
    let world = World::new().await;
    let logic = world.logic(keyed).await;
    let call = async |method: &str, path: &str, header: &str| {
        let answer = logic.request(method, path, header, b"{\"text\":\"x\"}").await;
        (answer.status, answer.code())
    };
    let (chat, watch) = ("a".repeat(32), "b".repeat(32));
    let bearer = |key: &str| format!("\nAuthorization: Bearer {key}");
    let publish = "/v1/rooms/7/messages";
    let refused = |code: &str, status: u16| (status, code.to_owned());
    assert_eq!(call("POST", publish, "").await, refused("unauthenticated", 401));
    assert_eq!(call("POST", publish, &bearer(KEY)).await, refused("unauthenticated", 401));
    assert_eq!(call("POST", publish, &bearer(&watch)).await, refused("forbidden", 403));
    assert_eq!(call("GET", "/v1/online", &bearer(&chat)).await, refused("forbidden", 403));
    assert_eq!(call("GET", "/v1/online", &format!("\nX-Api-Key: {watch}")).await.0, 200);
    assert_eq!(call("GET", "/v1/rooms/top", &bearer(&watch)).await.0, 200);
    let goim = logic.request("POST", "/goim/push/room?operation=1000&type=live&room=7", "", b"x").await;
    assert_eq!((goim.status, &goim.json()["code"]), (200, &json!(-400)));
    for open in ["/", "/v1/connect", "/goim/nodes/weighted", "/openapi.json", "/docs/"] {
        assert_eq!(logic.get(open).await.status, 200, "{open}");
    }
    // Three a second: of ten at once some must wait.
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(call("POST", publish, &bearer(&chat)).await.0);
    }
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");

    let mut client = client(&logic).await;
    let total = client.total(proto::api::TotalRequest {}).await.unwrap_err();
    assert_eq!(total.code(), tonic::Code::Unauthenticated);
    let mut request = tonic::Request::new(proto::api::TotalRequest {});
    request.metadata_mut().insert("authorization", format!("Bearer {}", "a".repeat(32)).parse().unwrap());
    // Its rate was used up over HTTP a moment ago, or it lacks the scope: one key, one rate, one set of scopes.
    let refused = client.total(request).await.unwrap_err().code();
    assert!(matches!(refused, tonic::Code::PermissionDenied | tonic::Code::ResourceExhausted), "{refused:?}");
}

async fn client(logic: &Logic) -> ApiClient<tonic::transport::Channel> {
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{}", logic.running.grpc)).expect("gRPC listens");
    ApiClient::new(soon(endpoint.connect()).await.expect("gRPC listens"))
}

#[tokio::test]
async fn grpc_does_what_http_does() {
    let world = World::new().await;
    table(&world).renew(&connector("a", &["10.0.0.1:3101"], 4)).await.unwrap();
    table(&world).count("a", "a-inc", &[("room:7".to_owned(), 4)]).await.unwrap();
    let logic = world.logic(|_| {}).await;
    let mut client = client(&logic).await;
    use proto::api as wire;
    let content = |text: &str| wire::Content {
        payload: Some(wire::content::Payload::Text(text.to_owned())),
        ..wire::Content::default()
    };
    let message = |room: &str, text: &str| wire::RoomMessage { room: room.into(), message: Some(content(text)) };
    let request = wire::PublishRequest { messages: vec![message("7", "hi"), message("a b", "hi"), message("7", "")] };
    let outcomes = client.publish(request).await.unwrap().into_inner().outcomes;
    let codes: Vec<_> = outcomes
        .iter()
        .map(|one| match one.result.as_ref().unwrap() {
            outcome::Result::Accepted(accepted) => {
                assert!(accepted.offset > 0 && !accepted.id.is_empty());
                ErrorCode::None
            }
            outcome::Result::Error(refused) => refused.code(),
        })
        .collect();
    assert_eq!(codes, [ErrorCode::None, ErrorCode::BadRequest, ErrorCode::BadRequest]);
    assert_eq!(posts(&world).await[0].payload, "hi");

    let names = |name: &str| wire::Names { names: vec![name.to_owned()] };
    let push = wire::PushRequest { to: Some(wire::push_request::To::Users(names("42"))), message: Some(content("x")) };
    assert!(!client.push(push).await.unwrap().into_inner().id.is_empty());
    let users = || Some(wire::Sessions { of: Some(wire::sessions::Of::Users(names("42"))) });
    client.subscribe(wire::SubscribeRequest { sessions: users(), rooms: vec!["7".into()] }).await.unwrap();
    client.unsubscribe(wire::UnsubscribeRequest { sessions: users(), rooms: vec!["7".into()] }).await.unwrap();
    client.kick(wire::KickRequest { sessions: users(), reason: String::new() }).await.unwrap();
    assert_eq!((pushes(&world).await.len(), commands(&world).await.len()), (1, 3));
    let nobody = client.kick(wire::KickRequest::default()).await.unwrap_err();
    assert_eq!(nobody.code(), tonic::Code::InvalidArgument);

    let sentence = wire::PenaliseRequest {
        uid: "42".into(),
        kind: wire::PenaltyKind::Mute.into(),
        seconds: 60,
        ..wire::PenaliseRequest::default()
    };
    let until_ms = client.penalise(sentence).await.unwrap().into_inner().until_ms;
    let holding = client.penalties(wire::PenaltiesRequest { uid: "42".into() }).await.unwrap().into_inner();
    assert_eq!((holding.penalties[0].until_ms, holding.penalties[0].kind()), (until_ms, wire::PenaltyKind::Mute));
    assert_eq!(writes(&logic, "42", "7").await, ErrorCode::Muted);

    let online = client.online(wire::OnlineRequest { rooms: vec!["7".into()] }).await.unwrap().into_inner();
    assert_eq!(online.rooms[0].sessions, 4);
    assert_eq!(client.top(wire::TopRequest::default()).await.unwrap().into_inner().rooms[0].room, "7");
    assert_eq!(client.total(wire::TotalRequest {}).await.unwrap().into_inner().sessions, 4);
    let nodes = client.nodes(wire::NodesRequest {}).await.unwrap().into_inner();
    assert_eq!(nodes.nodes[0].addresses, ["10.0.0.1:3101"]);
}

#[tokio::test]
async fn bilibilis_sending_call_writes_to_the_room() {
    let world = World::new().await;
    let secret = "a secret for tests, long enough to be one";
    let key = || KeyConfig { kid: String::new(), alg: Alg::HS256, key: Secret::new(secret), file: Default::default() };
    let logic = world.logic(|config| config.token.keys.push(key())).await;
    let form = "roomid=1000&msg=%E5%BC%B9%E5%B9%95&color=16711680&fontsize=25&mode=4&bubble=0&rnd=1&csrf=c0ffee";
    let send = async |logic: &Logic, headers: &str, form: &str| {
        let headers = format!("\nContent-Type: application/x-www-form-urlencoded{headers}");
        let answer = logic.request("POST", "/msg/send", &headers, form.as_bytes()).await;
        assert_eq!(answer.status, 200);
        answer.json()
    };
    assert_eq!(send(&logic, "", form).await["code"], -101, "guests are refused by default");
    let mut config = logic::Config::clone(&shipped_with(key()));
    config.guests = Guests::Refuse;
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut claims = logic::token::Claims::new("42", now_s + 60);
    claims.name = Some("Ada".into());
    claims.publish = Some(vec!["room:1000".into()]);
    let token = logic::token::mint(&config.token, &claims).unwrap();
    let done = json!({"code": 0, "message": "", "msg": "", "data": {}});
    assert_eq!(send(&logic, &format!("\nAuthorization: Bearer {token}"), form).await, done);
    let cookies = |session: &str, csrf: &str| format!("\nCookie: SESSDATA={session}; bili_jct={csrf}");
    assert_eq!(send(&logic, &cookies(&token, "c0ffee"), form).await, done);
    assert_eq!(send(&logic, &cookies(&token, "another"), form).await["code"], -111);
    assert_eq!(send(&logic, &cookies(&format!("{token}x"), "c0ffee"), form).await["code"], -101);
    let bearer = format!("\nAuthorization: Bearer {token}");
    assert_eq!(send(&logic, &bearer, "roomid=8&msg=x").await["code"], -403, "outside of its patterns");
    assert_eq!(send(&logic, &bearer, "roomid=x&msg=x").await["code"], -400);
    assert_eq!(send(&logic, &bearer, "roomid=1000&msg=").await["code"], -400);
    let long = format!("roomid=1000&msg={}", "x".repeat(4_097));
    assert_eq!(send(&logic, &bearer, &long).await["code"], 1_003_212);
    let posts = posts(&world).await;
    assert_eq!(posts.len(), 2);
    let (sender, style) = (posts[0].sender.as_ref().unwrap(), posts[0].style.as_ref().unwrap());
    assert_eq!((posts[0].payload.as_ref(), sender.name.as_str()), ("弹幕".as_bytes(), "Ada"));
    assert_eq!((style.mode, style.size, style.colour), (4, 25, 0xff0000));

    let open = world.logic(|config| config.guests = Guests::Send).await;
    assert_eq!(send(&open, "", form).await, done);
    assert_eq!(send(&open, "\nCookie: SESSDATA=0123abcd%2C1700000000", form).await, done, "of another shape: a guest");
    let mute = json!({"uid": world_last_sender(&world).await, "kind": "mute", "seconds": 60});
    assert_eq!(open.post("/v1/penalties", &mute).await.status, 200);
    assert_eq!(send(&open, "", form).await["code"], 1003, "an address is one guest");
}

async fn world_last_sender(world: &World) -> String {
    posts(world).await.pop().and_then(|post| post.sender).expect("a sender").uid
}

fn shipped_with(key: KeyConfig) -> Config {
    #[derive(serde::Deserialize)]
    struct File {
        logic: Config,
    }
    let mut config =
        toml::from_str::<File>(include_str!("../../config/barrage.toml")).expect("the shipped file is read").logic;
    config.token.keys.push(key);
    config
}

#[tokio::test]
async fn the_page_and_the_description_are_served_and_guarded() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let page = logic.get("/").await;
    assert_eq!(page.status, 200);
    for header in
        ["content-type: text/html", "content-security-policy: default-src 'self'", "x-content-type-options: nosniff"]
    {
        assert!(page.head.contains(header), "{header}: {}", page.head);
    }
    let tag = page.head.split("etag: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap();
    let again = logic.request("GET", "/", &format!("\nIf-None-Match: {tag}"), b"").await;
    assert_eq!((again.status, again.body.as_str()), (304, ""));
    assert_eq!(logic.get("/nothing").await.status, 404);
    assert_eq!(logic.get("/../Cargo.toml").await.status, 404);

    let description = logic.get("/openapi.json").await.json();
    let paths = description["paths"].as_object().unwrap();
    for path in [
        "/v1/rooms/{room}/messages",
        "/v1/messages",
        "/v1/users/messages",
        "/v1/sessions/messages",
        "/v1/all/messages",
        "/v1/sessions/subscribe",
        "/v1/sessions/unsubscribe",
        "/v1/sessions/kick",
        "/v1/penalties",
        "/v1/rooms/{room}/online",
        "/v1/rooms/online",
        "/v1/rooms/top",
        "/v1/online",
        "/v1/connect",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    let docs = logic.get("/docs/").await;
    assert!(docs.body.contains("swagger") && docs.head.contains("content-security-policy"), "{docs:?}");
    assert!(!docs.body.contains("http://") && !docs.body.contains("https://"), "nothing from elsewhere");
}
