//! The connection to Redis: one server or a cluster, dialled when it is first needed and again whenever it was lost.
//!
//! Every call is one script over keys of one slot. Calls that are made together share the connection, which writes
//! them one behind the other without waiting for answers: a batch over many shards is one round trip.
//!
//! The client library dials again by itself when a connection breaks. It does not when the server behind a standing
//! connection is no longer the primary, and its cluster connection does not always find its way after a failover. So
//! [`Redial`] judges the answers and throws a connection away that does not get better by itself.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use ::redis::cluster::{ClusterClient, ClusterClientBuilder, ClusterConfig};
use ::redis::cluster_async::ClusterConnection;
use ::redis::{Client, ErrorKind, FromRedisValue, IntoConnectionInfo as _, RedisError, RedisResult, ScriptInvocation};
use ::redis::{Cmd, ServerErrorKind};
use proto::config::Invalid;

use crate::{Config, LEASE_SECONDS, Unavailable};

/// Longest wait for an answer. With a renewal every third of a lease, two may fail before the lease is lost.
const ANSWER: Duration = Duration::from_millis(2000);
/// Longest wait for a connection, of which one [`ANSWER`] holds a first and a second try.
const CONNECT: Duration = Duration::from_millis(700);
/// The caller comes again anyway: within one call a lost connection is tried this many times more.
const RETRIES: usize = 1;
/// A connection on which calls have failed for so long is thrown away: half a lease, so that the node is whole again
/// within two leases. A dial that was in vain costs one connection.
const FAILING_MAX: Duration = Duration::from_millis(LEASE_SECONDS * 1000 / 2);
/// Two failures further apart than this are not of one outage. Renewals alone make a call every third of a lease, and
/// one that is not answered takes [`ANSWER`].
const OUTAGE_GAP: Duration = Duration::from_millis(LEASE_SECONDS * 1000 / 3 + 2500);
/// Between two dials after answers that no primary gives: the address may lead to the old primary for a while.
const DIAL_EVERY: Duration = Duration::from_millis(1000);
const _: () = assert!(OUTAGE_GAP.as_millis() > ANSWER.as_millis() && DIAL_EVERY.as_millis() < FAILING_MAX.as_millis());

/// How connections are made.
enum Dialler {
    One(Client, ConnectionManagerConfig),
    Cluster(ClusterClient, ClusterConfig),
}

impl Dialler {
    /// A connection that dials when it is first used.
    fn dial(&self) -> RedisResult<Connection> {
        Ok(match self {
            Self::One(client, limits) => {
                Connection::One(ConnectionManager::new_lazy_with_config(client.clone(), limits.clone())?)
            }
            Self::Cluster(client, limits) => {
                Connection::Cluster(client.get_pending_async_connection_with_config(limits.clone()))
            }
        })
    }
}

#[derive(Clone)]
enum Connection {
    One(ConnectionManager),
    Cluster(ClusterConnection),
}

/// The connection that calls take now, and what is known of it.
struct Standing {
    connection: Connection,
    redial: Redial,
}

/// See the module's opening.
pub(super) struct Link {
    dialler: Dialler,
    standing: Mutex<Standing>,
}

impl Link {
    pub(super) fn open(config: &Config) -> Result<Self, Invalid> {
        let refused = |_| Invalid { key: "routes.urls", value: "(not shown)".into(), want: "redis://host:port[/db]" };
        let dialler = dialler(config).map_err(refused)?;
        let connection = dialler.dial().map_err(refused)?;
        let redial = Redial::new(Instant::now());
        Ok(Self { dialler, standing: Mutex::new(Standing { connection, redial }) })
    }

    pub(super) async fn run<T: FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<T, Unavailable> {
        let (connection, dial) = self.connection();
        let answer = match connection {
            Connection::One(mut connection) => within(call.invoke_async(&mut connection)).await,
            Connection::Cluster(mut connection) => within(call.invoke_async(&mut connection)).await,
        };
        self.judge(answer, dial)
    }

    pub(super) async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Unavailable> {
        let (connection, dial) = self.connection();
        let answer = match connection {
            Connection::One(connection) => within(query(command, connection)).await,
            Connection::Cluster(connection) => within(query(command, connection)).await,
        };
        self.judge(answer, dial)
    }

    /// The connection, and the number of its dial.
    fn connection(&self) -> (Connection, u64) {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        (standing.connection.clone(), standing.redial.dial)
    }

    /// Dials anew where a failure asks for it. The calls that are under way keep the connection that they have.
    fn judge<T>(&self, answer: Result<T, Failure>, dial: u64) -> Result<T, Unavailable> {
        let failure = match answer {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if standing.redial.failed(dial, failure.of_no_primary(), Instant::now()) {
            match self.dialler.dial() {
                Ok(connection) => standing.connection = connection,
                Err(error) => tracing::warn!(%error, "Redis cannot be dialled anew"),
            }
            drop(standing);
            tracing::warn!(%failure, "the connection to Redis is thrown away and dialled anew");
        }
        Err(Unavailable(format!("Redis: {failure}")))
    }
}

fn dialler(config: &Config) -> RedisResult<Dialler> {
    let (username, password) = (config.username.as_str(), config.password.reveal());
    if config.cluster {
        let mut client = ClusterClientBuilder::new(config.urls.iter().map(String::as_str)).retries(RETRIES as u32);
        if !username.is_empty() {
            client = client.username(username);
        }
        if !password.is_empty() {
            client = client.password(password);
        }
        let limits = ClusterConfig::new().set_connection_timeout(CONNECT).set_response_timeout(ANSWER);
        return Ok(Dialler::Cluster(client.build()?, limits));
    }
    let url = config.urls.first().map_or("", String::as_str);
    let info = url.into_connection_info()?;
    let mut user = info.redis_settings().clone();
    if !username.is_empty() {
        user = user.set_username(username);
    }
    if !password.is_empty() {
        user = user.set_password(password);
    }
    let client = Client::open(info.set_redis_settings(user))?;
    let limits = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(ANSWER))
        .set_number_of_retries(RETRIES);
    Ok(Dialler::One(client, limits))
}

/// Whether a connection is to be thrown away, judged by the failures of its calls. It is not told of answers that came:
/// in a cluster a part of the calls may be answered while the others fail for ever.
#[derive(Debug)]
struct Redial {
    /// The connection's number: failures of an earlier one say nothing of it.
    dial: u64,
    /// When it was dialled, which tells how soon it may be thrown away again.
    dialled: Instant,
    /// The first and the last failure of the outage.
    outage: Option<(Instant, Instant)>,
}

impl Redial {
    fn new(now: Instant) -> Self {
        Self { dial: 0, dialled: now, outage: None }
    }

    /// A call on the connection `dial` failed; `true`: another connection is to take its place.
    fn failed(&mut self, dial: u64, of_no_primary: bool, now: Instant) -> bool {
        if dial != self.dial {
            return false;
        }
        let begun = match self.outage {
            Some((begun, last)) if now.saturating_duration_since(last) <= OUTAGE_GAP => begun,
            _ => now,
        };
        self.outage = Some((begun, now));
        let failing = now.saturating_duration_since(begun) >= FAILING_MAX;
        let left = of_no_primary && now.saturating_duration_since(self.dialled) >= DIAL_EVERY;
        if failing || left {
            *self = Self { dial: self.dial + 1, dialled: now, outage: None };
        }
        failing || left
    }
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("no answer within {} ms", ANSWER.as_millis())]
    Late,
}

impl Failure {
    /// The server says that it is not the primary, or has none: READONLY, MASTERDOWN.
    fn of_no_primary(&self) -> bool {
        let Self::Redis(error) = self else { return false };
        matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown))
    }
}

async fn query<T: FromRedisValue>(command: &Cmd, mut connection: impl ConnectionLike) -> RedisResult<T> {
    command.query_async(&mut connection).await
}

/// The outer bound: whatever reconnecting and redirecting goes on inside.
async fn within<T>(call: impl Future<Output = RedisResult<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::Late),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_fails_for_half_a_lease_is_dialled_anew_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut redial = Redial::new(start);
        assert!(!redial.failed(0, false, at(0)));
        assert!(!redial.failed(0, false, at(3300)));
        assert!(redial.failed(0, false, at(5300)));
        assert!(!redial.failed(0, false, at(5301)), "of the connection before");
        assert!(!redial.failed(1, false, at(5400)));
        // A failure now and then is no outage.
        for n in 1..20 {
            assert!(!redial.failed(1, false, at(5400 + n * 6000)));
        }
    }

    #[test]
    fn an_answer_of_no_primary_dials_anew_at_once_and_not_all_the_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut redial = Redial::new(start);
        assert!(redial.failed(0, true, at(60_000)));
        assert!(!redial.failed(1, true, at(60_100)));
        assert!(redial.failed(1, true, at(61_000)));
    }
}
