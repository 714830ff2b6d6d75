//! The distributed form, black box (rules 2, 8-12, 39): real Kafka and Redis, two connectors, two logics, two jobs as
//! processes; every message through either logic reaches every viewer on either connector once and in the bus's order,
//! while jobs are killed, partitions move and viewers join; a killed connector's routes end with its lease; Redis may be
//! wiped.
//!
//! A short form by default; `BARRAGE_FULL=1` runs 200 viewers, 500 messages a second, five kills.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "cluster/logics.rs"]
mod logics;
#[path = "cluster/outage.rs"]
mod outage;
#[path = "cluster/publisher.rs"]
mod publisher;
#[path = "cluster/pushes.rs"]
mod pushes;
#[path = "cluster/restarted.rs"]
mod restarted;
#[path = "cluster/resuming.rs"]
mod resuming;
#[path = "cluster/rolling.rs"]
mod rolling;
mod server;
#[path = "cluster/standstill.rs"]
mod standstill;
#[path = "cluster/viewer.rs"]
mod viewer;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use publisher::{Http, Publisher, SENDERS, Sent};
use serde_json::Value;
use server::Server;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use viewer::Viewer;

/// Nothing that must happen takes longer, unless it fails.
const DEADLINE: Duration = Duration::from_secs(60);
const ROOMS: usize = 16;
const PARTITIONS: u32 = 8;
/// A route dies with its node's lease (10 s), and what is told of it is at most 5 s old.
const LEASE: Duration = Duration::from_secs(15);
const SECRET: &str = "0123456789abcdef0123456789abcdef";

struct Form {
    viewers: usize,
    per_s: usize,
    messages: usize,
    kills: usize,
}

const SHORT: Form = Form { viewers: 40, per_s: 100, messages: 2_000, kills: 1 };
const FULL: Form = Form { viewers: 200, per_s: 500, messages: 10_000, kills: 5 };

/// A server that a script of ours starts and ends.
struct Store {
    script: PathBuf,
    directory: TempDir,
    address: String,
}

impl Store {
    /// `None` where it cannot be had here, which is said, and fails under CI.
    fn start(script: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts").join(script);
        let pid = std::process::id().to_string();
        let said = Command::new(&script)
            .arg("up")
            .arg(directory.path())
            .env("KAFKA_WITH", &pid)
            .env("REDIS_WITH", &pid)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let address = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        if said.status.success() {
            return Some(Self { script, directory, address });
        }
        let why = String::from_utf8_lossy(&said.stderr).trim().to_owned();
        assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "{}: {why}", script.display());
        println!("skipped: {}: {why}", script.display());
        None
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = Command::new(&self.script).arg("down").arg(self.directory.path()).status();
    }
}

/// What runs: processes by role and number.
struct Cluster {
    // Dropped in this order: whoever fails shows its log before that is gone.
    jobs: Vec<(Server, PathBuf)>,
    started: usize,
    directory: TempDir,
    kafka: Store,
    redis: Store,
    /// After so long Kafka's group goes on without a member that is gone, milliseconds.
    session_ms: u32,
}

impl Cluster {
    fn start(&mut self, role: &str) -> (Server, PathBuf) {
        self.start_with(role, &[])
    }

    fn start_with(&mut self, role: &str, more: &[(&str, &str)]) -> (Server, PathBuf) {
        self.started += 1;
        let node = format!("{role}-{}", self.started);
        let directory = self.directory.path().join(&node);
        let quoted = |text: &str| format!("{text:?}");
        let settings = [
            ("cluster.secret", quoted(SECRET)),
            ("cluster.node", quoted(&node)),
            ("bus.kind", quoted("kafka")),
            ("bus.partitions", PARTITIONS.to_string()),
            ("bus.kafka.brokers", format!("[{:?}]", self.kafka.address)),
            ("bus.kafka.development", "true".to_owned()),
            ("bus.kafka.replication", "1".to_owned()),
            ("bus.kafka.min_in_sync", "1".to_owned()),
            ("bus.kafka.session_timeout_ms", self.session_ms.to_string()),
            ("routes.kind", quoted("redis")),
            ("routes.urls", format!("[{:?}]", self.redis.address)),
            ("logic.guests", quoted("watch")),
            ("logic.token.keys", format!(r#"[{{ kid = "test", alg = "HS256", key = {SECRET:?} }}]"#)),
            ("connector.cores", "1".to_owned()),
            // Who owns a partition is read from the jobs' logs: see `owner`.
            ("log.level", quoted("info,job=debug")),
        ];
        let own = settings.iter().map(|(key, value)| (*key, value.as_str()));
        let settings: Vec<(&str, &str)> = own.chain(more.iter().copied()).collect();
        (Server::start(role, &directory, &settings), directory)
    }

    fn start_job(&mut self) {
        let job = self.start("job");
        self.jobs.push(job);
    }

    /// Which of the jobs claimed `partition` last, and its claim's offset, as their logs tell.
    fn owner(&self, partition: u32) -> Option<(usize, u64)> {
        let claims = self.jobs.iter().enumerate().filter_map(|(at, (_, directory))| {
            let log = std::fs::read_to_string(directory.join("job.log")).unwrap_or_default();
            let claim = |line: &str| {
                let (_, claim) = line.split_once("claimed a partition partition=")?;
                let (claimed, epoch) = claim.split_once(" epoch=")?;
                (claimed.parse() == Ok(partition)).then(|| epoch.trim().parse::<u64>().unwrap())
            };
            Some((at, log.lines().filter_map(claim).max()?))
        });
        claims.max_by_key(|(_, epoch)| *epoch)
    }
}

async fn until<T>(what: &str, within: Duration, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(done) = done().await {
            return done;
        }
        assert!(begun.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What every viewer must have seen of each room: the messages by their place in the bus.
fn in_order(sent: &[Sent]) -> Vec<Vec<(u64, u32)>> {
    let mut rooms = vec![Vec::new(); ROOMS];
    for sent in sent {
        rooms[sent.room].push((sent.offset, sent.number));
    }
    rooms.iter_mut().for_each(|room| room.sort_unstable());
    // A sender waits for each answer before its next message, so its own order is that of its numbers.
    for sender in 0..SENDERS {
        for room in 0..ROOMS {
            let mut own: Vec<&Sent> = sent.iter().filter(|it| it.sender == sender && it.room == room).collect();
            own.sort_unstable_by_key(|sent| sent.offset);
            assert!(own.is_sorted_by_key(|sent| sent.number), "sender {sender}'s own order in room {room}");
        }
    }
    rooms
}

/// Once, in order, and without a gap.
fn check(viewers: &[Viewer], expected: &[Vec<(u64, u32)>]) -> usize {
    let mut deliveries = 0;
    for (at, viewer) in viewers.iter().enumerate() {
        let seen = viewer.seen.lock().unwrap();
        assert_eq!((&seen.gaps, seen.closed), (&Vec::new(), false), "viewer {at}");
        for (room, (from, got)) in seen.rooms.iter().enumerate() {
            let due: Vec<_> = expected[room].iter().filter(|(offset, _)| offset > from).copied().collect();
            let differs = got.iter().zip(&due).position(|(got, due)| got != due).unwrap_or(got.len().min(due.len()));
            let near = |list: &[(u64, u32)]| list[differs.saturating_sub(2)..list.len().min(differs + 3)].to_vec();
            assert!(
                *got == due,
                "viewer {at}, room {room}: {} of {} after {from}; from place {differs} {:?}, where {:?} were due",
                got.len(),
                due.len(),
                near(got),
                near(&due)
            );
            deliveries += got.len();
        }
    }
    deliveries
}

/// Waits until nothing more comes to anyone.
async fn settle(viewers: &[Viewer], expected: &[Vec<(u64, u32)>]) {
    let due = |viewer: &Viewer| {
        let seen = viewer.seen.lock().unwrap();
        let due = |(room, (from, _)): (usize, &(u64, Vec<_>))| expected[room].iter().filter(|it| it.0 > *from).count();
        seen.rooms.iter().enumerate().map(due).sum::<usize>()
    };
    let begun = Instant::now();
    for viewer in viewers {
        let due = due(viewer);
        while viewer.count.load(std::sync::atomic::Ordering::Relaxed) < due && begun.elapsed() < DEADLINE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // A message that came twice would come about now.
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// Sends a signal.
fn signal(name: &str, server: &Server) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(server.pid().to_string()).status().unwrap();
    assert!(sent.success(), "{name}");
}

/// Waits until the service says that it does its work.
async fn ready(server: &Server) {
    until("a service is ready", DEADLINE, async || {
        let (status, _) = Http::connect(server.admin()).await.get("/ready").await;
        (status == 200).then_some(())
    })
    .await;
}

async fn online(logic: SocketAddr, room: &str) -> u64 {
    let id = room.strip_prefix("room:").unwrap();
    let answer: Value = Http::connect(logic).await.ask("GET", &format!("/v1/rooms/{id}/online"), None).await;
    answer["sessions"].as_u64().unwrap_or_else(|| panic!("no number: {answer}"))
}

async fn flush(redis: &str) {
    let address = redis.trim_start_matches("redis://").trim_end_matches('/');
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket.write_all(b"FLUSHALL\r\n").await.unwrap();
    let mut answer = [0; 5];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"+OK\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_reaches_every_viewer_once_and_in_order_whatever_is_killed() {
    let form = if std::env::var_os("BARRAGE_FULL").is_some() { FULL } else { SHORT };
    let began = Instant::now();
    let (Some(kafka), Some(redis)) = (Store::start("kafka.sh"), Store::start("redis.sh")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster { kafka, redis, directory, started: 0, jobs: Vec::new(), session_ms: 6_000 };
    let logics = [cluster.start("logic").0, cluster.start("logic").0];
    let mut connectors = vec![cluster.start("connector").0, cluster.start("connector").0];
    cluster.start_job();
    cluster.start_job();
    for server in logics.iter().chain(&connectors).chain(cluster.jobs.iter().map(|(job, _)| job)) {
        ready(server).await;
    }
    let http: Vec<SocketAddr> = logics.iter().map(Server::http).collect();
    let rooms: Arc<[String]> = (0..ROOMS).map(|room| format!("room:cluster-{room}")).collect();
    let partition = |room: &str| proto::channel::partition(room, PARTITIONS);
    let partitions: std::collections::BTreeSet<u32> = rooms.iter().map(|room| partition(room)).collect();
    assert!(partitions.len() >= 4, "the rooms lie in {partitions:?}");
    println!("{:?} started: {} partitions have rooms", began.elapsed(), partitions.len());

    // Most are there from the beginning, the others join while messages flow.
    let clients: Vec<SocketAddr> = connectors.iter().map(Server::clients).collect();
    let mut viewers = Vec::new();
    for at in 0..form.viewers * 3 / 4 {
        viewers.push(Viewer::start(clients[at % 2], rooms.clone()).await);
    }
    println!("{:?} {} viewers", began.elapsed(), viewers.len());
    let publisher = Publisher::start(http.clone(), rooms.clone(), form.per_s, 1);
    let joining = {
        let (clients, rooms, joining) = (clients.clone(), rooms.clone(), form.viewers - viewers.len());
        tokio::spawn(async move {
            let mut viewers = Vec::new();
            for at in 0..joining {
                tokio::time::sleep(Duration::from_millis(200)).await;
                viewers.push(Viewer::start(clients[at % 2], rooms.clone()).await);
            }
            viewers
        })
    };

    let measured = partition(&rooms[0]);
    for kill in 0..form.kills {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (owner, epoch) = cluster.owner(measured).expect("somebody owns it");
        cluster.jobs.remove(owner).0.kill();
        let killed = Instant::now();
        cluster.start_job();
        let taken = until("the partition is taken over", DEADLINE, async || {
            cluster.owner(measured).filter(|(_, claimed)| *claimed > epoch)
        });
        taken.await;
        println!("{:?} kill {}: taken over within {:?}", began.elapsed(), kill + 1, killed.elapsed());
    }
    // Partitions move to a third job, and back when it leaves.
    cluster.start_job();
    let joined = until("the third job owns something", DEADLINE, async || {
        let last = cluster.jobs.len() - 1;
        let owned =
            |partition| cluster.owner(partition).filter(|(at, _)| *at == last).map(|(_, epoch)| (partition, epoch));
        (0..PARTITIONS).find_map(owned)
    });
    let (moved, epoch) = joined.await;
    let (mut third, _) = cluster.jobs.pop().unwrap();
    assert_eq!(third.end(Duration::from_secs(20)), Some(0), "it ends gracefully");
    let left = Instant::now();
    let back = async || cluster.owner(moved).filter(|(_, claimed)| *claimed > epoch);
    until("its partition goes back", DEADLINE, back).await;
    println!("{:?} a third job came and went, its partitions back within {:?}", began.elapsed(), left.elapsed());
    until("all is published", DEADLINE, async || (publisher.accepted() >= form.messages).then_some(())).await;
    let sent = publisher.end().await;
    viewers.extend(joining.await.unwrap());
    let expected = in_order(&sent);
    settle(&viewers, &expected).await;
    let deliveries = check(&viewers, &expected);
    println!(
        "{:?} {} messages, {} viewers: {deliveries} deliveries, each once and in order",
        began.elapsed(),
        sent.len(),
        viewers.len()
    );

    // A connector's routes end with its lease.
    let all = viewers.len() as u64;
    until("everyone is counted", LEASE, async || (online(http[0], &rooms[0]).await == all).then_some(())).await;
    connectors.pop().unwrap().kill();
    let killed = Instant::now();
    let half = all / 2;
    until("its sessions are gone", LEASE, async || (online(http[1], &rooms[0]).await == half).then_some(())).await;
    println!("{:?} a killed connector's routes ended within {:?}", began.elapsed(), killed.elapsed());
    viewers.retain(|viewer| !viewer.seen.lock().unwrap().closed);
    assert_eq!(viewers.len() as u64, half);

    // Redis is wiped: deliveries go on, and the routes are whole again within one lease.
    let publisher = Publisher::start(http.clone(), rooms.clone(), form.per_s, 1_000_000);
    until("messages flow", DEADLINE, async || (publisher.accepted() > form.per_s).then_some(())).await;
    flush(&cluster.redis.address).await;
    let flushed = Instant::now();
    until("the routes are whole", LEASE, async || (online(http[0], &rooms[0]).await == half).then_some(())).await;
    println!("{:?} routes whole {:?} after FLUSHALL", began.elapsed(), flushed.elapsed());
    let more = publisher.end().await;
    let sent: Vec<Sent> = sent.into_iter().chain(more).collect();
    let expected = in_order(&sent);
    settle(&viewers, &expected).await;
    let deliveries = check(&viewers, &expected);
    println!("{:?} {} messages in all: {deliveries} deliveries", began.elapsed(), sent.len());
}

/// Fault 21: claims decide who owns a partition, and the group only spreads them. Kafka is told to wait for a whole minute
/// here, so that whoever takes over earlier was not told by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_job_is_replaced_before_kafka_knows_and_has_its_partitions_back_when_it_wakes_up() {
    const WELL_BEFORE_KAFKA: Duration = Duration::from_secs(30);
    let (Some(kafka), Some(redis)) = (Store::start("kafka.sh"), Store::start("redis.sh")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster { kafka, redis, directory, started: 0, jobs: Vec::new(), session_ms: 60_000 };
    let logic = cluster.start("logic").0;
    let connectors = [cluster.start("connector").0, cluster.start("connector").0];
    cluster.start_job();
    cluster.start_job();
    for server in connectors.iter().chain([&logic]).chain(cluster.jobs.iter().map(|(job, _)| job)) {
        ready(server).await;
    }
    let rooms: Arc<[String]> = (0..ROOMS).map(|room| format!("room:silent-{room}")).collect();
    let mut viewers = Vec::new();
    for at in 0..8 {
        viewers.push(Viewer::start(connectors[at % 2].clients(), rooms.clone()).await);
    }
    // Both have something, so that one is left to take it over.
    until("both jobs own something", DEADLINE, async || {
        let owners: std::collections::BTreeSet<usize> =
            (0..PARTITIONS).filter_map(|partition| Some(cluster.owner(partition)?.0)).collect();
        (owners.len() == 2).then_some(())
    })
    .await;
    let publisher = Publisher::start(vec![logic.http()], rooms.clone(), 200, 1);
    let measured = proto::channel::partition(&rooms[0], PARTITIONS);
    let received = |viewer: &Viewer| viewer.seen.lock().unwrap().rooms[0].1.len();
    until("messages flow", DEADLINE, async || (received(&viewers[0]) > 5).then_some(())).await;
    for round in 1..=2 {
        let (owner, epoch) = cluster.owner(measured).expect("somebody owns it");
        signal("STOP", &cluster.jobs[owner].0);
        let stopped = Instant::now();
        let taken = async || cluster.owner(measured).filter(|(at, claimed)| *claimed > epoch && *at != owner);
        let (_, epoch) = until("the other takes over", WELL_BEFORE_KAFKA, taken).await;
        let before = received(&viewers[0]);
        println!("round {round}: claimed {:?} after the stop", stopped.elapsed());
        until("messages flow again", WELL_BEFORE_KAFKA, async || (received(&viewers[0]) > before).then_some(())).await;
        println!("round {round}: messages {:?} after the stop", stopped.elapsed());
        signal("CONT", &cluster.jobs[owner].0);
        let back = async || cluster.owner(measured).filter(|(at, claimed)| *claimed > epoch && *at == owner);
        until("the group's member has it back", WELL_BEFORE_KAFKA, back).await;
    }
    let (owner, epoch) = cluster.owner(measured).expect("somebody owns it");
    let killed = Instant::now();
    cluster.jobs.remove(owner).0.kill();
    // As whoever watches over processes does: it joins while the group still waits for the dead one.
    cluster.start_job();
    let taken = async || cluster.owner(measured).filter(|(_, claimed)| *claimed > epoch);
    until("the other takes over from the dead", WELL_BEFORE_KAFKA, taken).await;
    let before = received(&viewers[0]);
    until("messages flow again", WELL_BEFORE_KAFKA, async || (received(&viewers[0]) > before).then_some(())).await;
    println!("killed: messages {:?} after", killed.elapsed());
    let sent = publisher.end().await;
    let expected = in_order(&sent);
    settle(&viewers, &expected).await;
    println!("{} messages, {} deliveries, each once and in order", sent.len(), check(&viewers, &expected));
}
