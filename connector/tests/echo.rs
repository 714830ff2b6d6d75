//! The echo example, judged by tungstenite and by raw bytes, over real sockets. (Autobahn judges it from outside.)
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use connector::driver::{CoreHandle, Kind};
use proto::deflate::{Deflater, Inflater};
use proto::websocket::{Decoder, Event, Opcode, Role, frame};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

#[path = "../examples/echo.rs"]
#[expect(dead_code, reason = "its command line is not used here")]
mod echo;

/// A step that takes longer has failed: generous, since the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

struct Server {
    address: SocketAddr,
    core: CoreHandle<echo::Stop>,
}

impl Server {
    fn start() -> Self {
        let (driver, _) = Kind::Auto.choose().unwrap();
        let (addresses, mut cores) = echo::serve(driver, &["127.0.0.1:0".parse().unwrap()], 1).unwrap();
        Self { address: addresses[0], core: cores.remove(0) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn websocket(&self) -> WebSocket<TcpStream> {
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let url = format!("ws://{}/", self.address);
        tungstenite::client::client_with_config(url, self.connect(), Some(config)).unwrap().0
    }

    /// After the handshake: bytes as they are.
    fn raw(&self) -> TcpStream {
        let stream = self.websocket();
        stream.get_ref().try_clone().unwrap()
    }

    fn stop(self) {
        self.core.port().tell(echo::Stop).unwrap();
        self.core.join();
    }
}

fn masked(fin: bool, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame(fin, opcode, Some([0x12, 0x34, 0x56, 0x78]), payload, &mut out);
    out
}

/// Reads events until the end of the stream, as text.
fn rest(stream: &mut TcpStream) -> Vec<String> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let (mut decoder, mut input, mut events) = (Decoder::new(Role::Client, u32::MAX), &mut bytes[..], Vec::new());
    while let Some(event) = decoder.next(&mut input).unwrap() {
        events.push(match event {
            Event::Text(text) => format!("text {text}"),
            Event::Binary(data) => format!("binary {data:?}"),
            Event::Ping(data) => format!("ping {data:?}"),
            Event::Pong(data) => format!("pong {data:?}"),
            Event::Close(None) => "close".into(),
            Event::Close(Some((code, _))) => format!("close {code}"),
        });
    }
    events
}

#[test]
fn messages_of_every_size_come_back_as_they_went() {
    let server = Server::start();
    let mut socket = server.websocket();
    for size in [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20, 16 << 20] {
        let text = Message::text("å".repeat(size / 2));
        let binary = Message::binary((0..size).map(|at| (at * 7) as u8).collect::<Vec<_>>());
        for message in [text, binary] {
            socket.send(message.clone()).unwrap();
            assert!(socket.read().unwrap() == message, "{size}");
        }
    }
    socket.close(None).unwrap();
    server.stop();
}

#[test]
fn pings_between_fragments_are_answered_before_the_message() {
    let server = Server::start();
    let mut stream = server.raw();
    let parts = [
        masked(false, Opcode::Text, b"one "),
        masked(true, Opcode::Ping, b"p1"),
        masked(false, Opcode::Continuation, b""),
        masked(true, Opcode::Ping, b"p2"),
        masked(true, Opcode::Continuation, b"two"),
        masked(true, Opcode::Close, &1000_u16.to_be_bytes()),
    ];
    // In single bytes: every split there is.
    for byte in parts.concat() {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(rest(&mut stream), ["pong [112, 49]", "pong [112, 50]", "text one two", "close 1000"]);
    server.stop();
}

#[test]
fn text_that_cannot_become_utf8_is_refused_before_its_end() {
    let server = Server::start();
    let mut stream = server.raw();
    let mut bytes = masked(true, Opcode::Text, &[b"good ".as_slice(), &[0xf4, 0x90], &[b'x'; 100]].concat());
    bytes.truncate(bytes.len() - 100);
    stream.write_all(&bytes).unwrap();
    assert_eq!(rest(&mut stream), ["close 1007"]);
    server.stop();
}

#[test]
fn a_close_is_answered_with_its_code_and_a_bad_one_with_1002() {
    let server = Server::start();
    for (payload, answer) in [
        (vec![], "close"),
        (1000_u16.to_be_bytes().to_vec(), "close 1000"),
        ([4999_u16.to_be_bytes().as_slice(), b"why not"].concat(), "close 4999"),
        (1005_u16.to_be_bytes().to_vec(), "close 1002"),
        (vec![3], "close 1002"),
        ([1000_u16.to_be_bytes().as_slice(), &[0xff]].concat(), "close 1007"),
    ] {
        let mut stream = server.raw();
        stream.write_all(&masked(true, Opcode::Close, &payload)).unwrap();
        // Nothing is answered that comes after it.
        stream.write_all(&masked(true, Opcode::Text, b"too late")).unwrap();
        assert_eq!(rest(&mut stream), [answer], "{payload:?}");
    }
    server.stop();
}

#[test]
fn a_broken_frame_closes_with_its_code_and_what_came_before_is_answered() {
    let server = Server::start();
    let unmasked = b"\x81\x05hello".to_vec();
    let reserved = vec![0xc1, 0x80, 1, 2, 3, 4];
    let long_ping = vec![0x89, 0x80 | 126, 0, 126, 1, 2, 3, 4];
    for broken in [unmasked, reserved, long_ping, masked(true, Opcode::Continuation, b"of nothing")] {
        let mut stream = server.raw();
        stream.write_all(&[masked(true, Opcode::Text, b"before"), broken].concat()).unwrap();
        assert_eq!(rest(&mut stream), ["text before", "close 1002"]);
    }
    server.stop();
}

#[test]
fn a_peer_that_does_not_read_is_not_read_from_and_loses_nothing() {
    let server = Server::start();
    let mut socket = server.websocket();
    const COUNT: usize = 300;
    let payload = |at: usize| -> Vec<u8> { (0..200_000).map(|byte| (byte + at) as u8).collect() };
    let mut writing = socket.get_ref().try_clone().unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let progress = written.clone();
    let writer = std::thread::spawn(move || {
        for at in 0..COUNT {
            writing.write_all(&masked(true, Opcode::Binary, &payload(at))).unwrap();
            progress.fetch_add(1, Ordering::Relaxed);
        }
    });
    // 60 MB do not fit into two kernels and the server's bound: the writer is held up until somebody reads.
    let (mut last, mut since) = (0, Instant::now());
    while last == 0 || since.elapsed() < Duration::from_millis(300) {
        std::thread::sleep(Duration::from_millis(10));
        let now = written.load(Ordering::Relaxed);
        assert!(now < COUNT, "the server took everything");
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    for at in 0..COUNT {
        assert!(socket.read().unwrap().into_data() == payload(at), "{at}");
    }
    writer.join().unwrap();
    server.stop();
}

#[test]
fn a_close_with_a_code_ends_the_connection_cleanly() {
    let server = Server::start();
    let mut socket = server.websocket();
    let close = tungstenite::protocol::CloseFrame { code: CloseCode::Away, reason: "bye".into() };
    socket.close(Some(close)).unwrap();
    match socket.read().unwrap() {
        Message::Close(Some(answer)) => assert_eq!(answer.code, CloseCode::Away),
        other => panic!("{other:?}"),
    }
    assert!(matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)));
    server.stop();
}

#[test]
fn what_is_no_handshake_is_refused() {
    let server = Server::start();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "426"),
        ("POST / HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let mut stream = server.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    server.stop();
}

#[test]
fn what_was_offered_compressed_comes_back_compressed() {
    let server = Server::start();
    let agreed = "permessage-deflate; server_no_context_takeover";
    for (offer, answer) in [
        ("permessage-deflate; client_max_window_bits", format!("{agreed}; client_max_window_bits=9")),
        ("permessage-deflate; server_max_window_bits=9", format!("{agreed}; server_max_window_bits=9")),
    ] {
        let mut stream = server.connect();
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let text = "弹幕弹幕弹幕 ".repeat(200);
        let (mut deflater, mut compressed) = (Deflater::default(), Vec::new());
        deflater.deflate(text.as_bytes(), &mut compressed);
        let mut message = masked(true, Opcode::Text, &compressed);
        message[0] |= 0x40;
        stream.write_all(&message).unwrap();
        stream.write_all(&masked(true, Opcode::Close, &1000_u16.to_be_bytes())).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        assert!(head.contains(&format!("\r\nSec-WebSocket-Extensions: {answer}\r\n")), "{head}");
        assert!(bytes.len() - end < 200, "{} bytes", bytes.len() - end);
        let (mut decoder, mut inflater, mut input) =
            (Decoder::new(Role::Client, u32::MAX), Inflater::default(), &mut bytes[end..]);
        assert_eq!(decoder.next_inflated(&mut inflater, &mut input), Ok(Some(Event::Text(&text))));
        assert_eq!(decoder.next_inflated(&mut inflater, &mut input), Ok(Some(Event::Close(Some((1000, ""))))));
    }
    server.stop();
}
