//! A server that does what a test says: it takes messages over HTTP and hands them to viewers of every dialect, each
//! message with a fate of its own for each viewer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::client::{Connected, Gap, Message, ServerFrame, Subscribed, client_frame, message, server_frame};
use proto::packet::{self, operation};
use proto::websocket::{self, Decoder, Event, Opcode, Role};
use proto::{client::ClientFrame, goim, http, native};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What becomes of one message at one viewer.
#[derive(Clone, Copy)]
pub(crate) enum Fate {
    Delivered,
    Dropped,
    Twice,
    /// Held back, and everything behind it.
    Late(Duration),
    /// Handed over after the next one.
    Overtaken,
    /// Handed to nobody; the viewer is told that it missed one.
    WorkerStatus,
    /// The connection ends.
    Closed,
}

/// How the server behaves.
#[derive(Clone)]
pub(crate) struct Manners {
    /// Of a viewer's (from 0) message (from 0, in the room).
    pub(crate) fate: Arc<dyn Fn(usize, usize) -> Fate + Send + Sync>,
    /// Before each answer to a publisher.
    pub(crate) answer_after: Duration,
    /// This one (from 0) is refused with 429.
    pub(crate) refused: Option<usize>,
}

impl Default for Manners {
    fn default() -> Self {
        Self { fate: Arc::new(|_, _| Fate::Delivered), answer_after: Duration::ZERO, refused: None }
    }
}

struct ServerState {
    manners: Manners,
    viewers: AtomicUsize,
    published: AtomicUsize,
    rooms: Mutex<HashMap<String, Vec<mpsc::Sender<String>>>>,
}

/// Where it listens; it lives as long as the runtime.
pub(crate) struct Server {
    pub(crate) clients: String,
    pub(crate) http: String,
}

impl Server {
    pub(crate) async fn start(manners: Manners) -> Self {
        let state = Arc::new(ServerState {
            manners,
            viewers: AtomicUsize::new(0),
            published: AtomicUsize::new(0),
            rooms: Mutex::default(),
        });
        let clients = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            clients: clients.local_addr().unwrap().to_string(),
            http: format!("http://{}", http.local_addr().unwrap()),
        };
        let of_clients = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = clients.accept().await {
                let state = of_clients.clone();
                tokio::spawn(async move { view(&state, stream).await });
            }
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = http.accept().await {
                let state = state.clone();
                tokio::spawn(async move { take(&state, stream).await });
            }
        });
        server
    }
}

/// One publisher's connection.
async fn take(state: &ServerState, mut stream: TcpStream) {
    let mut input = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut input).await {
        while let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(input[..end].to_vec()).unwrap();
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "))
                .map_or(0, |value| value.parse().unwrap());
            if input.len() < end + 4 + length {
                break;
            }
            let body = input[end + 4..end + 4 + length].to_vec();
            input.drain(..end + 4 + length);
            let target = head.split(' ').nth(1).unwrap();
            let (room, payload) = if let Some(rest) = target.strip_prefix("/v1/rooms/") {
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(body["type"], "text");
                (rest.strip_suffix("/messages").unwrap(), body["text"].as_str().unwrap().to_owned())
            } else {
                let query = target.strip_prefix("/goim/push/room?operation=1000&type=live&room=").unwrap();
                (query, String::from_utf8(body).unwrap())
            };
            let number = state.published.fetch_add(1, Ordering::Relaxed);
            let answer: &[u8] = if state.manners.refused == Some(number) {
                b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 8\r\n\r\ntoo_fast"
            } else {
                for viewer in state.rooms.lock().unwrap().get(room).into_iter().flatten() {
                    let sent = viewer.try_send(payload.clone());
                    assert!(!matches!(sent, Err(mpsc::error::TrySendError::Full(_))));
                }
                b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{\"code\":0}"
            };
            tokio::time::sleep(state.manners.answer_after).await;
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

/// How one viewer is spoken to.
enum Speech {
    Native { tcp: bool },
    Goim { tcp: bool },
}

impl Speech {
    fn native(&self, body: server_frame::Body) -> Vec<u8> {
        let mut bytes = Vec::new();
        native::to_binary(&ServerFrame { request: 0, body: Some(body) }, &mut bytes);
        self.carried(bytes)
    }

    fn carried(&self, bytes: Vec<u8>) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Native { tcp: true } => {
                out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                out.extend_from_slice(&bytes);
            }
            Self::Goim { tcp: true } => out = bytes,
            _ => websocket::encode(Opcode::Binary, &bytes, &mut out),
        }
        out
    }

    fn message(&self, text: &str) -> Vec<u8> {
        match self {
            Self::Native { .. } => self.native(server_frame::Body::Message(Message {
                channel: "room".into(),
                offset: 1,
                payload: Some(message::Payload::Text(text.into())),
                ..Message::default()
            })),
            Self::Goim { tcp } => {
                let mut inner = Vec::new();
                goim::push(1000, text.as_bytes(), &mut inner);
                let mut out = Vec::new();
                if *tcp {
                    out = inner
                } else {
                    goim::batch(&inner, &mut out)
                }
                self.carried(out)
            }
        }
    }

    fn gap(&self) -> Vec<u8> {
        self.native(server_frame::Body::Gap(Gap { count: 1, ..Gap::default() }))
    }
}

/// One viewer's connection.
async fn view(state: &ServerState, mut stream: TcpStream) {
    let number = state.viewers.fetch_add(1, Ordering::Relaxed);
    let Some((speech, room)) = admit(&mut stream).await else { return };
    let (viewer, mut messages) = mpsc::channel(10_000);
    state.rooms.lock().unwrap().entry(room).or_default().push(viewer);
    let reply = match speech {
        Speech::Native { .. } => speech.native(server_frame::Body::Subscribed(Subscribed::default())),
        Speech::Goim { .. } => {
            let mut reply = Vec::new();
            goim::auth_reply(1, &mut reply);
            speech.carried(reply)
        }
    };
    stream.write_all(&reply).await.unwrap();
    let mut overtaken = None;
    for place in 0.. {
        let Some(text) = messages.recv().await else { return };
        let bytes = speech.message(&text);
        let bytes = match (state.manners.fate)(number, place) {
            Fate::Delivered => bytes,
            Fate::Dropped => Vec::new(),
            Fate::Twice => bytes.repeat(2),
            Fate::Late(time) => {
                tokio::time::sleep(time).await;
                bytes
            }
            Fate::Overtaken => {
                overtaken = Some(bytes);
                continue;
            }
            Fate::WorkerStatus => speech.gap(),
            Fate::Closed => return,
        };
        let both = [bytes, overtaken.take().unwrap_or_default()].concat();
        if stream.write_all(&both).await.is_err() {
            return;
        }
    }
}

/// Takes a viewer in; what it speaks, and its room.
async fn admit(stream: &mut TcpStream) -> Option<(Speech, String)> {
    let mut input = Vec::new();
    while input.len() < 4 {
        stream.read_buf(&mut input).await.ok().filter(|read| *read > 0)?;
    }
    let mut decoder = None;
    if input.starts_with(b"GET ") {
        let mut out = Vec::new();
        let length = loop {
            if let Some((request, length)) = http::Request::parse(&input).unwrap() {
                assert_eq!(request.path, "/sub");
                let upgrade = request.upgrade().unwrap();
                http::accept(
                    &upgrade,
                    request.subprotocols.iter().copied().find(|name| *name == "barrage.v1"),
                    None,
                    &mut out,
                );
                break length;
            }
            stream.read_buf(&mut input).await.ok().filter(|read| *read > 0)?;
        };
        input.drain(..length);
        assert!(input.is_empty(), "nothing may follow the upgrade before its answer");
        stream.write_all(&out).await.ok()?;
        decoder = Some(Decoder::new(Role::Server, 65_536));
    }
    let mut native = input.strip_prefix(native::MAGIC).map(|_| true);
    if native == Some(true) {
        input.drain(..native::MAGIC.len());
    }
    loop {
        // What is whole of the input, as bodies without their carrier.
        let mut bodies: Vec<Vec<u8>> = Vec::new();
        if let Some(decoder) = &mut decoder {
            let mut rest = &mut input[..];
            while let Some(event) = decoder.next(&mut rest).unwrap() {
                if let Event::Binary(bytes) = event {
                    // A packet of goim's begins with its length, of which the first byte is 0.
                    native.get_or_insert(bytes[0] != 0);
                    bodies.push(bytes.to_vec());
                }
            }
            input.clear();
        } else if native == Some(true) {
            let mut rest = &input[..];
            while let Some(frame) = native::unpack(&mut rest, 65_536).unwrap() {
                bodies.push(frame.to_vec());
            }
            input = rest.to_vec();
        } else if packet::unpack(&mut &input[..], 65_536).unwrap().is_some() {
            bodies.push(std::mem::take(&mut input));
        }
        let tcp = decoder.is_none();
        for body in bodies {
            if native == Some(true) {
                let speech = Speech::Native { tcp };
                match native::from_binary::<ClientFrame>(&body).unwrap().body.unwrap() {
                    client_frame::Body::Connect(_) => {
                        let connected = Connected { heartbeat_s: 1, ..Connected::default() };
                        stream.write_all(&speech.native(server_frame::Body::Connected(connected))).await.ok()?;
                    }
                    client_frame::Body::Subscribe(subscribe) => {
                        return Some((speech, subscribe.channel.strip_prefix("room:").unwrap().to_owned()));
                    }
                    other => panic!("{other:?}"),
                }
            } else {
                let packet = packet::unpack(&mut &body[..], 65_536).unwrap().unwrap();
                assert_eq!(packet.operation, operation::AUTH);
                let auth: serde_json::Value = serde_json::from_slice(packet.body).unwrap();
                let room = auth["room_id"].as_str().unwrap().strip_prefix("live://").unwrap().to_owned();
                return Some((Speech::Goim { tcp }, room));
            }
        }
        stream.read_buf(&mut input).await.ok().filter(|read| *read > 0)?;
    }
}
