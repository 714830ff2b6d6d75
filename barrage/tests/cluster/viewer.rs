//! Hundreds of native clients on TCP in one process: each keeps room, offset and number of every message that it got, in
//! order. The frames are read by hand, since a debug build of the generated code is too slow for 100,000 a second.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proto::client::{ClientFrame, Connect, Ping, ServerFrame, Subscribe, client_frame, server_frame};
use proto::native;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Longest frame that a server sends here.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// What a viewer got.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// For each room: where it begins (everything after this offset is due), and what came.
    pub(crate) rooms: Vec<(u64, Vec<(u64, u32)>)>,
    /// What it was told to have missed; none is expected.
    pub(crate) gaps: Vec<String>,
    /// The server closed.
    pub(crate) closed: bool,
}

pub(crate) struct Viewer {
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) count: Arc<AtomicUsize>,
    reading: JoinHandle<()>,
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Viewer {
    /// Connects as a guest and takes up `rooms`, with no history.
    pub(crate) async fn start(address: SocketAddr, rooms: Arc<[String]>) -> Self {
        let mut socket = TcpStream::connect(address).await.expect("the connector listens");
        socket.set_nodelay(true).expect("a fresh socket");
        let connect = client_frame::Body::Connect(Connect::default());
        let mut out = native::MAGIC.to_vec();
        write(1, connect, &mut out);
        for (at, room) in rooms.iter().enumerate() {
            let subscribe = Subscribe { channel: room.clone(), ..Subscribe::default() };
            write(2 + at as u32, client_frame::Body::Subscribe(subscribe), &mut out);
        }
        socket.write_all(&out).await.expect("the connector reads");
        let seen = Seen { rooms: vec![Default::default(); rooms.len()], ..Seen::default() };
        let (seen, count) = (Arc::new(Mutex::new(seen)), Arc::new(AtomicUsize::new(0)));
        let (subscribed, all_subscribed) = tokio::sync::oneshot::channel();
        let reader =
            Reader { rooms, seen: seen.clone(), count: count.clone(), waits_for: 0, subscribed: Some(subscribed) };
        let viewer = Self { seen, count, reading: tokio::spawn(reader.read(socket)) };
        let wait = tokio::time::timeout(crate::DEADLINE, all_subscribed).await;
        wait.expect("every room is taken up in time").expect("the connector does not close");
        viewer
    }
}

fn write(request: u32, body: client_frame::Body, out: &mut Vec<u8>) {
    let start = native::begin_frame(out);
    native::to_binary(&ClientFrame { request, body: Some(body) }, out);
    native::end_frame(start, out);
}

struct Reader {
    rooms: Arc<[String]>,
    seen: Arc<Mutex<Seen>>,
    count: Arc<AtomicUsize>,
    waits_for: usize,
    subscribed: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Reader {
    async fn read(mut self, mut socket: TcpStream) {
        self.waits_for = self.rooms.len();
        let mut buffer = Vec::with_capacity(64 * 1024);
        let mut ping = tokio::time::interval(std::time::Duration::from_secs(20));
        let mut request = 1000;
        loop {
            let mut input = &buffer[..];
            while let Some(frame) = native::unpack(&mut input, FRAME_BYTES_MAX).expect("a frame of the server's") {
                self.frame(frame);
            }
            let rest = input.len();
            let taken = buffer.len() - rest;
            buffer.drain(..taken);
            tokio::select! {
                read = socket.read_buf(&mut buffer) => {
                    if !matches!(read, Ok(1..)) {
                        self.seen.lock().expect("not poisoned").closed = true;
                        return;
                    }
                }
                _ = ping.tick() => {
                    request += 1;
                    let mut out = Vec::new();
                    write(request, client_frame::Body::Ping(Ping {}), &mut out);
                    let _ = socket.write_all(&out).await;
                }
            }
        }
    }

    fn frame(&mut self, frame: &[u8]) {
        if let Some(message) = message(frame) {
            let room = self.rooms.iter().position(|room| room.as_bytes() == message.channel).expect("a room of ours");
            let mut seen = self.seen.lock().expect("not poisoned");
            seen.rooms[room].1.push((message.offset, message.number));
            self.count.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let frame: ServerFrame = native::from_binary(frame).expect("a frame of the server's");
        let mut seen = self.seen.lock().expect("not poisoned");
        match frame.body.expect("a frame has a body") {
            server_frame::Body::Subscribed(subscribed) => {
                let room = self.rooms.iter().position(|room| *room == subscribed.channel).expect("a room of ours");
                seen.rooms[room].0 = subscribed.position.expect("a held room has a position").normal;
                self.waits_for -= 1;
                if self.waits_for == 0
                    && let Some(subscribed) = self.subscribed.take()
                {
                    let _ = subscribed.send(());
                }
            }
            server_frame::Body::Gap(gap) => seen.gaps.push(format!("{gap:?}")),
            server_frame::Body::Connected(_) | server_frame::Body::Pong(_) => {}
            other => seen.gaps.push(format!("{other:?}")),
        }
    }
}

struct Message<'a> {
    channel: &'a [u8],
    offset: u64,
    number: u32,
}

/// Reads `ServerFrame.message` (field 16): its channel (1), offset (3) and the number that its text (7) begins with.
fn message(frame: &[u8]) -> Option<Message<'_>> {
    let mut input = frame;
    let mut body = None;
    while !input.is_empty() {
        match field(&mut input)? {
            (16, Value::Bytes(bytes)) => body = Some(bytes),
            (1, Value::Varint(_)) => {}
            _ => return None,
        }
    }
    let mut input = body?;
    let mut message = Message { channel: &[], offset: 0, number: 0 };
    while !input.is_empty() {
        match field(&mut input)? {
            (1, Value::Bytes(channel)) => message.channel = channel,
            (3, Value::Varint(offset)) => message.offset = offset,
            (7, Value::Bytes(text)) => {
                let digits = text.split(|byte| *byte == b' ').next().unwrap_or_default();
                message.number = std::str::from_utf8(digits).ok()?.parse().ok()?;
            }
            _ => {}
        }
    }
    Some(message)
}

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

/// The next field of a protobuf message: its number and value. None of those here are of a fixed width.
fn field<'a>(input: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = varint(input)?;
    let value = match key & 7 {
        0 => Value::Varint(varint(input)?),
        2 => {
            let length = varint(input)? as usize;
            Value::Bytes(input.split_off(..length)?)
        }
        _ => return None,
    };
    Some((key >> 3, value))
}

fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *input.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
