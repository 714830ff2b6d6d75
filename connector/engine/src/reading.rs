//! From bytes to frames: what a connection speaks, its handshake, whole messages out of pieces.
//!
//! What cannot be handled now, because it is incomplete or the session has enough under way, stays in the session's
//! `inbox` (bytes as they came) and `carry` (packets out of a WebSocket message); everything else is handled where it
//! lies in the driver's buffer.

use proto::{
    client::{ClientFrame, ErrorCode},
    deflate,
    error::{error, row},
    http::{self, Request},
    native, packet, proxy,
    sniff::{self, Spoken},
    websocket::{Decoder, Event, Failure, Role},
};

use super::{
    Engine, encode,
    event::CoreRequest,
    limits::{Counted, Verdict},
    session::{Dialect, Ending, Phase, Wire},
};
use machine::{Key, Reading};

/// Longest WebSocket message of a goim or Bilibili client, bytes: some packets in one.
const PACKETS_MESSAGE_BYTES_MAX: u32 = 4 * packet::PACKET_BYTES_MAX as u32;

/// What a session may have sent ahead while logic is asked about it, before its reading is paused, bytes: some requests.
/// Nearly nobody sends any, and to pause and go on costs a cancelled receive, a plain one, and a new one.
pub(super) const AHEAD_BYTES_MAX: usize = 1024;

/// Paths that a WebSocket is opened at.
const PATHS: &[&str] = &["/", "/sub", "/ws"];

/// Longest part of an origin that is logged, characters.
const ORIGIN_CHARS_MAX: usize = 200;

/// Whether a handshake's `Origin` is the address that it connects to: libraries that are no browser send that. A name
/// must be one of `names`: else a site whose name is rebound to this address would be one's own (logic's
/// `http/origin.rs`).
fn is_own(origin: &str, host: &str, names: &[String]) -> bool {
    let Some((_, authority)) = origin.split_once("://") else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok();
    authority.eq_ignore_ascii_case(host)
        && (address
            || name.eq_ignore_ascii_case("localhost")
            || names.iter().any(|listed| listed.eq_ignore_ascii_case(name)))
}

/// What became of a piece of input.
enum Step {
    /// So many bytes are done with.
    Took(usize),
    /// Nothing more can be done with it now.
    Wait,
}

impl Engine {
    /// Bytes came.
    pub(super) fn take(&mut self, key: Key, bytes: &mut [u8]) -> Reading {
        let now_ms = self.now.mono_ms;
        let Some(session) = self.session(key) else {
            return Reading::On;
        };
        if session.is_closing() {
            return Reading::On;
        }
        session.hear(now_ms);
        let busy = session.busy();
        let waits = session.paused || !busy.inbox.is_empty() || !busy.carry.is_empty();
        if waits {
            session.busy_mut().inbox.extend_from_slice(bytes);
            if !session.paused {
                self.read_kept(key);
            }
        } else {
            let left = self.read(key, bytes);
            let behind = &bytes[bytes.len() - left..];
            self.announce(key, behind);
            if left > 0
                && let Some(session) = self.session(key)
            {
                session.busy_mut().inbox.extend_from_slice(behind);
            }
        }
        self.counters.bytes_in += bytes.len() as u64;
        let (in_flight, private_bytes) = (self.config.requests_in_flight, self.config.private_bytes_max);
        let Some(session) = self.session(key) else {
            return Reading::On;
        };
        if session.is_closing() || session.may_read(in_flight, private_bytes) {
            session.settle(now_ms);
            return Reading::On;
        }
        session.paused = true;
        if session.phase == Phase::Authenticating && session.busy().inbox.len() <= AHEAD_BYTES_MAX {
            return Reading::On;
        }
        Reading::Paused
    }

    /// Goes on with what was kept.
    pub(super) fn read_kept(&mut self, key: Key) {
        let Some(session) = self.session(key) else { return };
        let carry = std::mem::take(&mut session.busy_mut().carry);
        if !carry.is_empty() {
            self.packets(key, &carry);
        }
        let Some(session) = self.session(key) else { return };
        if !session.busy().carry.is_empty() || session.busy().inbox.is_empty() {
            return;
        }
        let mut inbox = std::mem::take(&mut session.busy_mut().inbox);
        let left = self.read(key, &mut inbox);
        if left > 0
            && let Some(session) = self.session(key)
        {
            inbox.drain(..inbox.len() - left);
            if inbox.capacity() > 4 * inbox.len() {
                inbox.shrink_to_fit();
            }
            session.busy_mut().inbox = inbox;
        }
    }

    /// Looks whether a paused session may be read from again: to be called when an answer or output has gone.
    pub(super) fn maybe_readable(&mut self, key: Key) {
        let (in_flight, private_bytes) = (self.config.requests_in_flight, self.config.private_bytes_max);
        if self.session(key).is_some_and(|session| {
            session.paused && !session.is_closing() && session.may_read(in_flight, private_bytes)
        }) {
            self.sessions.readable(key);
        }
    }

    /// Handles what can be handled of `input`; how many bytes at its end are left.
    fn read(&mut self, key: Key, input: &mut [u8]) -> usize {
        let mut done = 0;
        loop {
            let (in_flight, private_bytes) = (self.config.requests_in_flight, self.config.private_bytes_max);
            let Some(session) = self.session(key) else {
                return 0;
            };
            if session.is_closing() {
                return 0;
            }
            let rest = &mut input[done..];
            if rest.is_empty() || !session.may_read(in_flight, private_bytes) {
                return rest.len();
            }
            let step = match &mut session.wire {
                Wire::Sniff => self.sniff(key, rest),
                Wire::Http => self.handshake(key, rest),
                Wire::Tcp if session.dialect == Dialect::Native { json: false } => self.native_tcp(key, rest),
                Wire::Tcp => self.packet_tcp(key, rest),
                Wire::WebSocket(decoder) => match decoder.take() {
                    Some(decoder) => self.websocket(key, decoder, rest),
                    None => Step::Wait,
                },
            };
            match step {
                Step::Took(bytes) => done += bytes,
                Step::Wait => return input.len() - done,
            }
        }
    }

    fn sniff(&mut self, key: Key, input: &[u8]) -> Step {
        let Some(session) = self.session(key) else { return Step::Wait };
        match sniff::spoken(input) {
            Ok(None) => return Step::Wait,
            Ok(Some(Spoken::Proxy)) if session.proxied => return self.proxy(key, input),
            Ok(Some(spoken @ (Spoken::Http | Spoken::Packet | Spoken::Native))) => {
                // Whoever is listed and sends no header speaks for itself.
                if std::mem::take(&mut session.proxied) && !self.count(key) {
                    return Step::Wait;
                }
                let Some(session) = self.session(key) else { return Step::Wait };
                (session.wire, session.dialect) = match spoken {
                    Spoken::Http => (Wire::Http, Dialect::Unknown),
                    Spoken::Packet => (Wire::Tcp, Dialect::Packets),
                    _ => (Wire::Tcp, Dialect::Native { json: false }),
                };
                if session.counted == Counted::Over {
                    let reason = "this address has too many connections";
                    let mut answer = Vec::new();
                    if spoken == Spoken::Http {
                        http::refuse(row(ErrorCode::TooManyConnections).http_status, reason, &mut answer);
                        session.busy_mut().out.push(answer.into());
                    }
                    self.end(key, Ending::new(ErrorCode::TooManyConnections, reason));
                    return Step::Wait;
                }
                return Step::Took(if spoken == Spoken::Native { native::MAGIC.len() } else { 0 });
            }
            Ok(Some(Spoken::Tls)) => session.busy_mut().out.push(sniff::TLS_ALERT.into()),
            Ok(Some(Spoken::Proxy)) | Err(sniff::Unknown) => {}
        }
        self.end(key, Ending::new(ErrorCode::BadRequest, "nothing that is spoken here"));
        Step::Wait
    }

    fn proxy(&mut self, key: Key, input: &[u8]) -> Step {
        match proxy::parse(input) {
            Ok(None) => Step::Wait,
            Ok(Some((client, bytes))) => {
                let Some(session) = self.session(key) else { return Step::Wait };
                session.proxied = false;
                if let Some(client) = client {
                    session.comes_from(client.ip());
                }
                if self.count(key) { Step::Took(bytes) } else { Step::Wait }
            }
            Err(error) => {
                self.end(key, Ending::new(ErrorCode::BadRequest, error.to_string()));
                Step::Wait
            }
        }
    }

    /// Counts the connection under its client's address, which is known only now. `false`: it is closed.
    fn count(&mut self, key: Key) -> bool {
        let Some(address) = self.session(key).map(|session| session.address()) else {
            return false;
        };
        let Some(counted) = self.connect(address) else {
            self.end(key, Ending::new(ErrorCode::TooManyConnections, "this address has too many connections"));
            return false;
        };
        if let Some(session) = self.session(key) {
            session.counted = counted;
        }
        true
    }

    fn handshake(&mut self, key: Key, input: &[u8]) -> Step {
        let (request, bytes) = match Request::parse(input) {
            Ok(None) => return Step::Wait,
            Ok(Some(parsed)) => parsed,
            Err(error) => return self.refuse(key, error.status(), &error.to_string()),
        };
        let upgrade = match request.upgrade() {
            Ok(upgrade) => upgrade,
            Err(error) => return self.refuse(key, error.status(), &error.to_string()),
        };
        if !PATHS.contains(&request.path) {
            return self.refuse(key, 404, "a WebSocket is opened at /, /sub or /ws");
        }
        if let Some(origin) = request.origin
            && !self.config.origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
            && !request.host.is_some_and(|host| is_own(origin, host, &self.config.names))
        {
            self.note_origin(origin);
            let mut answer = Vec::new();
            let reason = "pages of this origin are not let in: connector.origins lists those that are";
            http::refuse(row(ErrorCode::Forbidden).http_status, reason, &mut answer);
            if let Some(session) = self.session(key) {
                session.busy_mut().out.push(answer.into());
            }
            self.end(key, Ending::new(ErrorCode::Forbidden, reason));
            return Step::Wait;
        }
        let ours = [native::SUBPROTOCOL_BINARY, native::SUBPROTOCOL_JSON];
        let subprotocol = request.subprotocols.iter().copied().find(|offered| ours.contains(offered));
        let window_bytes = self.windows.left(self.config.window_bytes_max);
        let agreed = match self.config.compression {
            // What is shared by sessions has the largest window.
            true => match deflate::agree(&request.extensions, deflate::WINDOW_BITS_MAX, window_bytes) {
                Ok(agreed) => agreed,
                Err(error) => {
                    let error = http::BadHandshake::from(error);
                    return self.refuse(key, error.status(), &error.to_string());
                }
            },
            false => None,
        };
        let mut answer = Vec::new();
        http::accept(&upgrade, subprotocol, agreed, &mut answer);
        self.counters.compression_declined += u64::from(agreed.is_none() && !request.extensions.is_empty());
        let deflate = self.windows.reserve(agreed);
        let Some(session) = self.session(key) else { return Step::Wait };
        let (dialect, most) = match subprotocol {
            Some(name) => {
                (Dialect::Native { json: name == native::SUBPROTOCOL_JSON }, native::CLIENT_FRAME_BYTES_MAX as u32)
            }
            None => (Dialect::Packets, PACKETS_MESSAGE_BYTES_MAX),
        };
        session.dialect = dialect;
        session.deflate = deflate;
        session.wire = Wire::WebSocket(Some(Decoder::new(Role::Server, most)));
        session.busy_mut().out.push(answer.into());
        self.ready(key);
        Step::Took(bytes)
    }

    /// Has the control thread log a refused origin, the first one of some seconds, with how many there were since.
    fn note_origin(&mut self, origin: &str) {
        if let Some(count) = self.limits.origin_refused(self.now.mono_ms) {
            let origin = origin.chars().take(ORIGIN_CHARS_MAX).collect();
            self.requests.push(CoreRequest::OriginRefused { origin, count });
        }
    }

    fn refuse(&mut self, key: Key, status: u16, reason: &str) -> Step {
        let mut answer = Vec::new();
        http::refuse(status, reason, &mut answer);
        if let Some(session) = self.session(key) {
            session.busy_mut().out.push(answer.into());
        }
        self.end(key, Ending::new(ErrorCode::BadRequest, reason));
        Step::Wait
    }

    fn native_tcp(&mut self, key: Key, input: &[u8]) -> Step {
        let mut rest = input;
        match native::unpack(&mut rest, native::CLIENT_FRAME_BYTES_MAX) {
            Ok(None) => return Step::Wait,
            Ok(Some(frame)) => self.native_frame(key, native::from_binary(frame)),
            Err(error) => self.end(key, Ending::new(ErrorCode::TooLarge, error.to_string())),
        }
        Step::Took(input.len() - rest.len())
    }

    fn packet_tcp(&mut self, key: Key, input: &[u8]) -> Step {
        let mut rest = input;
        match packet::unpack(&mut rest, packet::PACKET_BYTES_MAX) {
            Ok(None) => return Step::Wait,
            Ok(Some(packet)) => self.packet(key, packet),
            Err(error) => self.end(key, Ending::new(ErrorCode::BadRequest, error.to_string())),
        }
        Step::Took(input.len() - rest.len())
    }

    fn websocket(&mut self, key: Key, mut decoder: Decoder, input: &mut [u8]) -> Step {
        let (whole, mut rest) = (input.len(), input);
        let (in_flight, private_bytes) = (self.config.requests_in_flight, self.config.private_bytes_max);
        let deflate = self.session(key).map(|session| session.deflate).unwrap_or_default();
        let mut inflater = std::mem::take(&mut self.inflater);
        inflater.resume(self.windows.take(key.slot, deflate));
        loop {
            let event = match deflate.is_agreed() {
                true => decoder.next_inflated(&mut inflater, &mut rest),
                false => decoder.next(&mut rest),
            };
            match event {
                Ok(None) => break,
                Ok(Some(event)) => self.web_event(key, event),
                Err(failure) => self.web_failure(key, failure),
            }
            let goes_on =
                |session: &mut super::Session| !session.is_closing() && session.may_read(in_flight, private_bytes);
            if !self.session(key).is_some_and(goes_on) {
                break;
            }
        }
        let window = inflater.suspend();
        self.inflater = inflater;
        if let Some(session) = self.session(key)
            && let Wire::WebSocket(place) = &mut session.wire
        {
            *place = Some(decoder);
            self.windows.put(key.slot, window);
        }
        Step::Took(whole - rest.len())
    }

    fn web_event(&mut self, key: Key, event: Event<'_>) {
        let Some(dialect) = self.session(key).map(|session| session.dialect) else { return };
        match (event, dialect) {
            (Event::Text(text), Dialect::Native { json: true }) => self.native_frame(key, native::from_json(text)),
            (Event::Binary(bytes), Dialect::Native { json: false }) => {
                self.native_frame(key, native::from_binary(bytes));
            }
            (Event::Binary(bytes), Dialect::Packets | Dialect::Goim | Dialect::Bilibili(_)) => self.packets(key, bytes),
            (Event::Text(_) | Event::Binary(_), _) => {
                let mut ending = Ending::new(ErrorCode::BadRequest, "text where binary is spoken, or binary for text");
                ending.close_code = Some(1003);
                self.end(key, ending);
            }
            (Event::Ping(payload), _) => {
                if self.draw(key) == Verdict::Within {
                    self.own(key, encode::pong(payload));
                }
            }
            (Event::Pong(_), _) => {
                self.draw(key);
            }
            (Event::Close(said), _) => {
                let code = said.map_or(1000, |(code, _)| code);
                self.part(key, code);
            }
        }
    }

    fn web_failure(&mut self, key: Key, failure: Failure) {
        let code = if failure == Failure::TooLarge { ErrorCode::TooLarge } else { ErrorCode::BadRequest };
        let mut ending = Ending::new(code, failure.to_string());
        ending.close_code = Some(failure.code());
        self.end(key, ending);
    }

    fn native_frame(&mut self, key: Key, frame: Result<ClientFrame, native::BadFrame>) {
        match frame {
            Ok(frame) => self.native(key, frame),
            // The frame is one, and only what it asks makes no sense: that is refused, and the session goes on.
            Err(native::BadFrame::Value { request, why }) => {
                if self.draw(key) != Verdict::Abuse {
                    self.refuse_error(key, request, error(ErrorCode::BadRequest, format!("a wrong value: {why}")));
                }
            }
            Err(error) => self.end(key, Ending::new(ErrorCode::BadRequest, error.to_string())),
        }
    }

    /// The packets of one WebSocket message; what cannot be handled now is carried.
    fn packets(&mut self, key: Key, message: &[u8]) {
        let mut rest = message;
        let (in_flight, private_bytes) = (self.config.requests_in_flight, self.config.private_bytes_max);
        while !rest.is_empty() {
            let Some(session) = self.session(key) else { return };
            if session.is_closing() {
                return;
            }
            if !session.may_read(in_flight, private_bytes) {
                session.busy_mut().carry = rest.to_vec();
                return;
            }
            match packet::unpack(&mut rest, packet::PACKET_BYTES_MAX).and_then(|it| it.ok_or(packet::BadPacket::Cut)) {
                Ok(packet) => self.packet(key, packet),
                Err(error) => return self.end(key, Ending::new(ErrorCode::BadRequest, error.to_string())),
            }
        }
    }

    /// Draws on the session's rate of requests; who does not heed refusals is closed.
    pub(super) fn draw(&mut self, key: Key) -> Verdict {
        let (now_ms, rate) = (self.now.mono_ms, self.config.requests_per_s);
        self.counters.requests += 1;
        let Some(session) = self.session(key) else {
            return Verdict::Abuse;
        };
        let verdict = session.requests.draw(now_ms, rate, 1000);
        if verdict == Verdict::Abuse && session.phase != Phase::Opening {
            self.end(key, Ending::new(ErrorCode::TooFast, format!("more than {rate} requests a second, for long")));
        }
        verdict
    }
}
