//! The native protocol: rooms, history, resuming, gaps, publishing.

use proto::error::error;

use super::*;

#[test]
fn a_wrong_value_is_refused_and_the_session_goes_on() {
    let mut bench = Bench::new(|_| {});
    let key = bench.open().unwrap();
    let _ = bench.say(key, &upgrade("/", "Sec-WebSocket-Protocol: barrage.v1.json\r\n"));
    let text = |bench: &mut Bench, text: &str| {
        let mut bytes = Vec::new();
        frame(true, Opcode::Text, Some([1, 2, 3, 4]), text.as_bytes(), &mut bytes);
        let _ = bench.say(key, &bytes);
        String::from_utf8_lossy(&bench.heard(key)).into_owned()
    };
    text(&mut bench, r#"{"request":1,"connect":{"name":"abc\ud83d"}}"#);
    assert_eq!(bench.admit().name, "abc\u{fffd}");
    bench.heard(key);
    for wrong in [
        r#"{"request":2,"publish":{"channel":"room:1","type":"text","data":"no base64!"}}"#,
        r#"{"request":2,"publish":{"channel":"room:1","style":{"size":-1},"text":"x"}}"#,
        r#"{"request":2,"publish":{"channel":"room:1","text":7}}"#,
    ] {
        let answer = text(&mut bench, wrong);
        assert!(answer.contains(r#""request":2"#) && answer.contains("BAD_REQUEST"), "{wrong}: {answer}");
    }
    assert!(bench.sink.closed.is_empty());
    let answer = text(&mut bench, r#"{"request":3,"ping":{}}"#);
    assert!(answer.contains(r#""pong""#), "{answer}");
    // Who sends nothing else is closed for it, as for any requests.
    for _ in 0..10_000 {
        text(&mut bench, r#"{"request":2,"publish":{"text":7}}"#);
    }
    assert_eq!(bench.sink.closed, [key]);
}

#[test]
fn history_and_what_is_live_come_without_a_hole_between() {
    let mut bench = Bench::new(|_| {});
    let key = bench.native();
    bench.subscribe(key, client::Subscribe { history: 2, ..room("room:1") });
    bench.hold("room:1", 30, vec![item(10, "a"), item(20, "b"), item(30, "c")]);
    bench.input(Input::Deliver(vec![item(30, "c"), item(40, "d")]));
    let frames = bench.frames(key);
    let Some(Body::Subscribed(subscribed)) = &frames[0].body else { panic!("{frames:?}") };
    assert_eq!(subscribed.position, Some(client::Position { log: "log".into(), normal: 19, high: 19 }));
    assert_eq!(texts(&frames), ["b", "c", "d"], "and none twice");
}

#[test]
fn what_is_asked_right_behind_connect_is_done_once_that_is_answered() {
    let mut bench = Bench::new(|_| {});
    let key = bench.open().unwrap();
    let connect = native_bytes(1, client_frame::Body::Connect(client::Connect::default()));
    let subscribe = native_bytes(2, client_frame::Body::Subscribe(room("room:1")));
    let _ = bench.say(key, &[&wire::MAGIC[..], &connect, &subscribe].concat());
    bench.admit();
    bench.answer(Answer::Joined(cluster::Joined {}));
    bench.hold("room:1", 0, Vec::new());
    let frames = bench.frames(key);
    let [
        ServerFrame { request: 1, body: Some(Body::Connected(_)), .. },
        ServerFrame { request: 2, body: Some(Body::Subscribed(_)), .. },
    ] = &frames[..]
    else {
        panic!("{frames:?}")
    };
}

#[test]
fn logic_is_asked_once_for_a_session_and_for_the_rooms_that_it_asks_for_right_behind() {
    let body = |body| ClientFrame { request: 1, body: Some(body) };
    let connect = body(client_frame::Body::Connect(client::Connect::default()));
    let subscribe = |name: &str| body(client_frame::Body::Subscribe(room(name)));
    let frames = [connect, subscribe("room:1"), subscribe("room:2")];
    for (offer, deflates) in [("", false), ("barrage.v1", false), ("barrage.v1", true), ("barrage.v1.json", true)] {
        let mut bench = Bench::new(|config| config.compression = true);
        bench.viewer();
        let key = bench.open().unwrap();
        let mut said = Vec::new();
        if offer.is_empty() {
            said.extend_from_slice(wire::MAGIC);
        } else {
            let extension = if deflates { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
            let _ = bench.say(key, &upgrade("/ws", &format!("Sec-WebSocket-Protocol: {offer}\r\n{extension}")));
        }
        for frame in &frames {
            let mut payload = Vec::new();
            match offer {
                "barrage.v1.json" => {
                    wire::to_json(frame, &mut payload).unwrap();
                    said.extend(masked(Opcode::Text, &payload));
                }
                "barrage.v1" => {
                    wire::to_binary(frame, &mut payload);
                    said.extend(masked(Opcode::Binary, &payload));
                }
                _ => said.extend(native_bytes(1, frame.body.clone().unwrap())),
            }
        }
        let _ = bench.say(key, &said);
        bench.heard(key);
        let sends = bench.sink.sends;
        let joined = vec!["room:1".to_owned()];
        let asked = bench.answer(Answer::Admitted(cluster::Admitted { joined, ..admitted() }));
        let gate_request::Ask::Authenticate(asked) = asked else { panic!("{asked:?}") };
        assert_eq!(asked.joins, ["room:1", "room:2"], "{offer}");
        assert_eq!(bench.sink.sends - sends, 1, "{offer}: both answers in one send");
        assert_eq!(bench.engine.footprint().members, 2, "{offer}: it is in the room");
        let [(_, gate_request::Ask::Join(join))] = &bench.gate[..] else { panic!("{:?}", bench.gate) };
        assert_eq!(join.channel, "room:2", "{offer}: for what logic has not allowed it is asked by itself");
        bench.answer(Answer::Error(error(client::ErrorCode::Banned, "not you")));
        assert!(bench.gate.is_empty());
        // What was allowed then is allowed no longer.
        if offer.is_empty() {
            bench.request(key, client_frame::Body::Unsubscribe(client::Unsubscribe { channel: "room:1".into() }));
            bench.subscribe(key, room("room:1"));
        }
    }
}

#[test]
fn who_is_taken_out_before_what_came_behind_connect_is_handled_asks_anew() {
    let mut bench = Bench::new(|_| {});
    let key = bench.open().unwrap();
    let connect = native_bytes(1, client_frame::Body::Connect(client::Connect::default()));
    let subscribe = native_bytes(2, client_frame::Body::Subscribe(room("room:1")));
    let _ = bench.say(key, &[&wire::MAGIC[..], &connect, &subscribe].concat());
    let (id, _) = bench.gate.remove(0);
    let joined = vec!["room:1".to_owned()];
    let answer = Answer::Admitted(cluster::Admitted { joined, ..admitted() });
    bench.engine.input(bench.now, Input::Reply { id, answer });
    bench.take_out(key, client::ErrorCode::Banned);
    assert!(matches!(bench.gate[..], [(_, gate_request::Ask::Join(_))]), "{:?}", bench.gate);
}

#[test]
fn a_client_resumes_where_it_was_or_is_told_that_it_cannot() {
    let mut bench = Bench::new(|_| {});
    let first = bench.native();
    bench.subscribe(first, room("room:1"));
    bench.hold("room:1", 30, vec![item(10, "a"), item(20, "b"), item(30, "c")]);
    let position = |log: &str, at| Some(client::Position { log: log.into(), normal: at, high: at });
    for (resume, said, gap) in [
        (position("log", 10), vec!["b", "c"], None),
        (position("log", 30), vec![], None),
        (position("log", 3), vec!["a", "b", "c"], Some(9)),
        (position("another", 25), vec!["a", "b", "c"], Some(9)),
    ] {
        let key = bench.native();
        bench.subscribe(key, client::Subscribe { resume, ..room("room:1") });
        let frames = bench.frames(key);
        assert_eq!(texts(&frames), said);
        let told = frames.iter().find_map(|frame| match &frame.body {
            Some(Body::Gap(gap)) => gap.position.as_ref().map(|position| position.normal),
            _ => None,
        });
        assert_eq!(told, gap);
    }
}

#[test]
fn over_the_bound_on_recent_messages_quiet_rooms_keep_a_few_and_say_so() {
    for (most, kept) in [(usize::MAX, 50), (0, 4)] {
        let mut bench = Bench::new(|config| config.recent_bytes_max = most);
        let reader = bench.viewer();
        bench.input(Input::Deliver((1..=50).map(|offset| item(offset, "x")).collect()));
        assert_eq!(texts(&bench.frames(reader)).len(), 50);
        bench.pass(3000);
        let late = bench.native();
        bench.subscribe(late, client::Subscribe { history: 100, ..room("room:1") });
        assert_eq!(texts(&bench.frames(late)).len(), kept);
        let back = bench.native();
        let resume = Some(client::Position { log: "log".into(), normal: 1, high: 1 });
        bench.subscribe(back, client::Subscribe { resume, ..room("room:1") });
        let frames = bench.frames(back);
        assert_eq!(texts(&frames).len(), kept.min(49));
        assert_eq!(frames.iter().any(|frame| matches!(frame.body, Some(Body::Gap(_)))), kept < 49);
        // And it goes on.
        bench.input(Input::Deliver(vec![item(51, "y")]));
        for key in [reader, late, back] {
            assert_eq!(texts(&bench.frames(key)), ["y"]);
        }
    }
}

#[test]
fn what_a_quiet_room_keeps_is_weighed_anew_when_readers_of_an_encoding_come_and_go() {
    let mut bench = Bench::new(|_| {});
    let reader = bench.viewer();
    bench.input(Input::Deliver((1..=50).map(|offset| item(offset, "x")).collect()));
    let weighed = |bench: &mut Bench| {
        bench.pass(2500);
        let footprint = bench.engine.footprint();
        assert_eq!((footprint.rooms, footprint.recent_bytes), (1, footprint.room_bytes));
        footprint.recent_bytes
    };
    let read = weighed(&mut bench);
    bench.take_out(reader, client::ErrorCode::Kicked);
    let unread = weighed(&mut bench);
    assert!(unread < read, "{unread}, {read}");
    let late = bench.native();
    bench.subscribe(late, room("room:1"));
    assert!(weighed(&mut bench) > unread);
}

#[test]
fn a_client_and_the_platform_may_subscribe_it_at_once() {
    let mut bench = Bench::new(|_| {});
    bench.viewer();
    let key = bench.native();
    let request = bench.request(key, client_frame::Body::Subscribe(room("room:1")));
    let names = proto::record::Names { names: vec!["room:1".into()] };
    bench.input(Input::Command(vec![key], Arc::new(cluster::command_out::Act::Subscribe(names))));
    bench.answer(Answer::Joined(cluster::Joined {}));
    let frames = bench.frames(key);
    let told: Vec<_> = frames.iter().map(|frame| frame.request).collect();
    assert_eq!(told, [0, request]);
    assert!(frames.iter().all(|frame| matches!(frame.body, Some(Body::Subscribed(_)))), "{frames:?}");
}

#[test]
fn what_only_the_owner_refuses_reaches_the_session_that_sent_it() {
    let mut bench = Bench::new(|_| {});
    let (key, other) = (bench.native(), bench.native());
    let refused = client::Refused {
        channel: "room:1".into(),
        id: "id".into(),
        client_message_id: "mine".into(),
        code: client::ErrorCode::Conflict.into(),
    };
    bench.input(Input::Command(vec![key], Arc::new(cluster::command_out::Act::Refused(refused.clone()))));
    let frames = bench.frames(key);
    let [ServerFrame { request: 0, body: Some(Body::Refused(told)), .. }] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(told, &refused);
    assert!(bench.frames(other).is_empty());
}

#[test]
fn being_taken_out_ends_what_is_under_way_and_nothing_later() {
    let mut bench = Bench::new(|_| {});
    bench.viewer();
    let key = bench.native();
    let first = bench.request(key, client_frame::Body::Subscribe(room("room:1")));
    bench.take_out(key, client::ErrorCode::Kicked);
    let second = bench.request(key, client_frame::Body::Subscribe(room("room:1")));
    // Logic let it in before it was taken out.
    bench.answer(Answer::Joined(cluster::Joined {}));
    let frames = bench.frames(key);
    let [ServerFrame { request, body: Some(Body::Error(error)), .. }] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((*request, error.code()), (first, client::ErrorCode::Kicked));
    bench.answer(Answer::Joined(cluster::Joined {}));
    let frames = bench.frames(key);
    let [ServerFrame { request, body: Some(Body::Subscribed(_)), .. }] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(*request, second);
}

fn high(offset: u64, text: &str) -> Arc<cluster::Item> {
    let message = client::Message { lane: client::Lane::High.into(), ..message(offset, text) };
    Arc::new(cluster::Item {
        lane: client::Lane::High.into(),
        message: message.encode_to_vec().into(),
        ..(*item(offset, text)).clone()
    })
}

#[test]
fn who_resumes_ahead_of_the_core_gets_nothing_twice() {
    let mut bench = Bench::new(|_| {});
    let first = bench.native();
    bench.subscribe(first, room("room:1"));
    bench.hold("room:1", 10, vec![item(10, "a")]);
    let key = bench.native();
    // From a connector that is further: of the high lane even more.
    let position = client::Position { log: "log".into(), normal: 20, high: 30 };
    bench.subscribe(key, client::Subscribe { resume: Some(position.clone()), ..room("room:1") });
    let frames = bench.frames(key);
    let Some(Body::Subscribed(subscribed)) = &frames[0].body else { panic!("{frames:?}") };
    assert_eq!(subscribed.position, Some(position), "it does not wait");
    bench.input(Input::Deliver(vec![item(15, "b"), high(18, "c"), item(20, "d"), high(22, "e"), item(25, "f")]));
    bench.input(Input::Deliver(vec![high(30, "g"), item(31, "h"), high(32, "i")]));
    assert_eq!(texts(&bench.frames(first)).len(), 8, "who was here gets all that came");
    assert_eq!(texts(&bench.frames(key)), ["f", "i", "h"]);
}

#[test]
fn of_a_hole_that_reaches_over_where_a_client_is_it_is_told_what_it_misses_at_least() {
    // The client has all up to 20, the core up to 10.
    let missed = |count| Input::Missed { channel: "room:1".into(), reasons: client::GapReasons::unknown(count) };
    let told = |missed_by, message: cluster::Item| {
        Input::Deliver(vec![Arc::new(cluster::Item { missed: missed_by, ..message })])
    };
    let item = |offset, text: &str| (*item(offset, text)).clone();
    for (inputs, gaps, said) in [
        // Twelve from 11 on: ten of them it may have.
        (vec![missed(12), told(0, item(30, "b"))], vec![(2, false)], vec!["b"]),
        // Where it ends is not known.
        (vec![missed(3), told(0, item(30, "b"))], vec![(0, false)], vec!["b"]),
        // Up to 17: it has them.
        (vec![told(3, item(18, "a")), told(0, item(21, "b"))], vec![], vec!["b"]),
        (vec![told(12, item(30, "b"))], vec![(2, false)], vec!["b"]),
        // It has seen none of them.
        (vec![told(0, item(20, "a")), missed(4), told(0, item(30, "b"))], vec![(4, true)], vec!["b"]),
    ] {
        let mut bench = Bench::new(|_| {});
        let first = bench.native();
        bench.subscribe(first, room("room:1"));
        bench.hold("room:1", 10, vec![Arc::new(item(10, "a"))]);
        let position = client::Position { log: "log".into(), normal: 20, high: 20 };
        let resume = client::Subscribe { resume: Some(position), ..room("room:1") };
        let (early, late) = (bench.native(), bench.native());
        bench.subscribe(early, resume.clone());
        let gaps_of = |frames: &[ServerFrame]| -> Vec<(u64, bool)> {
            let gap = |frame: &ServerFrame| match &frame.body {
                Some(Body::Gap(gap)) => {
                    let position = gap.position.as_ref().expect("a position");
                    assert!(position.normal >= 20, "it does not go back: {position:?}");
                    Some((gap.count, gap.exact))
                }
                _ => None,
            };
            frames.iter().filter_map(gap).collect()
        };
        let mut inputs = inputs.into_iter();
        bench.input(inputs.next().expect("there is one"));
        // Who comes when the core knows of the gap is told the same.
        bench.subscribe(late, resume);
        inputs.for_each(|input| bench.input(input));
        for key in [early, late] {
            let frames = bench.frames(key);
            assert_eq!(
                (gaps_of(&frames), texts(&frames)),
                (gaps.clone(), said.iter().map(|it| it.to_string()).collect())
            );
        }
    }
}

#[test]
fn the_high_lane_goes_first() {
    let mut bench = Bench::new(|_| {});
    let key = bench.viewer();
    bench.input(Input::Deliver(vec![item(1, "a"), item(2, "b"), high(3, "now")]));
    assert_eq!(texts(&bench.frames(key)), ["now", "a", "b"]);
}

#[test]
fn a_slow_reader_is_told_how_many_it_missed_and_closed_if_it_reads_nothing() {
    let mut bench = Bench::new(|config| (config.ring_bytes_max, config.slow_close_s) = (1000, 20));
    let (slow, other) = (bench.viewer(), bench.viewer());
    bench.sink.room.insert(slow, 100);
    for offset in 1..=100 {
        bench.input(Input::Deliver(vec![item(offset, &format!("message {offset}"))]));
    }
    assert_eq!(texts(&bench.frames(other)).len(), 100, "nobody else is held up");
    bench.sink.room.insert(slow, usize::MAX);
    bench.engine.writable(bench.now, slow);
    bench.round();
    let frames = bench.frames(slow);
    let told: u64 = frames
        .iter()
        .filter_map(|frame| {
            if let Some(Body::Gap(gap)) = &frame.body {
                assert!(gap.exact);
                Some(gap.count)
            } else {
                None
            }
        })
        .sum();
    assert!(told > 50 && told + texts(&frames).len() as u64 == 100, "{told}");
    bench.sink.room.insert(slow, 0);
    bench.input(Input::Deliver(vec![item(101, "x")]));
    bench.pass(19_000);
    assert_eq!(bench.sink.closed, []);
    bench.pass(4_000);
    assert_eq!(bench.sink.closed, [slow]);
}

#[test]
fn who_reads_but_stays_behind_is_closed() {
    let mut bench = Bench::new(|config| (config.ring_bytes_max, config.slow_close_s) = (1000, 20));
    let (slow, quick) = (bench.viewer(), bench.viewer());
    let mut offset = 0;
    for second in 0..90 {
        if bench.sink.closed == [slow] {
            assert!((55..75).contains(&second), "after {second} s");
            return;
        }
        assert_eq!(bench.sink.closed, []);
        // It takes some of what comes, each second.
        bench.sink.room.insert(slow, 200);
        bench.engine.writable(bench.now, slow);
        for _ in 0..50 {
            offset += 1;
            bench.input(Input::Deliver(vec![item(offset, "a message of some length")]));
        }
        for key in [slow, quick] {
            let ping = native_bytes(9, client_frame::Body::Ping(client::Ping {}));
            let _ = bench.say(key, &ping);
        }
        bench.pass(1000);
        bench.heard(quick);
    }
    panic!("it is not closed");
}

#[test]
fn over_the_budget_who_has_read_nothing_for_longest_is_closed_first() {
    let mut bench = Bench::new(|config| (config.socket_bytes, config.stuck_bytes_max) = (100, 250));
    let stuck: Vec<Key> = (0..4).map(|_| bench.viewer()).collect();
    let reader = bench.viewer();
    for (offset, &key) in (1..).zip(&stuck) {
        bench.sink.room.insert(key, 0);
        bench.input(Input::Deliver(vec![item(offset, "x")]));
        // Two fit the budget.
        bench.pass(if offset < 3 { 3000 } else { 0 });
    }
    assert_eq!(bench.sink.closed, []);
    // The third and the fourth are stuck, too, by now; the first two have been for longer.
    bench.pass(8000);
    let mut closed = bench.sink.closed.clone();
    closed.sort_unstable();
    assert_eq!(closed, stuck[..2]);
    assert_eq!(texts(&bench.frames(reader)).len(), 4);
}

#[test]
fn what_a_core_has_not_got_is_told_in_its_place() {
    let mut bench = Bench::new(|_| {});
    let key = bench.viewer();
    bench.input(Input::Deliver(vec![item(1, "a")]));
    bench.input(Input::Missed { channel: "room:1".into(), reasons: client::GapReasons::unknown(3) });
    let capped = Arc::new(cluster::Item { missed: 2, ..(*item(9, "b")).clone() });
    bench.input(Input::Deliver(vec![capped]));
    let said: Vec<_> = bench
        .frames(key)
        .into_iter()
        .map(|frame| match frame.body {
            Some(Body::Message(message)) => format!("message {}", message.offset),
            Some(Body::Gap(gap)) => format!("gap {} {}", gap.count, gap.exact),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(said, ["message 1", "gap 3 true", "gap 2 true", "message 9"]);
}

#[test]
fn who_is_banned_gets_no_frame_more() {
    let mut bench = Bench::new(|_| {});
    let (banned, other) = (bench.viewer(), bench.viewer());
    bench.engine.input(bench.now, Input::Deliver(vec![item(1, "a")]));
    bench.take_out(banned, client::ErrorCode::Banned);
    let frames = bench.frames(banned);
    let [ServerFrame { body: Some(Body::Unsubscribed(left)), .. }] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((left.channel.as_str(), left.reason()), ("room:1", client::ErrorCode::Banned));
    assert_eq!(i64::from(left.retry_after_ms), TAKEN_OUT_MS);
    assert_eq!(texts(&bench.frames(other)), ["a"]);
}

#[test]
fn a_room_that_nobody_owns_is_refused_and_can_be_asked_for_again() {
    let mut bench = Bench::new(|config| config.heartbeat_s = 600);
    let key = bench.native();
    bench.subscribe(key, room("room:1"));
    bench.pass(10_500);
    let frames = bench.frames(key);
    assert!(matches!(&frames[0].body, Some(Body::Error(error)) if error.retry), "{frames:?}");
    bench.subscribe(key, room("room:1"));
    bench.hold("room:1", 5, Vec::new());
    assert!(matches!(bench.frames(key)[0].body, Some(Body::Subscribed(_))));
    bench.engine.closed(bench.now, key);
    bench.pass(4_000);
    assert!(bench.asks.iter().any(|ask| matches!(ask, CoreRequest::Release { channel } if channel == "room:1")));
    assert_eq!(bench.engine.footprint().rooms, 0);
}

#[test]
fn an_answer_of_before_a_release_answers_nothing_asked_after_it() {
    let mut bench = Bench::new(|_| {});
    let key = bench.native();
    let asked = |bench: &Bench| {
        let holds = bench.asks.iter().filter_map(|ask| match ask {
            CoreRequest::Hold { ticket, .. } => Some(*ticket),
            _ => None,
        });
        holds.last().expect("a hold")
    };
    bench.subscribe(key, room("room:1"));
    let before = asked(&bench);
    // The owner is slow: nobody waits any more, and the room is given back.
    bench.pass(10_500);
    bench.pass(6_000);
    assert!(bench.asks.iter().any(|ask| matches!(ask, CoreRequest::Release { .. })));
    bench.frames(key);
    bench.subscribe(key, room("room:1"));
    let after = asked(&bench);
    let held = |ticket, offset, recent| {
        Input::Held(Held {
            channel: "room:1".into(),
            ticket,
            log: "log".into(),
            offset,
            missed: None,
            recent,
            before: None,
        })
    };
    bench.input(held(before, 5, Vec::new()));
    // What came between is for nobody here.
    assert!(bench.frames(key).is_empty(), "the room is not held yet");
    bench.input(held(after, 20, vec![item(20, "b")]));
    bench.input(Input::Deliver(vec![item(30, "c")]));
    let frames = bench.frames(key);
    let Some(Body::Subscribed(subscribed)) = &frames[0].body else { panic!("{frames:?}") };
    assert_eq!(subscribed.position.as_ref().map(|position| position.normal), Some(20));
    assert_eq!(texts(&frames), ["c"]);
}

#[test]
fn a_publish_is_checked_here_and_passed_on_as_it_is() {
    let mut bench = Bench::new(|_| {});
    let key = bench.open().unwrap();
    let _ = bench.say(key, wire::MAGIC);
    bench.request(key, client_frame::Body::Connect(client::Connect::default()));
    bench.answer(Answer::Admitted(cluster::Admitted { publish: vec!["room:1".into()], ..admitted() }));
    bench.frames(key);
    let publish = client::Publish {
        channel: "room:1".into(),
        client_message_id: "c-1".into(),
        r#type: "text".into(),
        payload: Some(client::publish::Payload::Text("hello".into())),
        ..Default::default()
    };
    let too_long = "x".repeat(4097);
    for (wrong, code) in [
        (client::Publish { channel: "room:2".into(), ..publish.clone() }, client::ErrorCode::Forbidden),
        (client::Publish { channel: "user:a".into(), ..publish.clone() }, client::ErrorCode::Forbidden),
        (client::Publish { channel: "room:".into(), ..publish.clone() }, client::ErrorCode::BadRequest),
        (client::Publish { client_message_id: "a b".into(), ..publish.clone() }, client::ErrorCode::BadRequest),
        (client::Publish { r#type: "".into(), ..publish.clone() }, client::ErrorCode::BadRequest),
        (
            client::Publish { payload: Some(client::publish::Payload::Text(too_long)), ..publish.clone() },
            client::ErrorCode::TooLarge,
        ),
    ] {
        bench.request(key, client_frame::Body::Publish(wrong));
        let frames = bench.frames(key);
        assert!(matches!(&frames[0].body, Some(Body::Error(error)) if error.code == code as i32), "{frames:?}");
    }
    let request = bench.request(key, client_frame::Body::Publish(publish));
    match bench.answer(Answer::Published(cluster::Published { id: "m1".into() })) {
        gate_request::Ask::Publish(ask) => {
            assert_eq!((&*ask.uid, &ask.payload[..], &*ask.client_message_id), ("ann", &b"hello"[..], "c-1"));
        }
        other => panic!("{other:?}"),
    }
    let frames = bench.frames(key);
    assert!(matches!(&frames[0].body, Some(Body::Published(published)) if published.id == "m1"));
    assert_eq!(frames[0].request, request);
}

#[test]
fn a_websocket_is_pinged_and_closed_by_the_book() {
    let mut bench = Bench::new(|_| {});
    for (sent, code) in [
        (masked(Opcode::Close, &[3, 232]), 1000),
        (masked(Opcode::Text, b"text where binary is spoken"), 1003),
        (vec![0x82, 0x01, 0x00], 1002),
        (masked(Opcode::Binary, &[0xff; 9]), 1002),
        ([vec![0x82, 0xff], 100_000u64.to_be_bytes().to_vec(), vec![0; 4]].concat(), 1009),
    ] {
        let key = bench.open().unwrap();
        let _ = bench.say(key, &upgrade("/ws", "Sec-WebSocket-Protocol: x, barrage.v1\r\n"));
        let _ = bench.say(key, &masked(Opcode::Ping, b"there?"));
        let heard = bench.heard(key);
        assert!(heard.ends_with(b"\x8a\x06there?"));
        assert!(String::from_utf8_lossy(&heard).contains("Sec-WebSocket-Protocol: barrage.v1\r\n"));
        let _ = bench.say(key, &sent);
        assert_eq!(close_code(&bench.heard(key)), Some(code));
        assert_eq!(bench.sink.closed.last(), Some(&key));
    }
}

#[test]
fn a_token_that_allows_less_takes_the_session_out() {
    let mut bench = Bench::new(|_| {});
    let key = bench.viewer();
    bench.request(key, client_frame::Body::Refresh(client::Refresh { token: "less".into() }));
    bench.answer(Answer::Admitted(cluster::Admitted { subscribe: vec!["room:2".into()], ..admitted() }));
    let frames = bench.frames(key);
    let left = frames.iter().any(|frame| {
        matches!(&frame.body, Some(Body::Unsubscribed(left)) if left.channel == "room:1" && left.reason() == client::ErrorCode::Forbidden)
    });
    assert!(left, "{frames:?}");
    bench.input(Input::Deliver(vec![item(1, "not for it any more")]));
    assert_eq!(bench.frames(key), []);
}

#[test]
fn who_comes_and_goes_keeps_no_message_from_the_others() {
    let mut bench = Bench::new(|config| (config.round_sends, config.requests_per_s) = (32, 100_000));
    let viewers: Vec<Key> = (0..200).map(|_| bench.viewer()).collect();
    let restless = bench.viewer();
    bench.engine.input(bench.now, Input::Deliver(vec![item(1, "for all")]));
    // After each round, which is not enough for all, someone leaves: as many rounds as all of them need, and some.
    for offset in 2..100 {
        let _ = bench.engine.round(bench.now, &mut bench.sink);
        // What has gathered is encoded when he comes again: those in front have something new each time.
        bench.engine.input(bench.now, Input::Deliver(vec![item(offset, "more")]));
        let leave = native_bytes(9, client_frame::Body::Unsubscribe(client::Unsubscribe { channel: "room:1".into() }));
        let _ = bench.engine.bytes(bench.now, restless, &mut leave.clone());
        bench.collect();
        let come = native_bytes(9, client_frame::Body::Subscribe(room("room:1")));
        let _ = bench.engine.bytes(bench.now, restless, &mut come.clone());
        bench.collect();
        for (id, _) in std::mem::take(&mut bench.gate) {
            bench.engine.input(bench.now, Input::Reply { id, answer: Answer::Joined(cluster::Joined {}) });
        }
    }
    let without = viewers.iter().filter(|&&key| texts(&bench.frames(key)).is_empty()).count();
    assert_eq!(without, 0, "of {} viewers", viewers.len());
}

#[test]
fn who_comes_during_a_pass_takes_nobodys_turn() {
    let mut bench = Bench::new(|config| config.round_sends = 32);
    let viewers: Vec<Key> = (0..100).map(|_| bench.viewer()).collect();
    let newcomers: Vec<Key> = (0..3).map(|_| bench.native()).collect();
    bench.engine.input(bench.now, Input::Deliver(vec![item(1, "for all")]));
    // The pass begins somewhere in the middle, and goes round: the newcomers stand where it has still to pass.
    let _ = bench.engine.round(bench.now, &mut bench.sink);
    for &newcomer in &newcomers {
        let come = native_bytes(9, client_frame::Body::Subscribe(client::Subscribe { history: 1, ..room("room:1") }));
        let _ = bench.engine.bytes(bench.now, newcomer, &mut come.clone());
        bench.collect();
        let (id, _) = bench.gate.remove(0);
        bench.engine.input(bench.now, Input::Reply { id, answer: Answer::Joined(cluster::Joined {}) });
    }
    bench.round();
    let without = viewers.iter().chain(&newcomers).filter(|&&key| texts(&bench.frames(key)) != ["for all"]).count();
    assert_eq!(without, 0, "nothing else is to come");
}
