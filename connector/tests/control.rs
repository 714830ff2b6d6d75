//! The control thread over real sockets, with real cores: what clients, logics and jobs see of a connector.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cluster;

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster::{Client, Job, Logic, Manner, Node, item, message, until};
use proto::client::{ErrorCode, server_frame::Body};
use proto::cluster::{CommandOut, PushOut, command_out, from_holder, from_owner};
use proto::record::Kick;
use routes::{By, Memory, Role, Routes};

const ROOM: &str = "room:1";

/// A connector with one logic, ready.
async fn ready() -> (Node, Logic) {
    let routes = Arc::new(Memory::new());
    let logic = Logic::start(&routes, "logic", Manner::Answers).await;
    let node = Node::start(routes).await;
    node.ready().await;
    (node, logic)
}

/// A client that is in [`ROOM`], up to offset 1.
async fn watching(node: &Node, job: &mut Job, uid: &str) -> Client {
    let mut client = node.client(uid).await;
    client.subscribe(ROOM).await;
    let hold = job.hold().await;
    assert_eq!((hold.channel.as_str(), hold.log.as_str()), (ROOM, ""));
    job.held(&hold, 1, vec![item(ROOM, 1, "old")]).await;
    match client.answer().await {
        Body::Subscribed(subscribed) => assert_eq!(subscribed.position.unwrap().normal, 1),
        other => panic!("{other:?}"),
    }
    client
}

#[tokio::test]
async fn a_client_subscribes_receives_and_publishes() {
    let (node, logic) = ready().await;
    let mut job = Job::own(node.running.grpc, 10).await;
    let mut client = watching(&node, &mut job, "ann").await;
    job.deliver(vec![item(ROOM, 2, "two"), item("room:other", 3, "not ours"), item(ROOM, 4, "four")]).await;
    assert_eq!((client.text().await, client.text().await), ("two".into(), "four".into()));
    job.acked().await;

    client.publish(ROOM, "hello").await;
    assert!(matches!(client.answer().await, Body::Published(published) if published.id == "hello"));
    assert_eq!(logic.published(), [(client.session.clone(), "hello".into())]);

    // To the session, and to everyone; what is for other sessions goes to nobody.
    let push = |sessions: &[&str], all, text: &str| {
        let message = prost::Message::encode_to_vec(&message("user:ann", 0, text)).into();
        let sessions = sessions.iter().map(ToString::to_string).collect();
        from_owner::Frame::Push(PushOut { sessions, all, message, ..PushOut::default() })
    };
    job.send(push(&["abcdefg234567.0.9999.1", "other.0.0.0", "nonsense"], false, "not you")).await;
    job.send(push(&[&client.session], false, "you")).await;
    assert_eq!(client.text().await, "you");
    job.send(push(&[], true, "all")).await;
    assert_eq!(client.text().await, "all");

    // The sums are said once a second.
    until("metrics", async || {
        let metrics = node.metrics();
        ["connector_sessions 1", "connector_deliveries_total 2", "connector_delivered_total 3", "connector_logics 1"]
            .iter()
            .all(|line| metrics.contains(line))
    })
    .await;

    let act = Some(command_out::Act::Kick(Kick { code: ErrorCode::Kicked.into(), reason: "so".into() }));
    job.send(from_owner::Frame::Command(CommandOut { sessions: vec![client.session.clone()], act })).await;
    assert!(matches!(client.push().await, Some(Body::Goodbye(goodbye)) if goodbye.code() == ErrorCode::Kicked));
    assert!(client.push().await.is_none());
}

#[tokio::test]
async fn a_new_owner_is_told_positions_and_nothing_is_missed_or_twice() {
    let (node, _logic) = ready().await;
    let mut first = Job::own(node.running.grpc, 10).await;
    let mut client = watching(&node, &mut first, "ann").await;
    first.deliver((2..=5).map(|offset| item(ROOM, offset, &offset.to_string())).collect()).await;
    first.acked().await;

    let mut second = Job::own(node.running.grpc, 20).await;
    let hold = second.hold().await;
    assert_eq!((hold.log.as_str(), hold.offset, hold.ordinal, hold.ordinal_epoch), ("log", 5, 5, 10));
    second.next("the end of the holds", |frame| matches!(frame, from_holder::Frame::HoldsDone(_)).then_some(())).await;
    // The one that lost it does not know yet.
    first.deliver(vec![item(ROOM, 99, "from a paused owner")]).await;
    second.deliver(vec![item(ROOM, 6, "6")]).await;
    second.held(&hold, 7, vec![item(ROOM, 7, "7")]).await;
    second.deliver(vec![item(ROOM, 8, "8")]).await;
    for offset in 2..=8 {
        assert_eq!(client.text().await, offset.to_string());
    }

    // Its stream breaks: who subscribes meanwhile waits for the next owner.
    drop(second);
    let mut late = node.client("bob").await;
    late.subscribe("room:2").await;
    let mut third = Job::own(node.running.grpc, 20).await;
    let (a, b) = (third.hold().await, third.hold().await);
    let (old, new) = if a.channel == ROOM { (a, b) } else { (b, a) };
    assert_eq!((old.offset, new.channel.as_str(), new.log.as_str()), (8, "room:2", ""));
    third.held(&new, 8, Vec::new()).await;
    assert!(matches!(late.answer().await, Body::Subscribed(_)));
    third.held(&old, 9, vec![item(ROOM, 9, "9")]).await;
    assert_eq!(client.text().await, "9");
}

#[tokio::test]
async fn requests_of_a_session_reach_one_logic_in_order() {
    let routes = Arc::new(Memory::new());
    let logics = [Logic::start(&routes, "a", Manner::Answers).await, Logic::start(&routes, "b", Manner::Answers).await];
    let node = Node::start(routes).await;
    node.ready().await;
    until("both streams", async || node.metrics().contains("connector_logics 2")).await;
    let clients: Vec<_> = (0..20)
        .map(|client| {
            let address = node.running.clients[0];
            tokio::spawn(async move {
                let mut client = {
                    let mut connecting = Client::connect(address).await;
                    let connect = proto::client::Connect { token: format!("u{client}"), ..Default::default() };
                    connecting.ask(proto::client::client_frame::Body::Connect(connect)).await;
                    assert!(matches!(connecting.answer().await, Body::Connected(_)));
                    connecting
                };
                // All at once: more than may be under way.
                for at in 0..50 {
                    client.publish(ROOM, &at.to_string()).await;
                }
                for _ in 0..50 {
                    client.answer().await;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let mut by_session: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for (which, logic) in logics.iter().enumerate() {
        for (session, text) in logic.published() {
            by_session.entry(session).or_default().push((which, text));
        }
    }
    assert_eq!(by_session.len(), 20);
    for published in by_session.values() {
        let logic = published[0].0;
        assert_eq!(*published, (0..50).map(|at| (logic, at.to_string())).collect::<Vec<_>>());
    }
    assert!(logics.iter().all(|logic| !logic.published().is_empty()), "one logic has everything");
}

#[tokio::test]
async fn a_logic_that_ends_is_told_as_unavailable_and_replaced() {
    let routes = Arc::new(Memory::new());
    let silent = Logic::start(&routes, "silent", Manner::PublishesNothing).await;
    let node = Node::start(routes.clone()).await;
    node.ready().await;
    let mut job = Job::own(node.running.grpc, 10).await;
    let mut client = watching(&node, &mut job, "ann").await;
    client.publish(ROOM, "into-the-void").await;
    until("the request", async || !silent.published().is_empty()).await;
    silent.end(&routes).await;
    let unavailable =
        |answer: Body| matches!(answer, Body::Error(error) if error.code() == ErrorCode::Unavailable && error.retry);
    assert!(unavailable(client.answer().await));
    client.publish(ROOM, "nobody-there").await;
    assert!(unavailable(client.answer().await));
    assert_eq!(node.running.ready(), Err("no logic can be reached".into()));

    let logic = Logic::start(&routes, "logic", Manner::Answers).await;
    node.ready().await;
    client.publish(ROOM, "again").await;
    assert!(matches!(client.answer().await, Body::Published(_)));
    assert_eq!(logic.published(), [(client.session.clone(), "again".into())]);
}

/// Fault 25: a newcomer is let in though one logic stands still, and nobody is sent to that one again.
#[tokio::test]
async fn a_logic_that_stands_still_is_left_for_another() {
    let routes = Arc::new(Memory::new());
    let still = Logic::start(&routes, "still", Manner::StandsStill).await;
    let logic = Logic::start(&routes, "logic", Manner::Answers).await;
    let node = Node::start(routes).await;
    node.ready().await;
    until("both streams", async || node.metrics().contains("connector_logics 2")).await;
    let mut job = Job::own(node.running.grpc, 10).await;
    // Each session has its logic by chance: with so many, both are asked.
    let mut clients = Vec::new();
    for at in 0..20 {
        clients.push(node.client(&format!("u{at}")).await);
    }
    assert!(!still.seen().is_empty(), "nobody was sent to the one that stands still");
    assert!(node.metrics().contains("connector_silent_logics 1"), "{}", node.metrics());
    let asked = still.seen().len();
    let mut client = watching(&node, &mut job, "ann").await;
    for at in 0..20 {
        client.publish(ROOM, &at.to_string()).await;
        assert!(matches!(client.answer().await, Body::Published(_)));
    }
    assert_eq!((logic.published().len(), still.seen().len()), (20, asked));
}

/// Fault 22: a logic that ends has answered what it took, so that another may be asked everything else.
#[tokio::test]
async fn what_a_logic_that_ends_did_not_take_is_asked_of_another() {
    /// Fewer than a session may have under way.
    const MESSAGES: usize = 4;
    let routes = Arc::new(Memory::new());
    let first = Logic::start(&routes, "first", Manner::PublishesNothing).await;
    let node = Node::start(routes.clone()).await;
    node.ready().await;
    let mut job = Job::own(node.running.grpc, 10).await;
    let mut client = watching(&node, &mut job, "ann").await;
    for at in 0..MESSAGES {
        client.publish(ROOM, &at.to_string()).await;
    }
    until("the requests", async || first.published().len() == MESSAGES).await;
    let second = Logic::start(&routes, "second", Manner::Answers).await;
    until("both streams", async || node.metrics().contains("connector_logics 2")).await;
    first.end(&routes).await;
    for _ in 0..MESSAGES {
        assert!(matches!(client.answer().await, Body::Published(_)));
    }
    let texts: Vec<String> = second.published().into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, (0..MESSAGES).map(|at| at.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn routes_that_were_lost_are_whole_again() {
    let (node, _logic) = ready().await;
    let mut job = Job::own(node.running.grpc, 10).await;
    let client = watching(&node, &mut job, "ann").await;
    let whole = async || {
        let found = node.routes.find(&[By::User("ann".into())]).await.unwrap().remove(0);
        let counted = node.routes.live_counts(&[ROOM.into()]).await.unwrap();
        let nodes = node.routes.nodes().await.unwrap();
        let lease = nodes.iter().find(|node| node.role == Role::Connector);
        found.iter().any(|route| route.session == client.session)
            && counted == [1]
            && lease.is_some_and(|lease| lease.sessions == 1 && lease.open && !lease.grpc.is_empty())
    };
    let complete = async || !node.routes.look_up(&[]).await.unwrap().complete.is_empty();
    until("the routes", whole).await;
    until("that they are complete is known", complete).await;
    node.routes.resign("connector", "abcdefg234567").await.unwrap();
    assert!(node.routes.find(&[By::User("ann".into())]).await.unwrap()[0].is_empty());
    assert!(!complete().await, "nobody may believe what is missing now");
    until("the routes again", whole).await;
    until("that they are complete again is known", complete).await;
    drop(client);
    until("the end of the route", async || node.routes.find(&[By::User("ann".into())]).await.unwrap()[0].is_empty())
        .await;
}

#[tokio::test]
async fn a_session_whose_key_another_takes_is_displaced() {
    let (node, logic) = ready().await;
    let mut job = Job::own(node.running.grpc, 10).await;
    let (_first, hold) = (Client::goim(node.running.clients[0], "k1").await, job.hold().await);
    job.held(&hold, 1, Vec::new()).await;
    let key = [By::Key("k1".into())];
    let sessions = async || node.routes.find(&key).await.unwrap().remove(0);
    until("the first one's route", async || sessions().await.len() == 1).await;
    let first = sessions().await[0].session.clone();
    let _second = Client::goim(node.running.clients[0], "k1").await;
    let displaced = async || {
        logic.seen().into_iter().find_map(|ask| match ask {
            proto::cluster::gate_request::Ask::Displace(displace) => Some(displace),
            _ => None,
        })
    };
    // The second may be on the other core: that asks for the channel itself.
    let hold = tokio::time::timeout(std::time::Duration::from_millis(300), job.hold()).await;
    if let Ok(hold) = hold {
        job.held(&hold, 1, Vec::new()).await;
    }
    until("the displacing", async || displaced().await.is_some()).await;
    let displace = displaced().await.unwrap();
    assert_eq!(displace.session, first);
}

#[tokio::test]
async fn viewers_are_told_how_many_they_are() {
    let (node, _logic) = ready().await;
    let mut job = Job::own(node.running.grpc, 10).await;
    let mut client = watching(&node, &mut job, "ann").await;
    // Another connector's viewers.
    let lease = routes::Lease {
        node: "other".into(),
        incarnation: "zzzzzzz234567".into(),
        role: Role::Connector,
        grpc: String::new(),
        clients: Vec::new(),
        sessions: 0,
        addresses: 0,
        open: true,
        job: None,
    };
    node.routes.renew(&lease).await.unwrap();
    node.routes.count("other", "zzzzzzz234567", &[(ROOM.into(), 41)]).await.unwrap();
    cluster::patiently("the number", async {
        loop {
            client.ask(proto::client::client_frame::Body::Ping(proto::client::Ping {})).await;
            match client.answer().await {
                Body::Pong(pong)
                    if pong.online.iter().any(|online| online.channel == ROOM && online.sessions == 42) =>
                {
                    return;
                }
                Body::Pong(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn who_does_not_know_the_secret_delivers_nothing() {
    let (node, _logic) = ready().await;
    let refused = Job::attach(node.running.grpc, "another secret").await.err().unwrap();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}

/// Fault 10.
#[tokio::test]
async fn a_job_has_one_stream_and_to_the_incarnation_that_it_means() {
    const CONNECTOR: &str = "abcdefg234567";
    let (node, _logic) = ready().await;
    let grpc = node.running.grpc;
    let refused = Job::attach_as(grpc, "job", "the one before").await.err().unwrap();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let mut other = Job::attach_as(grpc, "other job", CONNECTOR).await.unwrap();
    let mut first = Job::attach_as(grpc, "job", CONNECTOR).await.unwrap().owning(10).await;
    let mut client = watching(&node, &mut first, "ann").await;
    // Its stream has broken, and the connector does not know yet.
    let mut second = Job::attach_as(grpc, "job", CONNECTOR).await.unwrap().owning(10).await;
    assert_eq!(first.broken().await.code(), tonic::Code::Aborted);
    let hold = second.hold().await;
    assert_eq!(hold.offset, 1, "it is told where the connector is");
    second.held(&hold, 2, vec![item(ROOM, 2, "two")]).await;
    assert_eq!(client.text().await, "two");
    until("two streams", async || node.metrics().contains("connector_owners 2\n")).await;
    other = other.owning(20).await;
    assert_eq!(other.hold().await.offset, 2, "another job's stream stands");
}

#[tokio::test]
async fn draining_tells_clients_closes_them_and_gives_the_lease_back() {
    let (node, logic) = ready().await;
    let mut job = Job::own(node.running.grpc, 10).await;
    let mut client = watching(&node, &mut job, "ann").await;
    let address = node.running.clients[0];
    node.stop.cancel();
    assert!(
        matches!(client.push().await, Some(Body::Goodbye(goodbye)) if goodbye.code() == ErrorCode::Draining && goodbye.retry)
    );
    assert!(client.push().await.is_none());
    drop(client);
    let routes = node.routes.clone();
    cluster::patiently("the end", node.running.join()).await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    let left: Vec<_> = routes.nodes().await.unwrap().into_iter().map(|node| node.node).collect();
    assert_eq!(left, [logic.lease.node.as_str()]);
    assert!(routes.find(&[By::User("ann".into())]).await.unwrap()[0].is_empty());
}
