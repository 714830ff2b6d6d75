//! goim's dialect (format: compat.md): what stands in the bodies of its packets, and which room a room key names. The
//! frame itself is [`crate::packet`]; which dialect an auth body is of, [`crate::sniff::auth`] tells.
//!
//! ```text
//!   op 7 body ─▶ sniff::auth ─▶ Auth ─▶ channel(room_id)          a push ─▶ push ─▶ inner packets ─▶ TCP as they are
//!   op 12 body ─▶ channel     op 14, 16 body ─▶ operations                              └─▶ batch ─▶ WebSocket
//! ```
//!
//! Invariants, each the name of a test:
//! - `a_room_has_one_key_and_a_key_one_room`.
//! - `a_key_that_is_shaped_like_a_token_is_one`: such a key never names a session.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::channel::Channel;
use crate::members::{BadAuth, Members};
use crate::packet::{self, Packet, operation};

/// The version of all of goim's packets.
pub const VERSION: u16 = 1;

/// The room type that is left out of a room's name: `live://1000` is `room:1000`.
pub const DEFAULT_TYPE: &str = "live";

/// The body of an operation 7. Every member may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Auth {
    /// The user that it claims to be; empty: none.
    pub mid: String,
    /// The session's key, or a token.
    pub key: String,
    /// A token.
    pub token: String,
    /// `type://room`; empty: none.
    pub room_id: String,
    /// `web`, `ios`, ...
    pub platform: String,
    /// Operations of pushes by key and to all that it takes.
    pub accepts: Vec<i32>,
}

impl Auth {
    pub(crate) fn read(members: &Members) -> Result<Self, BadAuth> {
        Ok(Self {
            mid: members.user("mid")?,
            key: members.text("key")?,
            token: members.text("token")?,
            room_id: members.text("room_id")?,
            platform: members.text("platform")?,
            accepts: members.operations("accepts")?,
        })
    }

    /// The token to be judged: the member of that name, else a key that is shaped like one.
    #[must_use]
    pub fn credential(&self) -> Option<&str> {
        if self.token.is_empty() { Some(self.key.as_str()).filter(|key| is_token(key)) } else { Some(&self.token) }
    }

    /// The key that the session asks for, by which it is pushed to and displaces another.
    #[must_use]
    pub fn session_key(&self) -> Option<&str> {
        Some(self.key.as_str()).filter(|key| !key.is_empty() && !is_token(key))
    }
}

/// Whether `key` is shaped like a JWT (RFC 7519: header, claims and signature in base64url, dots between; the header a
/// JSON object): then it is one to be judged, and refused where it fails. An unsigned one has that shape, too.
#[must_use]
pub fn is_token(key: &str) -> bool {
    let mut parts = key.split('.');
    let (Some(header), Some(claims), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let is_base64url = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    !claims.is_empty()
        && is_base64url(claims)
        && is_base64url(signature)
        && URL_SAFE_NO_PAD
            .decode(header)
            .is_ok_and(|json| matches!(serde_json::from_slice(&json), Ok(serde_json::Value::Object(_))))
}

/// A body that makes no sense. The client's fault, no use retrying: close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    /// A room key is `type://room` of a channel's letters, 64 bytes at most; `.` stands in neither a type nor a
    /// room of the default type, since it parts the two in the channel's name.
    #[error("not a room key: want `type://room` of A-Z a-z 0-9 _ -")]
    RoomKey,
    /// Not a comma list of i32.
    #[error("not a comma list of operations")]
    Operations,
}

/// The channel that a room key names.
///
/// ```
/// use proto::goim::channel;
/// assert_eq!(channel("live://1000").as_deref(), Ok("room:1000"));
/// assert_eq!(channel("game://7").as_deref(), Ok("room:game.7"));
/// ```
///
/// # Errors
/// [`BadBody::RoomKey`].
pub fn channel(room_key: &str) -> Result<String, BadBody> {
    let (kind, room) = room_key.split_once("://").ok_or(BadBody::RoomKey)?;
    if kind.is_empty() || kind.contains('.') || room.is_empty() {
        return Err(BadBody::RoomKey);
    }
    let name = match kind {
        DEFAULT_TYPE if room.contains('.') => return Err(BadBody::RoomKey),
        DEFAULT_TYPE => format!("room:{room}"),
        _ => format!("room:{kind}.{room}"),
    };
    match Channel::parse(&name) {
        Ok(_) => Ok(name),
        Err(_) => Err(BadBody::RoomKey),
    }
}

/// The room key of a channel; `None` where goim has no name for it.
///
/// ```
/// use proto::goim::room_key;
/// assert_eq!(room_key("room:game.7").as_deref(), Some("game://7"));
/// assert_eq!(room_key("user:42"), None);
/// ```
#[must_use]
pub fn room_key(channel: &str) -> Option<String> {
    let Ok(Channel::Room(id)) = Channel::parse(channel) else {
        return None;
    };
    let (kind, room) = id.split_once('.').unwrap_or((DEFAULT_TYPE, id));
    let names_another =
        kind.is_empty() || room.is_empty() || (kind == DEFAULT_TYPE && id != room && !planted!("goim_room"));
    (!names_another).then(|| format!("{kind}://{room}"))
}

/// The operations in the body of an operation 14 or 16.
///
/// # Errors
/// [`BadBody::Operations`].
pub fn operations(body: &[u8]) -> Result<Vec<i32>, BadBody> {
    let text = std::str::from_utf8(body).map_err(|_| BadBody::Operations)?.trim_ascii();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',').map(|number| number.trim_ascii().parse().map_err(|_| BadBody::Operations)).collect()
}

/// Appends a reply to the request of this sequence.
pub fn reply(operation: i32, sequence: u32, body: &[u8], out: &mut Vec<u8>) {
    packet::write(Packet { version: VERSION, operation, sequence, body }, out);
}

/// Appends the reply to an auth.
pub fn auth_reply(sequence: u32, out: &mut Vec<u8>) {
    reply(operation::AUTH_REPLY, sequence, &[], out);
}

/// Appends the reply to a heartbeat: how many are online in the room, as far as an i32 goes.
pub fn heartbeat_reply(sequence: u32, online: u64, out: &mut Vec<u8>) {
    let online = i32::try_from(online).unwrap_or(i32::MAX);
    reply(operation::HEARTBEAT_REPLY, sequence, &online.to_be_bytes(), out);
}

/// Appends a push as TCP clients get it, and as it stands in a batch.
pub fn push(operation: i32, body: &[u8], out: &mut Vec<u8>) {
    reply(operation, 0, body, out);
}

/// The header to be put before `pushes_bytes` of pushes: together they are one packet, which is what WebSocket clients
/// get.
#[must_use]
pub fn batch_header(pushes_bytes: usize) -> [u8; packet::HEADER_BYTES] {
    packet::header(VERSION, operation::RAW, 0, pushes_bytes)
}

/// Appends a batch of `pushes`.
pub fn batch(pushes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&batch_header(pushes.len()));
    out.extend_from_slice(pushes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{PACKET_BYTES_MAX, in_message, unpack};

    #[test]
    fn a_room_has_one_key_and_a_key_one_room() {
        for (key, name) in [("live://1000", "room:1000"), ("game://7", "room:game.7"), ("game://a.b", "room:game.a.b")]
        {
            assert_eq!(channel(key).as_deref(), Ok(name));
            assert_eq!(room_key(name).as_deref(), Some(key));
        }
        let long = format!("live://{}", "x".repeat(65));
        let bad =
            ["", "1000", "live:1000", "live://", "://1", "live://a.b", "a.b://c", "live://a b", "game://ä", &long];
        for key in bad {
            assert_eq!(channel(key), Err(BadBody::RoomKey), "{key}");
        }
        // Channels that goim cannot name: no room, or the name would be another room's.
        for name in ["all", "user:42", "room:live.5", "room:.5", "room:game.", "room:."] {
            assert_eq!(room_key(name), None, "{name}");
        }
    }

    #[test]
    fn a_key_that_is_shaped_like_a_token_is_one() {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
        let (signed, unsigned) = (format!("{header}.eyJzdWIiOiI0MiJ9.c2ln"), format!("{header}.e30."));
        let auth = |key: &str, token: &str| Auth { key: key.into(), token: token.into(), ..Auth::default() };
        for token in [&signed, &unsigned] {
            assert!(is_token(token), "{token}");
            assert_eq!(auth(token, "").credential(), Some(token.as_str()));
            assert_eq!(auth(token, "").session_key(), None);
        }
        let not = [
            "",
            "a",
            "a.b.c",
            "..",
            "e30..x",
            "e30.e30",
            "e30.e30.x.y",
            "e30.e+0.x",
            "W10.e30.x",
            "e30.e30.x=",
            "e3.a.b",
        ];
        for key in not {
            assert!(!is_token(key), "{key}");
            assert_eq!(auth(key, "").credential(), None);
            assert_eq!(auth(key, "").session_key(), Some(key).filter(|key| !key.is_empty()));
        }
        // The member named `token` is judged whatever its shape, and leaves the key a key.
        assert_eq!(auth("k", "garbage").credential(), Some("garbage"));
        assert_eq!(auth("k", "garbage").session_key(), Some("k"));
    }

    #[test]
    fn lists_of_operations_are_read() {
        assert_eq!(operations(b"1000,1001"), Ok(vec![1000, 1001]));
        assert_eq!(operations(b" -1 , 2147483647\n"), Ok(vec![-1, i32::MAX]));
        assert_eq!(operations(b""), Ok(Vec::new()));
        for bad in [&b","[..], b"1,", b"1;2", b"2147483648", b"\xff", b"1.0", b"[1]"] {
            assert_eq!(operations(bad), Err(BadBody::Operations), "{bad:?}");
        }
    }

    #[test]
    fn replies_are_laid_out_as_goims_are() {
        let mut out = Vec::new();
        auth_reply(7, &mut out);
        assert_eq!(out, [0, 0, 0, 16, 0, 16, 0, 1, 0, 0, 0, 8, 0, 0, 0, 7]);
        out.clear();
        heartbeat_reply(8, 258, &mut out);
        assert_eq!(out, [0, 0, 0, 20, 0, 16, 0, 1, 0, 0, 0, 3, 0, 0, 0, 8, 0, 0, 1, 2]);
        out.clear();
        heartbeat_reply(8, u64::MAX, &mut out);
        assert_eq!(out[16..], i32::MAX.to_be_bytes());
    }

    proptest! {
        #[test]
        fn a_batch_holds_its_pushes(pushes in prop::collection::vec((any::<i32>(), prop::collection::vec(any::<u8>(), 0..50)), 0..8)) {
            let mut inner = Vec::new();
            pushes.iter().for_each(|(operation, body)| push(*operation, body, &mut inner));
            let mut out = Vec::new();
            batch(&inner, &mut out);
            let mut input = &out[..];
            let outer = unpack(&mut input, PACKET_BYTES_MAX).expect("right").expect("whole");
            prop_assert!(input.is_empty());
            prop_assert_eq!((outer.operation, outer.version), (operation::RAW, VERSION));
            let read: Vec<_> = in_message(outer.body, PACKET_BYTES_MAX)
                .map(|packet| packet.map(|packet| (packet.operation, packet.body.to_vec())).expect("right")).collect();
            prop_assert_eq!(read, pushes);
        }
    }

    #[test]
    fn smoke_of_the_fuzz_body() {
        crate::fuzz::smoke(crate::goim_fuzz::run);
    }
}
