//! The bench against a server whose faults are known: what goes wrong is told, and nothing else is.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod server;

use std::sync::Arc;
use std::time::Duration;

use bench::{Dialect, Error, Fanout, Report};
use clap::Parser;
use server::{Fate, Manners, Server};

#[derive(Parser)]
#[command(args_override_self = true)]
struct CommandLine {
    #[command(flatten)]
    fanout: Fanout,
}

fn options(server: &Server, more: &str) -> Fanout {
    let viewers = if more.contains("--room-sizes") { "" } else { "--viewers 4" };
    let warm_up = if more.contains("--warm-up") { "" } else { "--warm-up 0" };
    let common = format!("bench --seconds 1 --connect {} --http {} {viewers} {warm_up}", server.clients, server.http);
    CommandLine::parse_from(common.split_whitespace().chain(more.split_whitespace())).fanout
}

async fn measure(manners: Manners, more: &str) -> Report {
    let server = Server::start(manners).await;
    let fanout = options(&server, more);
    tokio::task::spawn_blocking(move || fanout.measure("test")).await.unwrap().unwrap()
}

/// The fate of the first viewer's message `at`.
fn one(at: usize, fate: Fate) -> Manners {
    let fate = move |viewer, place| if (viewer, place) == (0, at) { fate } else { Fate::Delivered };
    Manners { fate: Arc::new(fate), ..Manners::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faultless_server_has_no_fault_in_any_dialect() {
    for (dialect, more) in
        [("native", ""), ("native", "--tcp"), ("goim", ""), ("goim", "--tcp --publishers 1 --workers 1")]
    {
        let line = format!("--rate 40 --rooms 2 --bytes 100 --dialect {dialect} {more}");
        let report = measure(Manners::default(), &line).await;
        assert_eq!(report.fault(), None, "{dialect} {more}: {report}");
        // 40 messages, each to the two viewers of its room.
        assert_eq!((report.deliveries.expected, report.deliveries.delivered), (80, 80));
        assert_eq!((report.published.intended, report.published.accepted), (40, 40));
        assert_eq!((report.sessions.viewers, report.sessions.closed), (4, 0));
        assert!(report.latency.max < 1000.0 && report.latency.p50 > 0.0, "{report}");
        assert!(report.deliveries.per_second > 20.0 && report.deliveries.per_second < 160.0, "{report}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["deliveries"]["delivered"], 80);
        assert_eq!(json["environment"]["commit"], "test");
        assert_eq!(json["settings"]["dialect"], dialect);
        assert!(json["settings"].get("token").is_none());
        assert!(report.to_string().contains("of 80 (100.000 %)"), "{report}");
    }
}

#[tokio::test]
async fn a_lost_message_is_told() {
    let report = measure(one(3, Fate::Dropped), "--rate 30").await;
    assert_eq!((report.deliveries.expected, report.deliveries.delivered, report.deliveries.lost), (120, 119, 1));
    assert_eq!(report.fault().unwrap(), "1 deliveries are missing");
}

#[tokio::test]
async fn a_loss_of_a_session_that_is_not_checked_shows_in_its_bytes() {
    let report = measure(one(3, Fate::Dropped), "--rate 30 --check 4").await;
    assert_eq!((report.deliveries.checked_sessions, report.deliveries.lost), (1, 1));
    // Which of the four it is that is checked is not known: if it is the one, the three others have more than it.
    assert!([1, 3].contains(&report.deliveries.unequal_sessions), "{report}");
    let report = measure(Manners::default(), "--rate 30 --check 4 --rooms 2").await;
    assert_eq!((report.deliveries.checked_sessions, report.deliveries.delivered), (2, 60));
    assert_eq!(report.fault(), None);
}

#[tokio::test]
async fn rooms_of_unequal_sizes_have_their_own_rates_and_latencies() {
    let report = measure(Manners::default(), "--room-sizes 3,2x1 --rates 20,10 --dialect goim").await;
    assert_eq!(report.fault(), None);
    let classes: Vec<_> = report.classes.iter().map(|class| (class.rooms, class.sessions, class.expected)).collect();
    assert_eq!(classes, [(1, 3, 60), (2, 2, 10)]);
    assert!(report.classes.iter().all(|class| class.expected == class.delivered && class.latency.max > 0.0));
}

#[tokio::test]
async fn a_message_that_came_after_a_later_one_is_told() {
    let report = measure(one(3, Fate::Overtaken), "--rate 30 --publishers 1 --dialect goim").await;
    assert_eq!((report.deliveries.delivered, report.deliveries.disordered), (120, 1));
    assert_eq!(report.fault().unwrap(), "1 came out of order");
}

#[tokio::test]
async fn a_message_that_came_twice_is_told_and_counted_once() {
    let report = measure(one(3, Fate::Twice), "--rate 30 --dialect goim --tcp").await;
    assert_eq!((report.deliveries.delivered, report.deliveries.duplicates), (120, 1));
    assert_eq!(report.fault().unwrap(), "1 came twice");
}

#[tokio::test]
async fn a_late_message_is_late_and_those_behind_it_too() {
    let report = measure(one(10, Fate::Late(Duration::from_millis(700))), "--rate 30").await;
    assert_eq!(report.fault(), None);
    assert!(report.latency.max >= 700.0 && report.latency.max < 2000.0, "{report}");
    // The 20 behind it of that viewer's 30 wait as well: a sixth of all.
    assert!(report.latency.p90 >= 100.0 && report.latency.p50 < 400.0, "{report}");
}

#[tokio::test]
async fn what_comes_before_the_measurement_must_come_and_is_not_measured() {
    let late = one(3, Fate::Late(Duration::from_millis(200)));
    let report = measure(late, "--rate 30 --warm-up 15").await;
    assert_eq!((report.published.accepted, report.deliveries.expected), (45, 180));
    assert_eq!((report.fault(), report.distribution.len()), (None, 120));
    assert!(report.latency.max < 200.0, "{report}");
    let report = measure(one(3, Fate::Dropped), "--rate 30 --warm-up 15").await;
    assert_eq!(report.deliveries.lost, 1);
}

#[tokio::test]
async fn a_gap_that_is_told_is_counted_beside_the_loss() {
    let report = measure(one(3, Fate::WorkerStatus), "--rate 30").await;
    assert_eq!((report.deliveries.lost, report.deliveries.gaps_told), (1, 1));
}

#[tokio::test]
async fn a_session_that_the_server_ends_is_told() {
    let report = measure(one(3, Fate::Closed), "--rate 30").await;
    assert_eq!(report.sessions.closed, 1);
    // "connection closed", or reset, where a heartbeat was under way: then the three before it may be lost, too.
    assert!((27..=30).contains(&report.deliveries.lost), "{report}");
    assert!(report.sessions.reasons.keys().all(|reason| reason.to_lowercase().contains("connection")), "{report}");
    assert!(report.fault().unwrap().contains("1 sessions were closed"));
}

#[tokio::test]
async fn what_was_refused_is_not_expected() {
    let report = measure(Manners { refused: Some(5), ..Manners::default() }, "--rate 30").await;
    assert_eq!((report.published.accepted, report.deliveries.expected), (29, 116));
    assert_eq!(report.deliveries.lost, 0);
    assert_eq!(report.published.failed["429 too_fast"], 1);
    assert_eq!(report.fault().unwrap(), "1 messages were not accepted");
}

/// The server takes 25 ms for each message, and 80 a second are due: they wait longer and longer. A closed loop would
/// send less and tell 25 ms.
#[tokio::test]
async fn a_server_that_is_too_slow_is_told_the_whole_wait() {
    let manners = Manners { answer_after: Duration::from_millis(25), ..Manners::default() };
    let report = measure(manners, "--rate 80 --publishers 1").await;
    assert_eq!(report.fault(), None);
    assert_eq!(report.published.accepted, 80);
    assert!(report.published.acceptance.max >= 900.0, "{report}");
    assert!(report.latency.max >= 900.0, "{report}");
}

#[tokio::test]
async fn nobody_there_is_said_so() {
    let server = Server { clients: "127.0.0.1:1".into(), http: "http://127.0.0.1:1".into() };
    let fanout = options(&server, "");
    let error = tokio::task::spawn_blocking(move || fanout.measure("test")).await.unwrap().unwrap_err();
    assert!(error.to_string().starts_with("not all viewers could enter: viewer"), "{error}");
}

#[test]
fn options_that_cannot_work_are_refused_by_name() {
    let server = Server { clients: "127.0.0.1:1".into(), http: "http://127.0.0.1:1".into() };
    for (more, option) in [
        ("--rate 0", "rate"),
        ("--rooms 5", "rooms"),
        ("--bytes 31", "bytes"),
        ("--rate 100000 --seconds 86400 --viewers 1000", "rate"),
        ("--rate 20000 --seconds 86400 --viewers 1000 --check 1", "seconds"),
        ("--wire-bytes 60", "wire-bytes"),
        ("--check 0", "check"),
        ("--workers 5", "workers"),
        ("--via connector --grpc 127.0.0.1:1,127.0.0.1:2", "grpc"),
    ] {
        match options(&server, more).measure("test") {
            Err(Error::Option { option: named, .. }) => assert_eq!(named, option, "{more}"),
            other => panic!("{more}: {other:?}"),
        }
    }
    let fanout = Fanout { http: "https://x".into(), ..options(&server, "") };
    assert!(matches!(fanout.measure("test"), Err(Error::Option { option: "http", .. })));
    assert_eq!(fanout.dialect, Dialect::Native);
}

#[test]
fn more_sessions_than_open_files_are_refused_with_the_setting_that_allows_them() {
    let server = Server { clients: "127.0.0.1:1".into(), http: "http://127.0.0.1:1".into() };
    let fanout = Fanout { viewers: 1_000_000, ..options(&server, "--workers 1") };
    match fanout.measure("test") {
        Err(error @ Error::Admission { .. }) => {
            let text = error.to_string();
            assert!(text.contains("ulimit -Hn") && text.contains("1000000 sessions"), "{text}");
        }
        // A machine that admits a million in a process: then nobody is there to connect to.
        other => assert!(matches!(other, Err(Error::Entering(_))), "{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_places_share_the_viewers_of_each_room() {
    let (one, other) = (Server::start(Manners::default()).await, Server::start(Manners::default()).await);
    // What is published at the one does not come to those at the other.
    let fanout = options(&one, &format!("--rate 20 --check 1 --connect {}", other.clients));
    assert_eq!(fanout.connect.len(), 2);
    let report = tokio::task::spawn_blocking(move || fanout.measure("test")).await.unwrap().unwrap();
    assert_eq!((report.deliveries.expected, report.deliveries.delivered, report.deliveries.untold), (80, 40, 40));
}
