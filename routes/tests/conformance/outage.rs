//! Redis far away, and not there: how many round trips a call takes, and what is said while there is no answer.

use std::time::{Duration, Instant};

use proto::config::Secret;
use routes::{By, Change, Config, Kind, Lease, Redis, Role, Routes, SessionRoute};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::server::Servers;

pub(crate) fn open(url: &str) -> Redis {
    let config = Config {
        kind: Kind::Redis,
        urls: vec![url.into()],
        username: String::new(),
        password: Secret::new(""),
        cluster: false,
        prefix: "test".into(),
    };
    config.check().unwrap();
    Redis::open(&config).unwrap()
}

pub(crate) fn lease() -> Lease {
    Lease {
        node: "n1".into(),
        incarnation: "aaa".into(),
        role: Role::Connector,
        grpc: String::new(),
        clients: vec![],
        sessions: 0,
        addresses: 0,
        open: true,
        job: None,
    }
}

pub(crate) fn changes() -> Vec<Change> {
    let route = |n| SessionRoute {
        session: format!("aaa.{n}"),
        device: String::new(),
        node: "n1".into(),
        incarnation: "aaa".into(),
    };
    (0..1000).map(|n| Change::Put(By::User(format!("u{n}")), route(n))).collect()
}

/// Hands bytes on in both directions, each `delay` after it took them; what comes meanwhile goes with the next.
async fn far_away(target: String, delay: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(target.trim_start_matches("redis://")).await.unwrap();
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            for (mut from, mut to) in [(near_read, far_write), (far_read, near_write)] {
                tokio::spawn(async move {
                    let mut bytes = vec![0; 1 << 20];
                    while let Ok(n @ 1..) = from.read(&mut bytes).await {
                        tokio::time::sleep(delay).await;
                        if to.write_all(&bytes[..n]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        }
    });
    url
}

#[tokio::test]
async fn a_thousand_changes_take_a_handful_of_round_trips() {
    let Some(servers) = Servers::up(&[]) else { return };
    let delay = Duration::from_millis(50);
    let routes = open(&far_away(servers.urls[0].clone(), delay).await);
    routes.renew(&lease()).await.unwrap();
    // The first call teaches Redis the script.
    routes.apply(&changes()[..1]).await.unwrap();
    let began = Instant::now();
    routes.apply(&changes()).await.unwrap();
    let trips = began.elapsed().as_secs_f64() / (2.0 * delay.as_secs_f64());
    println!("1,000 changes took the time of {trips:.1} round trips");
    assert!(trips < 8.0, "{trips} round trips");
}

#[tokio::test]
async fn without_redis_every_call_says_so_soon_and_afterwards_all_is_well() {
    let Some(servers) = Servers::up(&[]) else { return };
    let port = servers.urls[0].rsplit(':').next().unwrap().to_owned();
    let routes = open(&servers.urls[0]);
    assert!(!routes.renew(&lease()).await.unwrap());
    assert!(routes.renew(&lease()).await.unwrap());
    assert_eq!(routes.ready().await, Ok(()));
    servers.down();
    let began = Instant::now();
    let error = routes.renew(&lease()).await.unwrap_err();
    assert!(error.to_string().contains("Redis"), "{error}");
    assert!(routes.apply(&changes()).await.is_err());
    assert!(routes.ready().await.is_err());
    assert!(began.elapsed() < Duration::from_secs(3 * 3), "{:?}", began.elapsed());
    servers.again(&["--port", &port]);
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(reason) = routes.ready().await {
        assert!(Instant::now() < end, "{reason}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!routes.renew(&lease()).await.unwrap(), "the new server has nothing");
    routes.apply(&changes()).await.unwrap();
    assert!(routes.renew(&lease()).await.unwrap());
    assert_eq!(routes.find(&[By::User("u7".into())]).await.unwrap()[0].len(), 1);
}

#[tokio::test]
async fn a_failed_renewal_is_followed_by_putting_again() {
    let Some(servers) = Servers::up(&[]) else { return };
    let port = servers.urls[0].rsplit(':').next().unwrap().to_owned();
    let routes = open(&servers.urls[0]);
    routes.renew(&lease()).await.unwrap();
    assert!(routes.renew(&lease()).await.unwrap());
    // The lease is renewed by another client, as if this one's renewal had come through and its answer had not.
    let other = open(&servers.urls[0]);
    servers.down();
    assert!(routes.renew(&lease()).await.is_err());
    servers.again(&["--port", &port]);
    let end = Instant::now() + Duration::from_secs(10);
    while other.renew(&lease()).await.is_err() {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while routes.ready().await.is_err() {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!routes.renew(&lease()).await.unwrap(), "every shard has the lease, and yet nothing is known of the rows");
    assert!(routes.renew(&lease()).await.unwrap());
}
