//! The HTTP/1.1 upgrade, server side (RFC 6455 sections 4.2.1 and 4.2.2). Bytes in, a request out, the answer's bytes
//! out. Not an HTTP server: one request a connection, no body, and what is not an upgrade is refused.
//!
//! ```text
//!   bytes ─▶ Request::parse ─▶ path, origin: the caller's rules ─▶ Request::upgrade ─▶ accept ─▶ 101
//!                    └────────────── BadHandshake ──────────────────────┘────▶ BadHandshake::refuse
//! ```
//!
//! Invariants, each the name of a test:
//! - `an_endless_head_is_refused`: what waits for the rest of a head is at most [`HEAD_BYTES_MAX`].
//! - `offers_of_compression_are_declined_however_they_are_written`: no extension is ever answered.
//! - `a_refusal_carries_nothing_of_the_request`: nothing is reflected.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD};

/// Longest request head, bytes: browsers with many cookies stay below 8 KiB, as other servers' defaults show
/// (nginx: 4 of 8 KiB, Apache: 8 KiB a line). Over it: 431 and close.
pub const HEAD_BYTES_MAX: usize = 8192;

/// Most header lines; a browser sends about 20. Over it: 431 and close.
pub const HEADERS_MAX: usize = 64;

/// A request's head, borrowed from the connection's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// Target without the query, beginning with `/`.
    pub path: &'a str,
    /// `Host`.
    pub host: Option<&'a str>,
    /// `Origin`: only browsers send it.
    pub origin: Option<&'a str>,
    /// `Sec-WebSocket-Protocol`, in the client's order of preference.
    pub subprotocols: Vec<&'a str>,
    /// `Sec-WebSocket-Key`, as it came.
    pub key: Option<&'a str>,
    /// `Sec-WebSocket-Version`, as it came.
    pub version: Option<&'a str>,
    /// The values of `Sec-WebSocket-Extensions`, as they came: offers, of which none is taken yet (rule 34).
    pub extensions: Vec<&'a str>,
    /// `User-Agent`.
    pub user_agent: Option<&'a str>,
    /// `Upgrade` names `websocket` and `Connection` names `upgrade`.
    asks_for_websocket: bool,
}

/// A request that passed all of RFC 6455 section 4.2.1: may be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upgrade<'a> {
    key: &'a str,
}

/// Why a handshake fails. The client's fault, no use retrying as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHandshake {
    /// 431.
    #[error("the request's head is larger than 8192 bytes or 64 lines")]
    TooLarge,
    /// 400.
    #[error("not an HTTP/1.1 request")]
    Malformed,
    /// 505.
    #[error("only HTTP/1.1 is spoken here")]
    HttpVersion,
    /// 405.
    #[error("only GET is served here")]
    Method,
    /// 400: its bytes would be taken for frames.
    #[error("a body is not expected")]
    Body,
    /// 426.
    #[error("a WebSocket handshake is expected")]
    NotUpgrade,
    /// 426, with the version that is spoken.
    #[error("WebSocket version 13 is expected")]
    Version,
    /// 400.
    #[error("Sec-WebSocket-Key must be 16 bytes in base64")]
    Key,
    /// 400.
    #[error("Host is missing")]
    Host,
}

impl BadHandshake {
    /// The HTTP status to answer with.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed | Self::Body | Self::Key | Self::Host => 400,
            Self::Method => 405,
            Self::NotUpgrade | Self::Version => 426,
            Self::TooLarge => 431,
            Self::HttpVersion => 505,
        }
    }

    /// Appends the whole answer; close after it.
    pub fn refuse(self, out: &mut Vec<u8>) {
        refuse(self.status(), &self.to_string(), out);
    }
}

impl<'a> Request<'a> {
    /// Reads a request's head and says how many bytes it took; `None` while it is incomplete.
    ///
    /// # Errors
    /// [`BadHandshake`] for what is no `GET` of HTTP/1.1 without a body, or is over the limits.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, BadHandshake> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Request::new(&mut headers);
        // One byte more than the limit tells a head that is too long from one that just fits.
        let judged = &bytes[..bytes.len().min(HEAD_BYTES_MAX + 1)];
        let consumed = match head.parse(judged) {
            Ok(httparse::Status::Complete(consumed)) if consumed <= HEAD_BYTES_MAX => consumed,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(BadHandshake::TooLarge),
            Err(httparse::Error::Version) => return Err(BadHandshake::HttpVersion),
            Err(_) => return Err(BadHandshake::Malformed),
        };
        if head.version != Some(1) {
            return Err(BadHandshake::HttpVersion);
        }
        if head.method != Some("GET") {
            return Err(BadHandshake::Method);
        }
        let mut request = Self {
            path: path(head.path.unwrap_or_default()).ok_or(BadHandshake::Malformed)?,
            host: None,
            origin: None,
            subprotocols: Vec::new(),
            key: None,
            version: None,
            extensions: Vec::new(),
            user_agent: None,
            asks_for_websocket: false,
        };
        let (mut upgrade, mut connection) = (false, false);
        for header in head.headers.iter() {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            let value = || text(header.value);
            if is("host") {
                once(&mut request.host, value()?)?;
            } else if is("origin") {
                once(&mut request.origin, value()?)?;
            } else if is("sec-websocket-key") {
                once(&mut request.key, value()?)?;
            } else if is("sec-websocket-version") {
                once(&mut request.version, value()?)?;
            } else if is("sec-websocket-protocol") {
                request.subprotocols.extend(list(value()?));
            } else if is("sec-websocket-extensions") {
                request.extensions.push(value()?);
            } else if is("upgrade") {
                upgrade |= list(value()?).any(|token| token.eq_ignore_ascii_case("websocket"));
            } else if is("connection") {
                connection |= list(value()?).any(|token| token.eq_ignore_ascii_case("upgrade"));
            } else if is("user-agent") {
                // Free text that nothing depends on: what is not UTF-8 is as good as none.
                request.user_agent = value().ok();
            } else if is("transfer-encoding") || (is("content-length") && header.value != b"0") {
                return Err(BadHandshake::Body);
            }
        }
        request.asks_for_websocket = upgrade && connection;
        Ok(Some((request, consumed)))
    }

    /// Checks what RFC 6455 section 4.2.1 asks of an opening handshake.
    ///
    /// # Errors
    /// [`BadHandshake`]: what is missing.
    pub fn upgrade(&self) -> Result<Upgrade<'a>, BadHandshake> {
        if !self.asks_for_websocket {
            return Err(BadHandshake::NotUpgrade);
        }
        if self.version != Some("13") {
            return Err(BadHandshake::Version);
        }
        if self.host.is_none() {
            return Err(BadHandshake::Host);
        }
        match self.key {
            Some(key) if is_key(key) => Ok(Upgrade { key }),
            _ => Err(BadHandshake::Key),
        }
    }
}

/// The path of a target: origin-form, or the absolute-form that a server must understand (RFC 9112 section 3.2.2).
fn path(target: &str) -> Option<&str> {
    let path = if target.starts_with('/') {
        target
    } else {
        let (scheme, rest) = target.split_once("://")?;
        if !["http", "https", "ws", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return None;
        }
        rest.find(['/', '?']).map_or("/", |start| &rest[start..])
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    Some(if path.is_empty() { "/" } else { path })
}

fn text(value: &[u8]) -> Result<&str, BadHandshake> {
    std::str::from_utf8(value).map(str::trim_ascii).map_err(|_| BadHandshake::Malformed)
}

/// A header that two parties could read differently when it stands twice.
fn once<'a>(field: &mut Option<&'a str>, value: &'a str) -> Result<(), BadHandshake> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(BadHandshake::Malformed),
    }
}

/// The elements of a comma list; empty ones are skipped (RFC 9110 section 5.6.1).
fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim_ascii).filter(|element| !element.is_empty())
}

fn is_key(key: &str) -> bool {
    /// Some clients leave garbage in the four bits that stand for nothing: harmless, since the key is only echoed.
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
    );
    let mut bytes = [0; 18];
    key.len() == 24 && LENIENT.decode_slice(key, &mut bytes) == Ok(16)
}

/// What the server answers to `key` (RFC 6455 section 4.2.2, step 5.4); a client compares it.
///
/// ```
/// assert_eq!(proto::http::accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
/// ```
#[must_use]
pub fn accept_key(key: &str) -> String {
    let mut hash = sha1_smol::Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.digest().bytes())
}

/// Appends the 101 that opens a WebSocket. `subprotocol` must be one of the client's; no extension is answered.
pub fn accept(upgrade: &Upgrade<'_>, subprotocol: Option<&str>, out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(accept_key(upgrade.key).as_bytes());
    if let Some(subprotocol) = subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends a whole answer with `reason` as its text body; close after it. `reason` is ours, never the client's bytes.
pub fn refuse(status: u16, reason: &str, out: &mut Vec<u8>) {
    let (name, more) = match status {
        400 => ("Bad Request", ""),
        401 => ("Unauthorized", ""),
        403 => ("Forbidden", ""),
        404 => ("Not Found", ""),
        405 => ("Method Not Allowed", "Allow: GET\r\n"),
        408 => ("Request Timeout", ""),
        426 => ("Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
        429 => ("Too Many Requests", ""),
        431 => ("Request Header Fields Too Large", ""),
        500 => ("Internal Server Error", ""),
        503 => ("Service Unavailable", ""),
        505 => ("HTTP Version Not Supported", ""),
        _ => ("Refused", ""),
    };
    let connection = if status == 426 { "Upgrade, close" } else { "close" };
    write!(
        out,
        "HTTP/1.1 {status} {name}\r\nConnection: {connection}\r\n{more}Content-Type: text/plain; charset=utf-8\r\n\
         X-Content-Type-Options: nosniff\r\nContent-Length: {}\r\n\r\n{reason}\n",
        reason.len() + 1
    )
    .expect("a Vec takes what it is given");
}
