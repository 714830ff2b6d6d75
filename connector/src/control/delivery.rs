//! The `Delivery` service: jobs dial, and everything about the partitions that they own goes over their streams.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use proto::cluster::{FromHolder, FromOwner};
use proto::config::Secret;
use rpc::cluster::delivery_server::{Delivery, DeliveryServer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::Control;

/// Largest frame from a job, bytes: its batches are up to 256 KiB, its answers to holds a room's recent messages.
const FRAME_BYTES_MAX: usize = 8 << 20;
/// What a job may send before it is taken, bytes: deliveries are taken as they come, the queues behind are bounded.
const WINDOW_BYTES: u32 = 1 << 20;
/// A job that is gone without a word is noticed after these two together.
const KEEPALIVE: Duration = Duration::from_secs(3);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// Serves until `stop`, then until the streams have ended.
pub(super) async fn serve(
    control: Arc<Control>,
    secret: Secret,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    // Acknowledgements and holds are small, and not to wait for each other's.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = DeliveryServer::new(Service { control, secret, stop: stop.clone() });
    Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(service.max_decoding_message_size(FRAME_BYTES_MAX))
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}

struct Service {
    control: Arc<Control>,
    secret: Secret,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl Delivery for Service {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<FromHolder, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<FromOwner>>) -> Result<Response<Self::AttachStream>, Status> {
        rpc::secret::check(&request, &self.secret)?;
        let job = rpc::attach::check(request.metadata(), &self.control.hello.incarnation)?;
        let (id, outbox, broken) = self.control.attach(job);
        let (control, stop) = (self.control.clone(), self.stop.clone());
        let mut frames = request.into_inner();
        let out = outbox.clone();
        tokio::spawn(async move {
            let reading = async {
                loop {
                    match frames.message().await {
                        Ok(Some(frame)) => control.frame(id, frame),
                        Ok(None) => return,
                        Err(status) => {
                            tracing::debug!(%status, "a job's stream ended");
                            return;
                        }
                    }
                }
            };
            tokio::select! {
                () = reading => {}
                () = broken.cancelled() => {}
                () = stop.cancelled() => {}
            }
            control.detach(id);
            out.end(None);
        });
        Ok(Response::new(Box::pin(outbox.stream())))
    }
}
