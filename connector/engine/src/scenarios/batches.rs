//! Sends to many: with how many calls, and to whom.

use super::*;
use machine::BATCH_MAX;

/// Native sessions, each in these rooms.
fn viewers(bench: &mut Bench, count: usize, rooms: &[String]) -> Vec<Key> {
    let viewer = |_| {
        let key = bench.native();
        for channel in rooms {
            bench.subscribe(key, room(channel));
            if bench.asks.iter().any(|ask| matches!(ask, CoreRequest::Hold { .. })) {
                bench.hold(channel, 0, Vec::new());
            }
        }
        let _ = bench.heard(key);
        key
    };
    (0..count).map(viewer).collect()
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|nth| format!("room:{prefix}{nth}")).collect()
}

/// One message to each of the rooms, all at once; of each call that followed, to whom.
fn publish(bench: &mut Bench, rooms: &[String], offset: u64) -> Vec<Vec<Key>> {
    bench.sink.calls.clear();
    let items = rooms.iter().map(|channel| item_of(channel, offset, channel)).collect();
    bench.input(Input::Deliver(items));
    std::mem::take(&mut bench.sink.calls)
}

fn sizes(calls: &[Vec<Key>]) -> Vec<usize> {
    calls.iter().map(Vec::len).collect()
}

#[test]
fn small_rooms_share_a_call_and_a_large_one_has_as_many_as_it_takes() {
    let mut bench = Bench::new(|_| ());
    let (small, large) = (names("small", 20), names("large", 1));
    let of_small: Vec<_> = small.iter().map(|room| viewers(&mut bench, 3, std::slice::from_ref(room))).collect();
    let of_large = viewers(&mut bench, BATCH_MAX + 44, &large);
    assert_eq!(sizes(&publish(&mut bench, &small, 1)), [60]);
    assert_eq!(sizes(&publish(&mut bench, &large, 1)), [BATCH_MAX, 44]);
    let all: Vec<_> = large.iter().chain(&small).cloned().collect();
    assert_eq!(sizes(&publish(&mut bench, &all, 2)), [BATCH_MAX, 44 + 60]);
    for (room, keys) in small.iter().chain(&large).zip(of_small.iter().chain([&of_large])) {
        for key in keys {
            assert_eq!(texts(&bench.frames(*key)), [room.as_str(), room.as_str()]);
        }
    }
}

#[test]
fn a_pass_goes_round_until_everyone_has_reached_its_goal() {
    let mut bench = Bench::new(|config| config.ring_bytes_max = 1 << 20);
    let room = names("", 1);
    let keys = viewers(&mut bench, 20, &room);
    bench.sink.calls.clear();
    // A send carries one of them, and not two.
    let long: Vec<String> = (b'a'..=b'c').map(|letter| char::from(letter).to_string().repeat(40_000)).collect();
    let items = (1..).zip(&long).map(|(offset, text)| item_of(&room[0], offset, text)).collect();
    bench.input(Input::Deliver(items));
    assert_eq!(sizes(&bench.sink.calls), [20, 20, 20], "nobody's rest goes by itself");
    for key in keys {
        assert_eq!(texts(&bench.frames(key)), long);
    }
}

#[test]
fn who_is_in_several_rooms_is_sent_to_once_by_a_call() {
    let mut bench = Bench::new(|_| ());
    let rooms = names("", 5);
    for room in &rooms {
        viewers(&mut bench, 2, std::slice::from_ref(room));
    }
    let both = viewers(&mut bench, 2, &rooms);
    let calls = publish(&mut bench, &rooms, 1);
    assert_eq!(calls.iter().map(Vec::len).sum::<usize>(), 5 * (2 + 2));
    // Each room has to wait for the one before it, and no longer.
    assert_eq!(calls.len(), rooms.len(), "{calls:?}");
    for call in &calls {
        assert_eq!(call.iter().filter(|key| both.contains(key)).count(), 2, "{calls:?}");
    }
    for key in both {
        let mut heard = texts(&bench.frames(key));
        heard.sort();
        assert_eq!(heard, rooms);
    }
}

#[test]
fn a_feed_that_begins_anew_is_walked_once_for_a_message() {
    let mut bench = Bench::new(|config| config.round_sends = 4);
    let room = names("", 1);
    viewers(&mut bench, 8, &room);
    // Its pass is under way when all of them leave: a turn is left of a feed that is gone.
    let gone: Vec<_> = bench.engine.sessions.iter().map(|session| session.key).collect();
    bench.engine.input(bench.now, Input::Deliver(vec![item_of(&room[0], 1, "1")]));
    let _ = bench.engine.round(bench.now, &mut bench.sink);
    for key in gone {
        bench.engine.closed(bench.now, key);
    }
    assert_eq!(bench.engine.schedule.len(), 1, "the turn of the feed that is gone");
    let keys = viewers(&mut bench, 8, &room);
    let calls = publish(&mut bench, &room, 2);
    let mut sent: Vec<_> = calls.concat();
    sent.sort();
    assert_eq!(sent, keys);
    assert_eq!(bench.engine.schedule.len(), 0);
}
