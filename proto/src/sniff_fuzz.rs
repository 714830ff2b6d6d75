//! Fuzz body of [`crate::sniff`] and [`crate::proxy`]: what they say of some bytes they say of all that begin with
//! them; a header that was written is read; an auth body is one dialect's.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::channel::Channel;
use crate::fuzz::Dice;
use crate::goim::is_token;
use crate::proxy::{self, HEADER_BYTES_MAX, SIGNATURE};
use crate::sniff::{Auth, BEGINNING_BYTES_MAX, Spoken, auth, spoken};

/// The body.
///
/// # Panics
/// Where a property does not hold.
pub fn run(data: &[u8]) {
    let mut dice = Dice::new(data);
    if dice.once_in(3) {
        return bodies(&mut dice);
    }
    let (bytes, expected) = bytes(&mut dice);
    let cut = usize::from(dice.number()) % (bytes.len() + 1);

    let (whole, first) = (spoken(&bytes), spoken(&bytes[..cut]));
    assert!(matches!(first, Ok(None)) || first == whole, "{first:?}, then {whole:?}");
    assert!(bytes.len() < BEGINNING_BYTES_MAX || whole != Ok(None), "undecided");

    let (whole, first) = (proxy::parse(&bytes), proxy::parse(&bytes[..cut]));
    assert!(matches!(first, Ok(None)) || first == whole, "{first:?}, then {whole:?}");
    match whole {
        Ok(Some((_, consumed))) => {
            assert!(consumed <= HEADER_BYTES_MAX.min(bytes.len()));
            assert_eq!(spoken(&bytes), Ok(Some(Spoken::Proxy)));
            assert!(cut >= consumed || first == Ok(None), "read before it was whole");
        }
        Ok(None) => assert!(bytes.len() < HEADER_BYTES_MAX),
        Err(_) => {}
    }
    if let Some(expected) = expected {
        assert_eq!(whole, Ok(Some(expected)));
    }
}

/// Some bytes, and what they must be read as where that is known.
type Known = Option<(Option<SocketAddr>, usize)>;

fn bytes(dice: &mut Dice<'_>) -> (Vec<u8>, Known) {
    let kind = dice.byte();
    let (v4, port) = (Ipv4Addr::from(u32::from(dice.number()) << 16 | u32::from(dice.number())), dice.number());
    let mut ipv6 = [0; 16];
    let drawn = dice.bytes(16);
    ipv6[..drawn.len()].copy_from_slice(drawn);
    let v6 = Ipv6Addr::from(ipv6);
    let source: SocketAddr = if kind & 16 == 0 { (v4, port).into() } else { (v6, port).into() };
    let (mut bytes, mut known) = match kind % 8 {
        0 | 1 => {
            let line = match source {
                SocketAddr::V4(_) => format!("PROXY TCP4 {v4} 10.0.0.1 {port} 443\r\n"),
                SocketAddr::V6(_) => format!("PROXY TCP6 {v6} ::1 {port} 443\r\n"),
            };
            let length = line.len();
            (line.into_bytes(), Some((Some(source), length)))
        }
        2 | 3 => {
            let (family, addresses) = match source {
                SocketAddr::V4(_) => (0x11, [&v4.octets()[..], &[0; 4]].concat()),
                SocketAddr::V6(_) => (0x21, [&v6.octets()[..], &[0; 16]].concat()),
            };
            let more_bytes = usize::from(dice.byte());
            let more = dice.bytes(more_bytes);
            let length = (addresses.len() + 4 + more.len()) as u16;
            let head = [&SIGNATURE[..], &[0x21, family], &length.to_be_bytes()].concat();
            let header = [&head[..], &addresses, &port.to_be_bytes(), &[1, 187], more].concat();
            let length = header.len();
            (header, Some((Some(source), length)))
        }
        4 => {
            // A command, a family and a length at will.
            let start = [&SIGNATURE[..], &[0x20 + dice.byte() % 3, dice.byte() & 0x33]].concat();
            (start, None)
        }
        5 => (b"PROXY UNKNOWN whatever\r\n".to_vec(), Some((None, 24))),
        6 => (dice.pick(&[&b"GET "[..], b"PROXY ", b"\x16\x03", b"\0\0", b"BRG1", b"PROXY TCP4 ", b"P"]).to_vec(), None),
        _ => (Vec::new(), None),
    };
    if kind > 220 && !bytes.is_empty() {
        let at = usize::from(dice.byte()) % bytes.len();
        bytes[at] = dice.byte();
        known = None;
    }
    bytes.extend_from_slice(dice.rest());
    (bytes, known)
}

/// Auth bodies, more or less.
pub(crate) fn bodies(dice: &mut Dice<'_>) {
    const MEMBERS: &[&str] = &[
        r#""mid":123"#,
        r#""mid":"u_1""#,
        r#""mid":-1"#,
        r#""mid":1.5"#,
        r#""key":"k""#,
        r#""key":"eyJhbGciOiJIUzI1NiJ9.e30.c2ln""#,
        r#""token":"t""#,
        r#""room_id":"live://1000""#,
        r#""platform":"web""#,
        r#""accepts":[1000,1001]"#,
        r#""accepts":[1e3]"#,
        r#""roomid":5440"#,
        r#""roomid":"5440""#,
        r#""uid":42"#,
        r#""protover":2"#,
        r#""protover":3"#,
        r#""later":{}"#,
    ];
    let count = dice.byte() % 6;
    let members: Vec<_> = (0..count).map(|_| dice.pick(MEMBERS)).collect();
    let mut body = format!("{{{}}}", members.join(",")).into_bytes();
    if dice.once_in(4) {
        let at = usize::from(dice.byte()) % body.len();
        body[at] = dice.byte();
    }
    if dice.once_in(8) {
        body = dice.rest().to_vec();
    }
    let has = |name: &str| {
        matches!(serde_json::from_slice(&body), Ok(serde_json::Value::Object(members)) if members.contains_key(name))
    };
    match auth(&body) {
        Ok(Auth::Bilibili(read)) => {
            assert!(has("roomid"));
            assert_eq!(read.credential().is_some(), is_token(&read.key));
            assert!(Channel::parse(&read.channel()).is_ok());
        }
        Ok(Auth::Goim(read)) => {
            assert!(!has("roomid"));
            assert!(read.session_key().is_none_or(|key| !is_token(key)));
            assert_eq!(read.credential().is_some(), !read.token.is_empty() || is_token(&read.key));
            assert!(read.mid.is_empty() || crate::channel::is_id(&read.mid));
        }
        Err(_) => {}
    }
}
