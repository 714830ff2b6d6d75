//! Who is let in, and what nobody may.

use proptest::prelude::*;

use super::*;

#[test]
fn an_unauthenticated_connection_is_closed_after_its_time() {
    let mut bench = Bench::new(|_| {});
    let (silent, halfway, web) = (bench.open().unwrap(), bench.open().unwrap(), bench.open().unwrap());
    let _ = bench.say(halfway, b"GET / HT");
    let _ = bench.say(web, &upgrade("/sub", ""));
    bench.pass(4900);
    assert_eq!(bench.sink.closed, []);
    bench.pass(500);
    bench.sink.closed.sort();
    assert_eq!(bench.sink.closed, [silent, halfway, web]);
    assert_eq!(close_code(&bench.heard(web)), Some(4001));
}

#[test]
fn logic_that_does_not_answer_is_not_the_clients_fault() {
    let mut bench = Bench::new(|_| {});
    let key = bench.open().unwrap();
    let _ = bench.say(key, wire::MAGIC);
    bench.request(key, client_frame::Body::Connect(client::Connect::default()));
    bench.pass(5500);
    assert_eq!(goodbye(&bench.frames(key)), Some(client::ErrorCode::Unavailable));
}

#[test]
fn pages_of_other_origins_are_refused() {
    let mut bench = Bench::new(|config| config.origins = vec!["http://127.0.0.1:3111".into()]);
    for (more, status) in [
        ("", "101"),
        ("Origin: http://127.0.0.1:3111\r\n", "101"),
        ("Origin: http://evil.example\r\n", "403"),
        ("Origin: null\r\n", "403"),
    ] {
        let key = bench.open().unwrap();
        let _ = bench.say(key, &upgrade("/sub", more));
        let answer = bench.heard(key);
        assert!(answer.starts_with(format!("HTTP/1.1 {status} ").as_bytes()), "{more}");
        assert_eq!(bench.sink.closed.contains(&key), status == "403");
        let text = String::from_utf8_lossy(&answer);
        assert_eq!(text.contains("connector.origins"), status == "403", "{text}");
    }
    // One line for the operator, not one for each page.
    let logged = |bench: &mut Bench| -> Vec<_> {
        std::mem::take(&mut bench.asks)
            .into_iter()
            .filter_map(|ask| match ask {
                CoreRequest::OriginRefused { origin, count } => Some((origin, count)),
                _ => None,
            })
            .collect()
    };
    assert_eq!(logged(&mut bench), [("http://evil.example".to_owned(), 1)]);
    bench.pass(11_000);
    let key = bench.open().unwrap();
    let _ = bench.say(key, &upgrade("/sub", "Origin: http://other.example\r\n"));
    assert_eq!(logged(&mut bench), [("http://other.example".to_owned(), 2)]);
}

#[test]
fn a_client_that_sends_its_own_address_as_origin_is_let_in() {
    let mut bench = Bench::new(|config| config.names = vec!["live.example".into()]);
    for (host, origin, status) in [
        ("127.0.0.1:3102", "http://127.0.0.1:3102", "101"),
        ("127.0.0.1:3102", "https://127.0.0.1:3102", "101"),
        ("[::1]:3102", "http://[::1]:3102", "101"),
        ("localhost:3102", "http://LOCALHOST:3102", "101"),
        ("live.example", "https://live.example", "101"),
        ("live.example:8443", "https://live.example:8443", "101"),
        ("127.0.0.1:3102", "http://127.0.0.1:1", "403"),
        ("live.example", "https://evil.example", "403"),
        // A name that is rebound to this address.
        ("evil.example:3102", "http://evil.example:3102", "403"),
        ("127.0.0.1.evil.example", "http://127.0.0.1.evil.example", "403"),
    ] {
        let key = bench.open().unwrap();
        let request = String::from_utf8(upgrade("/sub", &format!("Origin: {origin}\r\n"))).unwrap();
        let own = request.lines().find(|line| line.starts_with("Host: ")).unwrap().to_owned();
        let _ = bench.say(key, request.replace(&own, &format!("Host: {host}")).as_bytes());
        let answer = bench.heard(key);
        assert!(answer.starts_with(format!("HTTP/1.1 {status} ").as_bytes()), "{host} {origin}");
    }
}

#[test]
fn a_proxy_header_is_believed_from_listed_addresses_only() {
    let header = b"PROXY TCP4 198.51.100.9 198.51.100.1 56324 443\r\n";
    for (listed, address) in [(true, Some("198.51.100.9")), (false, None)] {
        let mut bench = Bench::new(|config| {
            config.proxies = if listed { vec!["192.0.2.0/24".parse().unwrap()] } else { Vec::new() };
        });
        let key = bench.open().unwrap();
        let _ = bench.say(key, &header[..20]);
        let _ = bench.say(key, &header[20..]);
        let _ = bench.say(key, &packet_bytes(packet::operation::AUTH, 1, b"{}"));
        assert_eq!(bench.sink.closed.is_empty(), listed);
        assert_eq!(bench.gate.is_empty(), !listed);
        if let Some(address) = address {
            assert_eq!(bench.admit().address, address);
        }
    }
}

#[test]
fn an_address_has_so_many_connections_and_no_more() {
    let mut bench = Bench::new(|config| config.connections_per_address = 2);
    let (first, _) = (bench.open().unwrap(), bench.open().unwrap());
    let (web, native) = (bench.open().unwrap(), bench.open().unwrap());
    let _ = bench.say(web, &upgrade("/sub", ""));
    let answer = String::from_utf8(bench.sink.out.remove(&web).unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("too many connections"), "{answer}");
    let _ = bench.say(native, wire::MAGIC);
    assert_eq!(goodbye(&bench.frames(native)), Some(client::ErrorCode::TooManyConnections));
    assert_eq!(bench.sink.closed, [web, native]);
    // One that says nothing has a second, and there are no more of them than so many.
    let silent: Vec<_> = (0..300).filter_map(|_| bench.open()).collect();
    assert_eq!(silent.len(), 256);
    bench.pass(1_500);
    assert_eq!(bench.sink.closed.len(), 2 + silent.len());
    bench.engine.closed(bench.now, first);
    let next = bench.open().unwrap();
    let _ = bench.say(next, &upgrade("/sub", ""));
    assert!(bench.sink.out.remove(&next).unwrap().starts_with(b"HTTP/1.1 101 "), "there is room again");
    let loopback = SocketAddr::from(([127, 0, 0, 1], 1));
    assert!((0..9).all(|_| bench.engine.opened(bench.now, 0, loopback).is_some()), "exempt unless configured");
    let mut bench = Bench::new(|config| config.sessions_max = 3);
    assert_eq!((0..9).filter_map(|_| bench.open()).count(), 3);
}

#[test]
fn a_silent_session_is_closed_after_its_dialects_allowance() {
    let mut bench = Bench::new(|config| config.heartbeat_s = 30);
    let (native, goim) = (bench.native(), bench.goim());
    let bilibili = bench.packet_client(r#"{"uid":0,"roomid":1}"#);
    bench.admit();
    bench.pass(59_000);
    assert_eq!(bench.sink.closed, []);
    bench.pass(2_000);
    bench.sink.closed.sort();
    assert_eq!(bench.sink.closed, [native, bilibili]);
    assert_eq!(goodbye(&bench.frames(native)), Some(client::ErrorCode::Idle));
    bench.pass(240_000);
    let _ = bench.say(goim, &packet_bytes(packet::operation::HEARTBEAT, 2, b""));
    bench.pass(479_000);
    assert_eq!(bench.sink.closed.len(), 2);
    bench.pass(2_000);
    assert_eq!(bench.sink.closed.last(), Some(&goim));
}

#[test]
fn a_lapsed_token_ends_the_session_unless_it_is_refreshed() {
    let mut bench = Bench::new(|config| (config.token_leeway_s, config.heartbeat_s) = (5, 600));
    let lapsing = |bench: &Bench, seconds: i64| cluster::Admitted {
        expires_at_ms: bench.now.unix_ms + seconds * 1000,
        ..admitted()
    };
    let mut keys = Vec::new();
    for _ in 0..2 {
        let key = bench.open().unwrap();
        let _ = bench.say(key, wire::MAGIC);
        bench.request(key, client_frame::Body::Connect(client::Connect::default()));
        bench.answer(Answer::Admitted(lapsing(&bench, 60)));
        keys.push(key);
    }
    bench.pass(50_000);
    bench.request(keys[1], client_frame::Body::Refresh(client::Refresh { token: "new".into() }));
    match bench.answer(Answer::Admitted(lapsing(&bench, 100))) {
        gate_request::Ask::Authenticate(ask) => assert_eq!((&*ask.token, &*ask.refreshes_uid), ("new", "ann")),
        other => panic!("{other:?}"),
    }
    bench.pass(14_000);
    assert_eq!(bench.sink.closed, [], "the leeway");
    bench.pass(2_000);
    assert_eq!(bench.sink.closed, [keys[0]]);
    assert_eq!(goodbye(&bench.frames(keys[0])), Some(client::ErrorCode::TokenExpired));
    bench.pass(100_000);
    assert_eq!(bench.sink.closed.len(), 2);
}

#[test]
fn who_asks_too_often_is_refused_and_then_closed() {
    let mut bench = Bench::new(|config| config.requests_per_s = 10);
    let key = bench.native();
    for _ in 0..30 {
        bench.request(key, client_frame::Body::Ping(client::Ping {}));
    }
    let frames = bench.frames(key);
    let refused =
        frames.iter().filter(|frame| matches!(&frame.body, Some(Body::Error(error)) if error.retry_after_ms > 0));
    assert_eq!((frames.len(), refused.count()), (30, 20), "every request has its reply");
    for _ in 0..60 {
        bench.request(key, client_frame::Body::Ping(client::Ping {}));
    }
    assert_eq!(goodbye(&bench.frames(key)), Some(client::ErrorCode::TooFast));
}

#[test]
fn rooms_and_new_rooms_of_a_session_are_bounded() {
    let mut bench = Bench::new(|config| (config.rooms_per_session, config.new_rooms_per_session) = (2, 3));
    let key = bench.native();
    let codes = |bench: &mut Bench| -> Vec<i32> {
        let frames = bench.frames(key);
        frames
            .iter()
            .filter_map(|frame| if let Some(Body::Error(error)) = &frame.body { Some(error.code) } else { None })
            .collect()
    };
    for name in ["room:a", "room:b"] {
        bench.subscribe(key, room(name));
        bench.hold(name, 0, Vec::new());
    }
    bench.request(key, client_frame::Body::Subscribe(room("room:c")));
    assert_eq!(codes(&mut bench), [client::ErrorCode::TooManyRooms as i32]);
    bench.request(key, client_frame::Body::Unsubscribe(client::Unsubscribe { channel: "room:a".into() }));
    bench.subscribe(key, room("room:c"));
    bench.hold("room:c", 0, Vec::new());
    bench.request(key, client_frame::Body::Unsubscribe(client::Unsubscribe { channel: "room:b".into() }));
    bench.request(key, client_frame::Body::Subscribe(room("room:d")));
    assert_eq!(codes(&mut bench), [client::ErrorCode::TooFast as i32], "the fourth that nobody was in");
}

#[test]
fn a_session_with_enough_under_way_is_not_read_from() {
    let mut bench = Bench::new(|config| config.requests_in_flight = 2);
    let key = bench.native();
    bench.sink.read.clear();
    let publish = || client::Publish { channel: "room:1".into(), r#type: "text".into(), ..Default::default() };
    let bytes: Vec<u8> =
        (1..=4).flat_map(|request| native_bytes(request, client_frame::Body::Publish(publish()))).collect();
    assert_eq!(bench.say(key, &bytes), Reading::Paused);
    assert_eq!((bench.gate.len(), bench.sink.read.len()), (2, 0));
    let published = || Answer::Published(cluster::Published { id: "1".into() });
    bench.answer(published());
    assert_eq!(bench.gate.len(), 2, "the third went on its way");
    (0..3).for_each(|_| drop(bench.answer(published())));
    assert_eq!(bench.sink.read, [key]);
    let replies: Vec<_> = bench.frames(key).iter().map(|frame| frame.request).collect();
    assert_eq!(replies, [1, 2, 3, 4]);
    assert_eq!(bench.engine.footprint().buffers, 0, "an idle session holds no buffer");
}

#[test]
fn a_draining_node_says_so_and_is_gone_in_time() {
    let mut bench = Bench::new(|config| (config.heartbeat_s, config.auth_deadline_ms) = (600, 60_000));
    let keys: Vec<_> = (0..20).map(|_| bench.viewer()).collect();
    let web = bench.open().unwrap();
    let _ = bench.say(web, &upgrade("/", "Sec-WebSocket-Protocol: barrage.v1\r\n"));
    bench.input(Input::Drain { within_ms: 10_000 });
    assert!(bench.open().is_none());
    bench.pass(100);
    assert!(bench.engine.done(), "a few are told at once: {:?}", bench.engine.footprint());
    let mut delays = std::collections::BTreeSet::new();
    for key in keys {
        for frame in bench.frames(key) {
            if let Some(Body::Goodbye(goodbye)) = frame.body {
                assert_eq!((goodbye.code, goodbye.retry), (client::ErrorCode::Draining as i32, true));
                delays.insert(goodbye.delay_ms);
            }
        }
    }
    assert!(delays.len() > 1 && delays.iter().all(|delay| *delay <= 5), "a few come back at once: {delays:?}");
    assert_eq!(close_code(&bench.heard(web)), Some(4015));
}

#[test]
fn an_idle_session_is_small() {
    // The table's entry and what it points to. On top come the names, the place in the room and the wheel's entry:
    // `an_idle_session_costs_little` has the sum.
    assert!(size_of::<crate::session::Slot>() <= 16);
    assert!(size_of::<crate::Session>() <= 128, "{}", size_of::<crate::Session>());
    assert!(size_of::<crate::room::Member>() <= 40);
    let mut bench = Bench::new(|_| {});
    for _ in 0..100 {
        bench.viewer();
    }
    let of_who_made_the_room = size_of::<crate::session::Busy>();
    assert_eq!(bench.engine.footprint().buffers, of_who_made_the_room, "of the others nothing is under way");
    assert_eq!(bench.engine.footprint().room_bytes, 0, "no ring before the first message");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn bytes_from_outside_never_panic_and_never_stay(
        start in 0usize..6,
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..12),
        operations in prop::collection::vec((0i32..20, prop::collection::vec(any::<u8>(), 0..40)), 0..6),
    ) {
        let mut bench = Bench::new(|config| config.proxies = vec!["192.0.2.0/24".parse().unwrap()]);
        let key = bench.open().unwrap();
        let auth = packet_bytes(packet::operation::AUTH, 1, br#"{"mid":7}"#);
        let begin = match start {
            0 => Vec::new(),
            1 => wire::MAGIC.to_vec(),
            2 => upgrade("/sub", ""),
            3 => upgrade("/", "Sec-WebSocket-Protocol: barrage.v1.json\r\n"),
            4 => b"PROXY TCP4 ".to_vec(),
            _ => auth,
        };
        let _ = bench.say(key, &begin);
        if start == 5 {
            bench.admit();
            for (operation, body) in &operations {
                let _ = bench.say(key, &packet_bytes(*operation, 2, body));
            }
        }
        for chunk in &chunks {
            let _ = bench.say(key, chunk);
            prop_assert!(bench.engine.footprint().buffers < 64 * 1024);
        }
        while let Some((id, _)) = bench.gate.pop() {
            bench.input(Input::Reply { id, answer: crate::event::logic_unreachable() });
        }
        bench.engine.closed(bench.now, key);
        bench.pass(20_000);
        let footprint = bench.engine.footprint();
        prop_assert_eq!((footprint.connections, footprint.rooms, footprint.asked), (0, 0, 0));
    }
}
