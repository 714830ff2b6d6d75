//! A native client that lives on: it publishes and receives, goes elsewhere when it is told to, and resumes every room
//! from where it stood, as the client library does.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::client::{self, ClientFrame, Position, ServerFrame, client_frame, server_frame};
use proto::native;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Longest frame that a server sends here.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// A client that finds no connector, or was refused for now, tries again after this.
const AGAIN: Duration = Duration::from_millis(100);
/// How often a client looks whether a message is due.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A request that is not answered for so long is counted as failed.
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// Where services of one kind are, as a load balancer knows them: a restarted one is at another address.
#[derive(Clone)]
pub(crate) struct Addresses(Arc<Mutex<Vec<SocketAddr>>>);

impl Addresses {
    pub(crate) fn new(addresses: Vec<SocketAddr>) -> Self {
        Self(Arc::new(Mutex::new(addresses)))
    }

    pub(crate) fn replace(&self, at: usize, address: SocketAddr) {
        self.0.lock().unwrap()[at] = address;
    }

    /// The one after `from`; any, where that is not known.
    pub(crate) fn other(&self, from: Option<SocketAddr>) -> SocketAddr {
        let addresses = self.0.lock().unwrap();
        let at = addresses.iter().position(|address| Some(*address) == from);
        addresses[at.map_or_else(|| rand::random_range(0..addresses.len()), |at| (at + 1) % addresses.len())]
    }
}

/// What a client saw, room by room.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Offset and number of each message, as they came.
    pub(crate) rooms: Vec<Vec<(u64, u32)>>,
    pub(crate) gaps: Vec<client::Gap>,
    /// Numbers of its messages that were accepted.
    pub(crate) accepted: BTreeSet<(usize, u32)>,
    /// What it was refused, or was told that does not belong.
    pub(crate) refused: Vec<String>,
    /// How often it had to connect.
    pub(crate) connected: u32,
    /// The longest time without a session.
    pub(crate) away: Duration,
}

pub(crate) struct Resuming {
    pub(crate) seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Drop for Resuming {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What all clients share.
#[derive(Clone)]
pub(crate) struct Crowd {
    pub(crate) connectors: Addresses,
    pub(crate) rooms: Arc<[String]>,
    /// The first of them, which everyone is in, and publishes to. Each client has one of the others for itself.
    pub(crate) shared: usize,
    /// Between two messages of one client.
    pub(crate) every: Duration,
    /// The number of the next message.
    pub(crate) next: Arc<AtomicU32>,
    /// They publish.
    pub(crate) publishing: Arc<AtomicBool>,
}

impl Resuming {
    /// Starts; returns when it is in every room. It takes `dawdles` longer than it is asked to before it comes back.
    pub(crate) async fn start(crowd: Crowd, uid: u32, dawdles: Duration) -> Self {
        let seen = Arc::new(Mutex::new(Seen { rooms: vec![Vec::new(); crowd.rooms.len()], ..Seen::default() }));
        let mine = (0..crowd.shared).chain([crowd.shared + uid as usize]).collect();
        let client = Client {
            mine,
            positions: vec![None; crowd.rooms.len()],
            token: crate::pushes::token(uid),
            crowd,
            dawdles,
            seen: seen.clone(),
            subscribed: 0,
            request: 0,
            publishing: None,
            due: Instant::now(),
        };
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(client.live(ready));
        let wait = tokio::time::timeout(crate::DEADLINE, is_ready).await;
        wait.expect("it is in every room in time").expect("it lives");
        Self { seen, task }
    }
}

struct Client {
    crowd: Crowd,
    token: String,
    dawdles: Duration,
    seen: Arc<Mutex<Seen>>,
    /// The rooms that it is in.
    mine: Vec<usize>,
    /// Where it stands in each room.
    positions: Vec<Option<Position>>,
    /// Rooms that it is in, in this session.
    subscribed: usize,
    request: u32,
    /// The message that was not answered: room, number, its request, and since when.
    publishing: Option<(usize, u32, u32, Instant)>,
    /// When the next message is due.
    due: Instant,
}

/// Why a session ended: to come back after this.
struct Ended(Duration);

impl Client {
    async fn live(mut self, ready: tokio::sync::oneshot::Sender<()>) {
        let (mut ready, mut at) = (Some(ready), None);
        let mut since = Instant::now();
        loop {
            let address = self.crowd.connectors.other(at);
            at = Some(address);
            let Ok(socket) = TcpStream::connect(address).await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let Ended(after) = self.session(socket, &mut ready, since).await;
            since = Instant::now();
            tokio::time::sleep(after + self.dawdles).await;
        }
    }

    fn write(&mut self, body: client_frame::Body, out: &mut Vec<u8>) -> u32 {
        self.request += 1;
        let start = native::begin_frame(out);
        native::to_binary(&ClientFrame { request: self.request, body: Some(body) }, out);
        native::end_frame(start, out);
        self.request
    }

    fn subscribe(&mut self, room: usize, out: &mut Vec<u8>) {
        let (channel, resume) = (self.crowd.rooms[room].clone(), self.positions[room].clone());
        let subscribe = client::Subscribe { channel, resume, ..client::Subscribe::default() };
        self.write(client_frame::Body::Subscribe(subscribe), out);
    }

    async fn session(
        &mut self,
        mut socket: TcpStream,
        ready: &mut Option<tokio::sync::oneshot::Sender<()>>,
        since: Instant,
    ) -> Ended {
        socket.set_nodelay(true).expect("a fresh socket");
        let mut out = native::MAGIC.to_vec();
        let connect = client::Connect { token: self.token.clone(), ..client::Connect::default() };
        self.write(client_frame::Body::Connect(connect), &mut out);
        self.subscribed = 0;
        self.mine.clone().into_iter().for_each(|room| self.subscribe(room, &mut out));
        let mut buffer = Vec::with_capacity(64 * 1024);
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut repeated = false;
        loop {
            if !out.is_empty() && socket.write_all(&out).await.is_err() {
                return Ended(Duration::ZERO);
            }
            out.clear();
            tokio::select! {
                read = socket.read_buf(&mut buffer) => {
                    if !matches!(read, Ok(1..)) {
                        return Ended(Duration::ZERO);
                    }
                }
                _ = look.tick() => {}
            }
            let mut input = &buffer[..];
            while let Some(frame) = native::unpack(&mut input, FRAME_BYTES_MAX).expect("a frame of the server's") {
                if let Some(ended) = self.frame(native::from_binary(frame).expect("a frame")) {
                    return ended;
                }
            }
            let taken = buffer.len() - input.len();
            buffer.drain(..taken);
            if self.subscribed < self.mine.len() {
                continue;
            }
            if !std::mem::replace(&mut repeated, true) {
                let mut seen = self.seen.lock().unwrap();
                seen.connected += 1;
                if seen.connected > 1 {
                    seen.away = seen.away.max(since.elapsed());
                }
                drop(seen);
                if let Some(ready) = ready.take() {
                    let _ = ready.send(());
                }
                // What the last session did not hear about.
                if let Some((room, number, ..)) = self.publishing.take() {
                    self.publish(room, number, &mut out);
                }
            }
            match self.publishing {
                None if self.crowd.publishing.load(Ordering::Relaxed) && Instant::now() >= self.due => {
                    self.due = Instant::now() + self.crowd.every;
                    let number = self.crowd.next.fetch_add(1, Ordering::Relaxed);
                    self.publish(number as usize % self.crowd.shared, number, &mut out);
                }
                Some((_, number, _, since)) if since.elapsed() > ANSWER_MAX => {
                    self.seen.lock().unwrap().refused.push(format!("{number} is not answered"));
                    self.publishing = None;
                }
                _ => {}
            }
        }
    }

    fn publish(&mut self, room: usize, number: u32, out: &mut Vec<u8>) {
        let publish = client::Publish {
            channel: self.crowd.rooms[room].clone(),
            client_message_id: format!("m{number}"),
            r#type: "text".into(),
            payload: Some(client::publish::Payload::Text(number.to_string())),
            ..client::Publish::default()
        };
        let request = self.write(client_frame::Body::Publish(publish), out);
        self.publishing = Some((room, number, request, Instant::now()));
    }

    fn frame(&mut self, frame: ServerFrame) -> Option<Ended> {
        use server_frame::Body;
        let room = |channel: &str| self.crowd.rooms.iter().position(|room| room == channel).expect("a room of ours");
        let mut seen = self.seen.lock().unwrap();
        match frame.body.expect("a frame has a body") {
            Body::Message(message) => {
                let room = room(&message.channel);
                let text = native::payload_bytes(message.payload.as_ref());
                let number = std::str::from_utf8(text).expect("a number").parse().expect("a number");
                seen.rooms[room].push((message.offset, number));
                self.positions[room].as_mut().expect("it is in the room").normal = message.offset;
            }
            Body::Subscribed(subscribed) => {
                self.positions[room(&subscribed.channel)] = subscribed.position;
                self.subscribed += 1;
            }
            Body::Gap(gap) => {
                self.positions[room(&gap.channel)] = gap.position.clone();
                seen.gaps.push(gap);
            }
            Body::Published(_) => {
                let (room, number, request, _) = self.publishing.take().expect("it publishes");
                assert_eq!(request, frame.request);
                seen.accepted.insert((room, number));
            }
            Body::Goodbye(goodbye) => {
                assert!(goodbye.retry, "{goodbye:?}");
                return Some(Ended(Duration::from_millis(goodbye.delay_ms.into())));
            }
            Body::Error(error) => {
                seen.refused.push(format!("{error:?}"));
                if self.publishing.take_if(|publishing| publishing.2 == frame.request).is_none() {
                    // The session or a room was refused: from the beginning.
                    return Some(Ended(AGAIN));
                }
            }
            Body::Connected(_) | Body::Pong(_) => {}
            other => panic!("{other:?}"),
        }
        None
    }
}
