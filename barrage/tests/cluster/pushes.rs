//! Pushes to users while Redis and jobs are taken away: what was accepted reaches the user's session, and no push comes
//! twice (fault 24).

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::publisher::Http;
use crate::server::Server;
use crate::viewer::Viewer;
use crate::{Cluster, DEADLINE, Store, flush, ready, signal, until};

const USERS: u32 = 20;
/// Between two pushes.
const PACE: Duration = Duration::from_millis(20);
/// Of each part of the test.
const PUSHES: u32 = 200;
/// Numbers from here on are not looked at; a multiple of [`USERS`].
const WARM_UP: u32 = 1_000_000;
/// Longer than an answer of Redis is waited for, and well under `job.push_keep_s` also on a loaded machine.
const AWAY: Duration = Duration::from_secs(4);

/// A goim client with a user's ID, and the numbers that it was pushed.
struct User {
    got: Arc<Mutex<Vec<u32>>>,
    reading: JoinHandle<()>,
}

impl Drop for User {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl User {
    async fn start(connector: SocketAddr, mid: u32) -> Self {
        let mut socket = TcpStream::connect(connector).await.unwrap();
        let token = token(mid);
        let claims = format!(r#"{{"token":"{token}","room_id":"live://1","platform":"web","accepts":[1000]}}"#);
        let mut frame = (16 + claims.len() as u32).to_be_bytes().to_vec();
        frame.extend([0, 16, 0, 1, 0, 0, 0, 7, 0, 0, 0, 1]);
        frame.extend(claims.as_bytes());
        socket.write_all(&frame).await.unwrap();
        let mut answer = [0; 16];
        tokio::time::timeout(DEADLINE, socket.read_exact(&mut answer)).await.expect("in time").unwrap();
        assert_eq!(answer[11], 8, "the connection is accepted");
        let got = Arc::new(Mutex::new(Vec::new()));
        let numbers = got.clone();
        let reading = tokio::spawn(async move {
            let mut text = Vec::new();
            while let Ok(1..) = socket.read_buf(&mut text).await {
                // A push's body is `#<number>;`, whatever frames are around it.
                while let Some(end) = text.iter().position(|byte| *byte == b';') {
                    let body: Vec<u8> = text.drain(..=end).collect();
                    if let Some(start) = body.iter().rposition(|byte| *byte == b'#') {
                        let number = std::str::from_utf8(&body[start + 1..body.len() - 1]).unwrap();
                        numbers.lock().unwrap().push(number.parse().unwrap());
                    }
                }
            }
        });
        Self { got, reading }
    }
}

/// The token of the user whose ID is this number.
pub(crate) fn token(mid: u32) -> String {
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    let header = Header { kid: Some("test".into()), ..Header::new(Algorithm::HS256) };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let claims = serde_json::json!({ "sub": mid.to_string(), "iat": now, "exp": now + 3600 });
    encode(&header, &claims, &EncodingKey::from_secret(crate::SECRET.as_bytes())).unwrap()
}

/// Pushes `PUSHES` numbers from `first` on, to one user after the other; each is accepted.
async fn push(logic: SocketAddr, first: u32) {
    let mut http = Http::connect(logic).await;
    for number in first..first + PUSHES {
        let path = format!("/goim/push/mids?operation=1000&mids={}", number % USERS);
        let (status, answer) = http.post(&path, &format!("#{number};")).await;
        assert_eq!(status, 200, "{answer}");
        tokio::time::sleep(PACE).await;
    }
}

/// The numbers that no user got, when all have come or the time is over; none came to anybody twice or to another.
async fn lost(users: &[User], until: u32) -> Vec<u32> {
    let begun = Instant::now();
    loop {
        let mut all = Vec::new();
        for (mid, user) in users.iter().enumerate() {
            let got = user.got.lock().unwrap().clone();
            assert!(got.iter().all(|number| number % USERS == mid as u32), "to another user");
            all.extend(got.into_iter().filter(|number| *number < WARM_UP));
        }
        all.sort_unstable();
        assert!(all.windows(2).all(|two| two[0] != two[1]), "a push came twice");
        let lost: Vec<u32> = (0..until).filter(|number| all.binary_search(number).is_err()).collect();
        if lost.is_empty() || begun.elapsed() > DEADLINE {
            return lost;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn signal_redis(redis: &Store, name: &str) {
    let pid = std::fs::read_to_string(redis.directory.path().join("1/pid")).unwrap();
    assert!(Command::new("kill").arg(format!("-{name}")).arg(pid.trim()).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_pushes_outlive_redis_and_jobs_and_none_comes_twice() {
    let (Some(kafka), Some(redis)) = (Store::start("kafka.sh"), Store::start("redis.sh")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster { kafka, redis, directory, started: 0, jobs: Vec::new(), session_ms: 6_000 };
    let logic = cluster.start("logic").0;
    let connector = cluster.start("connector").0;
    cluster.start_job();
    cluster.start_job();
    for server in [&connector, &logic].into_iter().chain(cluster.jobs.iter().map(|(job, _)| job)) {
        ready(server).await;
    }
    let mut users = Vec::new();
    for mid in 0..USERS {
        users.push(User::start(connector.clients(), mid).await);
    }
    // The routes are written a moment after a session is there.
    until("the first push comes", DEADLINE, async || {
        push_one(logic.http()).await;
        let came = users.iter().all(|user| !user.got.lock().unwrap().is_empty());
        came.then_some(())
    })
    .await;

    let (_, ()) = tokio::join!(push(logic.http(), 0), async {
        tokio::time::sleep(PACE * 50).await;
        flush(&cluster.redis.address).await;
    });
    assert_eq!(lost(&users, PUSHES).await, [0; 0], "after Redis was flushed");
    let (_, ()) = tokio::join!(push(logic.http(), PUSHES), async {
        signal_redis(&cluster.redis, "STOP");
        tokio::time::sleep(AWAY).await;
        signal_redis(&cluster.redis, "CONT");
    });
    assert_eq!(lost(&users, 2 * PUSHES).await, [0; 0], "after Redis was stopped");
    let (_, ()) = tokio::join!(push(logic.http(), 2 * PUSHES), async {
        signal_redis(&cluster.redis, "KILL");
        tokio::time::sleep(AWAY).await;
        let port = cluster.redis.address.rsplit(':').next().unwrap().to_owned();
        let up = Command::new(&cluster.redis.script)
            .args(["up".as_ref(), cluster.redis.directory.path().as_os_str(), "--port".as_ref(), port.as_ref()])
            .env("REDIS_WITH", std::process::id().to_string())
            .output()
            .unwrap();
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    });
    assert_eq!(lost(&users, 3 * PUSHES).await, [0; 0], "after Redis was killed and came back empty");
    cluster.start_job();
    ready(&cluster.jobs[2].0).await;
    let (_, ()) = tokio::join!(push(logic.http(), 3 * PUSHES), async {
        tokio::time::sleep(PACE * 50).await;
        signal("TERM", &cluster.jobs[2].0);
    });
    assert_eq!(lost(&users, 4 * PUSHES).await, [0; 0], "after a job ended gracefully");
    let (_, ()) = tokio::join!(push(logic.http(), 4 * PUSHES), async {
        tokio::time::sleep(PACE * 50).await;
        cluster.jobs[0].0.kill();
    });
    let lost = lost(&users, 5 * PUSHES).await;
    // What the killed one had committed and not sent: a moment of each of its partitions.
    assert!(lost.len() <= 4, "after a job was killed: {lost:?}");
}

/// One push to every user, of a number that is not looked at.
async fn push_one(logic: SocketAddr) {
    let mut http = Http::connect(logic).await;
    for mid in 0..USERS {
        let path = format!("/goim/push/mids?operation=1000&mids={mid}");
        let (status, answer) = http.post(&path, &format!("#{};", WARM_UP + mid)).await;
        assert_eq!(status, 200, "{answer}");
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// What `/ready` says: the status, and why a function does not work.
async fn readiness(server: &Server, function: &str) -> (u16, String) {
    let (status, body) = Http::connect(server.admin()).await.get("/ready").await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    (status, body["functions"][function].as_str().unwrap_or_else(|| panic!("no {function}: {body}")).to_owned())
}

/// Faults 3 and 4.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_tells_what_does_not_work_and_fails_for_what_a_client_would_miss() {
    let (Some(kafka), Some(redis)) = (Store::start("kafka.sh"), Store::start("redis.sh")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster { kafka, redis, directory, started: 0, jobs: Vec::new(), session_ms: 6_000 };
    let logic = cluster.start("logic").0;
    let connector = cluster.start("connector").0;
    cluster.start_job();
    for server in [&connector, &logic, &cluster.jobs[0].0] {
        ready(server).await;
    }
    let rooms: Arc<[String]> = ["room:ready".to_owned()].into();
    let _viewer = Viewer::start(connector.clients(), rooms).await;
    for (server, function) in [(&connector, "connector.rooms"), (&logic, "logic.delivery")] {
        assert_eq!(readiness(server, function).await, (200, "works".to_owned()));
    }

    signal_redis(&cluster.redis, "STOP");
    for (server, function) in
        [(&connector, "connector.pushes"), (&logic, "logic.online"), (&cluster.jobs[0].0, "job.pushes")]
    {
        until("Redis is missed", DEADLINE, async || {
            let (status, why) = readiness(server, function).await;
            assert_eq!(status, 200, "publishing and delivery go on: {why}");
            (why != "works").then_some(())
        })
        .await;
    }
    signal_redis(&cluster.redis, "CONT");

    cluster.jobs[0].0.kill();
    until("the connector misses an owner", DEADLINE, async || {
        let (status, why) = readiness(&connector, "connector.rooms").await;
        (status == 503 && why.contains("no owner")).then_some(())
    })
    .await;
    until("logic misses a job", DEADLINE, async || {
        let (status, why) = readiness(&logic, "logic.delivery").await;
        assert_eq!(status, 200, "what is published is kept: {why}");
        why.contains("no job").then_some(())
    })
    .await;
    cluster.start_job();
    for (server, function) in [(&connector, "connector.rooms"), (&logic, "logic.delivery")] {
        until("a new job is there", DEADLINE, async || {
            (readiness(server, function).await == (200, "works".to_owned())).then_some(())
        })
        .await;
    }
    for (directory, log, said) in
        [("connector-2", "connector.log", "no job delivers"), ("logic-1", "logic.log", "reaches nobody")]
    {
        let log = std::fs::read_to_string(cluster.directory.path().join(directory).join(log)).unwrap();
        assert_eq!(log.matches(said).count(), 1, "said once: {log}");
    }
}
