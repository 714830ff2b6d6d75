//! Owns client sockets and nothing else. One of the three services.
//!
//! ```text
//!   clients ─▶ driver ─bytes─▶ engine      one of both a core (`core`)
//!                                │ ▲
//!                           asks ▼ │ inputs
//!                             control ─gRPC─▶ logic, ◀─gRPC─ job
//! ```
//!
//! `engine` decides (no socket, no clock, no runtime), `driver` moves bytes, `control` speaks gRPC to logic and job.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use proto::config::{Cluster, Invalid};
use routes::Routes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

mod config;
mod control;
mod core;
pub mod driver;

pub use config::{Buffers, CORES_MAX, Config, Limits};

use crate::driver::{Listeners, Setup};
use engine::Engine;

/// Why a connector does not start. The operator's to mend; no use retrying.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A key of the configuration.
    #[error(transparent)]
    Config(#[from] Invalid),
    /// The cluster's secret cannot be shown to logics.
    #[error(transparent)]
    Secret(#[from] rpc::secret::NotAscii),
    /// An address is taken, or the system gives no socket, thread or poller.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A connector that runs.
#[derive(Debug)]
pub struct Running {
    /// Where clients connect.
    pub clients: Vec<SocketAddr>,
    /// Where jobs connect.
    pub grpc: SocketAddr,
    control: control::ControlHandle,
    end: oneshot::Receiver<()>,
}

impl Running {
    /// Whether new clients can be served.
    ///
    /// # Errors
    /// What is wanting, in English.
    pub fn ready(&self) -> Result<(), String> {
        proto::ready::serves(&self.control.ready())
    }

    /// What works, for whoever outlives this handle.
    pub fn readiness(&self) -> impl Fn() -> Vec<proto::ready::Function> + Send + Sync + 'static {
        let control = self.control.clone();
        move || control.ready()
    }

    /// Waits for its end: graceful after its token was cancelled.
    pub async fn join(self) {
        // An error means that the control thread is gone: ended, too.
        drop(self.end.await);
    }
}

/// Starts a connector: binds all addresses, starts a thread for each core and the control thread. Returns when it
/// listens; logics and jobs are found and asked from then on. Cancelling `stop` drains it: no new clients, those that
/// are there are told to go elsewhere and closed in paced steps within `connector.drain_s`, the lease is given back.
///
/// # Errors
/// [`StartError`].
#[expect(clippy::unused_async, reason = "services start alike: others wait until they listen")]
pub async fn start(
    config: Config,
    cluster: Cluster,
    routes: Arc<dyn Routes>,
    registry: &mut Registry,
    stop: CancellationToken,
) -> Result<Running, StartError> {
    config.check()?;
    let (driver, why) = config.driver()?;
    tracing::info!(%driver, why, "the event loop of the cores");
    let show = rpc::secret::SecretInterceptor::new(&cluster.secret)?;
    if let Err(error) = driver::raise_descriptor_limit() {
        tracing::warn!(%error, "the limit of descriptors is as it was");
    }
    let cores = match config.cores {
        0 => std::thread::available_parallelism()?.get().min(CORES_MAX),
        cores => cores,
    };
    let grpc = TcpListener::bind(config.grpc)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {}: {error}", config.grpc)))?;
    let grpc_address = grpc.local_addr()?;
    let listeners = Listeners::bind(&config.listen, cores, &config.socket_options())?;

    let engine = Arc::new(config.engine(cores));
    let incarnation: Arc<str> = cluster.incarnation.as_str().into();
    let (asks, asked) = mpsc::channel(control::ASK_BATCHES_MAX);
    let snapshots: Vec<_> = (0..cores).map(|_| Arc::new(core::StatsSnapshot::default())).collect();
    let writing = core::MeteredEngine::writing(registry);
    let mut started = Vec::with_capacity(cores);
    for (core, intake) in listeners.cores.into_iter().enumerate() {
        let asks = asks.clone();
        let setup = Setup {
            name: format!("core-{core}"),
            intake,
            inputs_max: control::INPUTS_MAX,
            asks: Box::new(move |batch| match asks.try_send((core, batch)) {
                Ok(()) => Vec::new(),
                Err(refused) => refused.into_inner().1,
            }),
        };
        let (engine, incarnation) = (engine.clone(), incarnation.clone());
        let (snapshot, writing) = (snapshots[core].clone(), writing.clone());
        started.push(driver::spawn(driver, setup, move |now| {
            core::MeteredEngine::new(Engine::new(engine, core as u16, incarnation, now), snapshot, writing)
        })?);
    }
    registry.register_collector(Box::new(core::MetricsCollector { snapshots, balance: listeners.balance }));

    let advertised = match config.advertised.is_empty() {
        true => listeners.addresses.iter().map(SocketAddr::to_string).collect(),
        false => config.advertised.clone(),
    };
    let plan = control::ControlPlan {
        cores: started,
        asks: asked,
        grpc,
        grpc_address: match config.grpc_advertised.is_empty() {
            true => grpc_address.to_string(),
            false => config.grpc_advertised.clone(),
        },
        clients: advertised,
        cluster,
        show,
        routes,
        drain: Duration::from_secs(config.drain_s),
        stop,
    };
    let (control, end) = control::spawn(plan, registry)?;
    Ok(Running { clients: listeners.addresses, grpc: grpc_address, control, end })
}
