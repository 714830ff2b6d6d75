//! How many are online, and where clients connect: Routes, asked at most about once a second for the same thing.
//!
//! Connectors write their counts every second or so, and their sessions with the lease's renewal (every 3 s); with a
//! cache of 1 s a number is at most 5 s old. While Routes cannot be reached, the last numbers are good for 5 s.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::client::{Error, ErrorCode};
use proto::error::error;
use routes::{Lease, Role, Routes, Unavailable};

/// How long an answer is given again without asking.
const FRESH: Duration = Duration::from_secs(1);

/// How long an answer is given while Routes cannot be reached.
const STALE: Duration = Duration::from_secs(5);

/// Most channels whose numbers are kept, some 100 bytes each; over it all are forgotten and asked again.
const CHANNELS_MAX: usize = 50_000;

/// Rooms of a list: more is a listing of everything, which is not this.
pub(crate) const TOP_MAX: usize = 100;

/// Asks Routes.
pub(crate) struct Online {
    routes: Arc<dyn Routes>,
    counts: Mutex<HashMap<String, (Instant, u64)>>,
    /// Locked while asking, so that many callers ask once.
    nodes: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Lease>>)>>,
    tops: tokio::sync::Mutex<HashMap<String, (Instant, Arc<Tops>)>>,
}

/// Channels and their sessions, most first.
type Tops = Vec<(String, u64)>;

impl Online {
    pub(crate) fn new(routes: Arc<dyn Routes>) -> Self {
        Self { routes, counts: Mutex::default(), nodes: tokio::sync::Mutex::default(), tops: Default::default() }
    }

    /// Sessions in each channel, in the order asked.
    pub(crate) async fn counts(&self, channels: &[String], now: Instant) -> Result<Vec<u64>, Error> {
        let wanted = self.missing(channels, now, FRESH);
        if !wanted.is_empty() {
            match self.routes.live_counts(&wanted).await {
                Ok(counts) => {
                    let mut known = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
                    if known.len() + wanted.len() > CHANNELS_MAX {
                        known.clear();
                    }
                    known.extend(wanted.into_iter().zip(counts).map(|(channel, count)| (channel, (now, count))));
                }
                Err(away) if self.missing(&wanted, now, STALE).is_empty() => tracing::debug!(%away, "counts are stale"),
                Err(away) => return Err(unavailable(&away)),
            }
        }
        let known = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(channels.iter().map(|channel| known.get(channel).map_or(0, |(_, count)| *count)).collect())
    }

    fn missing(&self, channels: &[String], now: Instant, age: Duration) -> Vec<String> {
        let known = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh =
            |channel: &String| known.get(channel).is_some_and(|(at, _)| now.saturating_duration_since(*at) < age);
        channels.iter().filter(|channel| !fresh(channel)).cloned().collect()
    }

    /// The channels that begin with `prefix` and have the most sessions.
    pub(crate) async fn top(&self, prefix: &str, limit: usize, now: Instant) -> Result<Tops, Error> {
        let mut tops = self.tops.lock().await;
        let known = tops.get(prefix).map(|(at, top)| (now.saturating_duration_since(*at), top.clone()));
        let top = match known {
            Some((age, top)) if age < FRESH => top,
            known => match (self.routes.top(prefix, TOP_MAX).await, known) {
                (Ok(top), _) => {
                    let top = Arc::new(top);
                    tops.retain(|_, (at, _)| now.saturating_duration_since(*at) < STALE);
                    tops.insert(prefix.to_owned(), (now, top.clone()));
                    top
                }
                (Err(_), Some((age, top))) if age < STALE => top,
                (Err(away), _) => return Err(unavailable(&away)),
            },
        };
        Ok(top.iter().take(limit).cloned().collect())
    }

    /// Sessions, and addresses, over all connectors.
    pub(crate) async fn total(&self, now: Instant) -> Result<(u64, u64), Error> {
        let nodes = self.nodes(now).await?;
        let connectors = nodes.iter().filter(|node| node.role == Role::Connector);
        Ok(connectors
            .fold((0, 0), |(sessions, addresses), node| (sessions + node.sessions, addresses + node.addresses)))
    }

    /// Connectors that take new sessions, least loaded first.
    pub(crate) async fn open(&self, now: Instant) -> Result<Vec<Lease>, Error> {
        let nodes = self.nodes(now).await?;
        let open = nodes.iter().filter(|node| node.role == Role::Connector && node.open && !node.clients.is_empty());
        let mut open: Vec<Lease> = open.cloned().collect();
        open.sort_by_key(|node| node.sessions);
        Ok(open)
    }

    async fn nodes(&self, now: Instant) -> Result<Arc<Vec<Lease>>, Error> {
        let mut known = self.nodes.lock().await;
        let age = known.as_ref().map(|(at, _)| now.saturating_duration_since(*at));
        if age.is_none_or(|age| age >= FRESH) {
            match self.routes.nodes().await {
                Ok(nodes) => *known = Some((now, Arc::new(nodes))),
                Err(away) if age.is_none_or(|age| age >= STALE) => return Err(unavailable(&away)),
                Err(away) => tracing::debug!(%away, "nodes are stale"),
            }
        }
        Ok(known.as_ref().map(|(_, nodes)| nodes.clone()).unwrap_or_default())
    }
}

fn unavailable(away: &Unavailable) -> Error {
    tracing::warn!(%away, "who is online cannot be told");
    error(ErrorCode::Unavailable, "who is online cannot be told now: try again")
}
