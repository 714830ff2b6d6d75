//! Whoever was told that a message is accepted finds it in the bus, however the process died; and job goes on where it
//! was.

mod server;
mod viewer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bus::{Start, Topic};
use prost::Message as _;
use proto::record::{Record, record};
use rand::RngExt as _;
use server::Server;
use tokio_util::sync::CancellationToken;
use viewer::{Native, text};

/// Kills in `make test`; with BARRAGE_FULL set, fifty.
const KILLS: usize = 10;

/// Publishers under way at each kill.
const PUBLISHERS: usize = 4;

/// Publishes to `room:d` until the server dies; the IDs that were acknowledged, with what they carried.
fn publish_until_it_dies(http: std::net::SocketAddr, publisher: String, stop: &AtomicBool) -> BTreeMap<String, String> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build().into();
    let mut acknowledged = BTreeMap::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let words = format!("{publisher} {number}");
        let answer = agent
            .post(format!("http://{http}/v1/rooms/d/messages"))
            .send_json(serde_json::json!({ "type": "text", "text": words }));
        let Ok(mut answer) = answer else { break };
        let Ok(body) = answer.body_mut().read_json::<serde_json::Value>() else { break };
        acknowledged.insert(body["id"].as_str().expect("an ID").to_owned(), words);
    }
    acknowledged
}

#[test]
fn every_acknowledged_message_survives_kills_under_load() {
    let kills = if std::env::var_os("BARRAGE_FULL").is_some() { 50 } else { KILLS };
    let directory = tempfile::tempdir().unwrap();
    // No cap: where a second takes more than a thousand, the message after the last kill would be told as one too many.
    let settings = [("log.level", "warn"), ("job.room_messages_per_s_max", "0")];
    let mut acknowledged = BTreeMap::new();
    for kill in 0..kills {
        let mut server = Server::run(directory.path(), &settings);
        let http = server.http();
        let stop = Arc::new(AtomicBool::new(false));
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || publish_until_it_dies(http, format!("{kill}.{publisher}"), &stop))
            })
            .collect();
        // A random moment, not a wait for something.
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(20..400)));
        server.kill();
        stop.store(true, Ordering::Relaxed);
        for publisher in publishers {
            acknowledged.extend(publisher.join().expect("a publisher ends with its server"));
        }
    }
    assert!(acknowledged.len() > kills, "only {} messages were acknowledged: no load", acknowledged.len());

    // Job goes on where it was: what is published after the last start is delivered, in the room that was killed.
    let mut server = Server::run(directory.path(), &settings);
    let mut client = Native::connect(server.clients(), "");
    client.subscribe("room:d", 0);
    client.publish("room:d", "", "alive");
    assert_eq!(text(&client.message()), "alive");
    drop(client);
    server.kill();

    let found = all_in_the_bus(&directory.path().join("data/bus"));
    let lost: Vec<_> = acknowledged.iter().filter(|(id, words)| found.get(*id) != Some(words)).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged messages are lost: {lost:?}", lost.len(), acknowledged.len());
    eprintln!("{kills} kills, {} acknowledged, all found among {}", acknowledged.len(), found.len());
}

/// Every message to the room, by its ID, read from the log on disk.
fn all_in_the_bus(directory: &std::path::Path) -> BTreeMap<String, String> {
    #[derive(serde::Deserialize)]
    struct Shipped {
        bus: bus::Config,
    }
    let mut config = toml::from_str::<Shipped>(include_str!("../../config/barrage.toml")).expect("it is right").bus;
    config.embedded.directory = directory.to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    runtime.block_on(async {
        let bus = bus::open(&config, CancellationToken::new()).await.expect("the log is whole");
        let partition = proto::channel::partition("room:d", bus.partitions(Topic::Rooms));
        let (first, next) = bus.bounds(Topic::Rooms, partition).await.expect("bounds");
        let mut reader = bus.read(Topic::Rooms, partition, Start::At(first)).await.expect("a reader");
        let mut found = BTreeMap::new();
        let mut expected = first;
        while expected < next {
            for record in reader.next().await.expect("records") {
                assert_eq!(record.offset, expected, "a hole in the log");
                expected += 1;
                let record = Record::decode(record.value).expect("a record");
                if let Some(record::Body::Post(post)) = record.body {
                    found.insert(post.id, String::from_utf8(post.payload.to_vec()).expect("text"));
                }
            }
        }
        found
    })
}
