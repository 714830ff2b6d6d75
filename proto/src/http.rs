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
//! - `an_extension_is_answered_only_where_the_caller_agreed`: which one, [`crate::deflate::agree`] says.
//! - `a_refusal_carries_nothing_of_the_request`: nothing is reflected.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD};

use crate::deflate::{Agreed, BadExtensions};

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
    /// The values of `Sec-WebSocket-Extensions`, as they came: offers, for [`crate::deflate::agree`].
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
    /// 400.
    #[error("Sec-WebSocket-Extensions is not a list of extensions")]
    Extensions,
}

impl From<BadExtensions> for BadHandshake {
    fn from(BadExtensions: BadExtensions) -> Self {
        Self::Extensions
    }
}

impl BadHandshake {
    /// The HTTP status to answer with.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed | Self::Body | Self::Key | Self::Host | Self::Extensions => 400,
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
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX || planted!("http_limit") => return Ok(None),
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
        request.asks_for_websocket = upgrade && (connection || planted!("http_connection"));
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

/// Appends the 101 that opens a WebSocket. `subprotocol` must be one of the client's, and so the offer that was `agreed`
/// on.
pub fn accept(upgrade: &Upgrade<'_>, subprotocol: Option<&str>, agreed: Option<Agreed>, out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(accept_key(upgrade.key).as_bytes());
    if let Some(subprotocol) = subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.as_bytes());
    }
    if let Some(agreed) = agreed {
        write!(out, "\r\nSec-WebSocket-Extensions: {agreed}").expect("a Vec takes what it is given");
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
        // Pages of any origin may read this one: it tells a refused page that the server is there, and nothing else.
        426 => (
            "Upgrade Required",
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nAccess-Control-Allow-Origin: *\r\n",
        ),
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

#[cfg(test)]
mod tests {
    use super::*;

    const CHROME: &str = "GET /sub?token=no HTTP/1.1\r\nHost: live.example:3102\r\nConnection: keep-alive, Upgrade\r\n\
        Upgrade: websocket\r\nOrigin: https://live.example\r\nSec-WebSocket-Version: 13\r\nUser-Agent: Chrome\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: barrage.v1, barrage.v1.json\r\n\
        Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";

    fn parse(head: &str) -> Result<Request<'_>, BadHandshake> {
        let (request, consumed) = Request::parse(head.as_bytes())?.expect("complete");
        assert_eq!(consumed, head.len());
        Ok(request)
    }

    fn upgrade(head: &str) -> Result<(), BadHandshake> {
        parse(head)?.upgrade().map(drop)
    }

    /// The handshake of a browser with one line written otherwise.
    fn with(line: &str, other: &str) -> String {
        assert!(CHROME.contains(line), "{line}");
        CHROME.replace(line, other)
    }

    #[test]
    fn a_browsers_handshake_is_read() {
        let request = parse(CHROME).expect("valid");
        assert_eq!(request.path, "/sub");
        assert_eq!(request.host, Some("live.example:3102"));
        assert_eq!(request.origin, Some("https://live.example"));
        assert_eq!(request.subprotocols, ["barrage.v1", "barrage.v1.json"]);
        assert_eq!(request.extensions, ["permessage-deflate; client_max_window_bits"]);
        assert_eq!(request.user_agent, Some("Chrome"));
        let mut answer = Vec::new();
        accept(&request.upgrade().expect("an upgrade"), Some("barrage.v1"), None, &mut answer);
        let answer = String::from_utf8(answer).expect("ASCII");
        assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
        assert!(answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
        assert!(answer.contains("\r\nSec-WebSocket-Protocol: barrage.v1\r\n\r\n"), "{answer}");
    }

    #[test]
    fn rfc6455_4_2_1_each_part_of_a_handshake_is_asked_for() {
        use BadHandshake::*;
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let cases = [
            (with("GET", "POST"), Method, 405),
            (with("HTTP/1.1", "HTTP/1.0"), HttpVersion, 505),
            (with("HTTP/1.1", "HTTP/2.0"), HttpVersion, 505),
            (with("Host: live.example:3102\r\n", ""), Host, 400),
            (with("Host:", "Host: other\r\nHost:"), Malformed, 400),
            (with("Connection: keep-alive, Upgrade\r\n", ""), NotUpgrade, 426),
            (with("keep-alive, Upgrade", "keep-alive"), NotUpgrade, 426),
            // Found by fuzzing: tungstenite takes a space for a comma.
            (with("keep-alive, Upgrade", "keep-alive Upgrade"), NotUpgrade, 426),
            (with("Upgrade: websocket", "Upgrade: h2c"), NotUpgrade, 426),
            (with("Version: 13", "Version: 8"), Version, 426),
            (with("Sec-WebSocket-Version: 13\r\n", ""), Version, 426),
            (with(key, ""), Key, 400),
            (with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j"), Key, 400),
            (with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZSEh"), Key, 400),
            (with("dGhlIHNhbXBsZSBub25jZQ==", "!!hlIHNhbXBsZSBub25jZQ=="), Key, 400),
            (with(key, &[key, key].concat()), Malformed, 400),
            (with("Host:", "Content-Length: 5\r\nHost:"), Body, 400),
            (with("Host:", "Transfer-Encoding: chunked\r\nHost:"), Body, 400),
            (with("/sub?token=no", "sub"), Malformed, 400),
            (with("/sub?token=no", "ftp://x/sub"), Malformed, 400),
            (with("Host:", "Host"), Malformed, 400),
        ];
        for (head, failure, status) in cases {
            assert_eq!(upgrade(&head), Err(failure), "{head}");
            assert_eq!(failure.status(), status);
        }
    }

    #[test]
    fn rfc6455_4_2_1_tokens_are_compared_without_case_in_lists() {
        for head in [
            with("keep-alive, Upgrade", "UPGRADE"),
            with("keep-alive, Upgrade", ",keep-alive ,\tuPgRaDe,"),
            with("keep-alive, Upgrade", "keep-alive\r\nConnection: upgrade"),
            with("Upgrade: websocket", "upgrade: h2c, WebSocket"),
            with("Host:", "hOsT:"),
            with("Host:", "Content-Length: 0\r\nHost:"),
            with("/sub?token=no", "http://live.example/sub?x"),
            // Four bits that stand for nothing are set.
            with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZR=="),
        ] {
            assert_eq!(upgrade(&head), Ok(()), "{head}");
        }
    }

    #[test]
    fn targets_lose_their_query() {
        let of = |target: &str| parse(&with("/sub?token=no", target)).map(|request| request.path.to_owned());
        assert_eq!(of("/").as_deref(), Ok("/"));
        assert_eq!(of("/a/b?c/d").as_deref(), Ok("/a/b"));
        assert_eq!(of("ws://live.example").as_deref(), Ok("/"));
        assert_eq!(of("WSS://live.example?x").as_deref(), Ok("/"));
    }

    #[test]
    fn an_endless_head_is_refused() {
        let head = |bytes: usize| {
            let rest = bytes - CHROME.len() - "X: \r\n".len();
            with("Host:", &format!("X: {}\r\nHost:", "x".repeat(rest)))
        };
        assert_eq!(upgrade(&head(HEAD_BYTES_MAX)), Ok(()));
        assert_eq!(upgrade(&head(HEAD_BYTES_MAX + 1)), Err(BadHandshake::TooLarge));
        let endless = head(2 * HEAD_BYTES_MAX);
        assert_eq!(Request::parse(&endless.as_bytes()[..HEAD_BYTES_MAX - 1]), Ok(None));
        assert_eq!(Request::parse(&endless.as_bytes()[..HEAD_BYTES_MAX]), Err(BadHandshake::TooLarge));
        let lines = |count: usize| with("Host:", &format!("{}Host:", "X: y\r\n".repeat(count - 9)));
        assert_eq!(upgrade(&lines(HEADERS_MAX)), Ok(()));
        assert_eq!(upgrade(&lines(HEADERS_MAX + 1)), Err(BadHandshake::TooLarge));
    }

    #[test]
    fn an_extension_is_answered_only_where_the_caller_agreed() {
        for offer in ["permessage-deflate; client_max_window_bits", "permessage-deflate", "", "x"] {
            let head = with("permessage-deflate; client_max_window_bits", offer);
            let request = parse(&head).expect("valid");
            let upgrade = request.upgrade().expect("an upgrade");
            let (mut without, mut with) = (Vec::new(), Vec::new());
            accept(&upgrade, None, None, &mut without);
            assert!(!String::from_utf8(without).expect("ASCII").to_lowercase().contains("extensions"));
            let agreed = crate::deflate::agree(&request.extensions, 15, 1 << 15).expect("a list");
            accept(&upgrade, None, agreed, &mut with);
            let with = String::from_utf8(with).expect("ASCII");
            let line = "\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover";
            assert_eq!(with.contains(line), offer.starts_with("permessage"), "{with}");
            assert!(with.ends_with("\r\n\r\n"));
        }
    }

    #[test]
    fn a_refusal_carries_nothing_of_the_request() {
        for status in [400, 401, 403, 404, 405, 408, 426, 429, 431, 500, 503, 505, 599] {
            let mut answer = Vec::new();
            refuse(status, "for a reason", &mut answer);
            let mut headers = [httparse::EMPTY_HEADER; 8];
            let mut response = httparse::Response::new(&mut headers);
            let end = response.parse(&answer).expect("HTTP").unwrap();
            assert_eq!(response.code, Some(status));
            assert_eq!(&answer[end..], b"for a reason\n");
            let length = response.headers.iter().find(|header| header.name == "Content-Length").expect("a length");
            assert_eq!(length.value, b"13");
        }
        let mut answer = Vec::new();
        BadHandshake::Version.refuse(&mut answer);
        assert!(String::from_utf8_lossy(&answer).contains("\r\nSec-WebSocket-Version: 13\r\n"));
    }

    #[test]
    fn smoke_of_the_fuzz_body() {
        crate::fuzz::smoke(crate::http_fuzz::run);
    }
}
