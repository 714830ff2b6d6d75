//! What a connection speaks, told by its first bytes, and whose auth packet it is (compat.md, last section). Not the
//! codecs themselves: nothing is taken off the input here.
//!
//! ```text
//!   first bytes ─▶ spoken ─▶ Http ─▶ http      Proxy ─▶ proxy, then from the start   Tls ─▶ TLS_ALERT, close
//!                           Native ─▶ native   Packet ─▶ packet ─▶ auth ─▶ goim | bilibili
//! ```

use serde_json::{Map, Value};

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

/// An auth body that makes no sense. The client's fault, no use retrying: close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAuth {
    /// Not a JSON object.
    #[error("the auth body is not a JSON object")]
    NotAnObject,
    /// A member is of a type that it cannot have.
    #[error("`{0}` in the auth body is of another type")]
    Member(&'static str),
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
    let members = Members(members);
    if members.0.contains_key("roomid") {
        bilibili::Auth::read(&members).map(Auth::Bilibili)
    } else {
        goim::Auth::read(&members).map(Auth::Goim)
    }
}

/// The members of an auth body. `null` is as good as missing.
pub(crate) struct Members(Map<String, Value>);

impl Members {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A string; empty where missing.
    pub(crate) fn text(&self, name: &'static str) -> Result<String, BadAuth> {
        match self.get(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(BadAuth::Member(name)),
        }
    }

    /// A user's number, or ID, as an ID; 0, which both dialects take for "nobody", and missing: empty.
    pub(crate) fn user(&self, name: &'static str) -> Result<String, BadAuth> {
        let id = match self.get(name) {
            None => return Ok(String::new()),
            Some(Value::Number(number)) if number.is_i64() || number.is_u64() => number.to_string(),
            Some(Value::String(text)) => text.clone(),
            Some(_) => return Err(BadAuth::Member(name)),
        };
        match id.as_str() {
            "" | "0" => Ok(String::new()),
            id if crate::channel::is_id(id) => Ok(id.to_owned()),
            _ => Err(BadAuth::Member(name)),
        }
    }

    /// A number, or its digits in a string.
    pub(crate) fn number(&self, name: &'static str) -> Result<Option<u64>, BadAuth> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => number.as_u64().map(Some).ok_or(BadAuth::Member(name)),
            Some(Value::String(text)) if text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().map(Some).map_err(|_| BadAuth::Member(name))
            }
            Some(_) => Err(BadAuth::Member(name)),
        }
    }

    /// A list of i32; empty where missing.
    pub(crate) fn operations(&self, name: &'static str) -> Result<Vec<i32>, BadAuth> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => values
                .iter()
                .map(|value| value.as_i64().and_then(|number| i32::try_from(number).ok()).ok_or(BadAuth::Member(name)))
                .collect(),
            Some(_) => Err(BadAuth::Member(name)),
        }
    }
}
