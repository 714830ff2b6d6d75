//! The control thread's life: starts its tasks, runs until it is told to stop, drains the cores, leaves.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::cluster::HolderHello;
use proto::config::Cluster;
use routes::{Lease, Role, Routes};
use rpc::secret::SecretInterceptor;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{Control, delivery, leases, logics, metrics};
use crate::core::StampedInput;
use crate::driver::CoreHandle;
use engine::event::{CoreRequest, Input};

/// How long this thread sleeps before it waits again, if it waited less than so long ago, messages came since, and no client
/// waits for logic's answer: what comes meanwhile is taken together. At 8,500 messages a second to 1,000 rooms that saves 3 %
/// of the connector's processor time; 1 ms saves nothing, since the messages of a millisecond come together anyway, and 4 ms
/// cost the cores what this thread saves.
const GATHER: Duration = Duration::from_millis(2);
/// How often it is looked whether the cores have ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What the cores have beyond the time to drain, for their last connections to linger.
const LINGER: Duration = Duration::from_secs(5);
/// How long each step of leaving may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// What the control thread is given.
pub(crate) struct ControlPlan {
    pub(crate) cores: Vec<CoreHandle<StampedInput>>,
    pub(crate) asks: mpsc::Receiver<(usize, Vec<CoreRequest>)>,
    pub(crate) grpc: std::net::TcpListener,
    /// What jobs dial.
    pub(crate) grpc_address: String,
    /// What clients are told.
    pub(crate) clients: Vec<String>,
    pub(crate) cluster: Cluster,
    /// Shows the cluster's secret to logics.
    pub(crate) show: SecretInterceptor,
    pub(crate) routes: Arc<dyn Routes>,
    pub(crate) drain: Duration,
    /// The graceful end.
    pub(crate) stop: CancellationToken,
}

/// The running control thread.
#[derive(Clone)]
pub(crate) struct ControlHandle(Arc<Control>);

impl std::fmt::Debug for ControlHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ControlHandle")
    }
}

impl ControlHandle {
    pub(crate) fn ready(&self) -> Vec<proto::ready::Function> {
        self.0.ready()
    }
}

/// Starts it; the receiver resolves when everything has ended.
pub(crate) fn spawn(
    plan: ControlPlan,
    registry: &mut prometheus_client::registry::Registry,
) -> io::Result<(ControlHandle, oneshot::Receiver<()>)> {
    let metrics = metrics::Control::default();
    metrics.register(registry);
    plan.grpc.set_nonblocking(true)?;
    let ports = plan.cores.iter().map(CoreHandle::port).collect();
    let hello = HolderHello { node: plan.cluster.node.clone(), incarnation: plan.cluster.incarnation.clone() };
    let control = Arc::new(Control::new(ports, hello, metrics));
    let (ended, end) = oneshot::channel();
    let (gathering, last) = (control.clone(), Mutex::new((std::time::Instant::now(), 0)));
    let gather = move || {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let (waited, delivered) = *last;
        last.1 = gathering.metrics.delivered.get();
        if waited.elapsed() < GATHER && last.1 != delivered && gathering.lock().gate.in_flight() == 0 {
            std::thread::sleep(GATHER);
        }
        last.0 = std::time::Instant::now();
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(gather).build()?;
    let handle = ControlHandle(control.clone());
    std::thread::Builder::new().name("control".into()).spawn(move || {
        runtime.block_on(run(control, plan));
        // Nobody may be waiting.
        let _ = ended.send(());
    })?;
    Ok((handle, end))
}

async fn run(control: Arc<Control>, plan: ControlPlan) {
    let ControlPlan { cores, asks, grpc, grpc_address, clients, cluster, show, routes, drain, stop } = plan;
    let Cluster { node, incarnation, secret } = cluster;
    let lease = Lease {
        node: node.clone(),
        incarnation: incarnation.clone(),
        role: Role::Connector,
        grpc: grpc_address,
        clients,
        sessions: 0,
        addresses: 0,
        open: true,
        job: None,
    };
    // Outlives `stop` for as long as the cores drain.
    let end = CancellationToken::new();
    let serving = {
        let control = control.clone();
        tokio::spawn(async move { control.serve_cores(asks).await })
    };
    let waking = control.clone();
    tokio::spawn(async move { waking.wake_cores().await });
    let endless = control.clone();
    tokio::spawn(async move {
        tokio::join!(endless.retry(), endless.acknowledge(), endless.measure(), endless.watch_logics())
    });
    let renewing = tokio::spawn(leases::renew(control.clone(), routes.clone(), lease, end.clone()));
    let writing = leases::write(control.clone(), routes.clone(), node.clone(), incarnation.clone(), end.clone());
    let writing = tokio::spawn(writing);
    tokio::spawn(leases::online(control.clone(), routes.clone(), end.clone()));
    let following = tokio::spawn(logics::follow(control.clone(), routes.clone(), show, end.clone()));
    let delivering = {
        let (control, end) = (control.clone(), end.clone());
        tokio::spawn(async move {
            match tokio::net::TcpListener::from_std(grpc) {
                Ok(listener) => {
                    if let Err(error) = delivery::serve(control, secret, listener, end).await {
                        tracing::error!(%error, "jobs are not served any more");
                    }
                }
                Err(error) => tracing::error!(%error, "jobs are not served"),
            }
        })
    };

    stop.cancelled().await;
    tracing::info!(within_s = drain.as_secs(), "draining");
    control.draining.store(true, Ordering::Relaxed);
    control.renew_now.notify_one();
    {
        let mut state = control.lock();
        for core in 0..cores.len() {
            state.ports.must(core, Input::Drain { within_ms: drain.as_millis() as u64 });
        }
        control.note_behind(&state);
    }
    let deadline = Instant::now() + drain + LINGER;
    while !cores.iter().all(CoreHandle::is_finished) && Instant::now() < deadline {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    if cores.iter().all(CoreHandle::is_finished) {
        // What they asked last, the end of their sessions' routes.
        drop(timeout(LEAVE_TIMEOUT, serving).await);
        cores.into_iter().for_each(CoreHandle::join);
    } else {
        tracing::warn!("a core has not drained in time: its connections are cut");
    }
    end.cancel();
    for task in [writing, renewing, following] {
        drop(timeout(LEAVE_TIMEOUT, task).await);
    }
    match timeout(LEAVE_TIMEOUT, routes.resign(&node, &incarnation)).await {
        Ok(Ok(())) => {}
        _ => tracing::warn!("the lease is not given back: it lapses by itself"),
    }
    drop(timeout(LEAVE_TIMEOUT, delivering).await);
}
