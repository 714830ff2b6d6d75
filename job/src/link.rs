//! The stream to one connector: dialled while its lease lives, dialled again when it breaks.
//!
//! ```text
//!   dial ─▶ Attach ─▶ hello ─▶ attached (an outbox) ─▶ frames both ways ─▶ detached ─▶ wait, jittered ─▶ dial …
//! ```
//!
//! Invariants:
//! - A stream that works is kept, whatever becomes of the lease: Redis may have been wiped.
//! - Each stream has a number of its own. A late event of an ended stream therefore changes nothing.
//! - A stream that is not attached is ended on both sides: `a_connector_that_was_restarted_at_its_address_has_one_stream`.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use proto::cluster;
use proto::cluster::from_holder::Frame as Body;
use rpc::attach::AttachInterceptor;
use rpc::secret::{NotAscii, SecretInterceptor};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status, Streaming};

use crate::frame::{Frame, FrameCodec};
use crate::outbox::Outbox;
use crate::partition::StreamId;

/// Dialling, and the first frame, in this time.
const DIAL_MAX: Duration = Duration::from_secs(2);
/// A connector that answers no ping for this long is gone: half of what a lease lasts.
const PING_MAX: Duration = Duration::from_secs(2);
const PING_EVERY: Duration = Duration::from_secs(3);
/// The first wait before dialling again, doubled each time up to the longest.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The outbox of a stream, shared by the owners, the pushes and the stream itself.
#[derive(Clone)]
pub(crate) struct SharedOutbox(Arc<Mutex<Outbox>>);

impl SharedOutbox {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Mutex::new(Outbox::new(bytes_max))))
    }

    /// With the outbox locked. Its methods do not panic half-way, so a poisoned lock changes nothing.
    pub(crate) fn with<T>(&self, use_it: impl FnOnce(&mut Outbox) -> T) -> T {
        use_it(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Closes the outbox of a stream that is served no more, however that came.
struct CloseOnDrop(SharedOutbox);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.with(Outbox::close);
    }
}

/// The sending half of a stream.
struct Outgoing(SharedOutbox);

impl Stream for Outgoing {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.0.with(|outbox| match outbox.pop() {
            Some(frame) => Poll::Ready(Some(frame)),
            None if outbox.is_closed() => Poll::Ready(None),
            None => {
                outbox.wait(context.waker());
                Poll::Pending
            }
        })
    }
}

/// An event that a topic's owners hear.
#[derive(Debug)]
pub(crate) enum Event {
    Attached(StreamId),
    Detached(StreamId),
    Frame(StreamId, Body),
    /// Partitions whose owner has fallen silent: this job takes them over.
    Orphaned(Vec<u32>),
}

/// The queues to the owners of each topic.
#[derive(Clone, Default)]
pub(crate) struct Events(Vec<(cluster::Topic, mpsc::Sender<Event>)>);

impl Events {
    /// Adds a topic's owners; none of its frames reaches anybody before.
    pub(crate) fn add(&mut self, topic: cluster::Topic, owners: mpsc::Sender<Event>) {
        self.0.push((topic, owners));
    }

    /// To the owners of every topic.
    async fn all(&self, event: impl Fn() -> Event) {
        for (_, owners) in &self.0 {
            // The receiver lives until job has stopped.
            let _ = owners.send(event()).await;
        }
    }

    /// To the owners of the topic of this name, if there are any here.
    pub(crate) async fn orphaned(&self, topic: &str, partitions: Vec<u32>) {
        let names = |of: &cluster::Topic| match of {
            cluster::Topic::Rooms => bus::Topic::Rooms.name() == topic,
            cluster::Topic::Pushes => bus::Topic::Pushes.name() == topic,
            _ => false,
        };
        if let Some((_, owners)) = self.0.iter().find(|(of, _)| names(of)) {
            let _ = owners.send(Event::Orphaned(partitions)).await;
        }
    }

    /// To the owners of the topic that the frame names, if there are any here.
    async fn frame(&self, from: StreamId, frame: Body) {
        let topic = match &frame {
            Body::Hold(hold) => proto::topic::of(hold.topic),
            Body::HoldsDone(done) => proto::topic::of(done.topic),
            Body::Release(release) => proto::topic::of(release.topic),
            Body::Acks(_) | Body::Hello(_) => None,
        };
        if let Some((_, owners)) = self.0.iter().find(|(of, _)| Some(*of) == topic) {
            let _ = owners.send(Event::Frame(from, frame)).await;
        }
    }
}

/// An attached stream: its number and its outbox.
#[derive(Clone)]
pub(crate) struct Attachment {
    pub(crate) stream: StreamId,
    pub(crate) outbox: SharedOutbox,
}

/// The table of streams that a link reports to.
pub(crate) trait Switchboard: Clone + Send + Sync + 'static {
    /// A number that no stream has had.
    fn number(&self) -> StreamId;
    /// The stream is attached: pushes use it from now on.
    fn attach(&self, incarnation: &str, attachment: Attachment);
    /// It has ended.
    fn detach(&self, incarnation: &str, stream: StreamId);
}

/// What a link needs to dial.
#[derive(Clone)]
pub(crate) struct Dial {
    /// This job's own, which connectors are told.
    pub(crate) incarnation: String,
    pub(crate) secret: SecretInterceptor,
    pub(crate) queue_bytes_max: usize,
    pub(crate) events: Events,
    pub(crate) stop: CancellationToken,
}

/// Why a stream ended, or did not come up.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("not an address: {0}")]
    Address(tonic::transport::Error),
    #[error("cannot be reached: {0}")]
    Unreachable(tonic::transport::Error),
    #[error("{0}")]
    Refused(#[from] Status),
    #[error("took longer than {DIAL_MAX:?}")]
    Slow,
    #[error("another node answers there")]
    Another,
    #[error("its incarnation is none: {0}")]
    Incarnation(#[from] NotAscii),
    #[error("the connector ended the stream")]
    Ended,
    #[error("job stops")]
    Stopping,
}

impl Broken {
    /// Another incarnation is at the address.
    fn is_another(&self) -> bool {
        match self {
            Self::Another => true,
            Self::Refused(status) => status.code() == Code::FailedPrecondition,
            _ => false,
        }
    }
}

/// Keeps a stream to the connector `incarnation` at `address` until its lease is gone and the stream is down, or job
/// stops.
pub(crate) async fn keep(
    dial: Dial,
    board: impl Switchboard,
    incarnation: String,
    mut address: watch::Receiver<Option<String>>,
) {
    let mut backoff = BACKOFF;
    loop {
        let Some(target) = address.borrow_and_update().clone() else { return };
        let (attached, why) = serve(&dial, &board, &incarnation, &target).await;
        if dial.stop.is_cancelled() {
            return;
        }
        if attached {
            backoff = BACKOFF;
            tracing::warn!(connector = incarnation, address = target, %why, "the stream to a connector ended");
        } else {
            tracing::debug!(connector = incarnation, address = target, %why, "a connector cannot be attached");
        }
        if !attached && why.is_another() {
            // The one that is meant is dead, as far as its address tells, and its lease is about to lapse.
            backoff = BACKOFF_MAX;
        }
        let wait = backoff.mul_f64(rand::random_range(0.5..1.5));
        backoff = (backoff * 2).min(BACKOFF_MAX);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = dial.stop.cancelled() => return,
        }
    }
}

/// One stream from dialling to its end. Returns whether it was attached, and why it ended.
async fn serve(dial: &Dial, board: &impl Switchboard, incarnation: &str, address: &str) -> (bool, Broken) {
    let outbox = SharedOutbox::new(dial.queue_bytes_max);
    // Without this the sending half, which tonic keeps while it has not ended, would keep the stream.
    let _ends = CloseOnDrop(outbox.clone());
    let attaching = attach(dial, incarnation, address, Outgoing(outbox.clone()));
    let attached = tokio::select! {
        attached = tokio::time::timeout(DIAL_MAX, attaching) => attached.unwrap_or(Err(Broken::Slow)),
        () = dial.stop.cancelled() => Err(Broken::Stopping),
    };
    let mut frames = match attached {
        Ok(frames) => frames,
        Err(why) => return (false, why),
    };
    let stream = board.number();
    board.attach(incarnation, Attachment { stream, outbox: outbox.clone() });
    dial.events.all(|| Event::Attached(stream)).await;
    let why = loop {
        match frames.message().await {
            Ok(Some(cluster::FromHolder { frame: Some(Body::Acks(cluster::Acks { acks })) })) => {
                outbox.with(|outbox| {
                    for ack in acks {
                        // A topic that this program does not know is none of what it sent.
                        let Some(topic) = proto::topic::of(ack.topic) else { continue };
                        outbox.acked((topic, ack.partition), ack.epoch, ack.seq);
                    }
                });
            }
            Ok(Some(cluster::FromHolder { frame: Some(frame) })) => {
                dial.events.frame(stream, frame).await;
            }
            // Of a newer connector: harmless to ignore, as the schema says.
            Ok(Some(cluster::FromHolder { frame: None })) => {}
            Ok(None) => break Broken::Ended,
            Err(status) => break Broken::Refused(status),
        }
    };
    board.detach(incarnation, stream);
    outbox.with(Outbox::close);
    dial.events.all(|| Event::Detached(stream)).await;
    (true, why)
}

async fn attach(
    dial: &Dial,
    incarnation: &str,
    address: &str,
    outgoing: Outgoing,
) -> Result<Streaming<cluster::FromHolder>, Broken> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(Broken::Address)?;
    let channel = endpoint
        .connect_timeout(DIAL_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(Broken::Unreachable)?;
    let interceptor = AttachInterceptor::new(dial.secret.clone(), &dial.incarnation, incarnation)?;
    let mut client = tonic::client::Grpc::new(InterceptedService::new(channel, interceptor));
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static("/barrage.cluster.v1.Delivery/Attach");
    let mut frames = client.streaming(Request::new(outgoing), path, FrameCodec).await?.into_inner();
    match frames.message().await? {
        Some(cluster::FromHolder { frame: Some(Body::Hello(hello)) }) if hello.incarnation == incarnation => Ok(frames),
        _ => Err(Broken::Another),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::StreamExt as _;
    use proto::config::Secret;
    use rpc::cluster::delivery_server::{Delivery, DeliveryServer};
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::Response;

    use super::*;

    /// No step of a test takes longer, unless it fails.
    const DEADLINE: Duration = Duration::from_secs(30);

    /// A connector that counts the streams that were dialled, and those of them that stand.
    #[derive(Clone, Default)]
    struct Connector {
        dialled: Arc<AtomicUsize>,
        standing: Arc<AtomicUsize>,
    }

    impl Connector {
        /// Starts it as this incarnation; its address.
        async fn start(&self) -> String {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("it is bound").to_string();
            let server = tonic::transport::Server::builder().add_service(DeliveryServer::new(self.clone()));
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            address
        }
    }

    #[tonic::async_trait]
    impl Delivery for Connector {
        type AttachStream = Pin<Box<dyn Stream<Item = Result<cluster::FromHolder, Status>> + Send>>;

        async fn attach(
            &self,
            request: Request<Streaming<cluster::FromOwner>>,
        ) -> Result<Response<Self::AttachStream>, Status> {
            self.dialled.fetch_add(1, Ordering::Relaxed);
            self.standing.fetch_add(1, Ordering::Relaxed);
            let standing = self.standing.clone();
            let mut frames = request.into_inner();
            tokio::spawn(async move {
                while matches!(frames.message().await, Ok(Some(_))) {}
                standing.fetch_sub(1, Ordering::Relaxed);
            });
            let hello = cluster::HolderHello { node: "connector".into(), incarnation: "second".into() };
            let hello = cluster::FromHolder { frame: Some(Body::Hello(hello)) };
            Ok(Response::new(Box::pin(futures::stream::iter([Ok(hello)]).chain(futures::stream::pending()))))
        }
    }

    #[derive(Clone, Default)]
    struct Board(Arc<Mutex<Vec<StreamId>>>);

    impl Switchboard for Board {
        fn number(&self) -> StreamId {
            1
        }

        fn attach(&self, _incarnation: &str, attachment: Attachment) {
            self.0.lock().expect("not poisoned").push(attachment.stream);
        }

        fn detach(&self, _incarnation: &str, _stream: StreamId) {
            self.0.lock().expect("not poisoned").clear();
        }
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    #[tokio::test]
    async fn a_connector_that_was_restarted_at_its_address_has_one_stream() {
        let connector = Connector::default();
        let address = connector.start().await;
        let secret = SecretInterceptor::new(&Secret::new("a secret of thirty-two characters")).expect("ASCII");
        let stop = CancellationToken::new();
        let incarnation = "job".to_owned();
        let dial =
            Dial { incarnation, secret, queue_bytes_max: 1 << 20, events: Events::default(), stop: stop.clone() };
        let board = Board::default();
        // Both leases stand: the first has not lapsed, though its process is dead.
        let (_first, first) = watch::channel(Some(address.clone()));
        let (_second, second) = watch::channel(Some(address));
        let links = [
            tokio::spawn(keep(dial.clone(), board.clone(), "first".into(), first)),
            tokio::spawn(keep(dial, board.clone(), "second".into(), second)),
        ];
        until("the dead one's address is dialled again", || connector.dialled.load(Ordering::Relaxed) >= 4).await;
        until("one stream stands", || connector.standing.load(Ordering::Relaxed) == 1).await;
        assert_eq!(board.0.lock().expect("not poisoned").len(), 1);
        stop.cancel();
        for link in links {
            link.abort();
        }
    }
}
