//! What every implementation of `Routes` must do, run against memory, a Redis server and a Redis Cluster of three.
//!
//! A case is given two handles on one table (on Redis: two clients, as two nodes have) under a prefix of its own, with
//! a lease that a test can wait for. Nothing sleeps for a fixed time: it waits for what must come to be.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod failover;
mod outage;
mod server;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::config::Secret;
use routes::{By, Change, Config, Kind, Lease, Memory, Redis, Role, Routes, SessionRoute, Times};
use server::Servers;

/// Of the cases that wait for its end. Long enough that one which is not scheduled for a while does not lose it by
/// accident; the other cases have the real one.
const SHORT_LEASE: Duration = Duration::from_secs(2);
const LEASE: Duration = Duration::from_secs(routes::LEASE_SECONDS);
/// When what must come to be has not.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Table {
    a: Arc<dyn Routes>,
    b: Arc<dyn Routes>,
}

/// Runs each case on a table of its own.
macro_rules! cases {
    ($table:expr, $lease:expr, $($case:ident),+ $(,)?) => {
        $(
            println!("  {}", stringify!($case));
            $case($table(stringify!($case), $lease)).await;
        )+
    };
}

macro_rules! conforms {
    ($table:expr) => {
        cases!($table, SHORT_LEASE, a_lease_is_taken_renewed_and_lapses, a_dead_nodes_rows_are_dead);
        cases!(
            $table,
            LEASE,
            a_lease_is_given_back_by_its_holder_only,
            a_restarted_node_ends_what_it_was,
            sessions_are_found_in_the_order_asked,
            only_the_session_that_wrote_a_route_removes_it,
            a_key_has_one_session_and_the_displaced_one_is_told,
            who_has_no_lease_takes_no_key_from_who_has,
            changes_of_one_call_are_applied_in_order,
            a_lease_is_complete_until_it_is_taken_anew,
            counts_are_each_nodes_own,
            written_counts_follow_every_write,
            top_lists_live_channels_by_prefix,
            a_thousand_changes_are_one_call,
        );
    };
}

#[tokio::test]
async fn memory_conforms() {
    let table = |_: &str, lease| {
        let memory = Arc::new(Memory::with(lease, Arc::new(Instant::now)));
        Table { a: memory.clone(), b: memory }
    };
    conforms!(table);
}

fn config(servers: &Servers, prefix: &str) -> Config {
    Config {
        kind: Kind::Redis,
        urls: servers.urls.clone(),
        username: String::new(),
        password: Secret::new(""),
        cluster: servers.urls.len() > 1,
        prefix: prefix.chars().take(32).collect(),
    }
}

fn times(lease: Duration) -> Times {
    Times { lease, ..Times::default() }
}

fn open(servers: &Servers, prefix: &str, times: Times) -> Arc<dyn Routes> {
    let config = config(servers, prefix);
    config.check().unwrap();
    Arc::new(Redis::with(&config, times).unwrap())
}

async fn redis_conforms(options: &[&str]) {
    let Some(servers) = Servers::up(options) else { return };
    let table = |prefix: &str, lease| {
        let open = || open(&servers, prefix, times(lease));
        Table { a: open(), b: open() }
    };
    conforms!(table);
    let keys = servers.keys().await;
    assert!(keys.len() > 100, "the cases left few keys to look at: {}", keys.len());
    let for_ever: Vec<_> = keys.iter().filter(|(_, left)| *left < 0).collect();
    assert!(for_ever.is_empty(), "these never expire: {for_ever:?}");
    rows_outlive_their_time_while_their_node_lives(&servers).await;
    written_counts_outlive_an_indexs_turn(&servers).await;
    a_wiped_redis_is_whole_within_a_lease(&servers).await;
    a_half_wiped_redis_is_whole_within_a_lease(&servers).await;
    a_password_is_given(&servers).await;
}

#[tokio::test]
async fn a_redis_server_conforms() {
    redis_conforms(&[]).await;
}

#[tokio::test]
async fn a_redis_cluster_conforms() {
    redis_conforms(&["--cluster"]).await;
}

fn lease(node: &str, incarnation: &str) -> Lease {
    Lease {
        node: node.into(),
        incarnation: incarnation.into(),
        role: Role::Connector,
        grpc: "127.0.0.1:3109".into(),
        clients: vec!["127.0.0.1:3101".into(), "127.0.0.1:3102".into()],
        sessions: 7,
        addresses: 3,
        open: true,
        job: None,
    }
}

fn session(node: &str, incarnation: &str, n: u32, device: &str) -> SessionRoute {
    SessionRoute {
        session: format!("{incarnation}.{n:x}"),
        device: device.into(),
        node: node.into(),
        incarnation: incarnation.into(),
    }
}

fn user(uid: &str) -> By {
    By::User(uid.into())
}

fn key(key: &str) -> By {
    By::Key(key.into())
}

fn put(by: By, route: &SessionRoute) -> Change {
    Change::Put(by, route.clone())
}

fn remove(by: By, route: &SessionRoute) -> Change {
    Change::Remove(by, route.clone())
}

fn names(channels: &[&str]) -> Vec<String> {
    channels.iter().map(ToString::to_string).collect()
}

/// What is written of them, which is asked for as its caller has the names.
async fn written(routes: &Arc<dyn Routes>, channels: &[&str]) -> Vec<u64> {
    let channels: Vec<Arc<str>> = channels.iter().map(|channel| Arc::from(*channel)).collect();
    routes.written_counts(&channels).await.unwrap()
}

fn sorted(mut routes: Vec<SessionRoute>) -> Vec<SessionRoute> {
    routes.sort_by(|a, b| a.session.cmp(&b.session));
    routes
}

/// Waits until `condition` holds.
async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_lease_is_taken_renewed_and_lapses(Table { a, b }: Table) {
    assert_eq!(a.nodes().await.unwrap(), []);
    let mut mine = lease("n1", "aaa");
    assert!(!a.renew(&mine).await.unwrap(), "it was never there");
    mine.sessions = 8;
    assert!(a.renew(&mine).await.unwrap());
    b.renew(&lease("n2", "bbb")).await.unwrap();
    assert_eq!(b.nodes().await.unwrap(), [mine.clone(), lease("n2", "bbb")]);
    until("n2 lapses, n1 does not", || async {
        assert!(a.renew(&mine).await.unwrap());
        b.nodes().await.unwrap() == [mine.clone()]
    })
    .await;
    assert!(!b.renew(&lease("n2", "bbb")).await.unwrap(), "it had lapsed");
    assert!(b.renew(&lease("n2", "bbb")).await.unwrap());
}

async fn a_lease_is_given_back_by_its_holder_only(Table { a, b }: Table) {
    let held = session("n1", "aaa", 1, "");
    a.renew(&lease("n1", "aaa")).await.unwrap();
    a.apply(&[put(user("42"), &held)]).await.unwrap();
    b.resign("n1", "zzz").await.unwrap();
    assert_eq!(b.nodes().await.unwrap().len(), 1);
    assert_eq!(b.find(&[user("42")]).await.unwrap(), [vec![held]]);
    a.resign("n1", "aaa").await.unwrap();
    assert_eq!(b.nodes().await.unwrap(), []);
    assert_eq!(b.find(&[user("42")]).await.unwrap(), [vec![]]);
    assert!(!a.renew(&lease("n1", "aaa")).await.unwrap());
}

async fn a_lease_is_complete_until_it_is_taken_anew(Table { a, b }: Table) {
    let complete = async || b.look_up(&[user("42"), key("k")]).await.unwrap().complete;
    a.complete("n1", "aaa").await.unwrap();
    assert_eq!(complete().await, [""; 0], "it has no lease");
    a.renew(&lease("n1", "aaa")).await.unwrap();
    assert_eq!(complete().await, [""; 0]);
    a.complete("n1", "other").await.unwrap();
    assert_eq!(complete().await, [""; 0], "of another incarnation");
    a.complete("n1", "aaa").await.unwrap();
    assert_eq!(complete().await, ["aaa"]);
    a.renew(&lease("n1", "aaa")).await.unwrap();
    b.renew(&lease("n2", "bbb")).await.unwrap();
    assert_eq!(complete().await, ["aaa"]);
    a.resign("n1", "aaa").await.unwrap();
    assert_eq!(complete().await, [""; 0]);
    a.renew(&lease("n1", "aaa")).await.unwrap();
    assert_eq!(complete().await, [""; 0], "it was taken anew");
    a.complete("n1", "aaa").await.unwrap();
    a.renew(&lease("n1", "ccc")).await.unwrap();
    assert_eq!(complete().await, [""; 0], "it was taken by a restarted node");
}

async fn a_restarted_node_ends_what_it_was(Table { a, b }: Table) {
    let (old, new) = (session("n1", "aaa", 1, ""), session("n1", "bbb", 1, ""));
    a.renew(&lease("n1", "aaa")).await.unwrap();
    a.apply(&[put(user("42"), &old)]).await.unwrap();
    a.count("n1", "aaa", &[("room:1".into(), 5)]).await.unwrap();
    assert!(!b.renew(&lease("n1", "bbb")).await.unwrap());
    b.apply(&[put(user("42"), &new)]).await.unwrap();
    b.count("n1", "bbb", &[("room:1".into(), 2)]).await.unwrap();
    assert_eq!(a.find(&[user("42")]).await.unwrap(), [vec![new]]);
    assert_eq!(a.live_counts(&names(&["room:1"])).await.unwrap(), [2]);
    // What the old process still says, before it knows, counts for nothing.
    a.count("n1", "aaa", &[("room:1".into(), 5)]).await.unwrap();
    assert_eq!(a.live_counts(&names(&["room:1"])).await.unwrap(), [2]);
    assert_eq!(a.nodes().await.unwrap()[0].incarnation, "bbb");
}

async fn sessions_are_found_in_the_order_asked(Table { a, b }: Table) {
    a.renew(&lease("n1", "aaa")).await.unwrap();
    b.renew(&lease("n2", "bbb")).await.unwrap();
    let phone = session("n1", "aaa", 1, "phone");
    let desk = session("n2", "bbb", 1, "desk with a\nline break");
    let other = session("n2", "bbb", 2, "");
    a.apply(&[put(user("42"), &phone), put(key("k"), &phone)]).await.unwrap();
    b.apply(&[put(user("42"), &desk), put(user("7"), &other), put(user("42"), &desk)]).await.unwrap();
    let found = a.find(&[user("7"), user("nobody"), key("k"), user("42"), key("42")]).await.unwrap();
    let found: Vec<_> = found.into_iter().map(sorted).collect();
    assert_eq!(found, [vec![other], vec![], vec![phone.clone()], vec![phone, desk], vec![]]);
    assert_eq!(a.find(&[]).await.unwrap(), Vec::<Vec<SessionRoute>>::new());
}

async fn only_the_session_that_wrote_a_route_removes_it(Table { a, b }: Table) {
    a.renew(&lease("n1", "aaa")).await.unwrap();
    b.renew(&lease("n2", "bbb")).await.unwrap();
    let (first, second) = (session("n1", "aaa", 1, ""), session("n2", "bbb", 1, ""));
    a.apply(&[put(user("42"), &first), put(key("k"), &first)]).await.unwrap();
    b.apply(&[put(user("42"), &second), put(key("k"), &second)]).await.unwrap();
    // The first session's end comes late: its key is the second's by now.
    a.apply(&[remove(key("k"), &first), remove(user("42"), &first)]).await.unwrap();
    assert_eq!(a.find(&[user("42"), key("k")]).await.unwrap(), [vec![second.clone()], vec![second.clone()]]);
    let forged = SessionRoute { incarnation: "zzz".into(), ..second.clone() };
    a.apply(&[remove(user("42"), &forged), remove(key("k"), &forged)]).await.unwrap();
    assert_eq!(a.find(&[user("42"), key("k")]).await.unwrap(), [vec![second.clone()], vec![second.clone()]]);
    a.apply(&[remove(user("42"), &second), remove(key("k"), &second)]).await.unwrap();
    assert_eq!(a.find(&[user("42"), key("k")]).await.unwrap(), [vec![], vec![]]);
}

async fn a_key_has_one_session_and_the_displaced_one_is_told(Table { a, b }: Table) {
    a.renew(&lease("n1", "aaa")).await.unwrap();
    b.renew(&lease("n2", "bbb")).await.unwrap();
    let (first, second) = (session("n1", "aaa", 1, "d"), session("n2", "bbb", 1, ""));
    assert_eq!(a.apply(&[put(key("k"), &first), put(user("1"), &first)]).await.unwrap(), []);
    assert_eq!(a.apply(&[put(key("k"), &first)]).await.unwrap(), [], "the same session, put again");
    let changes = [put(user("2"), &second), put(key("other"), &second), put(key("k"), &second)];
    assert_eq!(b.apply(&changes).await.unwrap(), [("k".to_owned(), first)]);
    assert_eq!(a.find(&[key("k")]).await.unwrap(), [vec![second]]);
    // A dead session is not displaced: there is nobody to tell.
    b.resign("n2", "bbb").await.unwrap();
    let third = session("n1", "aaa", 3, "");
    assert_eq!(a.apply(&[put(key("k"), &third)]).await.unwrap(), []);
    assert_eq!(a.find(&[key("k")]).await.unwrap(), [vec![third]]);
}

async fn who_has_no_lease_takes_no_key_from_who_has(Table { a, b }: Table) {
    let (alive, paused) = (session("n1", "aaa", 1, ""), session("n2", "bbb", 1, ""));
    a.renew(&lease("n1", "aaa")).await.unwrap();
    a.apply(&[put(key("k"), &alive)]).await.unwrap();
    assert_eq!(b.apply(&[put(key("k"), &paused), put(key("free"), &paused)]).await.unwrap(), []);
    assert_eq!(a.find(&[key("k")]).await.unwrap(), [vec![alive.clone()]]);
    // As soon as it has one, it may.
    b.renew(&lease("n2", "bbb")).await.unwrap();
    assert_eq!(b.find(&[key("free")]).await.unwrap(), [vec![paused.clone()]]);
    assert_eq!(b.apply(&[put(key("k"), &paused)]).await.unwrap(), [("k".to_owned(), alive)]);
}

async fn changes_of_one_call_are_applied_in_order(Table { a, .. }: Table) {
    a.renew(&lease("n1", "aaa")).await.unwrap();
    // More changes of one name than any piece that a call may be cut into.
    let mut changes = Vec::new();
    for n in 0..600 {
        changes.push(put(key("k"), &session("n1", "aaa", n, "")));
        changes.push(put(user("42"), &session("n1", "aaa", n, "")));
        changes.push(remove(user("42"), &session("n1", "aaa", n, "")));
    }
    let last = session("n1", "aaa", 600, "");
    changes.push(put(user("42"), &last));
    let displaced: Vec<String> = a.apply(&changes).await.unwrap().into_iter().map(|(_, old)| old.session).collect();
    let each: Vec<String> = (0..599).map(|n| session("n1", "aaa", n, "").session).collect();
    assert_eq!(displaced, each);
    let found = a.find(&[key("k"), user("42")]).await.unwrap();
    assert_eq!(found, [vec![session("n1", "aaa", 599, "")], vec![last]]);
}

async fn counts_are_each_nodes_own(Table { a, b }: Table) {
    a.renew(&lease("n1", "aaa")).await.unwrap();
    b.renew(&lease("n2", "bbb")).await.unwrap();
    a.count("n1", "aaa", &[("room:1".into(), 5), ("room:2".into(), 1)]).await.unwrap();
    b.count("n2", "bbb", &[("room:1".into(), 40)]).await.unwrap();
    a.count("n1", "aaa", &[("room:1".into(), 6)]).await.unwrap();
    a.count("n1", "aaa", &[("room:1".into(), 6)]).await.unwrap();
    let asked = names(&["room:2", "room:none", "room:1"]);
    assert_eq!(b.live_counts(&asked).await.unwrap(), [1, 0, 46]);
    a.count("n1", "aaa", &[("room:1".into(), 0), ("room:2".into(), 0), ("room:none".into(), 0)]).await.unwrap();
    assert_eq!(b.live_counts(&asked).await.unwrap(), [0, 0, 40]);
    assert_eq!(b.top("room:", 10).await.unwrap(), [("room:1".to_owned(), 40)]);
}

async fn written_counts_follow_every_write(Table { a, b }: Table) {
    a.renew(&lease("n1", "aaa")).await.unwrap();
    b.renew(&lease("n2", "bbb")).await.unwrap();
    assert!(written(&a, &[]).await.is_empty());
    let asked = ["room:2", "room:none", "room:1"];
    assert_eq!(written(&a, &asked).await, [0, 0, 0]);
    a.count("n1", "aaa", &[("room:1".into(), 5), ("room:2".into(), 1)]).await.unwrap();
    b.count("n2", "bbb", &[("room:1".into(), 40)]).await.unwrap();
    assert_eq!(written(&a, &asked).await, [1, 0, 45]);
    a.count("n1", "aaa", &[("room:1".into(), 6)]).await.unwrap();
    b.count("n2", "bbb", &[("room:2".into(), 2)]).await.unwrap();
    assert_eq!(written(&b, &asked).await, [3, 0, 46]);
    a.count("n1", "aaa", &[("room:1".into(), 0), ("room:2".into(), 0)]).await.unwrap();
    assert_eq!(written(&b, &asked).await, [2, 0, 40]);
    b.count("n2", "bbb", &[("room:1".into(), 0)]).await.unwrap();
    assert_eq!(written(&b, &asked).await, [2, 0, 0]);
    // More than one command takes of a shard, in the order asked.
    let many: Vec<(String, u64)> = (0..20_000).map(|n| (format!("room:m{n}"), n % 7)).collect();
    a.count("n1", "aaa", &many).await.unwrap();
    let names: Vec<&str> = many.iter().map(|(channel, _)| &**channel).collect();
    assert!(written(&b, &names).await.into_iter().eq(many.iter().map(|(_, count)| *count)));
}

async fn top_lists_live_channels_by_prefix(Table { a, b }: Table) {
    a.renew(&lease("n1", "aaa")).await.unwrap();
    b.renew(&lease("n2", "bbb")).await.unwrap();
    // Room n has n sessions on n1; some of them have more on n2. They fill several pieces of an index.
    let counts: Vec<(String, u64)> = (1..=3000).map(|n| (format!("room:r{n}"), n)).collect();
    a.count("n1", "aaa", &counts).await.unwrap();
    b.count("n2", "bbb", &[("room:r5".into(), 9000), ("room:game.7".into(), 2999), ("user:1".into(), 99_999)])
        .await
        .unwrap();
    let list = |routes: Arc<dyn Routes>, prefix: &'static str, limit| async move {
        let top = routes.top(prefix, limit).await.unwrap();
        top.into_iter().map(|(channel, count)| format!("{channel}={count}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(list(a.clone(), "room:", 4).await, "room:r5=9005 room:r3000=3000 room:game.7=2999 room:r2999=2999");
    assert_eq!(list(a.clone(), "room:game.", 4).await, "room:game.7=2999");
    assert_eq!(list(a.clone(), "room:none", 4).await, "");
    assert_eq!(list(a.clone(), "room:", 0).await, "");
    assert_eq!(a.top("room:", 5000).await.unwrap().len(), 3001);
    b.resign("n2", "bbb").await.unwrap();
    a.renew(&lease("n1", "aaa")).await.unwrap();
    assert_eq!(list(a.clone(), "room:", 2).await, "room:r3000=3000 room:r2999=2999");
    assert_eq!(list(a, "room:game.", 4).await, "");
}

async fn a_dead_nodes_rows_are_dead(Table { a, b }: Table) {
    let (dead, alive) = (session("n1", "aaa", 1, ""), session("n2", "bbb", 1, ""));
    a.renew(&lease("n1", "aaa")).await.unwrap();
    b.renew(&lease("n2", "bbb")).await.unwrap();
    a.apply(&[put(user("42"), &dead), put(key("k"), &dead)]).await.unwrap();
    b.apply(&[put(user("42"), &alive)]).await.unwrap();
    a.count("n1", "aaa", &[("room:1".into(), 5), ("room:2".into(), 5)]).await.unwrap();
    b.count("n2", "bbb", &[("room:1".into(), 1)]).await.unwrap();
    until("n1 lapses", || async {
        b.renew(&lease("n2", "bbb")).await.unwrap();
        b.find(&[key("k")]).await.unwrap() == [vec![]]
    })
    .await;
    // What is written of it may be too high (in Redis it is), until an exact read meets it; never too low.
    assert!(matches!(written(&b, &["room:1", "room:2"]).await[..], [1 | 6, 0 | 5]));
    // The leases of one renewal lapse within the time that it took.
    until("everything of n1's is dead", || async {
        b.renew(&lease("n2", "bbb")).await.unwrap();
        b.find(&[user("42")]).await.unwrap() == [vec![alive.clone()]]
            && b.live_counts(&names(&["room:1", "room:2"])).await.unwrap() == [1, 0]
            && written(&b, &["room:1", "room:2"]).await == [1, 0]
            && b.top("room:", 9).await.unwrap() == [("room:1".to_owned(), 1)]
            && b.nodes().await.unwrap().len() == 1
    })
    .await;
}

async fn a_thousand_changes_are_one_call(Table { a, b }: Table) {
    a.renew(&lease("n1", "aaa")).await.unwrap();
    let routes: Vec<SessionRoute> = (0..1000).map(|n| session("n1", "aaa", n, "")).collect();
    let users: Vec<By> = (0..1000).map(|n| user(&format!("u{n}"))).collect();
    let changes: Vec<Change> = users.iter().cloned().zip(&routes).map(|(by, route)| put(by, route)).collect();
    a.apply(&changes).await.unwrap();
    let found = b.find(&users).await.unwrap();
    assert!(found.iter().zip(&routes).all(|(found, route)| found == std::slice::from_ref(route)));
}

/// A node that does as `Routes::renew` says.
struct Node {
    routes: Arc<dyn Routes>,
    lease: Lease,
    sessions: Vec<(By, SessionRoute)>,
    counts: Vec<(String, u64)>,
}

impl Node {
    fn new(routes: Arc<dyn Routes>) -> Self {
        let sessions = (0..200).flat_map(|n| {
            let route = session("n1", "aaa", n, "");
            [(user(&format!("u{n}")), route.clone()), (key(&format!("k{n}")), route)]
        });
        let counts = (1..=200).map(|n| (format!("room:{n}"), n)).collect();
        Self { routes, lease: lease("n1", "aaa"), sessions: sessions.collect(), counts }
    }

    /// One renewal: whether everything had to be put again.
    async fn renew(&self) -> bool {
        let again = !self.routes.renew(&self.lease).await.unwrap();
        if again {
            let changes: Vec<Change> = self.sessions.iter().map(|(by, route)| put(by.clone(), route)).collect();
            self.routes.apply(&changes).await.unwrap();
            self.routes.count("n1", "aaa", &self.counts).await.unwrap();
        }
        again
    }

    /// Whether another sees all that it put.
    async fn whole(&self, other: &Arc<dyn Routes>) -> bool {
        let asked: Vec<By> = self.sessions.iter().map(|(by, _)| by.clone()).collect();
        let found = other.find(&asked).await.unwrap();
        let channels: Vec<String> = self.counts.iter().map(|(channel, _)| channel.clone()).collect();
        let counts: Vec<u64> = self.counts.iter().map(|(_, count)| *count).collect();
        found.iter().zip(&self.sessions).all(|(found, (_, route))| found == std::slice::from_ref(route))
            && written(other, &channels.iter().map(String::as_str).collect::<Vec<_>>()).await == counts
            && other.live_counts(&channels).await.unwrap() == counts
            && other.top("room:", 1).await.unwrap() == [("room:200".to_owned(), 200)]
            && other.nodes().await.unwrap() == std::slice::from_ref(&self.lease)
    }
}

/// The last case: afterwards the servers want it of everyone.
async fn a_password_is_given(servers: &Servers) {
    println!("  a_password_is_given");
    for mut connection in servers.connections().await {
        let set =
            redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("opensesame").query_async(&mut connection).await;
        let () = set.unwrap();
    }
    for (password, right) in [("opensesame", true), ("", false), ("wrong", false)] {
        let config = Config { password: Secret::new(password), ..config(servers, "password") };
        let routes = routes::open(&config).unwrap();
        let ready = routes.ready().await;
        assert_eq!(ready.is_ok(), right, "{password:?}: {ready:?}");
        assert!(!format!("{config:?} {ready:?}").contains("opensesame"));
        if right {
            routes.renew(&lease("n1", "aaa")).await.unwrap();
        }
    }
}

/// What only Redis has: sums lie in two indexes by turns, and stay there when a node dies. Two nodes that do not agree on
/// whose turn it is see all that a turn brings.
async fn written_counts_outlive_an_indexs_turn(servers: &Servers) {
    println!("  written_counts_outlive_an_indexs_turn");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    // Not so near a turn's end that it comes while this runs.
    let turn = |row: &u64| now / row % 2 == (now + 60) / row % 2;
    let mut rows = (3600..7200).filter(turn);
    let first = rows.next().unwrap();
    let second = rows.find(|row| now / row % 2 != now / first % 2).unwrap();
    let [a, b] = [(SHORT_LEASE, first), (LEASE, second)]
        .map(|(lease, row)| open(servers, "turns", Times { lease, row: Duration::from_secs(row) }));
    let room = |count| [("room:1".to_owned(), count)];
    let said = async |count| {
        assert_eq!((written(&a, &["room:1"]).await, written(&b, &["room:1"]).await), (vec![count], vec![count]));
    };
    a.count("n1", "aaa", &room(5)).await.unwrap();
    said(5).await;
    b.renew(&lease("n2", "bbb")).await.unwrap();
    a.renew(&lease("n1", "aaa")).await.unwrap();
    b.count("n2", "bbb", &room(40)).await.unwrap();
    said(45).await;
    a.renew(&lease("n1", "aaa")).await.unwrap();
    a.count("n1", "aaa", &room(6)).await.unwrap();
    said(46).await;
    until("n1 lapses", || async {
        b.renew(&lease("n2", "bbb")).await.unwrap();
        b.nodes().await.unwrap().len() == 1
    })
    .await;
    said(46).await;
    until("an exact read puts it right", || async { b.live_counts(&names(&["room:1"])).await.unwrap() == [40] }).await;
    said(40).await;
    b.count("n2", "bbb", &room(0)).await.unwrap();
    said(0).await;
}

async fn rows_outlive_their_time_while_their_node_lives(servers: &Servers) {
    println!("  rows_outlive_their_time_while_their_node_lives");
    let times = Times { lease: SHORT_LEASE, row: Duration::from_secs(4) };
    let (a, b) = (open(servers, "rows", times), open(servers, "rows", times));
    let node = Node::new(a.clone());
    let (began, mut puts) = (Instant::now(), 0);
    while began.elapsed() < times.row * 2 {
        puts += u32::from(node.renew().await);
        assert!(node.whole(&b).await, "after {:?}, put {puts} times", began.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!((4..40).contains(&puts), "put {puts} times");
    until("a dead node leaves nothing", || async {
        !servers.keys().await.iter().any(|(key, _)| key.starts_with("{rows:"))
    })
    .await;
}

async fn a_wiped_redis_is_whole_within_a_lease(servers: &Servers) {
    println!("  a_wiped_redis_is_whole_within_a_lease");
    wiped(servers, "wiped", async |servers| {
        for mut connection in servers.connections().await {
            let () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
        }
    })
    .await;
}

/// Of a cluster, one master has lost all; of one server, half of the keys are gone, the table with the leases is not.
async fn a_half_wiped_redis_is_whole_within_a_lease(servers: &Servers) {
    println!("  a_half_wiped_redis_is_whole_within_a_lease");
    wiped(servers, "half", async |servers| {
        let mut connections = servers.connections().await;
        let connection = &mut connections[0];
        if servers.urls.len() > 1 {
            let () = redis::cmd("FLUSHALL").query_async(connection).await.unwrap();
            return;
        }
        let keys: Vec<String> = redis::cmd("KEYS").arg("{half:*[02468]}*").query_async(connection).await.unwrap();
        assert!(keys.len() > 100, "{}", keys.len());
        let () = redis::cmd("DEL").arg(keys).query_async(connection).await.unwrap();
    })
    .await;
}

async fn wiped(servers: &Servers, prefix: &str, wipe: impl AsyncFn(&Servers)) {
    let (a, b) = (open(servers, prefix, times(LEASE)), open(servers, prefix, times(LEASE)));
    let node = Node::new(a.clone());
    assert!(node.renew().await && !node.renew().await);
    assert!(node.whole(&b).await);
    wipe(servers).await;
    assert!(!node.whole(&b).await, "the wipe took nothing");
    assert!(node.renew().await, "the first renewal after it shows that rows are gone");
    assert!(node.whole(&b).await);
    assert!(!node.renew().await);
}
