//! Every service is restarted by SIGTERM, one after the other, under load: nothing is lost, and no publish fails
//! (fault 22).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use super::publisher::Http;
use super::resuming::{Addresses, Crowd, Resuming};
use super::{Cluster, DEADLINE, Server, Store, ready, until};

const CLIENTS: u32 = 20;
/// Rooms that everyone is in.
const SHARED: usize = 4;
/// One message in so many of the platform's goes to a room that one client alone is in, and that is quiet otherwise.
const TO_A_QUIET_ROOM: u32 = 10;
/// Each client publishes 2.5 messages a second, and each sender of the platform five: a hundred in all.
const EVERY: Duration = Duration::from_millis(400);
const SENDERS: u32 = 10;
const SENDER_EVERY: Duration = Duration::from_millis(200);
/// A graceful end takes no longer.
const END_MAX: Duration = Duration::from_secs(15);
/// So much longer than asked for the slower half of the clients stay away. Of 25 messages a second in a room, the last 200
/// are kept.
const DAWDLES: Duration = Duration::from_secs(2);
/// Between two restarts, so that each is told apart in what the clients saw.
const BETWEEN: Duration = Duration::from_secs(1);

/// The platform's own messages, by HTTP through either logic.
struct Platform {
    accepted: Arc<Mutex<BTreeSet<(usize, u32)>>>,
    failed: Arc<Mutex<Vec<String>>>,
    senders: JoinSet<()>,
}

impl Platform {
    fn start(logics: &Addresses, crowd: &Crowd) -> Self {
        let (accepted, failed) = (Arc::default(), Arc::default());
        let mut platform = Self { accepted, failed, senders: JoinSet::new() };
        for sender in 0..SENDERS {
            let (logics, crowd) = (logics.clone(), crowd.clone());
            let (accepted, failed) = (platform.accepted.clone(), platform.failed.clone());
            platform.senders.spawn(async move {
                let mut at = logics.other(None);
                let mut http = None;
                tokio::time::sleep(SENDER_EVERY * sender / SENDERS).await;
                while crowd.publishing.load(Ordering::Relaxed) {
                    let number = crowd.next.fetch_add(1, Ordering::Relaxed);
                    let room = match number.is_multiple_of(TO_A_QUIET_ROOM) {
                        true => crowd.shared + rand::random_range(0..CLIENTS as usize),
                        false => number as usize % crowd.shared,
                    };
                    let path = format!("/v1/rooms/{}/messages", crowd.rooms[room].trim_start_matches("room:"));
                    let body = json!({ "text": number.to_string(), "client_message_id": format!("m{number}") });
                    let begun = Instant::now();
                    // A connection that cannot be had, or that ended before an answer, is another logic's turn.
                    let answer = loop {
                        if http.is_none() {
                            http = Http::try_connect(at).await;
                        }
                        if let Some(answer) = match &mut http {
                            Some(http) => http.try_ask("POST", &path, &body).await,
                            None => None,
                        } {
                            break answer;
                        }
                        if begun.elapsed() > DEADLINE {
                            break json!("no logic answers");
                        }
                        (http, at) = (None, logics.other(Some(at)));
                    };
                    match answer["id"].is_string() {
                        true => drop(accepted.lock().unwrap().insert((room, number))),
                        false => failed.lock().unwrap().push(answer.to_string()),
                    }
                    tokio::time::sleep(SENDER_EVERY).await;
                }
            });
        }
        platform
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_nothing_and_fails_no_publish() {
    let (Some(kafka), Some(redis)) = (Store::start("kafka.sh"), Store::start("redis.sh")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster { kafka, redis, directory, started: 0, jobs: Vec::new(), session_ms: 6_000 };
    let mut servers: Vec<(&str, Server)> = Vec::new();
    for role in ["logic", "logic", "connector", "connector", "job", "job"] {
        servers.push((role, cluster.start(role).0));
    }
    for (_, server) in &servers {
        ready(server).await;
    }
    let connectors = Addresses::new(servers[2..4].iter().map(|(_, server)| server.clients()).collect());
    let logics = Addresses::new(servers[..2].iter().map(|(_, server)| server.http()).collect());
    let crowd = Crowd {
        connectors: connectors.clone(),
        rooms: (0..SHARED + CLIENTS as usize).map(|room| format!("room:rolling-{room}")).collect(),
        shared: SHARED,
        every: EVERY,
        next: Arc::new(AtomicU32::new(1)),
        publishing: Arc::new(AtomicBool::new(false)),
    };
    let mut clients = Vec::new();
    for uid in 0..CLIENTS {
        clients.push(Resuming::start(crowd.clone(), uid, DAWDLES * (uid % 2)).await);
    }
    crowd.publishing.store(true, Ordering::Relaxed);
    let mut platform = Platform::start(&logics, &crowd);
    let received = |client: &Resuming| client.seen.lock().unwrap().rooms.iter().map(Vec::len).sum::<usize>();
    until("messages flow", DEADLINE, async || (received(&clients[0]) > 100).then_some(())).await;

    let rounds = if std::env::var_os("BARRAGE_FULL").is_some() { 5 } else { 1 };
    for at in (0..rounds).flat_map(|_| 0..servers.len()).collect::<Vec<_>>() {
        let (role, server) = &mut servers[at];
        let begun = Instant::now();
        let code = tokio::task::block_in_place(|| server.end(END_MAX));
        let ended = begun.elapsed();
        assert_eq!(code, Some(0), "{role} did not end in order within {END_MAX:?}");
        *server = cluster.start(role).0;
        ready(server).await;
        match at {
            0..2 => logics.replace(at, server.http()),
            2..4 => connectors.replace(at - 2, server.clients()),
            _ => {}
        }
        println!("{role} ended within {ended:?}, and another was ready after {:?}", begun.elapsed());
        tokio::time::sleep(BETWEEN).await;
    }
    crowd.publishing.store(false, Ordering::Relaxed);
    while let Some(ended) = platform.senders.join_next().await {
        ended.expect("a sender");
    }
    // Whoever waits for an answer gets it, or is counted as failed, by then.
    tokio::time::sleep(Duration::from_secs(1)).await;

    let mut accepted = std::mem::take(&mut *platform.accepted.lock().unwrap());
    let mut failed = std::mem::take(&mut *platform.failed.lock().unwrap());
    for client in &clients {
        let mut seen = client.seen.lock().unwrap();
        accepted.append(&mut seen.accepted);
        failed.append(&mut seen.refused);
    }
    let missing = |at: usize| {
        let seen = clients[at].seen.lock().unwrap();
        let numbers = |got: &Vec<(u64, u32)>| got.iter().map(|one| one.1).collect::<BTreeSet<u32>>();
        let got: Vec<BTreeSet<u32>> = seen.rooms.iter().map(numbers).collect();
        let due = accepted.iter().filter(|(room, _)| *room < SHARED || *room == SHARED + at);
        due.filter(|(room, number)| !got[*room].contains(number)).copied().collect::<Vec<_>>()
    };
    let begun = Instant::now();
    while (0..clients.len()).any(|at| !missing(at).is_empty()) && begun.elapsed() < DEADLINE / 4 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut lost = 0;
    for (at, client) in clients.iter().enumerate() {
        let missing = missing(at);
        lost += missing.len();
        let seen = client.seen.lock().unwrap();
        println!("client {at}: connected {} times, away for {:?} at most", seen.connected, seen.away);
        if !missing.is_empty() || !seen.gaps.is_empty() {
            println!("client {at} lacks {missing:?} and was told {:?}", seen.gaps);
        }
        for (room, got) in seen.rooms.iter().enumerate() {
            let unordered = got.windows(2).find(|two| two[0].0 >= two[1].0);
            assert_eq!(unordered, None, "client {at} has room {room} in order, each message once");
        }
        assert_eq!(seen.gaps, [], "nothing is missing");
    }
    println!("{} messages accepted, {} publishes failed: {failed:#?}", accepted.len(), failed.len());
    assert!(accepted.len() > 500, "{} messages", accepted.len());
    assert_eq!((lost, failed.len()), (0, 0), "pairs lost, publishes failed");
}
