//! A connector is killed and started again at the same address, while its predecessor's lease still stands: each job has
//! one stream to it (fault 10).

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use super::publisher::Http;
use super::{Cluster, DEADLINE, Store, ready, until};

const JOBS: usize = 2;
/// A lease ends after ten seconds; until then the predecessor's address is dialled.
const PREDECESSOR: Duration = Duration::from_secs(12);

/// Streams of jobs that stand, as the connector tells.
async fn streams(admin: SocketAddr) -> usize {
    let (status, metrics) = Http::connect(admin).await.get("/metrics").await;
    assert_eq!(status, 200);
    let metrics = String::from_utf8(metrics).unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix("barrage_connector_owners "));
    line.expect("the metric is there").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connector_started_again_at_its_address_has_one_stream_of_each_job() {
    let (Some(kafka), Some(redis)) = (Store::start("kafka.sh"), Store::start("redis.sh")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster { kafka, redis, directory, started: 0, jobs: Vec::new(), session_ms: 6_000 };
    let _logic = cluster.start("logic").0;
    (0..JOBS).for_each(|_| cluster.start_job());
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let grpc = format!("{:?}", free().to_string());
    let mut connector = cluster.start_with("connector", &[("connector.grpc", &grpc)]).0;
    ready(&connector).await;
    let all = async |admin| {
        until("every job has a stream", DEADLINE, async || (streams(admin).await == JOBS).then_some(())).await;
    };
    all(connector.admin()).await;
    connector.kill();
    let connector = cluster.start_with("connector", &[("connector.grpc", &grpc)]).0;
    all(connector.admin()).await;
    let begun = Instant::now();
    while begun.elapsed() < PREDECESSOR {
        let streams = streams(connector.admin()).await;
        assert!(streams <= JOBS, "{streams} streams, {:?} after all had one", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
