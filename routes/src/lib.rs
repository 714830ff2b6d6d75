//! Which sessions are on which node: the [`Routes`] seam. All of it can be lost and is rebuilt within one lease.
//!
//! A node holds a lease ([`Lease`]), renewed every third of [`LEASE_SECONDS`]; everything else that it writes names the
//! node and its incarnation, and dies with the lease. A node whose renewal finds the lease gone registers everything
//! anew. What it is not: a store. Nothing here is asked for a sequence, and losing it delays, never loses, a room's
//! messages (connectors hold their channels with the owner itself).
//!
//! Invariants (rule 39): an incarnation is random and compared for equality; a count is its node's own absolute value;
//! a route is removed only by the session that wrote it.

use std::sync::Arc;

use async_trait::async_trait;

mod config;
mod memory;
mod redis;

pub use config::{Config, Kind, open};
pub use memory::{Clock, Memory};
pub use redis::{Redis, Times};

/// How long a node's routes outlive its last renewal, seconds: three renewals may fail.
pub const LEASE_SECONDS: u64 = 10;

/// The routes cannot be reached now. The server's fault; retry.
#[derive(Debug, thiserror::Error)]
#[error("the routes are not available: {0}")]
pub struct Unavailable(pub String);

/// The service that a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Owns sessions.
    Connector,
    /// Serves the API and the connectors.
    Logic,
    /// Owns partitions.
    Job,
}

/// One live node.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lease {
    /// Its configured or made-up name, unique in the cluster.
    pub node: String,
    /// Random for each start.
    pub incarnation: String,
    /// Its service.
    pub role: Role,
    /// Where its gRPC answers, `host:port`; empty: nowhere.
    pub grpc: String,
    /// Where clients connect, as they see it: `host:port` of TCP and of WebSocket (connectors).
    pub clients: Vec<String>,
    /// Sessions now (connectors).
    pub sessions: u64,
    /// Different client addresses now (connectors).
    pub addresses: u64,
    /// Takes new sessions (false while it drains).
    pub open: bool,
    /// What a job is doing (jobs).
    #[serde(default)]
    pub job: Option<JobLease>,
}

/// What a job says of itself with each renewal, several a second: so that another one can take over what it has as soon
/// as it falls silent, long before its lease ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct JobLease {
    /// Grows with each renewal.
    pub beat: u64,
    /// The partitions that it has, by the topic's name.
    pub owns: std::collections::BTreeMap<String, Vec<u32>>,
}

/// One session of a user, or the one behind a goim key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct SessionRoute {
    /// The session's ID, unique in the cluster and over time.
    pub session: String,
    /// The device that the token names, or empty.
    pub device: String,
    /// The node's name.
    pub node: String,
    /// The node's incarnation: a route of another one is dead.
    pub incarnation: String,
}

/// The name by which a session is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum By {
    /// `user:<uid>`'s uid: any number of sessions.
    User(String),
    /// A goim key: one session.
    Key(String),
}

/// The incarnation of the connector that a session lives on: session IDs are `<incarnation>.<the connector's own part>`,
/// so that a push to a session needs no route.
#[must_use]
pub fn incarnation_of(session: &str) -> Option<&str> {
    session.split_once('.').map(|(incarnation, _)| incarnation)
}

/// What [`Routes::look_up`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The live sessions under each name, in the order asked.
    pub sessions: Vec<Vec<SessionRoute>>,
    /// The incarnations whose lease was marked complete wherever these names were looked for, at that moment. A node that
    /// is missing here may have a session that was not found.
    pub complete: Vec<String>,
}

/// One change of the table of sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The session is there.
    Put(By, SessionRoute),
    /// It is gone; another session's route under the same name stays.
    Remove(By, SessionRoute),
}

/// The table.
#[async_trait]
pub trait Routes: Send + Sync + 'static {
    /// Renews, or takes, the node's lease. `false`: it was gone (or never there, or nobody knows, since the last renewal
    /// failed), or what the node wrote is near the end of its time: everything of this node's must be put again.
    ///
    /// # Errors
    /// [`Unavailable`], as everywhere below.
    async fn renew(&self, lease: &Lease) -> Result<bool, Unavailable>;

    /// Everything that this node has is put: marks its lease complete wherever it stands, so that a name without a session
    /// is known to be nobody's ([`Found::complete`]). A lease that is taken anew is not complete, nor one whose last renewal
    /// failed. Never to be called while a renewal is under way.
    async fn complete(&self, node: &str, incarnation: &str) -> Result<(), Unavailable>;

    /// Gives the lease back, and all that hangs on it.
    async fn resign(&self, node: &str, incarnation: &str) -> Result<(), Unavailable>;

    /// The live nodes.
    async fn nodes(&self) -> Result<Vec<Lease>, Unavailable>;

    /// Applies changes in order. For every [`Change::Put`] of a [`By::Key`] that displaced a live session of another
    /// ID, that session.
    async fn apply(&self, changes: &[Change]) -> Result<Vec<(String, SessionRoute)>, Unavailable>;

    /// The live sessions under each name, and which nodes had put all that they have.
    async fn look_up(&self, names: &[By]) -> Result<Found, Unavailable>;

    /// The live sessions under each name, in the order asked.
    async fn find(&self, names: &[By]) -> Result<Vec<Vec<SessionRoute>>, Unavailable> {
        Ok(self.look_up(names).await?.sessions)
    }

    /// Sets this node's own number of sessions in each channel; 0 removes.
    async fn count(&self, node: &str, incarnation: &str, counts: &[(String, u64)]) -> Result<(), Unavailable>;

    /// Sessions in each channel over all live nodes, in the order asked: exact, and what dead nodes left there is thrown
    /// out. Costs a row for each node that has the channel.
    async fn live_counts(&self, channels: &[String]) -> Result<Vec<u64>, Unavailable>;

    /// The same as of when a node last set its number in the channel, or [`Routes::live_counts`] last read it; cheap, for
    /// who asks often for all that it has. Too high by what a node had that has ended since without setting it to 0,
    /// until one of the two meets the channel. Not too low: a sum rises only with a write (a table that has lost
    /// something says less, until that is put again).
    async fn written_counts(&self, channels: &[Arc<str>]) -> Result<Vec<u64>, Unavailable>;

    /// The channels that begin with `prefix` and have the most sessions, most first.
    async fn top(&self, prefix: &str, limit: usize) -> Result<Vec<(String, u64)>, Unavailable>;

    /// Whether the table can be reached now, with the reason where it cannot (readiness).
    async fn ready(&self) -> Result<(), String>;
}
