//! Routes in Redis, one server or a cluster. All of it can be lost at any time and is whole again within one lease.
//!
//! ```text
//!  {barrage:17}n          hash    node    -> deadline, incarnation, complete dies with the last lease
//!  {barrage:17}u:<uid>    hash    session -> node, incarnation, device      kept Times::row, put again before
//!  {barrage:17}k:<key>    string  session, node, incarnation, device        "
//!  {barrage:17}c:<chan>   hash    node    -> incarnation, count             "
//!  {barrage:17}t:0, t:1   zset    channel -> sessions                       the two indexes, see Times
//!  {barrage:nodes}n       hash    node    -> deadline, incarnation, lease as JSON
//! ```
//!
//! Names are spread over [`SHARDS`] shards. The keys of a shard have one hash tag, so a script may touch them together on
//! a cluster, and each shard has the table of nodes beside its rows: one script, in one place and at one moment, tells
//! dead rows from live ones, and throws them out as it meets them. No script reads a key that it was not given.
//!
//! Heartbeats cost Redis nothing for each session. A node renews its row in each shard's table, and a row whose node has
//! no lease there is dead; that table is also what shows that a shard was wiped, be it one of many. What keeps a row
//! longer than [`Times::row`] is that [`Routes::renew`] says `false` now and then: the node puts everything again,
//! which mends as well what Redis evicted.
//!
//! Two indexes take turns: the channels of nodes that died silently leave with the old one. Whoever writes a channel, or
//! reads it exactly, puts its sum there; [`Routes::written_counts`] reads no more than that, which costs Redis the same
//! however many nodes have the channel.

mod link;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::redis::{Script, ScriptInvocation};
use async_trait::async_trait;
use futures::future::try_join_all;
use proto::channel::partition;
use proto::config::Invalid;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{By, Change, Config, Found, LEASE_SECONDS, Lease, Routes, SessionRoute, Unavailable};
use link::Link;

/// Shards, for ever: another number would not find what nodes of the old one wrote. More than any cluster of Redis
/// has masters for this; each costs a node one small script for each renewal.
const SHARDS: u32 = 64;
/// Names in one script. A script of so many runs for about a millisecond, in which Redis does nothing else.
const SCRIPT_NAMES_MAX: usize = 256;
/// How long a row is kept without being put again.
const ROW: Duration = Duration::from_secs(2 * 3600);
/// Rows of one index that [`Routes::top`] reads at once.
const TOP_STEP_MIN: usize = 16;
const TOP_STEP_MAX: usize = 256;
/// Rows of one index that [`Routes::top`] looks at: with a prefix that few channels have, the list is then what was
/// found among these.
const TOP_ROWS_MAX: usize = 8192;

macro_rules! script {
    ($($file:literal),+) => { LazyLock::new(|| Script::new(concat!($(include_str!($file)),+))) };
}
static RENEW: LazyLock<Script> = script!("live.lua", "renew.lua");
static COMPLETE: LazyLock<Script> = script!("live.lua", "complete.lua");
static RESIGN: LazyLock<Script> = script!("resign.lua");
static NODES: LazyLock<Script> = script!("live.lua", "nodes.lua");
static APPLY: LazyLock<Script> = script!("live.lua", "apply.lua");
static FIND: LazyLock<Script> = script!("live.lua", "find.lua");
static COUNT: LazyLock<Script> = script!("live.lua", "channel.lua", "count.lua");
static COUNTS: LazyLock<Script> = script!("live.lua", "channel.lua", "counts.lua");

/// How long things live.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// A node that is silent for as long is dead.
    pub lease: Duration,
    /// A row that is not put again for as long is gone, whether its node lives or not.
    pub row: Duration,
}

impl Times {
    /// How long a node's rows may be left alone. Nodes differ by up to a quarter, so that they do not all come at once.
    fn put_again_after(self) -> Duration {
        self.row / 3
    }

    /// How long one index is written before it is the other's turn.
    fn turn(self) -> Duration {
        self.row
    }

    /// How long an index is kept after its last write: until every channel is in the new one (it is put there within
    /// `again`, or a second `again` where that failed), but gone before its next turn.
    fn index(self) -> Duration {
        self.row * 3 / 4
    }
}

impl Default for Times {
    fn default() -> Self {
        Self { lease: Duration::from_secs(LEASE_SECONDS), row: ROW }
    }
}

/// The table in Redis.
pub struct Redis {
    link: Link,
    prefix: String,
    times: Times,
    renewals: Mutex<FxHashMap<(String, String), Renewal>>,
}

/// What this process knows of a lease of its own.
struct Renewal {
    /// The node must be told to put everything again.
    put_again: bool,
    /// When it must be told so in any case.
    due: Instant,
}

/// What `renew.lua` answers.
const WAS_THERE: u8 = 1;
const ANOTHER: u8 = 2;

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("prefix", &self.prefix).field("times", &self.times).finish_non_exhaustive()
    }
}

impl Redis {
    /// Dialled when it is first needed. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Invalid`] where a URL cannot be read.
    pub fn open(config: &Config) -> Result<Self, Invalid> {
        Self::with(config, Times::default())
    }

    /// With other times: for tests, which cannot wait for the real ones.
    ///
    /// # Errors
    /// As [`Redis::open`].
    pub fn with(config: &Config, times: Times) -> Result<Self, Invalid> {
        Ok(Self { link: Link::open(config)?, prefix: config.prefix.clone(), times, renewals: Mutex::default() })
    }

    fn key(&self, shard: u32, rest: &str) -> String {
        format!("{{{}:{shard}}}{rest}", self.prefix)
    }

    /// The one table that has the leases themselves.
    fn leases(&self) -> String {
        format!("{{{}:nodes}}n", self.prefix)
    }

    fn nodes_of(&self, shard: u32) -> String {
        self.key(shard, "n")
    }

    fn row_of(&self, shard: u32, by: &By) -> String {
        match by {
            By::User(uid) => self.key(shard, &format!("u:{uid}")),
            By::Key(key) => self.key(shard, &format!("k:{key}")),
        }
    }

    /// The tables of nodes: the one with the leases, and each shard's.
    fn tables(&self) -> impl Iterator<Item = String> {
        std::iter::once(self.leases()).chain((0..SHARDS).map(|shard| self.nodes_of(shard)))
    }

    /// The keys that every script on channels has: the table of nodes, the index that is written now, the other.
    fn channel_call<'a>(&self, script: &'a Script, shard: u32) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        let [now, other] = self.indexes(shard);
        call.key(self.nodes_of(shard)).key(now).key(other);
        call
    }

    fn indexes(&self, shard: u32) -> [String; 2] {
        // Clocks that differ by minutes do no harm: both are read.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let turn = now.as_millis() / self.times.turn().as_millis().max(1) % 2;
        [self.key(shard, &format!("t:{turn}")), self.key(shard, &format!("t:{}", 1 - turn))]
    }

    fn renewal<T>(&self, node: &str, incarnation: &str, change: impl FnOnce(&mut Renewal) -> T) -> T {
        let mut renewals = self.renewals.lock().unwrap_or_else(PoisonError::into_inner);
        let first = || Renewal { put_again: true, due: Instant::now() };
        change(renewals.entry((node.to_owned(), incarnation.to_owned())).or_insert_with(first))
    }

    /// The live sum of each channel, in the order asked.
    async fn sums(&self, channels: &[String]) -> Result<Vec<u64>, Unavailable> {
        let groups = by_shard(channels.iter().enumerate(), |(_, channel)| channel);
        let calls = chunks(&groups).map(|(shard, chunk)| async move {
            let mut call = self.channel_call(&COUNTS, shard);
            call.arg(ms(self.times.index()));
            for (_, channel) in chunk {
                call.key(self.key(shard, &format!("c:{channel}"))).arg(channel);
            }
            Ok((chunk, self.link.run::<Vec<u64>>(&call).await?))
        });
        let mut sums = vec![0; channels.len()];
        for (chunk, found) in try_join_all(calls).await? {
            for ((place, _), sum) in chunk.iter().zip(found) {
                sums[*place] = sum;
            }
        }
        Ok(sums)
    }

    /// What a shard's index says of the channels, by their places.
    async fn scores(&self, index: &str, channels: &[Placed<'_>]) -> Result<Vec<Option<f64>>, Unavailable> {
        let mut read = ::redis::cmd("ZMSCORE");
        read.arg(index);
        for (_, channel) in channels {
            read.arg(&***channel);
        }
        self.link.command(&read).await
    }

    /// Looks at the next rows of a shard's indexes; the live channels among them that begin with `prefix`.
    async fn scan(&self, scan: &mut IndexScan, prefix: &str, rows: usize) -> Result<Vec<(String, u64)>, Unavailable> {
        let start = scan.rows;
        let reads = scan.indexes.iter().map(|index| async move {
            let mut read = ::redis::cmd("ZREVRANGE");
            read.arg(index).arg(start).arg(start + rows - 1).arg("WITHSCORES");
            self.link.command::<Vec<(String, u64)>>(&read).await
        });
        let read = try_join_all(reads).await?;
        scan.rows += rows;
        // An index has the sum of when it was written, and a sum falls by itself, with nodes that die, but does not
        // rise: what comes further down has no more than this.
        let whole = |read: &Vec<(String, u64)>| read.len() == rows;
        scan.beyond = read.iter().filter(|read| whole(read)).filter_map(|read| Some(read.last()?.1)).max().unwrap_or(0);
        let mut goes_on = read.iter().map(whole);
        scan.indexes.retain(|_| goes_on.next().unwrap_or(false));
        let mut fresh = Vec::new();
        for (channel, _) in read.into_iter().flatten() {
            if channel.starts_with(prefix) && scan.seen.insert(channel.clone()) {
                fresh.push(channel);
            }
        }
        let sums = self.sums(&fresh).await?;
        Ok(fresh.into_iter().zip(sums).filter(|(_, sum)| *sum > 0).collect())
    }
}

/// A channel, and which it is of those that were asked for.
type Placed<'a> = (usize, &'a Arc<str>);

/// How far [`Routes::top`] has come in one shard.
struct IndexScan {
    /// The indexes that have more rows.
    indexes: Vec<String>,
    /// Rows of each that were looked at.
    rows: usize,
    seen: FxHashSet<String>,
    /// What was not looked at has at most so many sessions.
    beyond: u64,
}

/// `items` by the shard of their names, each shard's in their order.
fn by_shard<T>(items: impl IntoIterator<Item = T>, name: impl Fn(&T) -> &str) -> BTreeMap<u32, Vec<T>> {
    let mut groups: BTreeMap<u32, Vec<T>> = BTreeMap::new();
    for item in items {
        groups.entry(partition(name(&item), SHARDS)).or_default().push(item);
    }
    groups
}

/// Each shard's items in pieces that one script may take.
fn chunks<T>(groups: &BTreeMap<u32, Vec<T>>) -> impl Iterator<Item = (u32, &[T])> {
    groups.iter().flat_map(|(shard, items)| items.chunks(SCRIPT_NAMES_MAX).map(|chunk| (*shard, chunk)))
}

fn name_of(by: &By) -> &str {
    match by {
        By::User(name) | By::Key(name) => name,
    }
}

/// Reads what the scripts answer.
fn route(value: &str) -> Result<SessionRoute, Unavailable> {
    let mut fields = value.splitn(4, '\n').map(ToOwned::to_owned);
    let (Some(session), Some(node), Some(incarnation), Some(device)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(Unavailable("Redis: a route that Barrage did not write".into()));
    };
    Ok(SessionRoute { session, device, node, incarnation })
}

fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}

#[async_trait]
impl Routes for Redis {
    async fn renew(&self, lease: &Lease) -> Result<bool, Unavailable> {
        // To be put again until everything has answered: a failure, or a caller that does not wait, leaves it unknown which
        // shards had lost the lease and have it again now.
        let (node, incarnation) = (lease.node.as_str(), lease.incarnation.as_str());
        let put_again = self.renewal(node, incarnation, |renewal| std::mem::replace(&mut renewal.put_again, true));
        let body = serde_json::to_string(lease).map_err(|error| Unavailable(error.to_string()))?;
        let body = &body;
        let calls = self.tables().enumerate().map(|(place, table)| async move {
            let mut call = RENEW.prepare_invoke();
            let rest = if place == 0 { body.as_str() } else { "" };
            // What a failed renewal left is not known: not complete before everything is put again.
            let stays = if put_again { "" } else { "1" };
            call.key(table).arg(node).arg(incarnation).arg(ms(self.times.lease)).arg(rest).arg(stays);
            self.link.run::<u8>(&call).await
        });
        let answers = try_join_all(calls).await?;
        if answers.contains(&ANOTHER) {
            tracing::warn!(node, incarnation, "took the lease of another process with this node's name");
        }
        let now = Instant::now();
        Ok(self.renewal(node, incarnation, |renewal| {
            let whole = !put_again && now < renewal.due && answers.iter().all(|answer| *answer == WAS_THERE);
            if !whole {
                renewal.due = now + self.times.put_again_after().mul_f64(1.0 - rand::random::<f64>() / 4.0);
            }
            renewal.put_again = false;
            whole
        }))
    }

    async fn complete(&self, node: &str, incarnation: &str) -> Result<(), Unavailable> {
        let calls = (0..SHARDS).map(|shard| async move {
            let mut call = COMPLETE.prepare_invoke();
            call.key(self.nodes_of(shard)).arg(node).arg(incarnation);
            self.link.run::<()>(&call).await
        });
        try_join_all(calls).await.map(drop)
    }

    async fn resign(&self, node: &str, incarnation: &str) -> Result<(), Unavailable> {
        let own = (node.to_owned(), incarnation.to_owned());
        self.renewals.lock().unwrap_or_else(PoisonError::into_inner).remove(&own);
        let calls = self.tables().map(|table| async move {
            let mut call = RESIGN.prepare_invoke();
            call.key(table).arg(node).arg(incarnation);
            self.link.run::<()>(&call).await
        });
        try_join_all(calls).await.map(drop)
    }

    async fn nodes(&self) -> Result<Vec<Lease>, Unavailable> {
        let rows: Vec<String> = self.link.run(NODES.prepare_invoke().key(self.leases())).await?;
        // A row of a neighbouring release that this one cannot read is a node that it cannot speak to either.
        let mut nodes: Vec<Lease> = rows.iter().filter_map(|row| serde_json::from_str(row).ok()).collect();
        nodes.sort_unstable_by(|a, b| a.node.cmp(&b.node));
        Ok(nodes)
    }

    async fn apply(&self, changes: &[Change]) -> Result<Vec<(String, SessionRoute)>, Unavailable> {
        let groups = by_shard(changes, |change| match change {
            Change::Put(by, _) | Change::Remove(by, _) => name_of(by),
        });
        // A shard's pieces one after the other: a name's changes are in order.
        let shards = groups.iter().map(|(shard, changes)| async move {
            let mut displaced = Vec::new();
            for chunk in changes.chunks(SCRIPT_NAMES_MAX) {
                let mut call = APPLY.prepare_invoke();
                call.key(self.nodes_of(*shard)).arg(ms(self.times.row));
                for change in chunk {
                    let (by, route, kind) = match change {
                        Change::Put(by @ By::User(_), route) => (by, route, "U+"),
                        Change::Put(by @ By::Key(_), route) => (by, route, "K+"),
                        Change::Remove(by @ By::User(_), route) => (by, route, "U-"),
                        Change::Remove(by @ By::Key(_), route) => (by, route, "K-"),
                    };
                    call.key(self.row_of(*shard, by)).arg(kind);
                    call.arg(&route.session).arg(&route.node).arg(&route.incarnation).arg(&route.device);
                }
                for (place, value) in self.link.run::<Vec<(usize, String)>>(&call).await? {
                    let Some(Change::Put(by, _)) = chunk.get(place) else { continue };
                    displaced.push((name_of(by).to_owned(), route(&value)?));
                }
            }
            Ok(displaced)
        });
        Ok(try_join_all(shards).await?.into_iter().flatten().collect())
    }

    async fn look_up(&self, names: &[By]) -> Result<Found, Unavailable> {
        let groups = by_shard(names.iter().enumerate(), |(_, by)| name_of(by));
        let calls = chunks(&groups).map(|(shard, chunk)| async move {
            let mut call = FIND.prepare_invoke();
            call.key(self.nodes_of(shard));
            for (_, by) in chunk {
                call.key(self.row_of(shard, by)).arg(if matches!(by, By::User(_)) { "U" } else { "K" });
            }
            Ok((chunk, self.link.run::<Vec<Vec<String>>>(&call).await?))
        });
        let mut sessions = vec![Vec::new(); names.len()];
        let mut complete: Option<Vec<String>> = None;
        for (chunk, mut lists) in try_join_all(calls).await? {
            let here = lists.pop().unwrap_or_default();
            complete = Some(match complete {
                Some(before) => before.into_iter().filter(|incarnation| here.contains(incarnation)).collect(),
                None => here,
            });
            for ((place, _), list) in chunk.iter().zip(lists) {
                sessions[*place] = list.iter().map(|value| route(value)).collect::<Result<_, _>>()?;
            }
        }
        Ok(Found { sessions, complete: complete.unwrap_or_default() })
    }

    async fn count(&self, node: &str, incarnation: &str, counts: &[(String, u64)]) -> Result<(), Unavailable> {
        let groups = by_shard(counts, |(channel, _)| channel);
        let shards = groups.iter().map(|(shard, counts)| async move {
            for chunk in counts.chunks(SCRIPT_NAMES_MAX) {
                let mut call = self.channel_call(&COUNT, *shard);
                call.arg(node).arg(incarnation).arg(ms(self.times.row)).arg(ms(self.times.index()));
                for (channel, count) in chunk {
                    call.key(self.key(*shard, &format!("c:{channel}"))).arg(channel).arg(*count);
                }
                self.link.run::<()>(&call).await?;
            }
            Ok(())
        });
        try_join_all(shards).await.map(drop)
    }

    async fn live_counts(&self, channels: &[String]) -> Result<Vec<u64>, Unavailable> {
        self.sums(channels).await
    }

    async fn written_counts(&self, channels: &[Arc<str>]) -> Result<Vec<u64>, Unavailable> {
        let groups = by_shard(channels.iter().enumerate(), |(_, channel)| channel);
        let reads = chunks(&groups).map(|(shard, chunk)| async move {
            let [now, other] = self.indexes(shard);
            let mut found = Vec::with_capacity(chunk.len());
            let mut missing: Vec<Placed<'_>> = Vec::new();
            for (&placed, score) in chunk.iter().zip(self.scores(&now, chunk).await?) {
                match score {
                    Some(score) => found.push((placed.0, score)),
                    None => missing.push(placed),
                }
            }
            // Not written since the other's turn. Had it been written just now, the other would say so as well.
            if !missing.is_empty() {
                let scores = self.scores(&other, &missing).await?;
                found.extend(missing.iter().zip(scores).filter_map(|((place, _), score)| Some((*place, score?))));
            }
            Ok(found)
        });
        let mut counts = vec![0; channels.len()];
        for (place, score) in try_join_all(reads).await?.into_iter().flatten() {
            counts[place] = score as u64;
        }
        Ok(counts)
    }

    async fn top(&self, prefix: &str, limit: usize) -> Result<Vec<(String, u64)>, Unavailable> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut scans: Vec<IndexScan> = (0..SHARDS)
            .map(|shard| IndexScan {
                indexes: self.indexes(shard).into(),
                rows: 0,
                seen: FxHashSet::default(),
                beyond: u64::MAX,
            })
            .collect();
        // A shard's fair share twice over: the first step is nearly always the last.
        let rows = (2 * limit / SHARDS as usize).clamp(TOP_STEP_MIN, TOP_STEP_MAX);
        let mut best: Vec<(String, u64)> = Vec::new();
        loop {
            let last = if best.len() < limit { 0 } else { best.last().map_or(0, |(_, sum)| *sum) };
            let steps = scans
                .iter_mut()
                .filter(|scan| !scan.indexes.is_empty() && scan.rows < TOP_ROWS_MAX && scan.beyond > last)
                .map(|scan| self.scan(scan, prefix, rows));
            let found = try_join_all(steps).await?;
            if found.is_empty() {
                return Ok(best);
            }
            best.extend(found.into_iter().flatten());
            best.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            best.truncate(limit);
        }
    }

    async fn ready(&self) -> Result<(), String> {
        // In a cluster each may lie with another server.
        let reads = self.tables().map(|table| async move {
            let mut read = ::redis::cmd("EXISTS");
            read.arg(table);
            self.link.command::<bool>(&read).await
        });
        try_join_all(reads).await.map(drop).map_err(|unavailable| unavailable.0)
    }
}
