//! Kafka goes and comes back under two of each service: publishing and delivery go on by themselves, what was accepted is
//! delivered once and in order, what was answered as not accepted never is (fault 5), and the logs stay short (fault 25).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use super::publisher::Http;
use super::viewer::Viewer;
use super::{Cluster, DEADLINE, Server, Store, ready, until};

/// Senders, each with one request under way: enough that some are free while others wait for an answer.
const SENDERS: u32 = 32;
/// How often each publishes.
const EVERY: Duration = Duration::from_millis(200);
/// Lines of one service's log that are warnings or worse, in one outage: each of its parts says what it cannot do, once.
const WARNINGS_MAX: usize = 40;

/// An accepted message: its number, its room's offset, and when the answer came.
type Accepted = (u32, u64, Instant);

/// Publishes to one room through `logics` until it is stopped, whatever is answered.
struct Load {
    accepted: Arc<Mutex<Vec<Accepted>>>,
    /// Numbers of which the answer said that they were not accepted.
    refused: Arc<Mutex<BTreeSet<u32>>>,
    /// How many were answered with "not known".
    unknown: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    senders: JoinSet<()>,
}

impl Load {
    fn start(logics: &[Server]) -> Self {
        let (accepted, refused, unknown) = (Arc::default(), Arc::default(), Arc::default());
        let mut load = Self { accepted, refused, unknown, stop: Arc::default(), senders: JoinSet::new() };
        let next = Arc::new(AtomicU32::new(1));
        for sender in 0..SENDERS {
            let address = logics[sender as usize % logics.len()].http();
            let (accepted, refused, unknown) = (load.accepted.clone(), load.refused.clone(), load.unknown.clone());
            let (stop, next) = (load.stop.clone(), next.clone());
            load.senders.spawn(async move {
                let mut http = Http::connect(address).await;
                tokio::time::sleep(EVERY * sender / SENDERS).await;
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let body = json!({
                        "text": format!("{number} from {sender}"),
                        "client_message_id": format!("outage-{number}"),
                        "from": { "uid": format!("sender-{sender}") },
                    });
                    let answer = http.ask("POST", "/v1/rooms/outage/messages", Some(&body)).await;
                    match (answer["position"]["offset"].as_u64(), answer["error"]["code"].as_str()) {
                        (Some(offset), _) => accepted.lock().unwrap().push((number, offset, Instant::now())),
                        (None, Some("unavailable")) => drop(refused.lock().unwrap().insert(number)),
                        (None, Some("outcome_unknown")) => drop(unknown.fetch_add(1, Ordering::Relaxed)),
                        _ => panic!("{answer}"),
                    }
                    tokio::time::sleep(EVERY).await;
                }
            });
        }
        load
    }

    /// The first that was accepted after `since`.
    fn accepted_after(&self, since: Instant) -> Option<Accepted> {
        self.accepted.lock().unwrap().iter().find(|one| one.2 > since).copied()
    }

    /// Ends; what was accepted.
    async fn end(&mut self) -> Vec<Accepted> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.senders.join_next().await {
            ended.expect("a sender");
        }
        std::mem::take(&mut *self.accepted.lock().unwrap())
    }
}

fn order(kafka: &Store, order: &str) {
    let status = Command::new(&kafka.script).arg(order).arg(kafka.directory.path()).arg("1").status();
    assert!(status.unwrap().success(), "{order}");
}

/// Kills the broker and starts it again; the moment when it serves.
async fn kill_and_start(kafka: &Store) -> Instant {
    order(kafka, "kill");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let out = kafka.directory.path().join("1/out");
    // What the last start said is not to be taken for this one's.
    std::fs::write(&out, "").unwrap();
    let mut script = Command::new(&kafka.script);
    let started = script.arg("up").arg(kafka.directory.path()).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut script = started.unwrap();
    until("the broker serves", DEADLINE, async || {
        std::fs::read_to_string(&out).is_ok_and(|out| out.contains("Kafka Server started")).then_some(())
    })
    .await;
    // It goes on to ask the broker by a tool of its own, which takes seconds more.
    std::thread::spawn(move || script.wait());
    Instant::now()
}

/// Stops the broker where it is for 20 s; the moment when it goes on.
async fn stop_and_go(kafka: &Store) -> Instant {
    order(kafka, "stop");
    tokio::time::sleep(Duration::from_secs(20)).await;
    order(kafka, "go");
    Instant::now()
}

/// Warnings and errors in a service's log.
fn warnings(directory: &Path, role: &str) -> Vec<String> {
    let log = std::fs::read_to_string(directory.join(format!("{role}.log"))).unwrap();
    log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).map(str::to_owned).collect()
}

async fn goes_on(name: &str, outage: impl AsyncFn(&Store) -> Instant) {
    let (Some(kafka), Some(redis)) = (Store::start("kafka.sh"), Store::start("redis.sh")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster { kafka, redis, directory, started: 0, jobs: Vec::new(), session_ms: 6_000 };
    let (mut servers, mut places): (Vec<Server>, Vec<(PathBuf, &str)>) = (Vec::new(), Vec::new());
    for role in ["logic", "logic", "connector", "connector", "job", "job"] {
        let (server, place) = cluster.start(role);
        servers.push(server);
        places.push((place, role));
    }
    for server in &servers {
        ready(server).await;
    }
    let rooms: Arc<[String]> = Arc::new(["room:outage".to_owned()]);
    let mut viewers = Vec::new();
    for at in 0..8 {
        viewers.push(Viewer::start(servers[2 + at % 2].clients(), rooms.clone()).await);
    }
    until("both jobs own something", DEADLINE, async || {
        let mut jobs = places.iter().filter(|(_, role)| *role == "job");
        let owns = |(place, _): &(PathBuf, &str)| {
            std::fs::read_to_string(place.join("job.log")).unwrap().contains("claimed a partition")
        };
        jobs.all(owns).then_some(())
    })
    .await;
    let mut load = Load::start(&servers[..2]);
    let received = |viewer: &Viewer| viewer.seen.lock().unwrap().rooms[0].1.len();
    until("messages flow", DEADLINE, async || (received(&viewers[0]) > 50).then_some(())).await;
    let before: Vec<usize> = places.iter().map(|(place, role)| warnings(place, role).len()).collect();
    let back = outage(&cluster.kafka).await;
    let (first, _, at) = until("a message is accepted", DEADLINE, async || load.accepted_after(back)).await;
    until("a message is delivered to everyone", DEADLINE, async || {
        let has = |viewer: &Viewer| viewer.seen.lock().unwrap().rooms[0].1.iter().any(|one| one.1 == first);
        viewers.iter().all(has).then_some(())
    })
    .await;
    println!("{name}: accepted {:?}, delivered {:?} after the broker's return", at - back, back.elapsed());
    // What follows once all is as before, a while longer.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let accepted = load.end().await;
    let refused = std::mem::take(&mut *load.refused.lock().unwrap());
    assert!(!refused.is_empty(), "nothing is accepted while Kafka is away");
    let all: BTreeSet<(u64, u32)> = accepted.iter().map(|one| (one.1, one.0)).collect();
    for (at, viewer) in viewers.iter().enumerate() {
        let from = viewer.seen.lock().unwrap().rooms[0].0;
        until("everything accepted is delivered", DEADLINE, async || {
            let seen = viewer.seen.lock().unwrap();
            let got: BTreeSet<(u64, u32)> = seen.rooms[0].1.iter().copied().collect();
            all.iter().filter(|one| one.0 > from).all(|one| got.contains(one)).then_some(())
        })
        .await;
        let seen = viewer.seen.lock().unwrap();
        assert_eq!((&seen.gaps, seen.closed), (&Vec::new(), false), "viewer {at}");
        let got = &seen.rooms[0].1;
        assert!(got.is_sorted_by(|one, next| one.0 < next.0), "viewer {at} has them in order");
        let numbers: BTreeSet<u32> = got.iter().map(|one| one.1).collect();
        assert_eq!(numbers.len(), got.len(), "viewer {at} has none twice");
        let untrue: Vec<&u32> = numbers.intersection(&refused).collect();
        assert!(untrue.is_empty(), "viewer {at} has what was answered as not accepted: {untrue:?}");
    }
    let unknown = load.unknown.load(Ordering::Relaxed);
    println!("{name}: {} accepted, {} refused, {unknown} not known", accepted.len(), refused.len());
    for ((place, role), before) in places.iter().zip(before) {
        let all = warnings(place, role);
        let said = &all[before..];
        println!("{name}: {role} logged {} warnings", said.len());
        assert!(said.len() <= WARNINGS_MAX, "{role} says in {} lines that Kafka is away: {said:#?}", said.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_flow_again_after_kafka_was_killed_and_started() {
    goes_on("killed", kill_and_start).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_flow_again_after_kafka_stood_still() {
    goes_on("stopped", stop_and_go).await;
}
