//! A connector stands still for some seconds and goes on. What gathered for it meanwhile is delivered, and no viewer is told
//! a gap: neither the queue to a core drops it, nor does the core take it for overload.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::publisher::Publisher;
use super::viewer::Viewer;
use super::{Cluster, DEADLINE, Store, check, in_order, ready, settle, signal, until};

/// Sessions in the room.
const VIEWERS: usize = 100;
/// Messages a second.
const PER_S: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_gathered_while_a_connector_stood_still_is_delivered() {
    let (Some(kafka), Some(redis)) = (Store::start("kafka.sh"), Store::start("redis.sh")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster { kafka, redis, directory, started: 0, jobs: Vec::new(), session_ms: 6_000 };
    let logic = cluster.start("logic").0;
    let connector = cluster.start("connector").0;
    cluster.start_job();
    for server in [&logic, &connector, &cluster.jobs[0].0] {
        ready(server).await;
    }
    let rooms: Arc<[String]> = Arc::new(["room:standstill".to_owned()]);
    let mut viewers = Vec::new();
    for _ in 0..VIEWERS {
        viewers.push(Viewer::start(connector.clients(), rooms.clone()).await);
    }
    let publisher = Publisher::start(vec![logic.http()], rooms.clone(), PER_S, 1);
    let received = |viewer: &Viewer| viewer.seen.lock().unwrap().rooms[0].1.len();
    until("messages flow", DEADLINE, async || (received(&viewers[0]) > PER_S).then_some(())).await;
    for seconds in [3, 8] {
        signal("STOP", &connector);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let before = received(&viewers[0]);
        signal("CONT", &connector);
        let since = Instant::now();
        until("messages flow again", DEADLINE, async || (received(&viewers[0]) > before).then_some(())).await;
        println!("stopped for {seconds} s: messages {:?} after it went on", since.elapsed());
    }
    let sent = publisher.end().await;
    let expected = in_order(&sent);
    settle(&viewers, &expected).await;
    println!("{} messages, {} deliveries, each once and in order", sent.len(), check(&viewers, &expected));
}
