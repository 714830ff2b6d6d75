//! Job as a whole: embedded bus, routes in memory, real gRPC to connectors that stand in for the real ones.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use bus::{Start, Topic};
use prost::Message as _;
use proto::record::{self, Names};
use routes::{By, Change, SessionRoute};
use support::{Connector, World, until};

const ROOMS: usize = 8;

fn room(number: usize) -> String {
    format!("room:{}", number % ROOMS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_jobs_and_joining_ones_lose_and_repeat_nothing() {
    const MESSAGES: usize = 2000;
    let world = World::new(4).await;
    let connectors = [Connector::start(&world, "a", 1).await, Connector::start(&world, "b", 1).await];
    let mut jobs = vec![world.job("job-0"), world.job("job-1")];
    jobs[0].ready().await;
    for connector in &connectors {
        for number in 0..ROOMS {
            connector.hold(&room(number)).await;
        }
    }
    let mut pace = tokio::time::interval(Duration::from_millis(2));
    for number in 0..MESSAGES {
        pace.tick().await;
        world.publish(&room(number), &format!("id-{number}"), &number.to_string()).await;
        if number % 7 == 0 && number >= 700 {
            // A client that did not hear the answer tries again, long after.
            let again = number - 700;
            world.publish(&room(again), &format!("id-{again}"), "again").await;
        }
        if number % 400 == 200 {
            jobs.remove(0).kill();
            jobs.push(world.job(&format!("job-{number}")));
        }
        if number == MESSAGES / 2 {
            jobs.remove(0).stop().await;
            jobs.push(world.job("job-joins"));
        }
    }
    for (at, connector) in connectors.iter().enumerate() {
        for number in 0..ROOMS {
            let expected: Vec<String> =
                (0..MESSAGES).filter(|it| it % ROOMS == number).map(|it| it.to_string()).collect();
            let got = || connector.with(|state| state.channels[&room(number)].clone());
            let last = expected.last().unwrap();
            until("the last message is there", || got().messages.last().is_some_and(|(_, text)| text == last)).await;
            let got = got();
            let texts: Vec<String> = got.messages.iter().map(|(_, text)| text.clone()).collect();
            assert_eq!(texts, expected, "connector {at}, room {number}");
            assert!(got.messages.is_sorted_by(|a, b| a.0 < b.0));
            assert_eq!(got.missed, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_gets_what_follows_and_a_job_that_stops_takes_its_lease_along() {
    let world = World::new(2).await;
    let connector = Connector::start(&world, "a", 1).await;
    let job = world.job("job-0");
    job.ready().await;
    connector.hold("room:1").await;
    let before = world.publish("room:1", "before", "before").await;
    let got = |connector: &Connector| connector.with(|state| state.channels["room:1"].messages.clone());
    until("the owner has read it", || got(&connector) == [(before, "before".to_owned())]).await;
    // Started afterwards: attached, told who owns what, and served.
    let late = Connector::start(&world, "b", 1).await;
    late.hold("room:1").await;
    let after = world.publish("room:1", "after", "after").await;
    until("the message is there", || !got(&late).is_empty() && got(&connector).len() == 2).await;
    assert_eq!(got(&late), [(after, "after".to_owned())]);
    assert_eq!(got(&connector)[1], (after, "after".to_owned()));
    let jobs = || async {
        let nodes = world.routes.nodes().await.unwrap();
        nodes.into_iter().filter(|lease| lease.role == routes::Role::Job).count()
    };
    assert_eq!(jobs().await, 1);
    job.stop().await;
    assert_eq!(jobs().await, 0);
    let job = world.job("job-1");
    let offset = world.publish("room:1", "new owner", "new owner").await;
    until("the new owner delivers", || got(&connector).len() == 3).await;
    assert_eq!(got(&connector)[2], (offset, "new owner".to_owned()));
    drop(job);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_put_aside_once_and_the_rest_flows_on() {
    let world = World::new(1).await;
    let connector = Connector::start(&world, "a", 1).await;
    let job = world.job("job-0");
    connector.hold("room:1").await;
    let post = || record::record::Body::Post(record::Post { id: "x".into(), ..record::Post::default() });
    let foreign = record::Record { log: "another".into(), ..world.record(Topic::Rooms, "room:1", post()) };
    let no_room = world.record(Topic::Rooms, "user:1", post());
    let no_body = record::Record { body: None, ..world.record(Topic::Rooms, "room:1", post()) };
    let bad = [vec![0xff; 20], foreign.encode_to_vec(), no_room.encode_to_vec(), no_body.encode_to_vec()];
    let mut places = BTreeSet::new();
    for value in &bad {
        places.insert(world.bus.publish(Topic::Rooms, 0, value.clone().into()).await.unwrap());
    }
    world.publish("room:1", "good", "good").await;
    until("the good one is there", || connector.with(|state| state.channels["room:1"].messages.len() == 1)).await;
    let mut reader = world.bus.read(Topic::DeadLetters, 0, Start::At(1)).await.unwrap();
    let mut letters = Vec::new();
    while letters.len() < bad.len() {
        let read = tokio::time::timeout(Duration::from_secs(10), reader.next()).await.expect("dead letters").unwrap();
        letters.extend(read.into_iter().map(|record| record::DeadLetter::decode(record.value).unwrap()));
    }
    assert_eq!(letters.iter().map(|letter| letter.offset).collect::<BTreeSet<_>>(), places);
    assert!(letters.iter().all(|letter| letter.topic == "rooms" && !letter.reason.is_empty()));
    assert!(bad.iter().all(|bad| letters.iter().any(|letter| letter.record == *bad)));
    // The next owner reads them again, and puts nothing aside a second time.
    job.stop().await;
    let job = world.job("job-1");
    world.publish("room:1", "more", "more").await;
    until("the next is there", || connector.with(|state| state.channels["room:1"].messages.len() == 2)).await;
    let (_, next) = world.bus.bounds(Topic::DeadLetters, 0).await.unwrap();
    assert_eq!(next, bad.len() as u64 + 1);
    drop(job);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_a_newer_version_pauses_its_partition_and_no_other() {
    let world = World::new(2).await;
    let connector = Connector::start(&world, "a", 1).await;
    let _job = world.job("job-0");
    let partition = |room: &str| proto::channel::partition(room, 2);
    let other = (2..).map(|number| format!("room:{number}")).find(|it| partition(it) != partition("room:1")).unwrap();
    connector.hold("room:1").await;
    connector.hold(&other).await;
    let body = record::record::Body::Post(record::Post::default());
    let newer = record::Record { min_reader: proto::RECORD_VERSION + 1, ..world.record(Topic::Rooms, "room:1", body) };
    world.publish("room:1", "before", "before").await;
    world.bus.publish(Topic::Rooms, partition("room:1"), newer.encode_to_vec().into()).await.unwrap();
    world.publish("room:1", "behind it", "behind it").await;
    for number in 0..50 {
        world.publish(&other, &format!("other-{number}"), "other").await;
    }
    until("the other room's are there", || connector.with(|state| state.channels[&other].messages.len() == 50)).await;
    let texts = connector.with(|state| state.channels["room:1"].messages.clone());
    assert_eq!(texts.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), ["before"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_another_claimed_is_claimed_again_and_flows_on() {
    let world = World::new(1).await;
    let connector = Connector::start(&world, "a", 1).await;
    let job = world.job("job-0");
    job.ready().await;
    connector.hold("room:1").await;
    let texts = || {
        let messages = connector.with(|state| state.channels["room:1"].messages.clone());
        messages.into_iter().map(|(_, text)| text).collect::<Vec<_>>()
    };
    world.publish("room:1", "before", "before").await;
    until("the first is there", || texts() == ["before"]).await;
    // Twice, so that what is left of the first time shows in the second.
    for (number, text) in ["again", "and again"].into_iter().enumerate() {
        // One that was slow to learn that the partition is no longer its own.
        let claim = record::record::Body::Claim(record::Claim { owner: "another".into() });
        world.publish_body(Topic::Rooms, "room:1", claim).await;
        world.publish("room:1", text, text).await;
        until("the one behind the claim is there", || texts().len() == number + 2).await;
    }
    assert_eq!(texts(), ["before", "again", "and again"]);
    assert_eq!(connector.with(|state| state.channels["room:1"].missed), 0);
    job.ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_and_commands_go_where_the_sessions_are() {
    let world = World::new(2).await;
    let (a, b) = (Connector::start(&world, "a", 300).await, Connector::start(&world, "b", 100).await);
    let job = world.job("job-0");
    job.ready().await;
    let session = |connector: &Connector, number: u32| format!("{}.0.{number}.1", connector.incarnation);
    let route = |connector: &Connector, node: &str, number| SessionRoute {
        session: session(connector, number),
        device: String::new(),
        node: node.into(),
        incarnation: connector.incarnation.clone(),
    };
    let (user, key) = (By::User("7".into()), By::Key("key".into()));
    let changes = [
        Change::Put(user.clone(), route(&a, "a", 1)),
        Change::Put(user, route(&b, "b", 2)),
        Change::Put(key, route(&b, "b", 3)),
    ];
    world.routes.apply(&changes).await.unwrap();

    let names = |names: &[&str]| Names { names: names.iter().map(|&name| name.to_owned()).collect() };
    let push = |to| {
        let post = record::Post { id: "id".into(), payload: "hello".into(), ..record::Post::default() };
        record::record::Body::Push(record::Push { to: Some(to), post: Some(post), operation: 1000 })
    };
    use record::push::To;
    let users = push(To::Users(names(&["7", "nobody"])));
    let sessions = push(To::Sessions(names(&[&session(&a, 9), "gone.0.1.1", "nonsense"])));
    let all = push(To::All(record::Everyone { sessions_per_s: 1000 }));
    let kick = record::record::Body::Command(record::Command {
        to: Some(record::command::To::Keys(names(&["key"]))),
        act: Some(record::command::Act::Kick(record::Kick::default())),
    });
    for body in [users, sessions, all, kick] {
        // One key, so that they keep their order.
        world.publish_body(Topic::Pushes, "user:7", body).await;
    }
    until("the command is there", || b.with(|state| !state.commands.is_empty())).await;
    until("all is there", || a.with(|state| state.pushes.len() == 3)).await;
    assert_eq!(b.with(|state| state.commands[0].sessions.clone()), [session(&b, 3)]);
    assert!(a.with(|state| state.commands.is_empty()));

    let seen = |connector: &Connector| {
        connector.with(|state| {
            let seen = |push: &proto::cluster::PushOut| {
                let message = proto::client::Message::decode(push.message.clone()).unwrap();
                assert_eq!((message.id.as_str(), push.operation), ("id", 1000));
                (message.channel, push.sessions.clone(), push.all, push.sessions_per_s)
            };
            state.pushes.iter().map(seen).collect::<Vec<_>>()
        })
    };
    let to_all = |per_s| ("all".to_owned(), Vec::new(), true, per_s);
    let to_user = |session| ("user:7".to_owned(), vec![session], false, 0);
    assert_eq!(seen(&a), [to_user(session(&a, 1)), (String::new(), vec![session(&a, 9)], false, 0), to_all(750)]);
    assert_eq!(seen(&b), [to_user(session(&b, 2)), to_all(250)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_an_id_for_another_payload_is_told_and_nobody_gets_it() {
    let world = World::new(1).await;
    let connector = Connector::start(&world, "a", 1).await;
    let job = world.job("job-0");
    job.ready().await;
    connector.hold("room:1").await;
    let session = |number: u32| format!("{}.0.{number}.1", connector.incarnation);
    let post = |text: &'static str, session: String| {
        let (id, client_message_id, payload) = ("id".to_owned(), "mine".to_owned(), text.into());
        record::record::Body::Post(record::Post { id, client_message_id, payload, session, ..Default::default() })
    };
    for (text, number) in [("one", 1), ("one", 1), ("two", 2)] {
        world.publish_body(Topic::Rooms, "room:1", post(text, session(number))).await;
    }
    world.publish("room:1", "last", "last").await;
    let got = || connector.with(|state| state.channels["room:1"].messages.clone());
    until("the last message is there", || got().last().is_some_and(|(_, text)| text == "last")).await;
    assert_eq!(got().iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["one", "last"]);
    until("the sender is told", || connector.with(|state| !state.commands.is_empty())).await;
    let told = proto::client::Refused {
        channel: "room:1".into(),
        id: "id".into(),
        client_message_id: "mine".into(),
        code: proto::client::ErrorCode::Conflict.into(),
    };
    let told = proto::cluster::CommandOut {
        sessions: vec![session(2)],
        act: Some(proto::cluster::command_out::Act::Refused(told)),
    };
    assert_eq!(connector.with(|state| state.commands.clone()), [told]);
}
