//! What connectors are promised, over real gRPC and the embedded bus.

mod support;

use bus::Topic;
use logic::Guests;
use logic::config::{Alg, KeyConfig};
use logic::token::{Claims, mint};
use proto::client::{ErrorCode, Style};
use proto::cluster::gate_reply::Answer;
use proto::cluster::gate_request::Ask;
use proto::cluster::{Authenticate, Dialect, Displace, Join, Publish};
use proto::config::Secret;
use proto::record::record::Body;
use proto::record::{Post, command};
use routes::Role;
use support::{World, soon, table, until};

fn publish(uid: &str, text: &str) -> Publish {
    Publish {
        uid: uid.into(),
        name: "Ada".into(),
        channel: "room:7".into(),
        r#type: "text".into(),
        payload: text.to_owned().into(),
        dialect: Dialect::Native.into(),
        ..Publish::default()
    }
}

fn code(answer: &Answer) -> ErrorCode {
    match answer {
        Answer::Error(refused) => refused.code(),
        _ => ErrorCode::None,
    }
}

fn posts(records: Vec<(u64, proto::record::Record)>) -> Vec<(u64, Post)> {
    let post = |(offset, record): (u64, proto::record::Record)| match record.body {
        Some(Body::Post(post)) => (offset, post),
        other => panic!("not a post: {other:?}"),
    };
    records.into_iter().map(post).collect()
}

#[tokio::test]
async fn requests_are_published_in_the_order_of_the_stream() {
    const MESSAGES: usize = 3_000;
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let mut gate = logic.gate().await;
    let texts: Vec<String> = (0..MESSAGES).map(|n| n.to_string()).collect();
    // Messages of one to thirty requests, with others in between that take another way.
    for (at, some) in texts.chunks(30).enumerate() {
        let join = Ask::Join(Join { uid: "7".into(), channel: "room:7".into() });
        gate.send([join]).await;
        for some in some.chunks(at % 30 + 1) {
            gate.send(some.iter().map(|text| Ask::Publish(publish("7", text)))).await;
        }
    }
    let (mut ids, mut joined) = (std::collections::BTreeSet::new(), 0);
    while ids.len() < MESSAGES {
        for reply in gate.replies().await.expect("the stream stands") {
            match reply.answer {
                Some(Answer::Published(published)) => assert!(ids.insert(published.id)),
                Some(Answer::Joined(_)) => joined += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(joined, MESSAGES / 30);
    let posts = posts(world.records(Topic::Rooms).await);
    let written: Vec<_> = posts.iter().map(|(_, post)| std::str::from_utf8(&post.payload).unwrap()).collect();
    assert_eq!(written, texts);
    assert!(posts.iter().all(|(_, post)| ids.contains(&post.id)));
}

#[tokio::test]
async fn a_published_message_is_the_record_that_it_should_be() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let mut gate = logic.gate().await;
    let style = Style { mode: 5, size: 25, colour: 0xff00ff };
    let message = Publish { client_message_id: "a-1".into(), style: Some(style), ..publish("42", "hello") };
    let Answer::Published(published) = gate.ask(Ask::Publish(message.clone())).await else { panic!() };
    let Answer::Published(again) = gate.ask(Ask::Publish(message)).await else { panic!() };
    assert_eq!(published.id, again.id, "the job drops one of the two by this");
    let records = world.records(Topic::Rooms).await;
    let (_, record) = &records[0];
    assert_eq!((record.min_reader, record.channel.as_str()), (1, "room:7"));
    assert_eq!(record.log, world.bus.log(Topic::Rooms));
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    assert!((now_ms - 60_000..=now_ms).contains(&record.time_ms));
    let (_, post) = posts(records).remove(0);
    let sender = post.sender.as_ref().unwrap();
    assert_eq!((sender.uid.as_str(), sender.name.as_str()), ("42", "Ada"));
    assert_eq!((post.id, post.r#type.as_str(), &post.payload[..]), (published.id, "text", &b"hello"[..]));
    assert_eq!((post.client_message_id.as_str(), post.style), ("a-1", Some(style)));
    assert!(post.raw.is_empty());
}

#[tokio::test]
async fn goims_bodies_are_published_as_what_they_are() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let mut gate = logic.gate().await;
    let chat = r#"{"cmd":"DANMU_MSG","info":[[0,1,25],"hi",[7,"Ada"]]}"#;
    let goim = |operation: i32, body: &str| Publish {
        dialect: Dialect::Goim.into(),
        operation,
        r#type: String::new(),
        ..publish("7", body)
    };
    for (operation, body) in [(4, "hello"), (1000, chat), (1007, "x")] {
        assert_eq!(code(&gate.ask(Ask::Publish(goim(operation, body))).await), ErrorCode::None);
    }
    // Operation 9 would be unpacked by every goim viewer, 8 taken for the server's own.
    for forged in [goim(9, "x"), goim(8, "x"), goim(-1, "x"), Publish { r#type: "goim.9".into(), ..publish("7", "x") }]
    {
        assert_eq!(code(&gate.ask(Ask::Publish(forged)).await), ErrorCode::BadRequest);
    }
    let posts = posts(world.records(Topic::Rooms).await);
    let seen: Vec<_> = posts.iter().map(|(_, post)| (post.r#type.as_str(), &post.payload[..], &post.raw[..])).collect();
    let wanted: [(&str, &[u8], &[u8]); 3] =
        [("text", b"hello", b""), ("text", b"hi", chat.as_bytes()), ("goim.1007", b"x", b"")];
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn what_a_client_may_not_publish_is_refused() {
    let world = World::new().await;
    let logic = world
        .logic(|config| {
            config.guests = Guests::Watch;
            (config.limits.user_messages_per_s, config.limits.user_messages_burst) = (1, 3);
        })
        .await;
    let mut gate = logic.gate().await;
    let at_most = "x".repeat(4096);
    assert_eq!(code(&gate.ask(Ask::Publish(publish("1", &at_most))).await), ErrorCode::None);
    let refused = [
        (publish("2", &format!("{at_most}x")), ErrorCode::TooLarge),
        (publish("2", "a\u{1b}[31m"), ErrorCode::BadRequest),
        (Publish { channel: "user:7".into(), ..publish("2", "x") }, ErrorCode::BadRequest),
        (Publish { channel: "all".into(), ..publish("2", "x") }, ErrorCode::BadRequest),
        (Publish { r#type: "a b".into(), ..publish("2", "x") }, ErrorCode::BadRequest),
        (Publish { client_message_id: "a b".into(), ..publish("2", "x") }, ErrorCode::BadRequest),
        (Publish { guest: true, ..publish("guest.0", "x") }, ErrorCode::Forbidden),
    ];
    for (ask, wanted) in refused {
        assert_eq!(code(&gate.ask(Ask::Publish(ask.clone())).await), wanted, "{ask:?}");
    }
    for _ in 0..3 {
        assert_eq!(code(&gate.ask(Ask::Publish(publish("3", "x"))).await), ErrorCode::None);
    }
    let Answer::Error(too_fast) = gate.ask(Ask::Publish(publish("3", "x"))).await else { panic!() };
    assert!(too_fast.code() == ErrorCode::TooFast && (1..=1000).contains(&too_fast.retry_after_ms), "{too_fast:?}");
    assert_eq!(code(&gate.ask(Ask::Publish(publish("4", "x"))).await), ErrorCode::None, "another user");
    assert_eq!(world.records(Topic::Rooms).await.len(), 5, "nothing of what was refused is in the log");
}

#[tokio::test]
async fn only_services_of_the_cluster_come_through() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let refused = logic.gate_with("another secret").await.err().expect("refused");
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}

fn keyed(config: &mut logic::Config) {
    config.token.keys.push(KeyConfig {
        kid: "k".into(),
        alg: Alg::HS256,
        key: Secret::new("a secret for tests, long enough to be one"),
        file: Default::default(),
    });
}

fn token_for(sub: &str, change: impl FnOnce(&mut Claims)) -> String {
    #[derive(serde::Deserialize)]
    struct File {
        logic: logic::Config,
    }
    let mut config = toml::from_str::<File>(include_str!("../../config/barrage.toml")).expect("as written here").logic;
    keyed(&mut config);
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("as written here").as_secs();
    let mut claims = Claims::new(sub, now_s + 60);
    change(&mut claims);
    mint(&config.token, &claims).expect("as written here")
}

fn native(token: &str) -> Authenticate {
    Authenticate {
        session: "abcdefghijklm.0.1.1".into(),
        token: token.into(),
        dialect: Dialect::Native.into(),
        ..Authenticate::default()
    }
}

#[tokio::test]
async fn a_session_is_who_its_token_says() {
    let world = World::new().await;
    let logic = world.logic(keyed).await;
    let mut gate = logic.gate().await;
    let token = token_for("42", |claims| {
        claims.name = Some("Ada".into());
        claims.device = Some("phone".into());
        claims.publish = Some(vec!["room:7".into()]);
    });
    let asked = Authenticate { name: "Eve".into(), device: "x".into(), ..native(&token) };
    let Answer::Admitted(admitted) = gate.ask(Ask::Authenticate(asked)).await else { panic!() };
    assert_eq!((admitted.uid.as_str(), admitted.name.as_str(), admitted.device.as_str()), ("42", "Ada", "phone"));
    assert!(!admitted.guest && admitted.expires_at_ms > 0);
    assert_eq!((admitted.subscribe, admitted.publish), (vec!["room:*".to_owned()], vec!["room:7".to_owned()]));

    let plain = token_for("42", |_| {});
    let mut ask = async |ask: Authenticate| code(&gate.ask(Ask::Authenticate(ask)).await);
    assert_eq!(ask(native("")).await, ErrorCode::Unauthenticated, "guests are refused by default");
    assert_eq!(ask(native("nonsense")).await, ErrorCode::Unauthenticated);
    let refresh = |token: &str, uid: &str| Authenticate { refreshes_uid: uid.into(), ..native(token) };
    assert_eq!(ask(refresh(&plain, "42")).await, ErrorCode::None);
    assert_eq!(ask(refresh(&plain, "43")).await, ErrorCode::Forbidden);
    let narrow = token_for("42", |claims| claims.subscribe = Some(vec!["room:game.*".into()]));
    let joining = |channel: &str| Authenticate { channel: channel.into(), ..native(&narrow) };
    assert_eq!(ask(joining("room:game.7")).await, ErrorCode::None);
    assert_eq!(ask(joining("room:7")).await, ErrorCode::Forbidden);

    let joins = ["room:game.7", "room:7", "room:game.8"].map(String::from).to_vec();
    let Answer::Admitted(admitted) = gate.ask(Ask::Authenticate(Authenticate { joins, ..native(&narrow) })).await
    else {
        panic!()
    };
    assert_eq!(admitted.joined, ["room:game.7", "room:game.8"], "what it may be in of what it asks for right behind");
    let mut ask = async |ask: Authenticate| code(&gate.ask(Ask::Authenticate(ask)).await);

    // goim and Bilibili: mid and uid are claims.
    for dialect in [Dialect::Goim, Dialect::Bilibili] {
        let with = |token: &str, claimed: &str| Authenticate {
            dialect: dialect.into(),
            claimed_uid: claimed.into(),
            ..native(token)
        };
        assert_eq!(ask(with(&plain, "42")).await, ErrorCode::None);
        assert_eq!(ask(with(&plain, "0")).await, ErrorCode::None);
        assert_eq!(ask(with(&plain, "43")).await, ErrorCode::Forbidden);
        let forged = format!("{plain}x");
        assert_eq!(ask(with(&forged, "42")).await, ErrorCode::Unauthenticated);
        assert_eq!(ask(with("any-key", "42")).await, ErrorCode::Unauthenticated, "a key of another shape: a guest");
    }
}

#[tokio::test]
async fn guests_are_who_logic_says_and_may_what_the_configuration_says() {
    let world = World::new().await;
    for (guests, publish) in [(Guests::Watch, vec![]), (Guests::Send, vec!["room:*".to_owned()])] {
        let logic = world.logic(|config| config.guests = guests).await;
        let mut gate = logic.gate().await;
        let asked = Authenticate { dialect: Dialect::Goim.into(), claimed_uid: "42".into(), ..native("") };
        let Answer::Admitted(admitted) = gate.ask(Ask::Authenticate(asked.clone())).await else { panic!() };
        assert!(admitted.guest && admitted.uid.starts_with("guest.") && proto::channel::is_id(&admitted.uid));
        assert_eq!(admitted.publish, publish);
        let other = Authenticate { session: "abcdefghijklm.0.1.2".into(), ..asked };
        let Answer::Admitted(other) = gate.ask(Ask::Authenticate(other)).await else { panic!() };
        assert_ne!(other.uid, admitted.uid, "another session is another guest");
    }
    let trusting = world.logic(|config| (config.guests, config.trust_claims) = (Guests::Send, true)).await;
    let mut gate = trusting.gate().await;
    let asked = Authenticate { dialect: Dialect::Goim.into(), claimed_uid: "42".into(), ..native("") };
    let Answer::Admitted(admitted) = gate.ask(Ask::Authenticate(asked)).await else { panic!() };
    assert!(!admitted.guest && admitted.uid == "42", "believed by the flag");
}

#[tokio::test]
async fn a_displaced_session_is_ended_by_a_command() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let mut gate = logic.gate().await;
    let ask = Displace { session: "abcdefghijklm.0.1.1".into() };
    assert!(matches!(gate.ask(Ask::Displace(ask)).await, Answer::Displaced(_)));
    let (_, record) = world.records(Topic::Pushes).await.remove(0);
    assert_eq!(record.channel, "session:abcdefghijklm.0.1.1");
    let Some(Body::Command(command)) = record.body else { panic!() };
    let Some(command::Act::Kick(kick)) = command.act else { panic!() };
    assert_eq!(kick.code(), ErrorCode::Replaced);
}

#[tokio::test]
async fn a_stopping_logic_answers_what_it_has_read_and_gives_its_lease_back() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let leases = async || {
        let nodes = table(&world).nodes().await.unwrap();
        nodes.iter().filter(|node| node.role == Role::Logic && node.grpc == logic.running.grpc.to_string()).count()
    };
    until(async || leases().await == 1).await;
    let mut gate = logic.gate().await;
    gate.send((0..500).map(|n| Ask::Publish(publish("7", &n.to_string())))).await;
    let mut answered = gate.replies().await.expect("some").len();
    logic.stop.cancel();
    while let Some(replies) = gate.replies().await {
        answered += replies.len();
    }
    assert_eq!(answered, 500, "every request that was read is answered");
    until(async || leases().await == 0).await;
    soon(logic.running.join()).await;
}

#[tokio::test]
async fn a_key_file_that_changes_is_read_while_running() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "the first secret, which is about to change\n").unwrap();
    let with_file = |config: &mut logic::Config| {
        let key = KeyConfig { kid: "k".into(), alg: Alg::HS256, key: Secret::new(""), file: file.clone() };
        config.token.keys = vec![key];
    };
    let logic = world.logic(with_file).await;
    let mut gate = logic.gate().await;
    let token = token_for("42", |_| {});
    assert_eq!(code(&gate.ask(Ask::Authenticate(native(&token))).await), ErrorCode::Unauthenticated);
    std::fs::write(&file, "a secret for tests, long enough to be one\n").unwrap();
    until(async || code(&gate.ask(Ask::Authenticate(native(&token))).await) == ErrorCode::None).await;
}
