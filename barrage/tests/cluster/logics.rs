//! A logic that stands still beside one that works: newcomers are let in, and messages are published (fault 25).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::viewer::Viewer;
use super::{Cluster, DEADLINE, Store, ready, signal, until};

/// A newcomer is let in so soon. It takes 1.2 s where the machine is idle; the streams to a logic that stands still end
/// after seven seconds, and a newcomer is closed after five.
const LET_IN: Duration = Duration::from_millis(4_500);
const NEWCOMERS: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_is_let_in_though_one_logic_stands_still() {
    let (Some(kafka), Some(redis)) = (Store::start("kafka.sh"), Store::start("redis.sh")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster { kafka, redis, directory, started: 0, jobs: Vec::new(), session_ms: 6_000 };
    let logics = [cluster.start("logic").0, cluster.start("logic").0];
    let (connector, place) = cluster.start("connector");
    cluster.start_job();
    for server in logics.iter().chain([&connector]).chain(cluster.jobs.iter().map(|(job, _)| job)) {
        ready(server).await;
    }
    let log = || std::fs::read_to_string(place.join("connector.log")).unwrap();
    until("both logics are asked", DEADLINE, async || {
        (log().matches("asking a logic").count() == logics.len()).then_some(())
    })
    .await;
    let rooms: Arc<[String]> = ["room:newcomers".to_owned()].into();
    let newcomers = async || {
        let begun = Instant::now();
        // Each has its logic by chance.
        let rooms = || rooms.clone();
        let all = (0..NEWCOMERS).map(|_| Viewer::start(connector.clients(), rooms()));
        let viewers = futures::future::join_all(all).await;
        (viewers, begun.elapsed())
    };
    let (_before, _) = newcomers().await;
    for logic in &logics {
        signal("STOP", logic);
        let (_viewers, took) = newcomers().await;
        println!("{NEWCOMERS} newcomers were let in within {took:?} of the stop");
        assert!(took < LET_IN, "newcomers waited {took:?}");
        let (_viewers, took) = newcomers().await;
        println!("and the next within {took:?}");
        assert!(took < LET_IN, "newcomers waited {took:?}");
        signal("CONT", logic);
        let heard = log().matches("does not answer").count();
        until("it is asked again", DEADLINE, async || (log().matches("answers again").count() == heard).then_some(()))
            .await;
    }
}
