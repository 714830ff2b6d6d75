//! What a connection speaks, told by its first bytes, and whose auth packet it is (compat.md, last section). Not the
//! codecs themselves: nothing is taken off the input here.
//!
//! ```text
//!   first bytes ─▶ spoken ─▶ Http ─▶ http      Proxy ─▶ proxy, then from the start   Tls ─▶ TLS_ALERT, close
//!                           Native ─▶ native   Packet ─▶ packet ─▶ auth ─▶ goim | bilibili
//! ```

use serde_json::Value;

pub use crate::members::BadAuth;
use crate::members::Members;
use crate::{bilibili, goim, native};

/// What a connection's first bytes begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// An HTTP/1 request, also of a method that is then refused.
    Http,
    /// A PROXY header, version 1 or 2: only for who is listed; what follows it is to be told anew.
    Proxy,
    /// A TLS handshake.
    Tls,
    /// goim's or Bilibili's packets.
    Packet,
    /// The native protocol; its four bytes are to be skipped.
    Native,
}

/// Nothing that is spoken here. The client's fault, no use retrying: close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bytes that begin nothing that is spoken here")]
pub struct Unknown;

/// How each begins. No one is the beginning of another, so that the shortest that tells is waited for.
const BEGINNINGS: &[(&[u8], Spoken)] = &[
    (b"GET ", Spoken::Http),
    // Refused, but in words.
    (b"HEAD ", Spoken::Http),
    (b"POST ", Spoken::Http),
    (b"PUT ", Spoken::Http),
    (b"PATCH ", Spoken::Http),
    (b"DELETE ", Spoken::Http),
    (b"OPTIONS ", Spoken::Http),
    // A packet's length is far below 2^24.
    (&[0], Spoken::Packet),
    (native::MAGIC, Spoken::Native),
    (b"PROXY ", Spoken::Proxy),
    (crate::proxy::SIGNATURE, Spoken::Proxy),
    (&[0x16], Spoken::Tls),
];

/// Longest beginning, bytes: after that many it is known, or [`Unknown`].
pub const BEGINNING_BYTES_MAX: usize = crate::proxy::SIGNATURE.len();

/// The answer to a TLS handshake where TLS is not served: a fatal alert, handshake_failure (RFC 8446 sections 5.1 and
/// 6.2). Without it a client would wait, or call it a broken connection.
pub const TLS_ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 40];

/// Tells what a connection speaks; `None` while too little has come.
///
/// # Errors
/// [`Unknown`] as soon as no beginning fits.
pub fn spoken(bytes: &[u8]) -> Result<Option<Spoken>, Unknown> {
    if let Some((_, spoken)) = BEGINNINGS.iter().find(|(beginning, _)| bytes.starts_with(beginning)) {
        return Ok(Some(*spoken));
    }
    if BEGINNINGS.iter().any(|(beginning, _)| beginning.starts_with(bytes)) { Ok(None) } else { Err(Unknown) }
}

/// The body of an operation 7: who asks to be let in, and in which dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// No `roomid`.
    Goim(goim::Auth),
    /// With `roomid`.
    Bilibili(bilibili::Auth),
}

/// Reads an auth body: Bilibili's where it has a `roomid`, else goim's.
///
/// ```
/// use proto::sniff::{Auth, auth};
/// assert!(matches!(auth(br#"{"mid":123,"room_id":"live://1000"}"#), Ok(Auth::Goim(_))));
/// assert!(matches!(auth(br#"{"uid":0,"roomid":5440,"protover":3}"#), Ok(Auth::Bilibili(_))));
/// ```
///
/// # Errors
/// [`BadAuth`] for what is no JSON object or has members of wrong types.
pub fn auth(body: &[u8]) -> Result<Auth, BadAuth> {
    let Ok(Value::Object(members)) = serde_json::from_slice(body) else {
        return Err(BadAuth::NotAnObject);
    };
    let members = Members::new(members);
    if members.has("roomid") {
        bilibili::Auth::read(&members).map(Auth::Bilibili)
    } else {
        goim::Auth::read(&members).map(Auth::Goim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_beginning_tells_at_its_last_byte() {
        for (beginning, expected) in BEGINNINGS {
            for end in 0..beginning.len() {
                assert_eq!(spoken(&beginning[..end]), Ok(None), "{beginning:?}");
            }
            assert_eq!(spoken(beginning), Ok(Some(*expected)));
            assert_eq!(spoken(&[beginning, &b"and more"[..]].concat()), Ok(Some(*expected)));
            assert!(beginning.len() <= BEGINNING_BYTES_MAX);
        }
        for nothing in [&b"GEt"[..], b"get ", b"SSH-2.0", b"\x01", b"PROXI", b"\r\n\r\n\0\r\nQUIR", b"BRG2"] {
            assert_eq!(spoken(nothing), Err(Unknown), "{nothing:?}");
        }
    }

    #[test]
    fn no_beginning_begins_another() {
        for (one, _) in BEGINNINGS {
            assert_eq!(BEGINNINGS.iter().filter(|(other, _)| other.starts_with(one)).count(), 1);
        }
    }

    #[test]
    fn goims_auth_is_read_whatever_is_missing() {
        let Ok(Auth::Goim(read)) = auth(
            br#"{"mid":123,"key":"k","room_id":"live://1000","platform":"web","accepts":[1000,1001],"token":"t","x":1}"#,
        ) else {
            panic!("goim's");
        };
        let expected = goim::Auth {
            mid: "123".into(),
            key: "k".into(),
            token: "t".into(),
            room_id: "live://1000".into(),
            platform: "web".into(),
            accepts: vec![1000, 1001],
        };
        assert_eq!(read, expected);
        for nobody in ["{}", r#"{"mid":null,"accepts":null}"#, r#"{"mid":0}"#, r#"{"mid":"","key":""}"#] {
            assert_eq!(auth(nobody.as_bytes()), Ok(Auth::Goim(goim::Auth::default())), "{nobody}");
        }
        let largest = auth(br#"{"mid":9223372036854775807}"#);
        assert!(matches!(largest, Ok(Auth::Goim(goim::Auth { mid, .. })) if mid == "9223372036854775807"));
        assert!(matches!(auth(br#"{"mid":"u_1"}"#), Ok(Auth::Goim(goim::Auth { mid, .. })) if mid == "u_1"));
    }

    #[test]
    fn bilibilis_auth_is_the_one_with_a_roomid() {
        let of = |body: &str| match auth(body.as_bytes()) {
            Ok(Auth::Bilibili(auth)) => auth,
            other => panic!("{body}: {other:?}"),
        };
        let read = of(r#"{"uid":42,"roomid":5440,"protover":3,"platform":"web","type":2,"key":"a.b.c"}"#);
        let expected = bilibili::Auth {
            uid: "42".into(),
            room: 5440,
            version: bilibili::Version::Brotli,
            platform: "web".into(),
            key: "a.b.c".into(),
        };
        assert_eq!(read, expected);
        assert_eq!(read.channel(), "room:5440");
        assert_eq!(of(r#"{"roomid":"5440"}"#).room, 5440);
        assert_eq!(of(r#"{"roomid":1}"#).uid, "");
        for (version, expected) in [("0", 0), ("1", 0), ("2", 2), ("3", 3), ("4", 0), ("null", 0)] {
            let auth = of(&format!(r#"{{"roomid":1,"protover":{version}}}"#));
            assert_eq!(auth.version as u16, expected);
        }
    }

    #[test]
    fn an_auth_of_wrong_types_is_refused() {
        for body in ["", "[]", "1", "{", "null", "\u{feff}{}"] {
            assert_eq!(auth(body.as_bytes()), Err(BadAuth::NotAnObject), "{body}");
        }
        for (body, member) in [
            (r#"{"mid":1.5}"#, "mid"),
            (r#"{"mid":9223372036854775808}"#, "mid"),
            (r#"{"roomid":1,"uid":18446744073709551615}"#, "uid"),
            (r#"{"mid":[]}"#, "mid"),
            (r#"{"mid":"a b"}"#, "mid"),
            (r#"{"key":1}"#, "key"),
            (r#"{"accepts":1}"#, "accepts"),
            (r#"{"accepts":[2147483648]}"#, "accepts"),
            (r#"{"accepts":["1"]}"#, "accepts"),
            (r#"{"roomid":null}"#, "roomid"),
            (r#"{"roomid":-1}"#, "roomid"),
            (r#"{"roomid":"x"}"#, "roomid"),
            (r#"{"roomid":""}"#, "roomid"),
            (r#"{"roomid":1,"protover":"x"}"#, "protover"),
            (r#"{"roomid":1,"uid":true}"#, "uid"),
        ] {
            assert_eq!(auth(body.as_bytes()), Err(BadAuth::Member(member)), "{body}");
        }
    }

    #[test]
    fn smoke_of_the_fuzz_body() {
        crate::fuzz::smoke(crate::sniff_fuzz::run);
    }
}
