//! `pipeline` against a small server of our own that speaks native and the HTTP API: what it loses is a fault.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "it can do more than is asked of it here")]
#[path = "fanout/server.rs"]
mod server;

use std::sync::Arc;
use std::time::Duration;

use bench::Pipeline;
use clap::Parser;
use server::{Fate, Manners, Server};

#[derive(Parser)]
#[command(args_override_self = true)]
struct CommandLine {
    #[command(flatten)]
    pipeline: Pipeline,
}

fn options(server: &Server, more: &str) -> Pipeline {
    let line = format!(
        "bench --viewers 5 --rate 50 --seconds 1 --warm-up 0 --admin= --connect {} --http {} {more}",
        server.clients, server.http
    );
    CommandLine::parse_from(line.split_whitespace()).pipeline
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_message_is_there_when_the_last_session_has_it() {
    let runtime = runtime();
    // One session gets everything 30 ms late; the publisher has its answer before.
    let fate = Arc::new(|viewer, _| if viewer == 2 { Fate::Late(Duration::from_millis(30)) } else { Fate::Delivered });
    let server = runtime.block_on(Server::start(Manners { fate, ..Manners::default() }));
    let directory = tempfile::tempdir().unwrap();
    let options = options(&server, &format!("--rate 10 --warm-up 1 --sync {}", directory.path().display()));
    let report = options.measure("test").unwrap();
    assert_eq!((report.messages, report.accepted, report.delivered, report.expected), (10, 10, 50, 50));
    assert!(report.faults.is_empty(), "{:?}", report.faults);
    assert!(report.total.millis.p50 >= 30.0 && report.spread.millis.p50 >= 20.0, "{report}");
    let sync = report.sync.unwrap();
    assert!((report.bound.unwrap() - sync.millis.p99 - 3.0).abs() < 1e-9);
    assert_eq!(report.met(), Some(report.total.millis.p99 <= report.bound.unwrap()));
    assert!(report.stages.is_empty() && report.receive_mean.is_none(), "no port was asked");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["total"]["p99"], report.total.millis.p99);
    assert_eq!(json["environment"]["commit"], "test");
}

#[test]
fn what_is_lost_refused_or_out_of_order_is_a_fault() {
    let runtime = runtime();
    let fate = Arc::new(|viewer, place| match (viewer, place) {
        (1, 3) => Fate::Dropped,
        (2, 5) => Fate::Overtaken,
        _ => Fate::Delivered,
    });
    let server = runtime.block_on(Server::start(Manners { fate, refused: Some(7), ..Manners::default() }));
    let report = options(&server, "").measure("test").unwrap();
    assert_eq!(report.accepted, report.messages - 1);
    assert_eq!(report.delivered, report.expected - 1);
    let told = report.faults.join(", ");
    for fault in ["1 messages were not accepted", "1 deliveries are missing", "came out of order", "429"] {
        assert!(told.contains(fault), "{told}");
    }
    assert_eq!(report.met(), None);
}
