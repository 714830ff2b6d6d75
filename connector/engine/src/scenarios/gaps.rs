//! Why messages do not come: each gap tells it, and the reasons are as many as the messages.

use proto::{RECENT_MESSAGES, client::GapReasons};

use super::*;

/// The gaps in `frames`: by reason, and whether exact.
fn gaps(frames: &[ServerFrame]) -> Vec<(GapReasons, bool)> {
    let gap = |frame: &ServerFrame| match &frame.body {
        Some(Body::Gap(gap)) => {
            let reasons = gap.reasons.expect("reasons");
            assert_eq!(reasons.total(), gap.count, "{gap:?}");
            Some((reasons, gap.exact))
        }
        _ => None,
    };
    frames.iter().filter_map(gap).collect()
}

/// A message before which the owner withheld some.
fn after(reasons: GapReasons, item: &cluster::Item) -> Arc<cluster::Item> {
    Arc::new(cluster::Item { missed: reasons.total(), reasons: Some(reasons), ..item.clone() })
}

const WITHHELD: GapReasons = GapReasons { slow: 0, shed: 0, capped: 2, aged: 1, unknown: 0 };

#[test]
fn what_others_lost_keeps_its_reason() {
    let mut bench = Bench::new(|_| {});
    let key = bench.viewer();
    bench.input(Input::Deliver(vec![after(WITHHELD, &item(9, "a"))]));
    // From an owner that tells no reasons; from one that knows a reason more than this version.
    let older = Arc::new(cluster::Item { missed: 2, ..(*item(19, "b")).clone() });
    let newer = Arc::new(cluster::Item { missed: 9, ..(*after(WITHHELD, &item(29, "c"))).clone() });
    bench.input(Input::Deliver(vec![older, newer]));
    // A core's queue was full, and what it held had told a gap.
    let reasons = GapReasons { capped: 1, unknown: 4, ..GapReasons::default() };
    bench.input(Input::Missed { channel: "room:1".into(), reasons });
    // A gap without a message.
    let alone = cluster::Item { message: "".into(), ..(*item(50, "")).clone() };
    bench.input(Input::Deliver(vec![after(WITHHELD, &alone)]));
    let frames = bench.frames(key);
    assert_eq!(texts(&frames), ["a", "b", "c"]);
    let newer = GapReasons { unknown: 6, ..WITHHELD };
    let told = [WITHHELD, GapReasons::unknown(2), newer, reasons, WITHHELD];
    assert_eq!(gaps(&frames), told.map(|reasons| (reasons, true)));
}

#[test]
fn a_new_owner_s_gap_keeps_its_reasons_also_into_another_log() {
    let held = |ticket, log: &str, missed| {
        let missed = Some((missed, true));
        Input::Held(Held {
            channel: "room:1".into(),
            ticket,
            log: log.into(),
            offset: 60,
            missed,
            recent: Vec::new(),
            before: None,
        })
    };
    let missed = GapReasons { capped: 3, unknown: 4, ..GapReasons::default() };
    for (log, exact) in [("log", true), ("another", false)] {
        let mut bench = Bench::new(|_| {});
        let key = bench.native();
        bench.subscribe(key, room("room:1"));
        let ticket = bench.asks.iter().find_map(|ask| match ask {
            CoreRequest::Hold { ticket, .. } => Some(*ticket),
            _ => None,
        });
        bench.hold("room:1", 0, Vec::new());
        bench.input(held(ticket.expect("a hold"), log, missed));
        let told: Vec<_> = gaps(&bench.frames(key)).into_iter().filter(|(reasons, _)| reasons.total() > 0).collect();
        assert_eq!(told, [(missed, exact)]);
    }
}

/// Fault 22: who comes to another node resumes in a room that was quiet, or of which not all is kept.
#[test]
fn who_resumes_before_what_is_kept_is_told_of_one_at_least_and_of_none_where_none_is_missing() {
    let resume_at = |before: Option<cluster::Before>, normal, high| {
        let mut bench = Bench::new(|_| {});
        let key = bench.native();
        let resume = Some(client::Position { log: "log".into(), normal, high });
        let subscribe = client::Subscribe { channel: "room:1".into(), resume, ..client::Subscribe::default() };
        bench.subscribe(key, subscribe);
        let ticket = bench.asks.iter().find_map(|ask| match ask {
            CoreRequest::Hold { ticket, .. } => Some(*ticket),
            _ => None,
        });
        let (channel, log, recent) = ("room:1".to_owned(), "log".into(), vec![item(60, "sixty")]);
        let ticket = ticket.expect("a hold");
        bench.input(Input::Held(Held { channel, ticket, log, offset: 70, missed: None, recent, before }));
        let frames = bench.frames(key);
        (texts(&frames), gaps(&frames))
    };
    let before = |offset, message| Some(cluster::Before { offset, message });
    let sixty = vec!["sixty".to_owned()];
    assert_eq!(resume_at(before(30, true), 30, 0), (sixty.clone(), vec![]), "it has the last one before");
    assert_eq!(resume_at(before(30, true), 45, 0), (sixty.clone(), vec![]));
    assert_eq!(resume_at(before(30, true), 60, 0), (vec![], vec![]), "it has all");
    let one = vec![(GapReasons::unknown(1), false)];
    assert_eq!(resume_at(before(30, true), 29, 0), (sixty.clone(), one));
    let maybe = vec![(GapReasons::default(), false)];
    assert_eq!(resume_at(before(30, true), 29, 30), (sixty.clone(), maybe.clone()), "it may be the one that it has");
    assert_eq!(resume_at(before(30, false), 29, 0), (sixty.clone(), maybe.clone()), "nobody knows");
    assert_eq!(resume_at(None, 45, 0), (sixty, maybe), "an older owner");
}

#[test]
fn a_reader_that_the_ring_s_tail_passed_was_slow_and_what_was_withheld_meanwhile_was_not_its_fault() {
    let mut bench = Bench::new(|config| config.ring_bytes_max = 1000);
    let (slow, other) = (bench.viewer(), bench.viewer());
    bench.sink.room.insert(slow, 0);
    for offset in 1..=100 {
        let item = item(10 * offset, "a message of some length");
        bench.input(Input::Deliver(vec![if offset % 10 == 0 { after(WITHHELD, &item) } else { item }]));
    }
    assert_eq!(texts(&bench.frames(other)).len(), 100, "nobody else is held up");
    bench.sink.room.insert(slow, usize::MAX);
    bench.engine.writable(bench.now, slow);
    bench.round();
    let frames = bench.frames(slow);
    let mut told = GapReasons::default();
    gaps(&frames).into_iter().for_each(|(reasons, _)| told += reasons);
    let lost = 100 - texts(&frames).len() as u64;
    assert!(lost > 50);
    assert_eq!(told, GapReasons { slow: lost, capped: 20, aged: 10, ..GapReasons::default() });
}

#[test]
fn what_an_overloaded_core_does_not_encode_is_shed() {
    let mut bench = Bench::new(|config| (config.round_sends, config.late_bytes) = (32, 200));
    let viewers: Vec<Key> = (0..300).map(|_| bench.viewer()).collect();
    let long = "x".repeat(300);
    let mut offset = 0;
    // Each round reaches some of the viewers, and takes long.
    for _ in 0..6 {
        for _ in 0..5 {
            offset += 10;
            let item = item(offset, &long);
            bench.engine.input(bench.now, Input::Deliver(vec![after(WITHHELD, &item)]));
        }
        let _ = bench.engine.round(bench.now, &mut bench.sink);
        bench.now.mono_ms += 100;
    }
    let shed = bench.engine.counters().shed;
    bench.round();
    assert!(shed > 0, "the pass is late");
    // One that comes now and resumes from the middle of what was shed.
    let position = client::Position { log: "log".into(), normal: offset - 25, high: offset - 25 };
    let late = bench.native();
    bench.subscribe(late, client::Subscribe { resume: Some(position), ..room("room:1") });
    let mut told_shed = 0;
    for key in viewers {
        let frames = bench.frames(key);
        let mut told = GapReasons::default();
        for (reasons, exact) in gaps(&frames) {
            assert!(exact);
            told += reasons;
        }
        assert_eq!((told.slow, told.unknown, told.capped, told.aged), (0, 0, 2 * 30, 30));
        assert_eq!(texts(&frames).len() as u64 + told.shed, 30);
        told_shed += told.shed;
    }
    assert_eq!(told_shed, bench.engine.counters().shed);
    let frames = bench.frames(late);
    let mut told = GapReasons::default();
    gaps(&frames).into_iter().for_each(|(reasons, _)| told += reasons);
    assert!(told.shed > 0 && told.slow == 0, "{told:?}");
    assert_eq!(texts(&frames).len() as u64 + told.shed, 3, "{told:?}");
}

#[test]
fn whoever_was_away_for_longer_than_messages_are_kept_is_told_that_nobody_knows() {
    let mut bench = Bench::new(|config| config.ring_bytes_max = 1000);
    let _reader = bench.viewer();
    for offset in 1..=RECENT_MESSAGES as u64 {
        bench.input(Input::Deliver(vec![item(10 * offset, "a message of some length")]));
    }
    let position = client::Position { log: "log".into(), normal: 10, high: 10 };
    let back = bench.native();
    bench.subscribe(back, client::Subscribe { resume: Some(position), ..room("room:1") });
    let frames = bench.frames(back);
    let lost = RECENT_MESSAGES as u64 - 1 - texts(&frames).len() as u64;
    assert!(lost > 50);
    assert_eq!(gaps(&frames), [(GapReasons::unknown(lost), true)]);
}

#[test]
fn of_a_gap_that_a_client_may_know_some_of_no_reason_is_told_too_often() {
    // The client has all up to 20, the core up to 10. It may know two of the twelve.
    let withheld = GapReasons { capped: 9, aged: 3, ..GapReasons::default() };
    for (missed, told) in [
        (withheld, GapReasons { capped: 7, aged: 1, unknown: 2, ..GapReasons::default() }),
        (GapReasons { aged: 12, ..GapReasons::default() }, GapReasons { aged: 10, ..GapReasons::default() }),
    ] {
        let mut bench = Bench::new(|_| {});
        let first = bench.native();
        bench.subscribe(first, room("room:1"));
        bench.hold("room:1", 10, vec![item(10, "a")]);
        let position = client::Position { log: "log".into(), normal: 12, high: 12 };
        let resume = client::Subscribe { resume: Some(position), ..room("room:1") };
        let (early, late) = (bench.native(), bench.native());
        bench.subscribe(early, resume.clone());
        bench.input(Input::Missed { channel: "room:1".into(), reasons: missed });
        bench.subscribe(late, resume);
        bench.input(Input::Deliver(vec![item(30, "b")]));
        for key in [early, late] {
            assert_eq!(gaps(&bench.frames(key)), [(told, false)]);
        }
        assert_eq!(gaps(&bench.frames(first)), [(missed, true)], "whoever was here is told all of it");
    }
}
