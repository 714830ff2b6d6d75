//! Routes in one process. Leases lapse by time here too, so that what holds on Redis holds in `barrage run`.
//!
//! One lock over one table, held for as long as a call takes and never across an await. A session costs its name's
//! [`Row`]. What a node wrote is swept when its lease is seen to have lapsed.

use std::borrow::Borrow as _;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rustc_hash::{FxHashMap, FxHashSet};

use self::row::{Entry, Row};
use crate::{By, Change, Found, LEASE_SECONDS, Lease, Routes, SessionRoute, Unavailable};

mod row;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// The table in memory.
pub struct Memory {
    lease: Duration,
    clock: Clock,
    table: Mutex<Table>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("lease", &self.lease).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Table {
    /// By the node's name; ordered, so that lists come out the same each time.
    nodes: BTreeMap<String, HeldLease>,
    sessions: FxHashSet<Row>,
    channels: FxHashMap<Box<str>, Vec<(Arc<Owner>, u64)>>,
    /// The nodes that write, by number, which is how a stored row names them. An owner without a lease is here until its rows are swept.
    owners: BTreeMap<u32, Arc<Owner>>,
    /// The last owner's number.
    last_owner: u32,
}

struct HeldLease {
    lease: Lease,
    until: Instant,
    complete: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Owner {
    node: String,
    incarnation: String,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Duration::from_secs(LEASE_SECONDS), Arc::new(Instant::now))
    }

    /// With another lease and another clock: for tests, where time is moved by hand.
    #[must_use]
    pub fn with(lease: Duration, clock: Clock) -> Self {
        Self { lease, clock, table: Mutex::default() }
    }

    /// The table, without the leases that have lapsed, and the time.
    fn table(&self) -> (MutexGuard<'_, Table>, Instant) {
        let now = (self.clock)();
        // No call leaves the table half changed in a way that matters: a poisoned lock is as good as another.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.nodes.values().any(|held| held.until <= now) {
            table.nodes.retain(|_, held| held.until > now);
            table.sweep();
        }
        (table, now)
    }
}

/// Whether `owner` has its node's lease.
fn holds(nodes: &BTreeMap<String, HeldLease>, owner: &Owner) -> bool {
    nodes.get(&owner.node).is_some_and(|held| held.lease.incarnation == owner.incarnation)
}

impl Table {
    fn lives(&self, owner: &Owner) -> bool {
        holds(&self.nodes, owner)
    }

    /// Throws out what nodes without a lease wrote.
    fn sweep(&mut self) {
        let Self { nodes, sessions, channels, owners, .. } = self;
        channels.retain(|_, counts| {
            counts.retain(|(owner, _)| holds(nodes, owner));
            !counts.is_empty()
        });
        owners.retain(|_, owner| holds(nodes, owner));
        let live = |entry: &Entry<'_>| owners.contains_key(&entry.owner);
        let stale: Vec<Row> = sessions.extract_if(|row| !row.entries().all(|entry| live(&entry))).collect();
        for row in stale {
            let left: Vec<_> = row.entries().filter(live).collect();
            if !left.is_empty() {
                sessions.insert(Row::new(row.borrow(), &left));
            }
        }
        if sessions.len() < sessions.capacity() / 4 {
            sessions.shrink_to_fit();
        }
    }

    fn owner(&mut self, node: &str, incarnation: &str) -> (u32, Arc<Owner>) {
        let known = self.owners.iter().find(|(_, owner)| owner.node == node && owner.incarnation == incarnation);
        if let Some((&number, owner)) = known {
            return (number, owner.clone());
        }
        let owner = Arc::new(Owner { node: node.to_owned(), incarnation: incarnation.to_owned() });
        self.last_owner += 1;
        self.owners.insert(self.last_owner, owner.clone());
        (self.last_owner, owner)
    }

    fn count(&self, channel: &str) -> u64 {
        self.channels.get(channel).map_or(0, |row| self.live_count(row))
    }

    fn live_count(&self, counts: &[(Arc<Owner>, u64)]) -> u64 {
        counts.iter().filter(|(owner, _)| self.lives(owner)).map(|(_, count)| count).sum()
    }

    /// The live session that a key's new route displaced.
    fn put(&mut self, by: &By, route: &SessionRoute) -> Option<SessionRoute> {
        let (number, owner) = self.owner(&route.node, &route.incarnation);
        let short = route.session.strip_prefix(&route.incarnation).and_then(|rest| rest.strip_prefix('.'));
        let new = Entry {
            owner: number,
            short: short.is_some(),
            session: short.unwrap_or(&route.session),
            device: &route.device,
        };
        let name = row::name(by);
        let before = self.sessions.take(&name[..]);
        let others = before.iter().flat_map(Row::entries).filter(|old| !self.is(old, &route.session));
        let (row, displaced) = match by {
            By::User(_) => (Row::new(&name, &others.chain([new]).collect::<Vec<_>>()), None),
            By::Key(_) => {
                let owned = others.filter_map(|old| Some((old, self.owners.get(&old.owner)?)));
                let live = owned.filter(|(_, owner)| self.lives(owner));
                let another = live.map(|(old, owner)| route_of(&old, owner)).next();
                match before {
                    // A process that was paused and has lost its lease must not take a key from a live session.
                    Some(before) if another.is_some() && !self.lives(&owner) => (before, None),
                    _ => (Row::new(&name, &[new]), another),
                }
            }
        };
        self.sessions.insert(row);
        displaced
    }

    fn remove(&mut self, by: &By, route: &SessionRoute) {
        let name = row::name(by);
        let Some(row) = self.sessions.take(&name[..]) else { return };
        let wrote = |entry: &Entry<'_>| {
            let owner = self.owners.get(&entry.owner);
            self.is(entry, &route.session) && owner.is_some_and(|owner| owner.incarnation == route.incarnation)
        };
        let left: Vec<_> = row.entries().filter(|entry| !wrote(entry)).collect();
        if !left.is_empty() {
            self.sessions.insert(Row::new(&name, &left));
        }
    }

    /// Whether it is the session of this ID.
    fn is(&self, entry: &Entry<'_>, session: &str) -> bool {
        if !entry.short {
            return entry.session == session;
        }
        let incarnation = self.owners.get(&entry.owner).map_or("", |owner| &owner.incarnation);
        let rest = session.strip_prefix(incarnation).and_then(|rest| rest.strip_prefix('.'));
        rest == Some(entry.session)
    }

    /// The live sessions under a name.
    fn find(&self, by: &By) -> Vec<SessionRoute> {
        let entries = self.sessions.get(&row::name(by)[..]).into_iter().flat_map(Row::entries);
        let owned = entries.filter_map(|entry| Some((entry, self.owners.get(&entry.owner)?)));
        owned.filter(|(_, owner)| self.lives(owner)).map(|(entry, owner)| route_of(&entry, owner)).collect()
    }
}

/// Where a session is.
fn route_of(entry: &Entry<'_>, owner: &Owner) -> SessionRoute {
    let Owner { node, incarnation } = owner;
    SessionRoute {
        session: if entry.short { format!("{incarnation}.{}", entry.session) } else { entry.session.to_owned() },
        device: entry.device.to_owned(),
        node: node.clone(),
        incarnation: incarnation.clone(),
    }
}

#[async_trait]
impl Routes for Memory {
    async fn renew(&self, lease: &Lease) -> Result<bool, Unavailable> {
        let (mut table, now) = self.table();
        let of_ours = |held: &&HeldLease| held.lease.incarnation == lease.incarnation;
        let complete = table.nodes.get(&lease.node).filter(of_ours).is_some_and(|held| held.complete);
        let held = HeldLease { lease: lease.clone(), until: now + self.lease, complete };
        let old = table.nodes.insert(lease.node.clone(), held);
        let was_there = old.as_ref().is_some_and(|old| of_ours(&old));
        if old.is_some() && !was_there {
            table.sweep();
        }
        Ok(was_there)
    }

    async fn complete(&self, node: &str, incarnation: &str) -> Result<(), Unavailable> {
        let (mut table, _) = self.table();
        if let Some(held) = table.nodes.get_mut(node).filter(|held| held.lease.incarnation == incarnation) {
            held.complete = true;
        }
        Ok(())
    }

    async fn resign(&self, node: &str, incarnation: &str) -> Result<(), Unavailable> {
        let (mut table, _) = self.table();
        if table.nodes.get(node).is_some_and(|held| held.lease.incarnation == incarnation) {
            table.nodes.remove(node);
            table.sweep();
        }
        Ok(())
    }

    async fn nodes(&self) -> Result<Vec<Lease>, Unavailable> {
        Ok(self.table().0.nodes.values().map(|held| held.lease.clone()).collect())
    }

    async fn apply(&self, changes: &[Change]) -> Result<Vec<(String, SessionRoute)>, Unavailable> {
        let (mut table, _) = self.table();
        let mut displaced = Vec::new();
        for change in changes {
            match change {
                Change::Put(by, route) => {
                    if let (By::Key(key), Some(old)) = (by, table.put(by, route)) {
                        displaced.push((key.clone(), old));
                    }
                }
                Change::Remove(by, route) => table.remove(by, route),
            }
        }
        Ok(displaced)
    }

    async fn look_up(&self, names: &[By]) -> Result<Found, Unavailable> {
        let (table, _) = self.table();
        let complete = table.nodes.values().filter(|held| held.complete).map(|held| held.lease.incarnation.clone());
        Ok(Found { sessions: names.iter().map(|name| table.find(name)).collect(), complete: complete.collect() })
    }

    async fn count(&self, node: &str, incarnation: &str, counts: &[(String, u64)]) -> Result<(), Unavailable> {
        let (mut table, _) = self.table();
        let (_, owner) = table.owner(node, incarnation);
        for (channel, count) in counts {
            let row = table.channels.entry(channel.as_str().into()).or_default();
            row.retain(|(other, _)| **other != *owner);
            if *count > 0 {
                row.push((owner.clone(), *count));
            } else if row.is_empty() {
                table.channels.remove(channel.as_str());
            }
        }
        Ok(())
    }

    async fn live_counts(&self, channels: &[String]) -> Result<Vec<u64>, Unavailable> {
        let (table, _) = self.table();
        Ok(channels.iter().map(|channel| table.count(channel)).collect())
    }

    /// Exact here: a count is dead as soon as its node is.
    async fn written_counts(&self, channels: &[Arc<str>]) -> Result<Vec<u64>, Unavailable> {
        let (table, _) = self.table();
        Ok(channels.iter().map(|channel| table.count(channel)).collect())
    }

    async fn top(&self, prefix: &str, limit: usize) -> Result<Vec<(String, u64)>, Unavailable> {
        let (table, _) = self.table();
        let mut all: Vec<(&str, u64)> = table
            .channels
            .iter()
            .filter(|(channel, _)| channel.starts_with(prefix))
            .map(|(channel, row)| (&**channel, table.live_count(row)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let order = |a: &(&str, u64), b: &(&str, u64)| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0));
        if limit < all.len() {
            all.select_nth_unstable_by(limit, order);
            all.truncate(limit);
        }
        all.sort_unstable_by(order);
        Ok(all.into_iter().map(|(channel, count)| (channel.to_owned(), count)).collect())
    }

    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lapsed_node_leaves_nothing_in_memory() {
        let time = Arc::new(Mutex::new(Instant::now()));
        let clock = {
            let time = time.clone();
            move || *time.lock().unwrap()
        };
        let routes = Memory::with(Duration::from_secs(10), Arc::new(clock));
        let lease = Lease {
            node: "a".into(),
            incarnation: "i1".into(),
            role: crate::Role::Connector,
            grpc: String::new(),
            clients: vec![],
            sessions: 0,
            addresses: 0,
            open: true,
            job: None,
        };
        let route =
            SessionRoute { session: "i1.0".into(), device: String::new(), node: "a".into(), incarnation: "i1".into() };
        routes.renew(&lease).await.unwrap();
        routes.apply(&[Change::Put(By::User("42".into()), route.clone())]).await.unwrap();
        routes.apply(&[Change::Put(By::Key("k".into()), route)]).await.unwrap();
        routes.count("a", "i1", &[("room:1".into(), 7)]).await.unwrap();
        *time.lock().unwrap() += Duration::from_secs(10);
        let (table, _) = routes.table();
        assert!(table.nodes.is_empty() && table.sessions.is_empty());
        assert!(table.channels.is_empty() && table.owners.is_empty());
    }
}
