//! A connector without clients: serves `Delivery` as a real one does, holds what it is told to, and keeps what it got.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bus::{Bus, Topic};
use prost::Message as _;
use proto::cluster::{
    Ack, Acks, CommandOut, FromHolder, FromOwner, Hold, HolderHello, HoldsDone, Item, PushOut, from_holder, from_owner,
};
use proto::config::{Cluster, Secret};
use proto::record;
use routes::{Lease, Role, Routes};
use rpc::cluster::delivery_server::{Delivery, DeliveryServer};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub(crate) const SECRET: &str = "a secret of thirty-two characters";
/// Nothing here takes longer unless it fails.
const DEADLINE: Duration = Duration::from_secs(30);

/// The shipped configuration.
#[derive(Deserialize)]
struct File {
    bus: bus::Config,
    routes: routes::Config,
    job: job::Config,
}

pub(crate) struct World {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) routes: Arc<dyn Routes>,
    job: job::Config,
    _folder: tempfile::TempDir,
}

impl World {
    /// An embedded bus of `partitions`, routes in memory.
    pub(crate) async fn new(partitions: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut file: File =
            toml::from_str::<toml::Table>(include_str!("../../../config/barrage.toml")).unwrap().try_into().unwrap();
        file.bus.embedded.directory = folder.path().join("bus");
        file.bus.partitions = partitions;
        let bus = bus::open(&file.bus, CancellationToken::new()).await.unwrap();
        Self { bus, routes: routes::open(&file.routes).unwrap(), job: file.job, _folder: folder }
    }

    /// A job on a runtime of its own, so that it can be killed.
    pub(crate) fn job(&self, name: &str) -> Job {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cluster =
            Cluster { node: name.into(), incarnation: format!("{name}-incarnation"), secret: Secret::new(SECRET) };
        let (bus, routes, config, stop) =
            (self.bus.clone(), self.routes.clone(), self.job.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let running = std::thread::scope(|scope| {
            let start = || {
                runtime.block_on(async {
                    let mut registry = prometheus_client::registry::Registry::default();
                    job::start(config, cluster, bus, routes, &mut registry, stopped).await.unwrap()
                })
            };
            scope.spawn(start).join().unwrap()
        });
        Job { runtime: Some(runtime), running: Some(running), stop }
    }

    /// What logic would publish.
    pub(crate) async fn publish(&self, channel: &str, id: &str, text: &str) -> u64 {
        let post = record::Post { id: id.into(), payload: text.to_owned().into(), ..record::Post::default() };
        self.publish_body(Topic::Rooms, channel, record::record::Body::Post(post)).await
    }

    pub(crate) async fn publish_body(&self, topic: Topic, key: &str, body: record::record::Body) -> u64 {
        let record = self.record(topic, key, body);
        let partition = proto::channel::partition(key, self.bus.partitions(topic));
        self.bus.publish(topic, partition, record.encode_to_vec().into()).await.unwrap()
    }

    pub(crate) fn record(&self, topic: Topic, key: &str, body: record::record::Body) -> record::Record {
        record::Record {
            min_reader: 1,
            log: self.bus.log(topic),
            time_ms: 1_700_000_000_000,
            channel: key.into(),
            body: Some(body),
            ..record::Record::default()
        }
    }
}

pub(crate) struct Job {
    runtime: Option<tokio::runtime::Runtime>,
    running: Option<job::Running>,
    stop: CancellationToken,
}

impl Job {
    /// As kill -9: no task of it runs again.
    pub(crate) fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        self.running.take().unwrap().join().await.unwrap();
    }

    pub(crate) async fn ready(&self) {
        let running = self.running.as_ref().unwrap();
        until("the job is ready", || running.ready().is_ok()).await;
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a connector was told of a channel, in order.
#[derive(Debug, Default, Clone)]
pub(crate) struct Channel {
    pub(crate) held: bool,
    pub(crate) position: Option<u64>,
    /// Offset and text.
    pub(crate) messages: Vec<(u64, String)>,
    pub(crate) missed: u64,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) channels: BTreeMap<String, Channel>,
    pub(crate) pushes: Vec<PushOut>,
    pub(crate) commands: Vec<CommandOut>,
    log: String,
    partitions: u32,
    owners: BTreeMap<u32, Owner>,
    streams: u64,
    holds: u64,
}

struct Owner {
    epoch: u64,
    stream: u64,
    seq: u64,
    back: mpsc::Sender<Result<FromHolder, Status>>,
}

#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) incarnation: String,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
}

impl Connector {
    /// Listens, and takes a lease.
    pub(crate) async fn start(world: &World, name: &str, sessions: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let grpc = listener.local_addr().unwrap().to_string();
        let connector =
            Self { incarnation: format!("{name}incarnation"), state: Arc::default(), stop: CancellationToken::new() };
        let served = tonic::transport::Server::builder().add_service(DeliveryServer::new(connector.clone()));
        let stop = connector.stop.clone().cancelled_owned();
        tokio::spawn(async move {
            tokio::select! {
                served = served.serve_with_incoming(TcpListenerStream::new(listener)) => served.unwrap(),
                () = stop => {}
            }
        });
        let lease = Lease {
            node: name.into(),
            incarnation: connector.incarnation.clone(),
            role: Role::Connector,
            grpc,
            clients: Vec::new(),
            sessions,
            addresses: 0,
            open: true,
            job: None,
        };
        let (routes, renewed) = (world.routes.clone(), lease.clone());
        routes.renew(&lease).await.unwrap();
        // What a test puts afterwards comes as sessions come.
        routes.complete(name, &connector.incarnation).await.unwrap();
        let stop = connector.stop.clone();
        tokio::spawn(async move {
            while tokio::time::timeout(Duration::from_secs(3), stop.cancelled()).await.is_err() {
                let _ = routes.renew(&renewed).await;
            }
        });
        connector
    }

    pub(crate) fn with<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        use_it(&mut self.state.lock().unwrap())
    }

    /// Takes up a channel with nothing.
    pub(crate) async fn hold(&self, channel: &str) {
        let ask = self.with(|state| {
            state.channels.insert(channel.into(), Channel::default());
            let partition = proto::channel::partition(channel, state.partitions.max(1));
            let hold = state.ask(partition, channel)?;
            state.owners.get(&partition).map(|owner| (owner.back.clone(), hold))
        });
        if let Some((back, hold)) = ask {
            let _ = back.send(Ok(hold)).await;
        }
        until("the channel is held", || self.with(|state| state.channels[channel].held)).await;
    }
}

impl State {
    fn ask(&mut self, partition: u32, channel: &str) -> Option<FromHolder> {
        let epoch = self.owners.get(&partition)?.epoch;
        self.holds += 1;
        let position = self.channels[channel].position;
        let hold = Hold {
            partition,
            epoch,
            hold: self.holds,
            channel: channel.into(),
            log: position.map(|_| self.log.clone()).unwrap_or_default(),
            offset: position.unwrap_or(0),
            ..Hold::default()
        };
        Some(frame(from_holder::Frame::Hold(hold)))
    }

    /// A frame of an owner's, and what is answered.
    fn take(
        &mut self,
        stream: u64,
        back: &mpsc::Sender<Result<FromHolder, Status>>,
        from: from_owner::Frame,
    ) -> Vec<FromHolder> {
        use from_owner::Frame;
        let mut answers = Vec::new();
        match from {
            Frame::Own(own) if self.owners.get(&own.partition).is_none_or(|owner| owner.epoch <= own.epoch) => {
                (self.log, self.partitions) = (own.log, own.partitions);
                let owner = Owner { epoch: own.epoch, stream, seq: 0, back: back.clone() };
                self.owners.insert(own.partition, owner);
                self.hold_all(own.partition, &mut answers);
            }
            Frame::Reset(reset) if self.is_owner(reset.partition, reset.epoch, stream) => {
                self.owners.get_mut(&reset.partition).unwrap().seq = 0;
                self.hold_all(reset.partition, &mut answers);
            }
            Frame::Deliver(deliver) if self.is_owner(deliver.partition, deliver.epoch, stream) => {
                answers.push(self.number(deliver.partition, deliver.seq));
                deliver.items.into_iter().for_each(|item| self.item(item));
                for (name, channel) in &mut self.channels {
                    if channel.held && proto::channel::partition(name, self.partitions) == deliver.partition {
                        channel.position = channel.position.max(Some(deliver.through));
                    }
                }
            }
            Frame::Held(held) if self.is_owner(held.partition, held.epoch, stream) => {
                answers.push(self.number(held.partition, held.seq));
                if let Some(channel) = self.channels.get_mut(&held.channel) {
                    channel.held = true;
                    channel.missed += held.missed.map_or(0, |missed| missed.count);
                    held.recent.into_iter().for_each(|item| self.item(item));
                    let channel = self.channels.get_mut(&held.channel).unwrap();
                    channel.position = channel.position.max(Some(held.offset));
                }
            }
            Frame::Push(push) => self.pushes.push(push),
            Frame::Command(command) => self.commands.push(command),
            _ => {}
        }
        answers
    }

    fn is_owner(&self, partition: u32, epoch: u64, stream: u64) -> bool {
        self.owners.get(&partition).is_some_and(|owner| owner.epoch == epoch && owner.stream == stream)
    }

    fn hold_all(&mut self, partition: u32, answers: &mut Vec<FromHolder>) {
        let ours = |name: &&String| proto::channel::partition(name, self.partitions) == partition;
        for name in self.channels.keys().filter(ours).cloned().collect::<Vec<_>>() {
            answers.extend(self.ask(partition, &name));
        }
        let epoch = self.owners[&partition].epoch;
        answers.push(frame(from_holder::Frame::HoldsDone(HoldsDone { topic: 1, partition, epoch })));
    }

    fn number(&mut self, partition: u32, seq: u64) -> FromHolder {
        let owner = self.owners.get_mut(&partition).unwrap();
        assert_eq!(seq, owner.seq + 1, "numbers are dense");
        owner.seq = seq;
        frame(from_holder::Frame::Acks(Acks { acks: vec![Ack { topic: 1, partition, epoch: owner.epoch, seq }] }))
    }

    fn item(&mut self, item: Item) {
        let Some(channel) = self.channels.get_mut(&item.channel).filter(|channel| channel.held) else { return };
        channel.missed += item.missed;
        channel.position = channel.position.max(Some(item.offset));
        if !item.message.is_empty() {
            let message = proto::client::Message::decode(item.message).unwrap();
            assert_eq!((message.offset, message.channel), (item.offset, item.channel));
            let Some(proto::client::message::Payload::Text(text)) = message.payload else { panic!("text was sent") };
            channel.messages.push((item.offset, text));
        }
    }
}

fn frame(frame: from_holder::Frame) -> FromHolder {
    FromHolder { frame: Some(frame) }
}

#[tonic::async_trait]
impl Delivery for Connector {
    type AttachStream = ReceiverStream<Result<FromHolder, Status>>;

    async fn attach(&self, request: Request<Streaming<FromOwner>>) -> Result<Response<Self::AttachStream>, Status> {
        rpc::secret::check(&request, &Secret::new(SECRET))?;
        let mut frames = request.into_inner();
        let (back, answers) = mpsc::channel(1024);
        let hello = HolderHello { node: String::new(), incarnation: self.incarnation.clone() };
        back.send(Ok(self::frame(from_holder::Frame::Hello(hello)))).await.unwrap();
        let this = self.clone();
        tokio::spawn(async move {
            let stream = this.with(|state| {
                state.streams += 1;
                state.streams
            });
            while let Ok(Some(frame)) = frames.message().await {
                for answer in this.with(|state| state.take(stream, &back, frame.frame.unwrap())) {
                    if back.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// Waits until `done`.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
