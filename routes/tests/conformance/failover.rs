//! Redis with another primary: what a node does whose connections stand at the old one.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use routes::{By, Change, Redis, Routes};
use tokio::net::{TcpListener, TcpStream};

use crate::outage::{changes, lease, open};
use crate::server::Servers;
use crate::{config, times};

/// Within two leases a node is whole again, once Redis is; Redis's own election, and a loaded machine, come on top.
const WHOLE_WITHIN: Duration = Duration::from_secs(2 * routes::LEASE_SECONDS + 20);
/// As a node does it: a third of a lease.
const RENEW_EVERY: Duration = Duration::from_secs(routes::LEASE_SECONDS / 3);

/// Renews as a node does, and puts everything again when it is told to, until a user's route is found again. The time
/// that it took.
async fn whole_again(routes: &dyn Routes) -> Duration {
    let begun = Instant::now();
    loop {
        let last = match routes.renew(&lease()).await {
            Ok(true) => String::new(),
            Ok(false) => routes.apply(&changes()).await.err().map(|error| error.to_string()).unwrap_or_default(),
            Err(error) => error.to_string(),
        };
        if last.is_empty() {
            let names: Vec<By> = (0..1000).map(|n| By::User(format!("u{n}"))).collect();
            if routes.find(&names).await.is_ok_and(|found| found.iter().all(|sessions| sessions.len() == 1)) {
                return begun.elapsed();
            }
        }
        assert!(begun.elapsed() < WHOLE_WITHIN, "not whole after {:?}: {last}", begun.elapsed());
        tokio::time::sleep(RENEW_EVERY).await;
    }
}

#[tokio::test]
async fn a_cluster_that_loses_a_master_is_followed_to_its_replica() {
    let Some(servers) = Servers::up(&["--cluster", "--replicas"]) else { return };
    let mut config = config(&servers, "test");
    // As an operator writes them: those that were made masters.
    config.urls.truncate(3);
    let routes = Redis::with(&config, times(Duration::from_secs(routes::LEASE_SECONDS))).unwrap();
    assert!(!routes.renew(&lease()).await.unwrap());
    let put: Vec<Change> = changes();
    routes.apply(&put).await.unwrap();
    let routes = Arc::new(routes);
    // As a connector and a job do beside it: calls are under way all the time.
    let busy: Vec<_> = (0..4)
        .map(|_| {
            let routes = routes.clone();
            tokio::spawn(async move {
                loop {
                    drop(routes.nodes().await);
                    drop(routes.ready().await);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
        })
        .collect();
    servers.kill(0);
    println!("whole {:?} after a master was killed", whole_again(&*routes).await);
    busy.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A virtual address: new connections go to `primary`, those that stand stay where they are.
async fn virtual_address(primary: Arc<Mutex<String>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let target = primary.lock().unwrap().clone();
            tokio::spawn(async move {
                if let Ok(mut far) = TcpStream::connect(target.trim_start_matches("redis://")).await {
                    // However it ends, both ends are closed.
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                }
            });
        }
    });
    url
}

async fn command(servers: &Servers, words: &[&str]) {
    let mut connection = servers.connections().await.remove(0);
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async::<()>(&mut connection).await.unwrap();
}

/// The old primary becomes a replica that answers `expected` to what a node writes; the address leads to another.
async fn another_takes_over(old_becomes: &[&[&str]], expected: &str) {
    let (Some(old), Some(new)) = (Servers::up(&[]), Servers::up(&[])) else { return };
    let primary = Arc::new(Mutex::new(old.urls[0].clone()));
    let routes = open(&virtual_address(primary.clone()).await);
    assert!(!routes.renew(&lease()).await.unwrap());
    routes.apply(&changes()).await.unwrap();
    assert!(routes.renew(&lease()).await.unwrap());
    for words in old_becomes {
        let port = new.urls[0].rsplit(':').next().unwrap();
        let words: Vec<&str> = words.iter().map(|word| if *word == "PORT" { port } else { word }).collect();
        command(&old, &words).await;
    }
    let error = routes.renew(&lease()).await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains(&expected.to_lowercase()), "{error}");
    *primary.lock().unwrap() = new.urls[0].clone();
    println!("whole {:?} after the address led to another primary", whole_again(&routes).await);
}

#[tokio::test]
async fn a_primary_that_became_a_replica_is_left() {
    another_takes_over(&[&["REPLICAOF", "127.0.0.1", "PORT"]], "read only").await;
}

#[tokio::test]
async fn a_primary_that_became_a_replica_without_a_master_is_left() {
    let down: [&[&str]; 2] = [&["CONFIG", "SET", "replica-serve-stale-data", "no"], &["REPLICAOF", "127.0.0.1", "1"]];
    another_takes_over(&down, "MASTERDOWN").await;
}
