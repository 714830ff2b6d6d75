//! The connection: one server or a cluster, dialled when it is first needed and again whenever it was lost.
//!
//! Every call is one script over keys of one slot. Calls that are made together share the connection, which writes
//! them one behind the other without waiting for answers: a batch over many shards is one round trip.

use std::time::Duration;

use ::redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use ::redis::cluster::{ClusterClientBuilder, ClusterConfig};
use ::redis::cluster_async::ClusterConnection;
use ::redis::{Client, FromRedisValue, IntoConnectionInfo as _, RedisResult, ScriptInvocation};
use proto::config::Invalid;

use crate::{Config, Unavailable};

/// Longest wait for an answer. With a renewal every third of a lease, two may fail before the lease is lost.
const ANSWER: Duration = Duration::from_millis(2000);
/// Longest wait for a connection, of which one [`ANSWER`] holds a first and a second try.
const CONNECT: Duration = Duration::from_millis(700);
/// The caller comes again anyway: within one call a lost connection is tried this many times more.
const RETRIES: usize = 1;

#[derive(Clone)]
pub(super) enum Link {
    One(ConnectionManager),
    Cluster(ClusterConnection),
}

impl Link {
    pub(super) fn open(config: &Config) -> Result<Self, Invalid> {
        let refused = |_| Invalid { key: "routes.urls", value: "(not shown)".into(), want: "redis://host:port[/db]" };
        let (username, password) = (config.username.as_str(), config.password.reveal());
        if config.cluster {
            let mut client = ClusterClientBuilder::new(config.urls.iter().map(String::as_str)).retries(RETRIES as u32);
            if !username.is_empty() {
                client = client.username(username);
            }
            if !password.is_empty() {
                client = client.password(password);
            }
            let client = client.build().map_err(refused)?;
            let limits = ClusterConfig::new().set_connection_timeout(CONNECT).set_response_timeout(ANSWER);
            return Ok(Self::Cluster(client.get_pending_async_connection_with_config(limits)));
        }
        let url = config.urls.first().map_or("", String::as_str);
        let info = url.into_connection_info().map_err(refused)?;
        let mut user = info.redis_settings().clone();
        if !username.is_empty() {
            user = user.set_username(username);
        }
        if !password.is_empty() {
            user = user.set_password(password);
        }
        let client = Client::open(info.set_redis_settings(user)).map_err(refused)?;
        let limits = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(ANSWER))
            .set_number_of_retries(RETRIES);
        Ok(Self::One(ConnectionManager::new_lazy_with_config(client, limits).map_err(refused)?))
    }

    pub(super) async fn run<T: FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<T, Unavailable> {
        match self {
            Self::One(connection) => within(call.invoke_async(&mut connection.clone())).await,
            Self::Cluster(connection) => within(call.invoke_async(&mut connection.clone())).await,
        }
    }

    pub(super) async fn command<T: FromRedisValue>(&self, command: &::redis::Cmd) -> Result<T, Unavailable> {
        match self {
            Self::One(connection) => within(query(command, connection.clone())).await,
            Self::Cluster(connection) => within(query(command, connection.clone())).await,
        }
    }
}

async fn query<T: FromRedisValue>(command: &::redis::Cmd, mut connection: impl ConnectionLike) -> RedisResult<T> {
    command.query_async(&mut connection).await
}

/// The outer bound: whatever reconnecting and redirecting goes on inside.
async fn within<T>(call: impl Future<Output = RedisResult<T>>) -> Result<T, Unavailable> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Unavailable(format!("Redis: {error}"))),
        Err(_) => Err(Unavailable(format!("Redis: no answer within {} ms", ANSWER.as_millis()))),
    }
}
