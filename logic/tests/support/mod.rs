//! Logics over one embedded bus and one memory of routes, and just enough of an HTTP client to see what is answered.
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "each test binary uses a part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bus::{Bus, Start, Topic};
use logic::{Config, Running};
use prometheus_client::registry::Registry;
use prost::Message as _;
use proto::cluster::gate_reply::Answer;
use proto::cluster::gate_request::Ask;
use proto::cluster::{GateReply, GateRequest, GateRequests};
use proto::config::{Cluster, Secret};
use proto::record::Record;
use routes::{Memory, Routes};
use rpc::cluster::gate_client::GateClient;
use rpc::secret::SecretInterceptor;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Long enough for a loaded machine; a test that waits for so long has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub const SECRET: &str = "the secret of a cluster that lives for one test";

/// `future` within [`DEADLINE`].
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("within the deadline")
}

/// Waits until `condition` holds.
pub async fn until(mut condition: impl AsyncFnMut() -> bool) {
    soon(async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// What logics share.
pub struct World {
    pub bus: Arc<dyn Bus>,
    pub routes: Arc<Memory>,
    pub stop: CancellationToken,
    _folder: tempfile::TempDir,
}

#[derive(serde::Deserialize)]
struct File {
    bus: bus::Config,
    logic: Config,
}

fn shipped() -> File {
    toml::from_str(include_str!("../../../config/barrage.toml")).expect("the shipped file is read")
}

impl World {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let stop = CancellationToken::new();
        let mut config = shipped().bus;
        config.embedded.directory = folder.path().to_owned();
        let bus = bus::open(&config, stop.clone()).await.expect("the bus opens");
        Self { bus, routes: Arc::new(Memory::new()), stop, _folder: folder }
    }

    /// Starts a logic on free ports with the shipped configuration but for what `change` changes, and waits until it is
    /// ready.
    pub async fn logic(&self, change: impl FnOnce(&mut Config)) -> Logic {
        let mut config = shipped().logic;
        let free = "127.0.0.1:0".parse().expect("an address");
        (config.http, config.grpc) = (free, free);
        // So fast are only tests.
        (config.limits.user_messages_per_s, config.limits.user_messages_burst) = (1_000_000, 1_000_000);
        change(&mut config);
        let incarnation = format!("test{:09}", rand::random::<u32>() % 1_000_000_000);
        let cluster = Cluster { node: format!("logic-{incarnation}"), incarnation, secret: Secret::new(SECRET) };
        let (stop, mut registry) = (self.stop.child_token(), Registry::default());
        let running = logic::start(config, cluster, self.bus.clone(), self.routes.clone(), &mut registry, stop.clone())
            .await
            .expect("logic starts");
        until(async || running.ready().await.is_ok()).await;
        Logic { running, stop, registry }
    }

    /// All records of a topic, partition after partition, with their offsets.
    pub async fn records(&self, topic: Topic) -> Vec<(u64, Record)> {
        let mut records = Vec::new();
        for partition in 0..self.bus.partitions(topic) {
            let (first, next) = self.bus.bounds(topic, partition).await.expect("bounds");
            let mut reader = self.bus.read(topic, partition, Start::At(first)).await.expect("a reader");
            let mut at = first;
            while at < next {
                for record in soon(reader.next()).await.expect("records") {
                    at = record.offset + 1;
                    records.push((record.offset, Record::decode(record.value).expect("a record")));
                }
            }
        }
        records
    }
}

/// One logic.
pub struct Logic {
    pub running: Running,
    pub stop: CancellationToken,
    pub registry: Registry,
}

/// What HTTP answered.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|wrong| panic!("{wrong}: {self:?}"))
    }

    /// The name of the error.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Sends `head` (a request line and headers, without the last empty line) and `body` as they are.
pub async fn raw(to: SocketAddr, head: &str, body: &[u8]) -> Response {
    soon(async {
        let mut stream = TcpStream::connect(to).await.expect("HTTP listens");
        let mut request = head.replace('\n', "\r\n").into_bytes();
        request
            .extend_from_slice(format!("\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
        request.extend_from_slice(body);
        // A server that refuses a head may close before it has read the body.
        let _ = stream.write_all(&request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        Response { status, head: head.to_lowercase(), body: body.to_owned() }
    })
    .await
}

impl Logic {
    pub async fn get(&self, path: &str) -> Response {
        self.request("GET", path, "", b"").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.request("POST", path, "", body.to_string().as_bytes()).await
    }

    /// `headers`: each on a line of its own, beginning with a newline.
    pub async fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Response {
        let to = self.running.http;
        raw(to, &format!("{method} {path} HTTP/1.1\nHost: {to}{headers}"), body).await
    }

    /// Opens the gate as a connector does.
    pub async fn gate(&self) -> Gate {
        self.gate_with(SECRET).await.expect("the gate opens")
    }

    pub async fn gate_with(&self, secret: &str) -> Result<Gate, tonic::Status> {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", self.running.grpc))
            .expect("an address")
            .connect()
            .await
            .expect("gRPC listens");
        let mut client =
            GateClient::with_interceptor(channel, SecretInterceptor::new(&Secret::new(secret)).expect("ASCII"));
        let (requests, stream) = mpsc::channel(1_000);
        let replies = soon(client.serve(ReceiverStream::new(stream))).await?.into_inner();
        Ok(Gate { requests, replies, asked: 0 })
    }
}

/// A connector's end of the gate.
pub struct Gate {
    requests: mpsc::Sender<GateRequests>,
    replies: tonic::Streaming<proto::cluster::GateReplies>,
    asked: u64,
}

impl Gate {
    /// Sends requests in one message; their IDs go on from the last one.
    pub async fn send(&mut self, asks: impl IntoIterator<Item = Ask>) {
        let number = |ask| {
            self.asked += 1;
            GateRequest { id: self.asked, ask: Some(ask) }
        };
        let requests = asks.into_iter().map(number).collect();
        soon(self.requests.send(GateRequests { requests })).await.expect("the stream stands");
    }

    /// The next replies; `None` at the stream's end.
    pub async fn replies(&mut self) -> Option<Vec<GateReply>> {
        soon(self.replies.next()).await.map(|replies| replies.expect("replies").replies)
    }

    /// Asks one thing and waits for its answer.
    pub async fn ask(&mut self, ask: Ask) -> Answer {
        self.send([ask]).await;
        let reply = self.replies().await.expect("a reply").pop().expect("one");
        assert_eq!(reply.id, self.asked);
        reply.answer.expect("an answer")
    }

    /// No more requests.
    pub fn close(self) -> tonic::Streaming<proto::cluster::GateReplies> {
        self.replies
    }
}

/// The lease of a connector that is nowhere.
pub fn connector(node: &str, clients: &[&str], sessions: u64) -> routes::Lease {
    routes::Lease {
        node: node.to_owned(),
        incarnation: format!("{node}-inc"),
        role: routes::Role::Connector,
        grpc: String::new(),
        clients: clients.iter().map(|client| (*client).to_owned()).collect(),
        sessions,
        addresses: sessions / 2,
        open: true,
        job: None,
    }
}

/// As a trait object, for its methods.
pub fn table(world: &World) -> &dyn Routes {
    &*world.routes
}
