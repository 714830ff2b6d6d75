//! A WebSocket echo server on the connector's own codec and driver: conformance suites are run against it.
//!
//! ```sh
//! cargo run --release -p connector --example echo -- --listen 127.0.0.1:9001
//! ```
//!
//! Each text or binary message is returned as it came; pings are answered, a close is answered with its code, and a peer
//! that breaks the protocol is told so by a close of the codec's code. permessage-deflate is agreed to with any window
//! that the codec can keep to; messages then come back compressed. What a peer does not read is kept for it up to
//! [`OUTPUT_BYTES_MAX`] and what its last message brings on top; then it is not read from.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use clap::Parser;
use connector::driver::{CoreHandle, Driver, Kind, Listeners, Setup, SocketOptions, raise_descriptor_limit, spawn};
use machine::{Key, Machine, Next, Now, Outlet, Reading, Sent};
use proto::deflate::{self, Agreed, Deflater, Inflater, Window};
use proto::http::{self, BadHandshake, Request};
use proto::websocket::{self, Decoder, Event, Opcode, Role};
use slab::Slab;

/// Longest message, bytes: suites send 16 MiB. Over it: close 1009.
pub(crate) const MESSAGE_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// Output that waits for one peer, bytes; over it the peer is not read from.
pub(crate) const OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// Connections that are sent to in one round.
const SENDS_A_ROUND: usize = 256;
/// An output buffer that grew larger than this, bytes, is given back when it is empty.
const BUFFER_BYTES_KEPT: usize = 16 * 1024;
/// There is nothing to be done at any time of its own.
const IDLE_MS: u64 = 60_000;

#[derive(Debug, Parser)]
struct Options {
    /// Where to listen; may be given several times.
    #[arg(long, default_value = "127.0.0.1:9001")]
    listen: Vec<SocketAddr>,
    /// Threads; 0: one for each processor.
    #[arg(long, default_value_t = 0)]
    cores: usize,
    /// Which loop runs a core: auto, uring, monoio (or glommio, with its cargo feature).
    #[arg(long, default_value_t = Kind::Auto)]
    driver: Kind,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    raise_descriptor_limit()?;
    let cores = if options.cores == 0 { std::thread::available_parallelism()?.get() } else { options.cores };
    let (driver, why) = options.driver.choose()?;
    println!("driver {driver}: {why}");
    let (addresses, cores) = serve(driver, &options.listen, cores)?;
    for address in addresses {
        println!("listening on {address}");
    }
    for core in cores {
        core.join();
    }
    Ok(())
}

/// Starts the server and returns its addresses and cores.
///
/// # Errors
/// The system's, where it does not let us listen or start a thread.
pub(crate) fn serve(
    driver: Driver,
    listen: &[SocketAddr],
    cores: usize,
) -> io::Result<(Vec<SocketAddr>, Vec<CoreHandle<Stop>>)> {
    let listeners = Listeners::bind(listen, cores, &SocketOptions::default())?;
    let mut started = Vec::new();
    for (index, intake) in listeners.cores.into_iter().enumerate() {
        let setup = Setup {
            name: format!("echo-{index}"),
            intake,
            inputs_max: 1,
            asks: Box::new(|asks: Vec<Infallible>| asks),
        };
        started.push(spawn(driver, setup, |_| Echo::default())?);
    }
    Ok((listeners.addresses, started))
}

/// Stop accepting, close all.
#[derive(Debug)]
pub(crate) struct Stop;

#[derive(Debug, Default)]
struct Echo {
    connections: Slab<Connection>,
    deflate: Deflate,
    /// Of each slot: how many have had it.
    generations: Vec<u32>,
    /// Who has output that the kernel may take.
    due: VecDeque<Key>,
    stopping: bool,
}

/// What all connections compress and inflate with, one message at a time.
#[derive(Debug, Default)]
struct Deflate {
    inflater: Inflater,
    deflaters: Deflaters,
}

/// By window; most peers leave it open.
#[derive(Debug, Default)]
struct Deflaters([Option<Box<Deflater>>; 1 + (deflate::WINDOW_BITS_MAX - deflate::WINDOW_BITS_MIN) as usize]);

impl Deflaters {
    /// Appends a message, compressed where that was agreed on.
    fn encode(&mut self, agreed: Option<Agreed>, opcode: Opcode, payload: &[u8], output: &mut Vec<u8>) {
        let Some(bits) = agreed.map(Agreed::window_bits) else { return websocket::encode(opcode, payload, output) };
        let deflater = &mut self.0[usize::from(bits - deflate::WINDOW_BITS_MIN)];
        let deflater = deflater.get_or_insert_with(|| Box::new(Deflater::new(bits)));
        websocket::encode_deflated(opcode, payload, deflater, output);
    }
}

#[derive(Debug)]
struct Connection {
    generation: u32,
    stage: Stage,
    output: Vec<u8>,
    /// Of the output.
    sent: usize,
    paused: bool,
    /// Nothing follows this output.
    last: bool,
}

#[derive(Debug)]
enum Stage {
    /// What came of the request's head.
    Handshake(Vec<u8>),
    Open(Decoder, Option<Agreed>, Option<Window>),
}

impl Connection {
    fn take(&mut self, deflate: &mut Deflate, bytes: &mut [u8]) {
        if self.last {
            return;
        }
        let Stage::Handshake(head) = &mut self.stage else { return self.frames(deflate, bytes) };
        head.extend_from_slice(bytes);
        let mut head = std::mem::take(head);
        match handshake(&head, &mut self.output) {
            Ok(None) => self.stage = Stage::Handshake(head),
            Ok(Some((consumed, agreed))) => {
                let window = agreed.and_then(Agreed::window);
                self.stage = Stage::Open(Decoder::new(Role::Server, MESSAGE_BYTES_MAX), agreed, window);
                self.frames(deflate, &mut head[consumed..]);
            }
            Err(bad) => {
                bad.refuse(&mut self.output);
                self.last = true;
            }
        }
    }

    fn frames(&mut self, Deflate { inflater, deflaters }: &mut Deflate, bytes: &mut [u8]) {
        let Stage::Open(decoder, agreed, window) = &mut self.stage else { return };
        inflater.resume(window.take());
        self.last |= echo(decoder, *agreed, (inflater, deflaters), bytes, &mut self.output);
        *window = inflater.suspend();
    }

    fn waiting(&self) -> usize {
        self.output.len() - self.sent
    }
}

/// Answers all messages of a piece of input. Whether that was the last of them.
fn echo(
    decoder: &mut Decoder,
    agreed: Option<Agreed>,
    (inflater, deflaters): (&mut Inflater, &mut Deflaters),
    mut bytes: &mut [u8],
    output: &mut Vec<u8>,
) -> bool {
    loop {
        let event = match agreed {
            Some(_) => decoder.next_inflated(inflater, &mut bytes),
            None => decoder.next(&mut bytes),
        };
        match event {
            Ok(None) => return false,
            Ok(Some(Event::Text(text))) => deflaters.encode(agreed, Opcode::Text, text.as_bytes(), output),
            Ok(Some(Event::Binary(data))) => deflaters.encode(agreed, Opcode::Binary, data, output),
            Ok(Some(Event::Ping(data))) => websocket::encode(Opcode::Pong, data, output),
            Ok(Some(Event::Pong(_))) => {}
            Ok(Some(Event::Close(close))) => {
                match close {
                    Some((code, _)) => websocket::close(code, "", output),
                    None => websocket::encode(Opcode::Close, b"", output),
                }
                return true;
            }
            Err(failure) => {
                websocket::close(failure.code(), &failure.to_string(), output);
                return true;
            }
        }
    }
}

/// Appends the answer to a whole head and says how long that is, and how messages may be compressed.
fn handshake(head: &[u8], output: &mut Vec<u8>) -> Result<Option<(usize, Option<Agreed>)>, BadHandshake> {
    let Some((request, consumed)) = Request::parse(head)? else { return Ok(None) };
    let upgrade = request.upgrade()?;
    let agreed = deflate::agree(&request.extensions, deflate::WINDOW_BITS_MIN, usize::MAX)?;
    http::accept(&upgrade, None, agreed, output);
    Ok(Some((consumed, agreed)))
}

impl Echo {
    fn get(&mut self, key: Key) -> Option<&mut Connection> {
        self.connections.get_mut(key.slot as usize).filter(|connection| connection.generation == key.generation)
    }

    /// Sends what it can to one peer.
    fn flush(&mut self, key: Key, outlet: &mut impl Outlet) {
        let Some(connection) = self.get(key) else { return };
        if connection.waiting() > 0 {
            match outlet.send(key, &connection.output[connection.sent..]) {
                Sent::Took(count) => connection.sent += count,
                Sent::Gone => return,
            }
        }
        if connection.waiting() == 0 {
            connection.output.clear();
            connection.output.shrink_to(BUFFER_BYTES_KEPT);
            connection.sent = 0;
        }
        if connection.paused && connection.waiting() < OUTPUT_BYTES_MAX / 2 {
            connection.paused = false;
            outlet.read(key);
        }
        if connection.last && connection.waiting() == 0 {
            outlet.close(key);
            self.connections.remove(key.slot as usize);
        }
    }
}

impl Machine for Echo {
    type Input = Stop;
    type Request = Infallible;

    fn opened(&mut self, _: Now, _: usize, _: SocketAddr) -> Option<Key> {
        let entry = self.connections.vacant_entry();
        let slot = entry.key();
        if self.generations.len() <= slot {
            self.generations.push(0);
        }
        let generation = &mut self.generations[slot];
        *generation = generation.wrapping_add(1);
        entry.insert(Connection {
            generation: *generation,
            stage: Stage::Handshake(Vec::new()),
            output: Vec::new(),
            sent: 0,
            paused: false,
            last: false,
        });
        Some(Key { slot: slot as u32, generation: *generation })
    }

    fn bytes(&mut self, _: Now, key: Key, bytes: &mut [u8]) -> Reading {
        // Not by `get`, which would lend all of the machine.
        let Self { connections, deflate, .. } = self;
        let connection = connections.get_mut(key.slot as usize);
        let Some(connection) = connection.filter(|it| it.generation == key.generation) else { return Reading::On };
        connection.take(deflate, bytes);
        connection.paused = connection.waiting() >= OUTPUT_BYTES_MAX;
        let reading = if connection.paused { Reading::Paused } else { Reading::On };
        self.due.push_back(key);
        reading
    }

    fn writable(&mut self, _: Now, key: Key) {
        self.due.push_back(key);
    }

    fn closed(&mut self, _: Now, key: Key) {
        if self.get(key).is_some() {
            self.connections.remove(key.slot as usize);
        }
    }

    fn input(&mut self, _: Now, Stop: Stop) {
        self.stopping = true;
    }

    fn round(&mut self, now: Now, outlet: &mut impl Outlet) -> Next {
        for _ in 0..SENDS_A_ROUND.min(self.due.len()) {
            let Some(key) = self.due.pop_front() else { break };
            self.flush(key, outlet);
        }
        if self.stopping {
            outlet.stop_accepting();
            for (slot, connection) in &self.connections {
                outlet.close(Key { slot: slot as u32, generation: connection.generation });
            }
            self.connections.clear();
        }
        Next { again: !self.due.is_empty(), wake_ms: now.mono_ms + IDLE_MS }
    }

    fn next_request(&mut self) -> Option<Infallible> {
        None
    }

    fn done(&self) -> bool {
        self.stopping && self.connections.is_empty()
    }
}
