//! A connector with everything around it made up: logics, jobs and clients that say what the tests want.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use connector::{Config, Running};
use futures::{Stream, StreamExt as _};
use prometheus_client::registry::Registry;
use proto::client::{self, ClientFrame, ServerFrame, client_frame, server_frame};
use proto::cluster::gate_reply::Answer;
use proto::cluster::gate_request::Ask;
use proto::cluster::{
    Acks, Admitted, Displaced, FromHolder, FromOwner, GateReplies, GateReply, GateRequest, GateRequests, Item, Joined,
    Own, Published, from_holder, from_owner,
};
use proto::config::{Cluster, Secret};
use proto::native;
use routes::{Lease, Memory, Role, Routes};
use rpc::attach::AttachInterceptor;
use rpc::cluster::delivery_client::DeliveryClient;
use rpc::cluster::gate_server::{Gate, GateServer};
use rpc::secret::SecretInterceptor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Interceptor;
use tonic::{Request, Response, Status, Streaming};

/// A step that takes longer has failed: generous, since the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "a secret that only tests know of!";

pub(crate) async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// Waits until it holds.
pub(crate) async fn until<F: AsyncFnMut() -> bool>(what: &str, mut holds: F) {
    patiently(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The shipped configuration on free ports, with limits that these tests do not mean to meet.
pub(crate) fn config() -> Config {
    #[derive(serde::Deserialize)]
    struct File {
        connector: Config,
    }
    let mut config = toml::from_str::<File>(include_str!("../../../config/barrage.toml")).unwrap().connector;
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.grpc = "127.0.0.1:0".parse().unwrap();
    config.cores = 2;
    config.drain_s = 5;
    config.limits.requests_per_s = 10_000;
    config.buffers.drain_delay_ms = 100;
    config
}

pub(crate) struct Node {
    pub(crate) running: Running,
    pub(crate) routes: Arc<Memory>,
    pub(crate) registry: Registry,
    pub(crate) stop: CancellationToken,
}

impl Node {
    pub(crate) async fn start(routes: Arc<Memory>) -> Self {
        let (mut registry, stop) = (Registry::default(), CancellationToken::new());
        let cluster =
            Cluster { node: "connector".into(), incarnation: "abcdefg234567".into(), secret: Secret::new(SECRET) };
        let running = connector::start(config(), cluster, routes.clone(), &mut registry, stop.clone()).await.unwrap();
        Self { running, routes, registry, stop }
    }

    pub(crate) async fn ready(&self) {
        until("readiness", async || self.running.ready().is_ok()).await;
    }

    pub(crate) async fn client(&self, uid: &str) -> Client {
        let mut client = Client::connect(self.running.clients[0]).await;
        let connect = client::Connect { token: uid.into(), ..client::Connect::default() };
        client.ask(client_frame::Body::Connect(connect)).await;
        match client.answer().await {
            server_frame::Body::Connected(connected) => client.session = connected.session,
            other => panic!("{other:?}"),
        }
        client
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

/// A logic: admits everybody under the token's name, takes every message.
pub(crate) struct Logic {
    pub(crate) lease: Lease,
    seen: Arc<Mutex<Vec<Ask>>>,
    stop: CancellationToken,
}

impl Logic {
    pub(crate) async fn start(routes: &Memory, name: &str, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let lease = Lease {
            node: name.into(),
            incarnation: format!("{name}-{}", listener.local_addr().unwrap().port()),
            role: Role::Logic,
            grpc: listener.local_addr().unwrap().to_string(),
            clients: Vec::new(),
            sessions: 0,
            addresses: 0,
            open: true,
            job: None,
        };
        routes.renew(&lease).await.unwrap();
        let (seen, stop) = (Arc::new(Mutex::default()), CancellationToken::new());
        let service = GateServer::new(FakeGate { seen: Arc::clone(&seen), manner, stop: stop.clone() });
        let server = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
        tokio::spawn(server);
        Self { lease, seen, stop }
    }

    pub(crate) fn seen(&self) -> Vec<Ask> {
        self.seen.lock().unwrap().clone()
    }

    /// What it was asked to publish: session and text.
    pub(crate) fn published(&self) -> Vec<(String, String)> {
        let publish = |ask| match ask {
            Ask::Publish(publish) => Some((publish.session, String::from_utf8(publish.payload.to_vec()).unwrap())),
            _ => None,
        };
        self.seen().into_iter().filter_map(publish).collect()
    }

    /// Ends it and its lease.
    pub(crate) async fn end(self, routes: &Memory) {
        routes.resign(&self.lease.node, &self.lease.incarnation).await.unwrap();
        self.stop.cancel();
    }
}

/// What a logic does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Answers everything.
    Answers,
    /// Never answers a publish, as while the bus is away.
    PublishesNothing,
    /// Takes requests and answers none.
    StandsStill,
}

struct FakeGate {
    seen: Arc<Mutex<Vec<Ask>>>,
    manner: Manner,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl Gate for FakeGate {
    type ServeStream = Pin<Box<dyn Stream<Item = Result<GateReplies, Status>> + Send>>;

    async fn serve(&self, request: Request<Streaming<GateRequests>>) -> Result<Response<Self::ServeStream>, Status> {
        rpc::secret::check(&request, &Secret::new(SECRET))?;
        let (seen, manner) = (self.seen.clone(), self.manner);
        let replies = request.into_inner().map(move |message: Result<GateRequests, Status>| {
            let mut replies = Vec::new();
            for GateRequest { id, ask } in message?.requests {
                if manner == Manner::StandsStill {
                    seen.lock().unwrap().extend(ask);
                    continue;
                }
                let Some(ask) = ask else {
                    let unknown = proto::error::error(client::ErrorCode::BadRequest, "of a newer version");
                    replies.push(GateReply { id, answer: Some(Answer::Error(unknown)) });
                    continue;
                };
                seen.lock().unwrap().push(ask.clone());
                let answer = match ask {
                    Ask::Authenticate(ask) => Answer::Admitted(Admitted {
                        uid: ask.token.clone(),
                        name: ask.token,
                        subscribe: vec!["room:*".into()],
                        publish: vec!["room:*".into()],
                        ..Admitted::default()
                    }),
                    Ask::Join(_) => Answer::Joined(Joined {}),
                    Ask::Publish(_) if manner == Manner::PublishesNothing => continue,
                    Ask::Publish(ask) => Answer::Published(Published { id: ask.client_message_id }),
                    Ask::Displace(_) => Answer::Displaced(Displaced {}),
                };
                replies.push(GateReply { id, answer: Some(answer) });
            }
            Ok(GateReplies { replies })
        });
        // One that says nothing says nothing at all.
        let replies = replies
            .filter(|replies| std::future::ready(replies.as_ref().map_or(true, |some| !some.replies.is_empty())));
        Ok(Response::new(Box::pin(replies.take_until(self.stop.clone().cancelled_owned()))))
    }
}

/// A job that owns the only partition.
pub(crate) struct Job {
    epoch: u64,
    seq: u64,
    out: mpsc::Sender<FromOwner>,
    frames: Streaming<FromHolder>,
    /// What came and was not asked for.
    others: VecDeque<from_holder::Frame>,
}

impl Job {
    pub(crate) async fn attach(grpc: SocketAddr, secret: &str) -> Result<Self, Status> {
        Self::attach_by(grpc, SecretInterceptor::new(&Secret::new(secret)).unwrap()).await
    }

    /// As the job of this incarnation, which means that connector.
    pub(crate) async fn attach_as(grpc: SocketAddr, job: &str, connector: &str) -> Result<Self, Status> {
        let secret = SecretInterceptor::new(&Secret::new(SECRET)).unwrap();
        Self::attach_by(grpc, AttachInterceptor::new(secret, job, connector).unwrap()).await
    }

    async fn attach_by(grpc: SocketAddr, interceptor: impl Interceptor + Clone) -> Result<Self, Status> {
        let channel =
            tonic::transport::Endpoint::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap();
        let mut client = DeliveryClient::with_interceptor(channel, interceptor);
        let (out, frames) = mpsc::channel(1000);
        let frames = client.attach(ReceiverStream::new(frames)).await?.into_inner();
        Ok(Self { epoch: 0, seq: 0, out, frames, others: VecDeque::new() })
    }

    pub(crate) async fn own(grpc: SocketAddr, epoch: u64) -> Self {
        Self::attach(grpc, SECRET).await.unwrap().owning(epoch).await
    }

    /// Says that it owns the only partition, since `epoch`.
    pub(crate) async fn owning(mut self, epoch: u64) -> Self {
        let first = patiently("the hello", self.frames.message()).await.unwrap().unwrap().frame.unwrap();
        assert!(matches!(first, from_holder::Frame::Hello(_)), "the first frame is {first:?}");
        self.epoch = epoch;
        let own = Own { topic: 1, partition: 0, epoch, log: "log".into(), partitions: 1 };
        self.send(from_owner::Frame::Own(own)).await;
        self
    }

    pub(crate) async fn send(&self, frame: from_owner::Frame) {
        self.out.send(FromOwner { frame: Some(frame) }).await.unwrap();
    }

    /// The next frame of this kind.
    pub(crate) async fn next<T>(&mut self, what: &str, mut is: impl FnMut(&from_holder::Frame) -> Option<T>) -> T {
        if let Some((at, found)) = self.others.iter().enumerate().find_map(|(at, frame)| Some((at, is(frame)?))) {
            self.others.remove(at);
            return found;
        }
        loop {
            let frame = patiently(what, self.frames.message()).await.unwrap().expect("the stream stands");
            match is(frame.frame.as_ref().unwrap()) {
                Some(found) => return found,
                None => self.others.extend(frame.frame),
            }
        }
    }

    /// The error with which its stream ends.
    pub(crate) async fn broken(&mut self) -> Status {
        patiently("the end of the stream", async {
            loop {
                match self.frames.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("it ends without an error"),
                    Err(status) => return status,
                }
            }
        })
        .await
    }

    pub(crate) async fn hold(&mut self) -> proto::cluster::Hold {
        self.next("a hold", |frame| match frame {
            from_holder::Frame::Hold(hold) => Some(hold.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn held(&mut self, hold: &proto::cluster::Hold, offset: u64, recent: Vec<Item>) {
        self.seq += 1;
        let held = proto::cluster::Held {
            epoch: self.epoch,
            seq: self.seq,
            hold: hold.hold,
            channel: hold.channel.clone(),
            log: "log".into(),
            offset,
            recent,
            ..proto::cluster::Held::default()
        };
        self.send(from_owner::Frame::Held(held)).await;
    }

    pub(crate) async fn deliver(&mut self, items: Vec<Item>) {
        self.seq += 1;
        let deliver =
            proto::cluster::Deliver { epoch: self.epoch, seq: self.seq, items, ..proto::cluster::Deliver::default() };
        self.send(from_owner::Frame::Deliver(deliver)).await;
    }

    /// Waits until everything that was sent is acknowledged.
    pub(crate) async fn acked(&mut self) {
        let seq = self.seq;
        self.next("an acknowledgement", |frame| match frame {
            from_holder::Frame::Acks(Acks { acks }) if acks.iter().any(|ack| ack.seq == seq) => Some(()),
            _ => None,
        })
        .await;
    }
}

pub(crate) fn item(channel: &str, offset: u64, text: &str) -> Item {
    let message = message(channel, offset, text);
    Item {
        channel: channel.into(),
        offset,
        ordinal: offset,
        message: prost::Message::encode_to_vec(&message).into(),
        ..Item::default()
    }
}

pub(crate) fn message(channel: &str, offset: u64, text: &str) -> client::Message {
    client::Message {
        channel: channel.into(),
        id: format!("id-{offset}"),
        offset,
        r#type: "text".into(),
        payload: Some(client::message::Payload::Text(text.into())),
        ..client::Message::default()
    }
}

/// A native client on TCP.
pub(crate) struct Client {
    stream: TcpStream,
    bytes: Vec<u8>,
    requests: u32,
    pub(crate) session: String,
    /// Came while something else was waited for.
    pushes: VecDeque<server_frame::Body>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(native::MAGIC).await.unwrap();
        Self { stream, bytes: Vec::new(), requests: 0, session: String::new(), pushes: VecDeque::new() }
    }

    /// A goim client that has asked for a key and a room. It says and reads nothing more.
    pub(crate) async fn goim(address: SocketAddr, key: &str) -> TcpStream {
        let body = format!(r#"{{"mid":1,"key":"{key}","room_id":"live://1","platform":"web","accepts":[1000]}}"#);
        let mut packet = Vec::new();
        let operation = proto::packet::operation::AUTH;
        let header = proto::packet::header(proto::goim::VERSION, operation, 1, body.len());
        packet.extend(header);
        packet.extend(body.bytes());
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&packet).await.unwrap();
        stream
    }

    pub(crate) async fn ask(&mut self, body: client_frame::Body) {
        self.requests += 1;
        let frame = ClientFrame { request: self.requests, body: Some(body) };
        let mut out = Vec::new();
        let start = native::begin_frame(&mut out);
        native::to_binary(&frame, &mut out);
        native::end_frame(start, &mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    /// `None`: the connection ended.
    async fn frame(&mut self) -> Option<ServerFrame> {
        loop {
            let mut input = &self.bytes[..];
            if let Some(frame) = native::unpack(&mut input, 1 << 20).unwrap() {
                let frame = native::from_binary(frame).unwrap();
                let taken = self.bytes.len() - input.len();
                self.bytes.drain(..taken);
                return Some(frame);
            }
            if patiently("bytes", self.stream.read_buf(&mut self.bytes)).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// The next answer.
    pub(crate) async fn answer(&mut self) -> server_frame::Body {
        loop {
            let frame = self.frame().await.expect("the connection stands");
            if frame.request != 0 {
                return frame.body.unwrap();
            }
            self.pushes.extend(frame.body);
        }
    }

    /// The next push; `None` at the end.
    pub(crate) async fn push(&mut self) -> Option<server_frame::Body> {
        if let Some(push) = self.pushes.pop_front() {
            return Some(push);
        }
        let frame = self.frame().await?;
        assert_eq!(frame.request, 0, "{frame:?}");
        frame.body
    }

    /// The text of the next message.
    pub(crate) async fn text(&mut self) -> String {
        match self.push().await {
            Some(server_frame::Body::Message(message)) => {
                String::from_utf8(native::payload_bytes(message.payload.as_ref()).to_vec()).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn subscribe(&mut self, channel: &str) {
        let subscribe = client::Subscribe { channel: channel.into(), ..client::Subscribe::default() };
        self.ask(client_frame::Body::Subscribe(subscribe)).await;
    }

    pub(crate) async fn publish(&mut self, channel: &str, text: &str) {
        let publish = client::Publish {
            channel: channel.into(),
            client_message_id: text.into(),
            r#type: "text".into(),
            payload: Some(client::publish::Payload::Text(text.into())),
            ..client::Publish::default()
        };
        self.ask(client_frame::Body::Publish(publish)).await;
    }
}
