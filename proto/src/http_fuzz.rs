//! Fuzz body of [`crate::http`]: heads of lines that are right, nearly right and not at all. What is read does not
//! depend on how it comes; what is accepted is also what tungstenite's server accepts, with the same answer.

use crate::fuzz::Dice;
use crate::http::{BadHandshake, HEAD_BYTES_MAX, Request, accept, accept_key, refuse};

const FIRST_LINES: &[&str] = &[
    "GET /sub HTTP/1.1",
    "GET /sub?a=b HTTP/1.1",
    "GET http://host/sub HTTP/1.1",
    "GET ws://host?x#y HTTP/1.1",
    "GET /sub HTTP/1.0",
    "POST /sub HTTP/1.1",
    "GET * HTTP/1.1",
    "GET ftp://x HTTP/1.1",
    "GET /sub HTTP/3",
    "\r\nGET / HTTP/1.1",
];

/// By header: the right line first.
const LINES: &[&[&str]] = &[
    &["Host: a", "host: b:1", "Host: ", "X-Host: a"],
    &["Upgrade: websocket", "upgrade:h2c , WebSocket", "Upgrade: h2c", "Upgrade:"],
    &["Connection: Upgrade", "Connection: keep-alive, upgrade", "Connection: close", "Connection: \u{fc}"],
    &["Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8", "Sec-WebSocket-Version: 13, 8", "V: 13"],
    &[
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\u{e9}w==",
    ],
];

const MORE_LINES: &[&str] = &[
    "Origin: https://a",
    "Origin: null",
    "User-Agent: Mozilla/5.0 \u{e9}",
    "Cookie: a=b",
    "Sec-WebSocket-Protocol: barrage.v1, barrage.v1.json",
    "Sec-WebSocket-Protocol: ,,",
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    "Sec-WebSocket-Extensions: ;=\"",
    "Content-Length: 0",
    "Content-Length: 7",
    "Transfer-Encoding: chunked",
    "no colon",
    " folded: line",
];

/// The body.
///
/// # Panics
/// Where a property does not hold.
pub fn run(data: &[u8]) {
    let mut dice = Dice::new(data);
    refusal(&mut dice);
    let head = head(&mut dice);
    let parsed = Request::parse(&head);
    let cut = usize::from(dice.number()) % (head.len() + 1);
    match (&parsed, Request::parse(&head[..cut])) {
        // It comes in two pieces: the first alone was incomplete, or was the whole.
        (Ok(Some((_, consumed))), first) if cut < *consumed => assert_eq!(first, Ok(None)),
        (Ok(Some(_)), first) => assert_eq!(first, parsed),
        (Ok(None), first) => assert_eq!(first, Ok(None)),
        (Err(_), Ok(Some(_))) => panic!("read, then not"),
        (Err(_), _) => {}
    }
    if parsed == Ok(None) {
        assert!(head.len() < HEAD_BYTES_MAX);
    }
    let result = parsed.and_then(|parsed| match parsed {
        None => Ok(None),
        Some((request, consumed)) => {
            assert!(consumed <= HEAD_BYTES_MAX && request.path.starts_with('/') && !request.path.contains('?'));
            request.upgrade().map(|upgrade| Some((request.key, upgrade, consumed)))
        }
    });
    match result {
        Ok(None) => {}
        Ok(Some((key, upgrade, consumed))) => {
            let theirs = oracle(&head[..consumed]);
            let key = key.expect("an upgrade has one");
            let digits = key.strip_suffix("==").expect("padded");
            assert!(digits.len() == 22 && digits.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/')));
            let lines = String::from_utf8_lossy(&head[..consumed]).to_lowercase();
            for (name, token) in [("upgrade:", "websocket"), ("connection:", "upgrade"), ("host:", "")] {
                assert!(lines.lines().any(|line| line.starts_with(name) && line.contains(token)), "{name}");
            }
            assert_eq!(accept_key(key), tungstenite::handshake::derive_accept_key(key.as_bytes()));
            // It does not know that `Upgrade` is a list, nor the absolute form of a target.
            if let Some(theirs) = theirs {
                assert_eq!(theirs, accept_key(key));
            }
            let mut answer = Vec::new();
            accept(&upgrade, dice.pick(&[None, Some("barrage.v1")]), None, &mut answer);
            assert_eq!(answer_of(&answer), (101, answer.len()));
        }
        Err(failure) => {
            let mut answer = Vec::new();
            failure.refuse(&mut answer);
            let (status, end) = answer_of(&answer);
            assert_eq!((status, &answer[end..]), (failure.status(), format!("{failure}\n").as_bytes()));
            // What it takes, we take, or are stricter for a reason of ours.
            let stricter = matches!(
                failure,
                BadHandshake::Key
                    | BadHandshake::Host
                    | BadHandshake::Body
                    | BadHandshake::Malformed
                    | BadHandshake::TooLarge
            );
            assert!(stricter || spaced(&head) || oracle(&head).is_none(), "{failure}");
        }
    }
}

/// Whether `Connection` has tokens with a space between them: a comma parts tokens, but it takes a space, too.
fn spaced(head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head).to_lowercase();
    let mut values = head.lines().filter_map(|line| line.strip_prefix("connection:"));
    values.any(|value| value.split(',').any(|token| token.trim().contains(' ')))
}

/// Statuses of the caller's own.
fn refusal(dice: &mut Dice<'_>) {
    let (status, mut answer) = (dice.pick(&[401, 403, 404, 408, 429, 500, 503, 599]), Vec::new());
    refuse(status, "a reason", &mut answer);
    assert_eq!(answer_of(&answer), (status, answer.len() - "a reason\n".len()));
}

fn head(dice: &mut Dice<'_>) -> Vec<u8> {
    let mut head = Vec::new();
    let mut line = |text: &str| {
        // Latin 1, as old clients send it.
        head.extend(text.chars().map(|letter| letter as u8));
        head.extend_from_slice(b"\r\n");
    };
    if dice.once_in(4) {
        line(dice.pick(FIRST_LINES));
    } else {
        line(FIRST_LINES[0]);
    }
    for kind in LINES {
        match dice.byte() {
            0..16 => {}
            16..64 => line(dice.pick(kind)),
            64..72 => {
                line(kind[0]);
                line(dice.pick(kind));
            }
            _ => line(kind[0]),
        }
    }
    for _ in 0..dice.byte() % 6 {
        line(dice.pick(MORE_LINES));
    }
    if dice.once_in(32) {
        for _ in 0..dice.byte() {
            line(MORE_LINES[3]);
        }
    }
    if dice.once_in(32) {
        line(&format!("X: {}", "x".repeat(usize::from(dice.number() % 9000))));
    }
    let end = dice.byte();
    if end < 240 {
        head.extend_from_slice(b"\r\n");
    }
    if end.is_multiple_of(8) {
        let at = usize::from(dice.number()) % (head.len() + 1);
        let count = usize::from(dice.byte() % 4);
        head.splice(at..at, dice.bytes(count).iter().copied());
    }
    if end.is_multiple_of(16) {
        head = dice.rest().to_vec();
    }
    head
}

/// The key that tungstenite answers with; `None` where it refuses.
fn oracle(head: &[u8]) -> Option<String> {
    use tungstenite::handshake::{machine::TryParse, server::create_response};
    let (_, request) = tungstenite::handshake::server::Request::try_parse(head).ok()??;
    let response = create_response(&request).ok()?;
    Some(response.headers().get("Sec-WebSocket-Accept")?.to_str().ok()?.to_owned())
}

fn answer_of(answer: &[u8]) -> (u16, usize) {
    let mut headers = [httparse::EMPTY_HEADER; 8];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(answer) {
        Ok(httparse::Status::Complete(end)) => (response.code.unwrap_or_default(), end),
        other => panic!("{other:?}"),
    }
}
