//! Authentication, policy, and the API: HTTP and gRPC in, records on the bus out. Stateless but for what it reads from
//! the control topic; any number of logics serve one cluster.
//!
//! ```text
//!  connector ─gate─▶ client ─┐                      ┌─▶ identity ─▶ token, keys
//!  Bilibili /msg/send ───────┘ checks, rates ───────┤
//!  HTTP /v1, /goim ─▶ api ─ scopes, rates ──────────┼─▶ penalty (control topic, in memory)
//!  gRPC Api ──────▶ ─┘                              ├─▶ publish ─▶ Bus
//!                                                   └─▶ online ──▶ Routes
//! ```
//!
//! What it is not: an owner of sessions or rooms; it never speaks to a connector that has not dialled it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bus::Bus;
use prometheus_client::registry::Registry;
use proto::config::{Cluster, Invalid};
use proto::ready::{Function, serves};
use routes::{Lease, Role, Routes};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod api;
mod caller;
mod client;
mod clock;
pub mod config;
mod content;
mod gate;
mod grpc;
mod http;
mod identity;
mod jobs;
mod keys;
mod lease;
mod metrics;
mod online;
mod penalty;
mod publish;
mod rate;
mod recent;
pub mod token;

pub use config::{Config, Guests};
pub use keys::KeyError;
pub use penalty::PENALTY_SECONDS_MAX;

use api::Api;
use clock::now_ms;
use metrics::Metrics;
use penalty::Penalties;
use publish::Publisher;

/// How long a graceful end may take, from `stop` on. What is in flight then is cut off.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How often ended penalties are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Why it does not start. The operator's fault, but for an address that is taken by passing chance.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A value that cannot work.
    #[error(transparent)]
    Config(#[from] Invalid),
    /// A key for tokens that cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// An address that cannot be listened on.
    #[error("{key} = {address}: {source}")]
    Listen {
        /// The configuration's key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// A logic that listens.
pub struct Running {
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// Where gRPC listens.
    pub grpc: SocketAddr,
    readiness: Readiness,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

/// Whether a logic can do its work. To be asked by the operator's port.
#[derive(Clone)]
pub struct Readiness {
    penalties: Arc<Penalties>,
    publisher: Arc<Publisher>,
    routes: Arc<dyn Routes>,
    jobs: Arc<jobs::Jobs>,
}

impl Readiness {
    /// What works: publishing; delivery, which jobs do; and what Routes are needed for. Without penalties, or the bus,
    /// clients of this node cannot publish.
    pub async fn functions(&self) -> Vec<Function> {
        vec![
            Function::vital("penalties", self.penalties.ready()),
            Function::vital("publish", self.publisher.ready()),
            Function::other("delivery", self.jobs.ready()),
            Function::other("online", self.routes.ready().await),
        ]
    }
}

impl Running {
    /// Whether a client of this node misses nothing, of [`Readiness::functions`].
    ///
    /// # Errors
    /// The reason.
    pub async fn ready(&self) -> Result<(), String> {
        serves(&self.readiness.functions().await)
    }

    /// To ask while another holds `self`.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Waits until it has ended after `stop`: what is in flight is finished, at most ten seconds long.
    pub async fn join(mut self) {
        self.stop.cancelled().await;
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_WITHIN, ended).await.is_err() {
            tracing::warn!("what was still in flight after {STOP_WITHIN:?} is cut off");
        }
        self.tasks.shutdown().await;
    }
}

/// Starts logic; returns when it listens. `stop` ends it gracefully: see [`Running::join`].
///
/// # Errors
/// [`StartError`].
pub async fn start(
    config: Config,
    cluster: Cluster,
    bus: Arc<dyn Bus>,
    routes: Arc<dyn Routes>,
    registry: &mut Registry,
    stop: CancellationToken,
) -> Result<Running, StartError> {
    config.check()?;
    proto::config::require(!cluster.secret.reveal().is_empty(), "cluster.secret", "\"\"", "at least 32 characters")?;
    let config = Arc::new(config);
    let keys = Arc::new(keys::KeyRing::load(&config.token)?);
    if keys.is_empty() && config.guests == Guests::Refuse && !config.trust_claims {
        tracing::warn!("nobody can be let in: logic.token has no key, and logic.guests = \"refuse\"");
    }
    let http_listener = listen("logic.http", config.http).await?;
    let grpc_listener = listen("logic.grpc", config.grpc).await?;
    let address = |listener: &TcpListener, key, address| {
        listener.local_addr().map_err(|source| StartError::Listen { key, address, source })
    };
    let http = address(&http_listener, "logic.http", config.http)?;
    let grpc = address(&grpc_listener, "logic.grpc", config.grpc)?;

    let metrics = Metrics::new(registry);
    let penalties = Arc::new(Penalties::new());
    let publisher = Arc::new(Publisher::new(bus.clone(), &cluster.secret));
    let identities = identity::Identities::new(config.clone(), keys.clone(), penalties.clone());
    let clients = Arc::new(client::Clients::new(config.clone(), identities, penalties.clone(), publisher.clone()));
    let api = Arc::new(Api {
        config: config.clone(),
        callers: caller::Callers::new(&config.api),
        publisher: publisher.clone(),
        penalties: penalties.clone(),
        online: online::Online::new(routes.clone()),
        metrics: metrics.clone(),
    });
    let lease = Lease {
        node: cluster.node,
        incarnation: cluster.incarnation,
        role: Role::Logic,
        grpc: if config.grpc_advertised.is_empty() { grpc.to_string() } else { config.grpc_advertised.clone() },
        clients: Vec::new(),
        sessions: 0,
        addresses: 0,
        open: true,
        job: None,
    };

    let mut tasks = JoinSet::new();
    tasks.spawn(penalties.clone().follow(bus, stop.clone()));
    tasks.spawn(sweep(penalties.clone(), metrics.clone(), stop.clone()));
    tasks.spawn(keys.follow(stop.clone()));
    tasks.spawn(lease::hold(routes.clone(), lease, penalties.clone(), stop.clone()));
    let gate = gate::GateService {
        clients: clients.clone(),
        metrics: metrics.clone(),
        secret: cluster.secret,
        stop: stop.clone(),
    };
    tasks.spawn(grpc::serve(grpc_listener, gate, api.clone(), stop.clone()));
    tasks.spawn(http::serve(http_listener, api, clients, stop.clone()));
    let jobs = Arc::new(jobs::Jobs::new(metrics.clone()));
    tasks.spawn(jobs.clone().watch(routes.clone(), stop.clone()));
    let readiness = Readiness { penalties, publisher, routes, jobs };
    Ok(Running { http, grpc, readiness, tasks, stop })
}

async fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { key, address, source })
}

async fn sweep(penalties: Arc<Penalties>, metrics: Metrics, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(SWEEP_EVERY)).await.is_some() {
        penalties.sweep(now_ms());
        metrics.penalised.set(penalties.users() as i64);
    }
}
