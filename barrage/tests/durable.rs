//! Whoever was told that a message is accepted finds it in the bus, however the process died; and job goes on where it
//! was.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod server;
mod viewer;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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

/// A small file system of its own; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where this process may not mount one, which is said.
    fn mount(bytes: usize) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory.path()).output();
        if mounted.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Self(directory));
        }
        println!("skipped: no small disk can be mounted here: {mounted:?}");
        None
    }

    /// Writes until there is no room.
    fn fill(&self) {
        let mut filler = std::fs::File::create(self.0.path().join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// Status of a publish to `room:d`, and the ID where it was accepted.
fn publish(agent: &ureq::Agent, http: std::net::SocketAddr, words: &str) -> (u16, Option<String>) {
    let url = format!("http://{http}/v1/rooms/d/messages");
    let mut answer = agent.post(url).send_json(serde_json::json!({ "type": "text", "text": words })).unwrap();
    let body: serde_json::Value = answer.body_mut().read_json().unwrap();
    (answer.status().as_u16(), body["id"].as_str().map(str::to_owned))
}

#[test]
fn a_full_disk_is_refused_in_few_words_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(64 << 20) else { return };
    let directory = tempfile::tempdir().unwrap();
    let bus = disk.0.path().join("bus");
    let quoted = format!("{bus:?}");
    let settings =
        [("log.level", "warn"), ("job.room_messages_per_s_max", "0"), ("bus.embedded.directory", quoted.as_str())];
    let mut server = Server::run(directory.path(), &settings);
    let config =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10))).http_status_as_error(false);
    let agent: ureq::Agent = config.build().into();
    let mut acknowledged = BTreeMap::new();
    let mut viewer = Native::connect(server.clients(), "");
    viewer.subscribe("room:d", 0);
    for turn in 0..2 {
        disk.fill();
        // As much as still goes into the file's last page is taken.
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut refused = 0;
        for number in 0.. {
            let words = format!("{turn} {number} {}", "x".repeat(200));
            match publish(&agent, server.http(), &words) {
                (200, Some(id)) => drop(acknowledged.insert(id, words)),
                (503, None) => refused += 1,
                other => panic!("{other:?}"),
            }
            if refused == 1000 {
                break;
            }
            assert!(Instant::now() < deadline, "a full disk refuses");
        }
        let log = std::fs::read_to_string(directory.path().join("run.log")).unwrap();
        let lines = log.lines().count();
        assert!(lines > 0 && lines <= 20 * (turn + 1), "{lines} lines of log of a full disk:\n{log}");
        disk.make_room();
        let deadline = Instant::now() + Duration::from_secs(60);
        let words = format!("{turn} there is room");
        let id = loop {
            if let (200, Some(id)) = publish(&agent, server.http(), &words) {
                break id;
            }
            assert!(Instant::now() < deadline, "it goes on by itself");
            std::thread::sleep(Duration::from_millis(50));
        };
        acknowledged.insert(id, words.clone());
        while text(&viewer.message()) != words {}
    }
    drop(viewer);
    server.kill();
    let found = all_in_the_bus(&bus);
    assert_eq!(found, acknowledged, "what was acknowledged, and nothing that was refused");
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
