//! Job, one of the three services. It owns partitions: it reads the log in order, numbers each room's messages, and hands
//! them to the connectors that hold the room. For pushes it looks up the sessions that are online.
//!
//! Job has no clients and serves no API. It stores nothing but the bus's checkpoint.
//!
//! ```text
//!   bus ─▶ partition (claims, replays, holds, commits) ─▶ outbox ─▶ link ─▶ connector
//!              │  ▲ a stage for each topic: rooms, pushes               fleet: the connectors that there are
//! ```
//!
//! Invariants: those of `partition`, `rooms`, `pushes` and `outbox`, and ARCHITECTURE.md, "Ownership of a partition".
#![forbid(unsafe_code)]

mod clock;
mod config;
mod fleet;
mod frame;
mod item;
mod link;
mod metrics;
mod out;
mod outbox;
mod partition;
mod pushes;
mod ready;
mod rooms;
mod silence;

use std::sync::Arc;
use std::time::Duration;

use bus::{Bus, Topic};
pub use config::Config;
use prometheus_client::registry::Registry;
use proto::config::{Cluster, Invalid};
use proto::ready::Function;
use routes::Routes;
use rpc::secret::SecretInterceptor;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::fleet::Fleet;
use crate::link::{Dial, Events};
use crate::metrics::Metrics;
use crate::partition::{Consumer, GROUP, OwnerConfig, Seams, Stage};
use crate::pushes::{Pushes, PushesConfig};
use crate::ready::Ready;
use crate::rooms::{Budget, Rooms, RoomsConfig};

/// FrameCodec from connectors that wait for the owners: over it the streams are not read.
const EVENTS_MAX: usize = 4096;
/// Before the bus is asked again to let job join its groups.
const RETRY: Duration = Duration::from_secs(1);
/// Most bytes of messages in one answer to a hold: well under the 4 MiB at which gRPC refuses a frame, and under what
/// may wait for a connector.
const ANSWER_BYTES_MAX: usize = 2 << 20;
const _: () = assert!(ANSWER_BYTES_MAX > bus::RECORD_BYTES_MAX && ANSWER_BYTES_MAX * 4 <= config::QUEUE_BYTES_MIN);
/// On a graceful end, links and the lease have this long.
const END_MAX: Duration = Duration::from_secs(3);

/// Why job does not start. The operator's to mend; no use retrying.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A key of the configuration.
    #[error(transparent)]
    Config(#[from] Invalid),
    /// The cluster's secret cannot be shown to connectors.
    #[error(transparent)]
    Secret(#[from] rpc::secret::NotAscii),
}

/// Why job ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The log is not the one that was left; an operator decides.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// A defect of ours.
    #[error("a task of job's failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A job that runs.
#[derive(Debug)]
pub struct Running {
    ready: Ready,
    bus: ReadyBus,
    task: JoinHandle<Result<(), Ended>>,
}

struct ReadyBus(Arc<dyn Bus>);

impl std::fmt::Debug for ReadyBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bus")
    }
}

impl Running {
    /// Whether it consumes, and every partition that it has is taken over.
    ///
    /// # Errors
    /// What is wanting, in English.
    pub fn ready(&self) -> Result<(), String> {
        self.bus.0.ready()?;
        self.ready.get()
    }

    /// What works, for whoever outlives this handle.
    pub fn readiness(&self) -> impl Fn() -> Vec<Function> + Send + Sync + 'static {
        let (bus, ready) = (self.bus.0.clone(), self.ready.clone());
        move || {
            vec![
                Function::vital("rooms", bus.ready().and_then(|()| ready.get())),
                Function::other("pushes", ready.routes()),
            ]
        }
    }

    /// Waits for its end: graceful after its token was cancelled.
    ///
    /// # Errors
    /// [`Ended`] where it could not go on.
    pub async fn join(self) -> Result<(), Ended> {
        self.task.await?
    }
}

/// Starts job: takes a lease, attaches the connectors that there are, joins the groups. Returns before any partition is
/// assigned. Cancelling `stop` ends it gracefully within seconds: partitions are given up, what was handed to the
/// streams goes out, the groups are left, the lease is given back.
///
/// # Errors
/// [`StartError`].
#[expect(clippy::unused_async, reason = "services start alike: the others wait until they listen")]
pub async fn start(
    config: Config,
    cluster: Cluster,
    bus: Arc<dyn Bus>,
    routes: Arc<dyn Routes>,
    registry: &mut Registry,
    stop: CancellationToken,
) -> Result<Running, StartError> {
    config.check()?;
    let secret = SecretInterceptor::new(&cluster.secret)?;
    let metrics = Arc::new(Metrics::register(registry));
    let ready = Ready::default();
    let service = Service { config, cluster, secret, bus: bus.clone(), routes, metrics, ready: ready.clone(), stop };
    Ok(Running { ready, bus: ReadyBus(bus), task: tokio::spawn(service.run()) })
}

struct Service {
    config: Config,
    cluster: Cluster,
    secret: SecretInterceptor,
    bus: Arc<dyn Bus>,
    routes: Arc<dyn Routes>,
    metrics: Arc<Metrics>,
    ready: Ready,
    stop: CancellationToken,
}

impl Service {
    async fn run(self) -> Result<(), Ended> {
        let Self { config, cluster, secret, bus, routes, metrics, ready, stop } = self;
        // Its own token, so that what fails for good ends the rest too.
        let stop = stop.child_token();
        let fleet = Fleet::new(metrics.clone());
        let mut events = Events::default();
        let (to_rooms, for_rooms) = mpsc::channel(EVENTS_MAX);
        events.add(Rooms::TOPIC, to_rooms);
        let incarnation = cluster.incarnation.clone();
        let dial = Dial { incarnation, secret, queue_bytes_max: config.queue_bytes_max, events, stop: stop.clone() };
        let (looked, mut attached) = watch::channel(false);
        let keeping = tokio::spawn(fleet.clone().keep(cluster.clone(), routes.clone(), dial, ready.clone(), looked));

        let rooms = Arc::new(RoomsConfig {
            partitions: bus.partitions(Topic::Rooms),
            age_ms: i64::from(config.age_s_max) * 1000,
            per_s_max: config.room_messages_per_s_max,
            answer_bytes_max: ANSWER_BYTES_MAX,
            recent: Budget::new(config.recent_bytes_max),
            repeats: Budget::new(config.repeat_ids_max),
            metrics: metrics.clone(),
        });
        let keep_ms = i64::from(config.push_keep_s) * 1000;
        let pushes = Arc::new(PushesConfig { keep_ms, metrics: metrics.clone() });
        let seams = Seams { bus: bus.clone(), routes: routes.clone(), fleet: fleet.clone(), ready: ready.clone() };
        let consumers = async {
            // Connectors first: a partition that is claimed with nobody attached would be read past them.
            let _ = attached.wait_for(|&looked| looked).await;
            let owner = &cluster.incarnation;
            let rooms = consumer::<Rooms>(&seams, owner, &metrics, rooms, for_rooms).await?;
            // Nobody holds pushes: no connector says anything of them.
            let (_, none) = mpsc::channel(1);
            let pushes = consumer::<Pushes>(&seams, owner, &metrics, pushes, none).await?;
            Ok::<_, bus::Error>((rooms, pushes))
        };
        let consumers = tokio::select! {
            consumers = consumers => Some(consumers),
            () = stop.cancelled() => None,
        };
        let ended = match consumers {
            None => Ok(()),
            Some(Err(error)) => Err(error.into()),
            Some(Ok((rooms, pushes))) => {
                let pushes = tokio::spawn(guard(stop.clone(), pushes.run(stop.clone())));
                let rooms = tokio::spawn(guard(stop.clone(), rooms.run(stop.clone())));
                ready.consuming(true);
                let (rooms, pushes) = tokio::join!(rooms, pushes);
                ready.consuming(false);
                match (rooms, pushes) {
                    (Ok(rooms), Ok(pushes)) => rooms.and(pushes).map_err(Ended::from),
                    (Err(error), _) | (_, Err(error)) => Err(error.into()),
                }
            }
        };
        stop.cancel();
        for (attachment, _) in fleet.all() {
            attachment.outbox.with(|outbox| outbox.close());
        }
        if tokio::time::timeout(END_MAX, keeping).await.is_err() {
            tracing::debug!("a connector did not end its stream");
        }
        let resigned = tokio::time::timeout(END_MAX, routes.resign(&cluster.node, &cluster.incarnation)).await;
        if let Err(error) = resigned.unwrap_or(Err(routes::Unavailable("no answer".to_owned()))) {
            tracing::warn!(%error, "the lease was not given back: it ends by itself");
        }
        if let Err(error) = &ended {
            tracing::error!(%error, "job ends");
        }
        ended
    }
}

/// Stops the rest when `task` ends, however it does.
async fn guard<T>(stop: CancellationToken, task: impl Future<Output = T>) -> T {
    let _ends = stop.drop_guard();
    task.await
}

/// Joins a topic's group.
async fn consumer<S: Stage>(
    seams: &Seams,
    owner: &str,
    metrics: &Arc<Metrics>,
    stage: Arc<S::Config>,
    events: mpsc::Receiver<link::Event>,
) -> Result<Consumer<S>, bus::Error> {
    let (bus, topic) = (&seams.bus, S::BUS_TOPIC);
    let joined = join(&**bus, topic).await?;
    let config = OwnerConfig {
        owner: owner.to_owned(),
        log: bus.log(topic).into(),
        partitions: bus.partitions(topic),
        metrics: metrics.clone(),
    };
    Ok(Consumer::new(seams.clone(), joined, Arc::new(config), stage, events))
}

async fn join(bus: &dyn Bus, topic: Topic) -> Result<Box<dyn bus::Consumer>, bus::Error> {
    loop {
        match bus.consume(topic, GROUP).await {
            Err(bus::Error::Unavailable(why)) => {
                tracing::warn!(?topic, why, "the group cannot be joined now");
                tokio::time::sleep(RETRY).await;
            }
            settled => return settled,
        }
    }
}
