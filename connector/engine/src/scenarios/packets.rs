//! goim and Bilibili (compat.md).

use proto::packet::operation;

use super::*;
use crate::event::Push;

#[test]
fn goims_requests_are_answered_in_order_whatever_logic_does() {
    let mut bench = Bench::new(|_| {});
    let key = bench.goim();
    let bytes: Vec<u8> = [
        packet_bytes(operation::SEND, 2, b"one"),
        packet_bytes(operation::HEARTBEAT, 3, b""),
        packet_bytes(operation::SEND, 4, b"two"),
        packet_bytes(99, 5, b"unknown"),
        packet_bytes(operation::SUBSCRIBE, 6, b"7,8"),
    ]
    .concat();
    let _ = bench.say(key, &bytes);
    let asked: Vec<_> = std::mem::take(&mut bench.gate);
    let sent: Vec<_> = asked
        .iter()
        .map(|(_, ask)| match ask {
            gate_request::Ask::Publish(ask) => (ask.operation, ask.channel.as_str(), ask.payload.to_vec()),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected =
        [(4, "room:1", b"one".to_vec()), (4, "room:1", b"two".to_vec()), (99, "room:1", b"unknown".to_vec())];
    assert_eq!(sent, expected);
    for at in [2, 1, 0] {
        assert_eq!(bench.packets(key), [], "the first is not answered yet");
        let id = asked[at].0;
        let answer = match at {
            1 => Answer::Error(proto::error::error(client::ErrorCode::Muted, "muted")),
            _ => Answer::Published(cluster::Published { id: "1".into() }),
        };
        bench.input(Input::Reply { id, answer });
    }
    let answers = bench.packets(key);
    let order: Vec<_> = answers.iter().map(|(operation, sequence, _)| (*operation, *sequence)).collect();
    assert_eq!(order, [(4, 2), (3, 3), (4, 4), (99, 5), (15, 6)]);
    assert_eq!((&answers[0].2[..], &answers[1].2[..]), (&b""[..], &[0, 0, 0, 1][..]));
    assert!(String::from_utf8_lossy(&answers[2].2).contains(r#""name":"muted""#), "a refusal says so");
}

#[test]
fn goim_ignores_what_comes_before_the_authentication() {
    let mut bench = Bench::new(|_| {});
    let key = bench.open().unwrap();
    let _ = bench.say(key, &packet_bytes(operation::HEARTBEAT, 1, b""));
    assert_eq!((bench.packets(key).len(), bench.gate.len(), bench.sink.closed.len()), (0, 0, 0));
    // Pipelined behind the authentication: answered after it.
    let pipelined = [packet_bytes(operation::AUTH, 2, b"{}"), packet_bytes(operation::HEARTBEAT, 3, b"")].concat();
    assert_eq!(bench.say(key, &pipelined), Reading::On);
    // As far as that may be long.
    assert_eq!(bench.say(key, &packet_bytes(operation::HEARTBEAT, 4, &[0; 1100])), Reading::Paused);
    bench.admit();
    let beat = vec![0, 0, 0, 0];
    assert_eq!(bench.packets(key), [(8, 2, vec![]), (3, 3, beat.clone()), (3, 4, beat)]);
    assert_eq!(bench.sink.read, [key]);
}

#[test]
fn a_goim_session_has_its_key_and_its_users_routes() {
    let mut bench = Bench::new(|_| {});
    let key = bench.packet_client(r#"{"mid":1,"key":"k-1","room_id":"game://7"}"#);
    assert_eq!(bench.admit().channel, "room:game.7");
    let routes = |bench: &mut Bench| -> Vec<(bool, bool, String)> {
        let mut routes = Vec::new();
        for ask in std::mem::take(&mut bench.asks) {
            match ask {
                CoreRequest::Routes(changes) => {
                    for change in changes.iter() {
                        assert_eq!((change.session, change.device), ("incarnation.1.0.0", ""));
                        routes.push((change.gone, change.by_key, change.name.to_owned()));
                    }
                }
                ask => bench.asks.push(ask),
            }
        }
        routes
    };
    let put = [(false, true, "k-1".to_owned()), (false, false, "ann".to_owned())];
    assert_eq!(routes(&mut bench), put);
    bench.input(Input::Routes { from: 0 });
    assert_eq!(routes(&mut bench), put, "told anew");
    bench.asks.retain(|ask| !matches!(ask, CoreRequest::Told { next: None }));
    let kick = proto::record::Kick { code: client::ErrorCode::Replaced.into(), reason: String::new() };
    bench.input(Input::Command(vec![key], Arc::new(cluster::command_out::Act::Kick(kick))));
    assert_eq!(bench.sink.closed, [key]);
    let removed = put.map(|(_, by_key, name)| (true, by_key, name));
    assert_eq!(routes(&mut bench), removed);
}

#[test]
fn goim_changes_rooms() {
    let mut bench = Bench::new(|_| {});
    let key = bench.goim();
    let two = [packet_bytes(operation::CHANGE_ROOM, 2, b"live://2"), packet_bytes(operation::SEND, 3, b"hi")].concat();
    let _ = bench.say(key, &two);
    bench.input(Input::Deliver(vec![item(1, "of the room it has left")]));
    bench.answer(Answer::Joined(cluster::Joined {}));
    assert_eq!(bench.packets(key), []);
    bench.hold("room:2", 0, Vec::new());
    assert_eq!(bench.packets(key), [(13, 2, b"live://2".to_vec())]);
    match bench.answer(Answer::Published(cluster::Published { id: "1".into() })) {
        gate_request::Ask::Publish(ask) => assert_eq!(ask.channel, "room:2", "what follows waits for the new room"),
        other => panic!("{other:?}"),
    }
    bench.packets(key);
    let _ = bench.say(key, &packet_bytes(operation::CHANGE_ROOM, 4, b""));
    assert_eq!(bench.packets(key), [(13, 4, vec![])]);
    assert_eq!(bench.engine.footprint().members, 0);
}

#[test]
fn pushes_go_to_goim_sessions_that_accept_them() {
    let mut bench = Bench::new(|_| {});
    let (key, native) = (bench.goim(), bench.native());
    let push = |operation| {
        Arc::new(Push { message: message(0, "push").encode_to_vec().into(), raw: b"raw"[..].into(), operation })
    };
    bench.input(Input::Push(vec![key, native], push(1000)));
    bench.input(Input::PushAll(push(7), 0));
    let _ = bench.say(key, &packet_bytes(operation::SUBSCRIBE, 2, b"7"));
    bench.input(Input::PushAll(push(7), 0));
    assert_eq!(bench.packets(key), [(1000, 0, b"raw".to_vec()), (15, 2, vec![]), (7, 0, b"raw".to_vec())]);
    assert_eq!(texts(&bench.frames(native)), ["push"; 3]);
}

#[test]
fn a_push_to_all_keeps_its_pace() {
    let mut bench = Bench::new(|_| {});
    let keys: Vec<_> = (0..30).map(|_| bench.native()).collect();
    let push = Push { message: message(0, "push").encode_to_vec().into(), raw: bytes::Bytes::new(), operation: 0 };
    bench.input(Input::PushAll(Arc::new(push), 10));
    bench.pass(1500);
    let got = |bench: &mut Bench| keys.iter().map(|key| texts(&bench.frames(*key)).len()).sum::<usize>();
    assert_eq!(got(&mut bench), 16);
    bench.pass(2000);
    assert_eq!(got(&mut bench), 14, "each once");
}

#[test]
fn bilibilis_bad_token_is_told_at_once_and_closed_later_each_time() {
    let mut bench = Bench::new(|_| {});
    let key = bench.packet_client(r#"{"uid":5,"roomid":1,"protover":3,"key":"a.b.c"}"#);
    bench.answer(Answer::Error(proto::error::error(client::ErrorCode::Unauthenticated, "no")));
    assert_eq!(bench.packets(key), [(8, 1, br#"{"code":-101}"#.to_vec())]);
    assert_eq!(bench.sink.closed, []);
    // What it sends meanwhile is not looked at.
    let _ = bench.say(key, &packet_bytes(operation::AUTH, 2, br#"{"roomid":1}"#));
    assert!(bench.gate.is_empty());
    bench.pass(900);
    assert_eq!(bench.sink.closed, []);
    bench.pass(300);
    assert_eq!(bench.sink.closed, [key]);
    // The same address again, in a browser, for another reason.
    let web = bench.open().unwrap();
    let _ = bench.say(web, &upgrade("/sub", ""));
    let _ = bench.say(web, &masked(Opcode::Binary, &packet_bytes(operation::AUTH, 1, br#"{"roomid":1}"#)));
    bench.answer(Answer::Error(proto::error::error(client::ErrorCode::Banned, "no")));
    assert!(bench.heard(web).windows(4).any(|bytes| bytes == b"-101"), "told at once");
    bench.pass(1900);
    assert!(bench.heard(web).is_empty());
    bench.pass(300);
    assert_eq!(close_code(&bench.heard(web)), Some(4005));
    // One that goes by itself leaves nothing behind.
    let gone = bench.packet_client(r#"{"uid":5,"roomid":1,"protover":3,"key":"a.b.c"}"#);
    bench.answer(Answer::Error(proto::error::error(client::ErrorCode::Unauthenticated, "no")));
    bench.engine.closed(bench.now, gone);
    bench.pass(10_000);
    assert_eq!(bench.engine.footprint().connections, 0);
}

#[test]
fn a_ban_from_the_room_is_told_where_the_dialect_can() {
    let mut bench = Bench::new(|_| {});
    let web = bench.open().unwrap();
    let _ = bench.say(web, &upgrade("/sub", ""));
    let _ = bench.say(web, &masked(Opcode::Binary, &packet_bytes(operation::AUTH, 1, br#"{"roomid":1}"#)));
    bench.admit();
    bench.hold("room:1", 0, Vec::new());
    bench.heard(web);
    // The platform may have other plans with it.
    bench.take_out(web, client::ErrorCode::Kicked);
    assert_eq!((bench.heard(web), bench.sink.closed.len()), (Vec::new(), 0));

    let web = bench.open().unwrap();
    let _ = bench.say(web, &upgrade("/sub", ""));
    let _ = bench.say(web, &masked(Opcode::Binary, &packet_bytes(operation::AUTH, 1, br#"{"roomid":1}"#)));
    bench.admit();
    bench.heard(web);
    bench.take_out(web, client::ErrorCode::Banned);
    assert_eq!(close_code(&bench.heard(web)), Some(4005));

    let goim = bench.goim();
    bench.take_out(goim, client::ErrorCode::Banned);
    bench.input(Input::Deliver(vec![item(1, "not for it")]));
    let _ = bench.say(goim, &packet_bytes(operation::HEARTBEAT, 2, b""));
    assert_eq!(bench.packets(goim), [(3, 2, vec![0, 0, 0, 0])], "it stays, in no room");
}

#[test]
fn a_bilibili_viewer_is_let_in_counted_and_gets_danmaku() {
    let mut bench = Bench::new(|_| {});
    let key = bench.packet_client(r#"{"uid":0,"roomid":1,"protover":2}"#);
    bench.admit();
    assert_eq!(bench.packets(key), [], "not before the room is held");
    bench.hold("room:1", 9, vec![item(9, "before")]);
    assert_eq!(bench.packets(key), [(8, 1, br#"{"code":0}"#.to_vec())], "no history");
    bench.input(Input::Online(vec![("room:1".into(), 77)]));
    let _ = bench.say(key, &packet_bytes(operation::HEARTBEAT, 2, b"[object Object]"));
    assert_eq!(bench.packets(key), [(3, 2, vec![0, 0, 0, 77])]);
    bench.input(Input::Deliver(vec![item(10, "hello"), item(11, "there")]));
    let bytes = bench.heard(key);
    let packets: Vec<_> = packet::in_message(&bytes, 1 << 20).map(|packet| packet.unwrap()).collect();
    assert_eq!((packets.len(), packets[0].version), (1, 2), "one batch");
    let said: Vec<_> = proto::bilibili::unpack(packets[0], 1 << 20)
        .unwrap()
        .iter()
        .map(|json| proto::bilibili::text(json).unwrap())
        .collect();
    assert_eq!(said, ["hello", "there"]);
}

#[test]
fn bilibilis_heartbeat_is_echoed_behind_its_reply_on_websocket() {
    let mut bench = Bench::new(|_| {});
    let web = bench.open().unwrap();
    let _ = bench.say(web, &upgrade("/sub", ""));
    let _ = bench.say(web, &masked(Opcode::Binary, &packet_bytes(operation::AUTH, 1, br#"{"roomid":1}"#)));
    bench.admit();
    bench.hold("room:1", 0, Vec::new());
    bench.heard(web);
    for body in [&b"{}"[..], b"[object Object]", b""] {
        let _ = bench.say(web, &masked(Opcode::Binary, &packet_bytes(operation::HEARTBEAT, 2, body)));
        let reply = [&packet_bytes(3, 2, &[0, 0, 0, 1])[..], body].concat();
        let length = u8::try_from(reply.len()).unwrap();
        assert_eq!(bench.heard(web), [&[0x82, length][..], &reply].concat());
    }
    // TCP has no echo: `a_bilibili_viewer_is_let_in_counted_and_gets_danmaku`.
}

#[test]
fn a_packet_that_no_peer_may_send_closes() {
    let mut bench = Bench::new(|_| {});
    for bytes in [&[0, 0, 16, 17, 0, 16][..], &[0, 0, 0, 16, 0, 15], &[0, 0, 0, 1]] {
        let key = bench.open().unwrap();
        let _ = bench.say(key, bytes);
        assert_eq!(bench.sink.closed.last(), Some(&key));
    }
    let web = bench.open().unwrap();
    let _ = bench.say(web, &upgrade("/sub", ""));
    let cut = &packet_bytes(operation::AUTH, 1, b"{}")[..17];
    let _ = bench.say(web, &masked(Opcode::Binary, cut));
    assert_eq!(close_code(&bench.heard(web)), Some(1002));
}

#[test]
fn nobody_chooses_the_key_of_a_session_that_chose_none() {
    let mut bench = Bench::new(|_| {});
    for (auth, closed) in [(r#"{"key":"abcdefghijklm.0.5.0"}"#, true), (r#"{"key":"my.own.key.1"}"#, false)] {
        let key = bench.packet_client(auth);
        assert_eq!((bench.sink.closed.contains(&key), bench.gate.is_empty()), (closed, closed), "{auth}");
    }
}

#[test]
fn rooms_that_are_made_by_authenticating_are_limited_too() {
    let mut bench = Bench::new(|config| config.new_rooms_per_address = 2);
    let mut let_in = Vec::new();
    for room in 1..=3 {
        let key = bench.packet_client(&format!(r#"{{"uid":0,"roomid":{room},"protover":0}}"#));
        bench.admit();
        let_in.push(!bench.sink.closed.contains(&key));
    }
    assert_eq!(let_in, [true, true, false]);
    let holds = bench.asks.iter().filter(|ask| matches!(ask, CoreRequest::Hold { .. })).count();
    assert_eq!(holds, 2);
}
