//! Clients of each dialect for black-box tests: blocking, each wait with a deadline.
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "every test binary uses its own part of this")]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use proto::client::{
    ClientFrame, Connect, Connected, Message, Publish, ServerFrame, Subscribe, client_frame, message, publish,
    server_frame,
};
use proto::packet::{self, Packet, operation};
use proto::{bilibili, goim, native};
use tungstenite::WebSocket;
use tungstenite::client::IntoClientRequest as _;

/// How long anything may take that must come.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Longest frame that is taken.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// A socket that yields whole messages: WebSocket's, or the bytes of TCP as they come.
pub enum Wire {
    Tcp(TcpStream),
    WebSocket(Box<WebSocket<TcpStream>>),
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_nodelay(true).expect("a fresh socket");
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a fresh socket");
    stream
}

impl Wire {
    pub fn tcp(address: SocketAddr) -> Self {
        Self::Tcp(tcp(address))
    }

    pub fn web_socket(address: SocketAddr, subprotocol: Option<&str>) -> Self {
        let mut request = format!("ws://{address}/sub").into_client_request().expect("a good URL");
        if let Some(subprotocol) = subprotocol {
            request.headers_mut().insert("Sec-WebSocket-Protocol", subprotocol.parse().expect("a good name"));
        }
        let stream = TcpStream::connect(address).expect("the server listens");
        let (socket, _) = tungstenite::client(request, stream).expect("the handshake succeeds");
        socket.get_ref().set_read_timeout(Some(Duration::from_millis(50))).expect("a live socket");
        Self::WebSocket(Box::new(socket))
    }

    pub fn send(&mut self, bytes: &[u8]) {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes).expect("the server reads"),
            Self::WebSocket(socket) => {
                socket.send(tungstenite::Message::binary(bytes.to_vec())).expect("the server reads");
            }
        }
    }

    /// Appends what came within some milliseconds; `false` when the server has closed.
    pub fn receive(&mut self, into: &mut Vec<u8>) -> bool {
        match self {
            Self::Tcp(stream) => {
                let mut part = [0; 64 * 1024];
                match stream.read(&mut part) {
                    Ok(0) => false,
                    Ok(bytes) => {
                        into.extend_from_slice(&part[..bytes]);
                        true
                    }
                    Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                }
            }
            Self::WebSocket(socket) => match socket.read() {
                Ok(tungstenite::Message::Binary(bytes)) => {
                    into.extend_from_slice(&bytes);
                    true
                }
                Ok(tungstenite::Message::Close(_)) => false,
                Ok(_) => true,
                Err(tungstenite::Error::Io(error)) => {
                    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
                }
                Err(_) => false,
            },
        }
    }
}

/// A native client on TCP.
pub struct Native {
    wire: Wire,
    buffer: Vec<u8>,
    frames: VecDeque<ServerFrame>,
    request: u32,
    pub connected: Connected,
}

impl Native {
    /// Connects and is let in.
    pub fn connect(address: SocketAddr, token: &str) -> Self {
        let mut wire = Wire::tcp(address);
        wire.send(native::MAGIC);
        let mut client =
            Self { wire, buffer: Vec::new(), frames: VecDeque::new(), request: 0, connected: Connected::default() };
        let connect = Connect { token: token.to_owned(), ..Connect::default() };
        match client.ask(client_frame::Body::Connect(connect)) {
            server_frame::Body::Connected(connected) => client.connected = connected,
            other => panic!("not let in: {other:?}"),
        }
        client
    }

    /// Sends a request; its number.
    pub fn send(&mut self, body: client_frame::Body) -> u32 {
        self.request += 1;
        let mut out = Vec::new();
        let start = native::begin_frame(&mut out);
        native::to_binary(&ClientFrame { request: self.request, body: Some(body) }, &mut out);
        native::end_frame(start, &mut out);
        self.wire.send(&out);
        self.request
    }

    /// Sends a request and waits for its answer; pushes wait in line.
    pub fn ask(&mut self, body: client_frame::Body) -> server_frame::Body {
        let request = self.send(body);
        let mut others = VecDeque::new();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let frame = self.next_before(deadline).unwrap_or_else(|| panic!("no answer to request {request}"));
            if frame.request == request {
                for other in others.into_iter().rev() {
                    self.frames.push_front(other);
                }
                return frame.body.expect("a frame has a body");
            }
            others.push_back(frame);
        }
    }

    /// In a room, with some history.
    pub fn subscribe(&mut self, channel: &str, history: u32) -> proto::client::Subscribed {
        let subscribe = Subscribe { channel: channel.to_owned(), resume: None, history };
        match self.ask(client_frame::Body::Subscribe(subscribe)) {
            server_frame::Body::Subscribed(subscribed) => subscribed,
            other => panic!("not subscribed: {other:?}"),
        }
    }

    /// Publishes a text.
    pub fn publish(&mut self, channel: &str, id: &str, text: &str) -> server_frame::Body {
        self.ask(client_frame::Body::Publish(Publish {
            channel: channel.to_owned(),
            client_message_id: id.to_owned(),
            r#type: "text".to_owned(),
            payload: Some(publish::Payload::Text(text.to_owned())),
            style: None,
        }))
    }

    /// The next frame; `None` when the server has closed or the deadline is over.
    pub fn next_before(&mut self, deadline: Instant) -> Option<ServerFrame> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            let open = self.wire.receive(&mut self.buffer);
            let mut input = &self.buffer[..];
            while let Some(bytes) = native::unpack(&mut input, FRAME_BYTES_MAX).expect("a frame within the limit") {
                self.frames.push_back(native::from_binary(bytes).expect("a frame"));
            }
            let taken = self.buffer.len() - input.len();
            self.buffer.drain(..taken);
            if self.frames.is_empty() && (!open || Instant::now() >= deadline) {
                return None;
            }
        }
    }

    /// The next message.
    pub fn message(&mut self) -> Message {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.next_before(deadline).expect("a message comes").body {
                Some(server_frame::Body::Message(message)) => return message,
                Some(server_frame::Body::Gap(gap)) => panic!("a gap: {gap:?}"),
                _ => {}
            }
        }
    }
}

/// A message's text.
pub fn text(message: &Message) -> &str {
    match &message.payload {
        Some(message::Payload::Text(text)) => text,
        other => panic!("no text: {other:?}"),
    }
}

/// A goim or Bilibili client: packets.
pub struct Packets {
    wire: Wire,
    buffer: Vec<u8>,
    packets: VecDeque<(i32, Vec<u8>)>,
}

impl Packets {
    /// Shows `auth` and waits for the answer; the answer's body.
    pub fn connect(wire: Wire, version: u16, auth: &str) -> (Self, Vec<u8>) {
        let mut client = Self { wire, buffer: Vec::new(), packets: VecDeque::new() };
        client.send(version, operation::AUTH, auth.as_bytes());
        let body = client.wait_for(operation::AUTH_REPLY);
        (client, body)
    }

    pub fn send(&mut self, version: u16, operation: i32, body: &[u8]) {
        let mut out = Vec::new();
        packet::write(Packet { version, operation, sequence: 7, body }, &mut out);
        self.wire.send(&out);
    }

    /// The next packet, unwrapped: operation and body.
    pub fn next_before(&mut self, deadline: Instant) -> Option<(i32, Vec<u8>)> {
        loop {
            if let Some(packet) = self.packets.pop_front() {
                return Some(packet);
            }
            let open = self.wire.receive(&mut self.buffer);
            let mut input = &self.buffer[..];
            while let Some(packet) = packet::unpack(&mut input, FRAME_BYTES_MAX).expect("a packet within the limit") {
                match (packet.operation, packet.version) {
                    (operation::RAW, _) => {
                        for inner in packet::in_message(packet.body, FRAME_BYTES_MAX) {
                            let inner = inner.expect("whole packets");
                            self.packets.push_back((inner.operation, inner.body.to_vec()));
                        }
                    }
                    (5, _) => {
                        for body in bilibili::unpack(packet, FRAME_BYTES_MAX).expect("a body of its version") {
                            self.packets.push_back((5, body));
                        }
                    }
                    _ => self.packets.push_back((packet.operation, packet.body.to_vec())),
                }
            }
            let taken = self.buffer.len() - input.len();
            self.buffer.drain(..taken);
            if self.packets.is_empty() && (!open || Instant::now() >= deadline) {
                return None;
            }
        }
    }

    /// The body of the next packet of this operation.
    pub fn wait_for(&mut self, operation: i32) -> Vec<u8> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (got, body) =
                self.next_before(deadline).unwrap_or_else(|| panic!("operation {operation} does not come"));
            if got == operation {
                return body;
            }
        }
    }
}

/// goim's auth body for a room.
pub fn goim_auth(room: &str) -> String {
    format!(r#"{{"mid":123,"key":"","room_id":"live://{room}","platform":"web","accepts":[1000]}}"#)
}

/// Bilibili's.
pub fn bilibili_auth(room: &str, protover: u8) -> String {
    format!(r#"{{"uid":0,"roomid":{room},"protover":{protover},"platform":"web","type":2,"key":""}}"#)
}

/// goim's version of a packet.
pub const GOIM: u16 = goim::VERSION;
