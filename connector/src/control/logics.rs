//! The streams to the logics that Routes names: dials each, keeps its `Gate` stream up while it lives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use proto::cluster::{GateRequest, GateRequests};
use rand::RngExt as _;
use routes::{Lease, Role, Routes};
use rpc::cluster::gate_client::GateClient;
use rpc::secret::SecretInterceptor;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use super::Control;
use super::gate::{IN_FLIGHT_MAX, StreamEnd};

/// How often it is looked which logics there are.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a look may take: Routes that do not answer keep nothing else up.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
/// Requests in one message: what the cores asked while the last one was written.
const BATCH_MAX: usize = 256;
/// Between two dials of one logic, at least; half as much again at random, so that connectors do not dial together.
const REDIAL: Duration = Duration::from_millis(300);
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// A logic that is gone without a word is noticed after these two together.
const KEEPALIVE: Duration = Duration::from_secs(3);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// Follows the leases of logics until `stop`.
pub(super) async fn follow(
    control: Arc<Control>,
    routes: Arc<dyn Routes>,
    show: SecretInterceptor,
    stop: CancellationToken,
) {
    let mut dialled: BTreeMap<String, (CancellationToken, JoinHandle<()>)> = BTreeMap::new();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        let nodes = match tokio::time::timeout(LOOK_TIMEOUT, routes.nodes()).await {
            Ok(Ok(nodes)) => nodes,
            // Who is dialled stays dialled: a stream that stands needs no lease.
            Ok(Err(_)) | Err(_) => continue,
        };
        let logics: Vec<&Lease> =
            nodes.iter().filter(|node| node.role == Role::Logic && !node.grpc.is_empty()).collect();
        for logic in &logics {
            dialled.entry(logic.incarnation.clone()).or_insert_with(|| {
                let lapsed = stop.child_token();
                let dial = dial(control.clone(), logic.node.clone(), logic.grpc.clone(), show.clone(), lapsed.clone());
                (lapsed, tokio::spawn(dial))
            });
        }
        // Without its lease a logic is not dialled again; the stream that stands goes on.
        dialled.retain(|incarnation, (lapsed, dial)| {
            if !logics.iter().any(|logic| logic.incarnation == *incarnation) {
                lapsed.cancel();
            }
            !dial.is_finished()
        });
    }
}

/// Dials one logic whenever its stream is down, until its lease has lapsed.
async fn dial(control: Arc<Control>, node: String, grpc: String, show: SecretInterceptor, lapsed: CancellationToken) {
    loop {
        match serve(&control, &node, &grpc, show.clone(), &lapsed).await {
            Ok(()) => tracing::info!(node, grpc, "a logic's stream ended"),
            Err(error) => tracing::debug!(node, grpc, %error, "cannot dial a logic"),
        }
        let pause = REDIAL.mul_f64(rand::rng().random_range(1.0..1.5));
        if lapsed.is_cancelled() || lapsed.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// One stream, from its beginning to its end.
async fn serve(
    control: &Arc<Control>,
    node: &str,
    grpc: &str,
    show: SecretInterceptor,
    lapsed: &CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let endpoint = Endpoint::from_shared(format!("http://{grpc}"))?
        .connect_timeout(DIAL_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let Some(channel) = lapsed.run_until_cancelled(endpoint.connect()).await else { return Ok(()) };
    let (sender, requests) = mpsc::channel::<GateRequest>(IN_FLIGHT_MAX);
    let batches = ReceiverStream::new(requests).ready_chunks(BATCH_MAX).map(|requests| GateRequests { requests });
    let mut client = GateClient::with_interceptor(channel?, show);
    let mut replies = tokio::time::timeout(DIAL_TIMEOUT, client.serve(batches)).await??.into_inner();
    let id = control.logic_up(node, sender);
    tracing::info!(node, grpc, "asking a logic");
    let ended = loop {
        match replies.message().await {
            Ok(Some(message)) => control.replies(id, message.replies),
            Ok(None) => break Ok(()),
            Err(broken) => break Err(broken),
        }
    };
    // A logic ends its stream in order when it has answered all that it took.
    control.logic_down(id, if ended.is_ok() { StreamEnd::Ended } else { StreamEnd::Broken });
    Ok(ended?)
}
