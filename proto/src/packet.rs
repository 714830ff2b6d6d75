//! The 16-byte frame that goim and Bilibili clients share (format: compat.md). Bytes in, packets out: knows no socket,
//! reads no clock, allocates nothing on reading.
//!
//! ```text
//!   TCP:        the connection's bytes ─▶ unpack ─▶ a packet, borrowing them ─▶ its dialect
//!   WebSocket:  a binary message ─▶ in_message ─▶ one or more whole packets   ─▶ its dialect
//! ```
//!
//! Invariants, each the name of a test:
//! - `an_oversized_packet_is_refused_on_its_length`: nothing waits for a body that was not judged.
//! - `an_incomplete_packet_is_left_alone`: [`unpack`] takes a whole packet or nothing.
//! - `a_packet_that_claims_more_than_its_message_is_refused`: a WebSocket message holds whole packets only.

/// Header, bytes, big-endian: u32 packet length, u16 header length, u16 version, i32 operation, u32 sequence.
pub const HEADER_BYTES: usize = 16;
/// Longest body of a client's packet, bytes: goim's own limit, so no client needs more.
pub const BODY_BYTES_MAX: usize = 4096;
/// Longest packet from a client, bytes.
pub const PACKET_BYTES_MAX: usize = HEADER_BYTES + BODY_BYTES_MAX;

/// What a packet asks or answers. goim's names; compat.md says which of them Bilibili has.
pub mod operation {
    /// Client: still here.
    pub const HEARTBEAT: i32 = 2;
    /// Server: i32, the room's online count.
    pub const HEARTBEAT_REPLY: i32 = 3;
    /// Client: publish to the room.
    pub const SEND: i32 = 4;
    /// goim answers a send with its own number and an empty body.
    pub const SEND_REPLY: i32 = 4;
    /// Bilibili's server: every push.
    pub const PUSH: i32 = 5;
    /// Client: the first packet, JSON.
    pub const AUTH: i32 = 7;
    /// Server: let in.
    pub const AUTH_REPLY: i32 = 8;
    /// goim's server: the body is whole packets one after another.
    pub const RAW: i32 = 9;
    /// Client: another room; the body is its key, empty leaves.
    pub const CHANGE_ROOM: i32 = 12;
    /// Server: the body is the room's key.
    pub const CHANGE_ROOM_REPLY: i32 = 13;
    /// Client: accept these operations too; comma list of i32.
    pub const SUBSCRIBE: i32 = 14;
    /// Server: done.
    pub const SUBSCRIBE_REPLY: i32 = 15;
    /// Client: accept these operations no more; comma list of i32.
    pub const UNSUBSCRIBE: i32 = 16;
    /// Server: done.
    pub const UNSUBSCRIBE_REPLY: i32 = 17;
}

/// One packet, borrowing its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// goim: 1. Bilibili: how the body is encoded.
    pub version: u16,
    /// See [`operation`].
    pub operation: i32,
    /// Chosen by the client, echoed in the reply.
    pub sequence: u32,
    /// All after the header.
    pub body: &'a [u8],
}

/// A header that no peer may send. Its fault, no use retrying: close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// The packet length is under the header's or over the limit.
    #[error("a packet of {0} bytes")]
    Length(u32),
    /// The header length is not 16.
    #[error("a packet header of {0} bytes")]
    Header(u16),
    /// On WebSocket: the message ends before the packet does.
    #[error("a packet that claims more than its message holds")]
    Cut,
}

/// Takes the first packet off `input`; `None`, and `input` untouched, while it is incomplete. It may be up to
/// `packet_bytes_max` long, header included: [`PACKET_BYTES_MAX`] for what a client sends.
///
/// ```
/// use proto::packet::{PACKET_BYTES_MAX, Packet, unpack, write};
/// let (mut bytes, heartbeat) = (Vec::new(), Packet { version: 1, operation: 2, sequence: 7, body: b"" });
/// write(heartbeat, &mut bytes);
/// let mut input = &bytes[..];
/// assert_eq!(unpack(&mut input, PACKET_BYTES_MAX), Ok(Some(heartbeat)));
/// assert_eq!(unpack(&mut input, PACKET_BYTES_MAX), Ok(None));
/// ```
///
/// # Errors
/// [`BadPacket`] as soon as the bytes that are there cannot begin a packet.
pub fn unpack<'a>(input: &mut &'a [u8], packet_bytes_max: usize) -> Result<Option<Packet<'a>>, BadPacket> {
    let Some(length) = input.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
        return Ok(None);
    };
    let bytes = length as usize;
    if bytes < HEADER_BYTES || bytes > packet_bytes_max {
        return Err(BadPacket::Length(length));
    }
    let Some(header) = input[4..].first_chunk().map(|bytes| u16::from_be_bytes(*bytes)) else {
        return Ok(None);
    };
    if usize::from(header) != HEADER_BYTES && !planted!("packet_header") {
        return Err(BadPacket::Header(header));
    }
    let Some(packet) = input.split_off(..bytes) else {
        return Ok(None);
    };
    let (&[_, _, _, _, _, _, v0, v1, o0, o1, o2, o3, s0, s1, s2, s3], body) =
        packet.split_first_chunk().expect("its length was judged to be at least a header's");
    Ok(Some(Packet {
        version: u16::from_be_bytes([v0, v1]),
        operation: i32::from_be_bytes([o0, o1, o2, o3]),
        sequence: u32::from_be_bytes([s0, s1, s2, s3]),
        body,
    }))
}

/// The packets of one WebSocket message (or of one raw batch, or of one inflated Bilibili body). Ends after the first
/// error.
pub fn in_message(mut message: &[u8], packet_bytes_max: usize) -> impl Iterator<Item = Result<Packet<'_>, BadPacket>> {
    std::iter::from_fn(move || {
        if message.is_empty() {
            return None;
        }
        let packet = unpack(&mut message, packet_bytes_max).and_then(|packet| packet.ok_or(BadPacket::Cut));
        if packet.is_err() {
            message = &[];
        }
        Some(packet)
    })
}

/// The header of a packet whose body of `body_bytes` follows.
///
/// # Panics
/// When `body_bytes` and the header are over `u32::MAX`: our own limits lie far below.
#[must_use]
pub fn header(version: u16, operation: i32, sequence: u32, body_bytes: usize) -> [u8; HEADER_BYTES] {
    let length = u32::try_from(HEADER_BYTES + body_bytes).expect("bodies are bounded far below 4 GiB");
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes[4..6].copy_from_slice(&(HEADER_BYTES as u16).to_be_bytes());
    bytes[6..8].copy_from_slice(&version.to_be_bytes());
    bytes[8..12].copy_from_slice(&operation.to_be_bytes());
    bytes[12..].copy_from_slice(&sequence.to_be_bytes());
    bytes
}

/// Appends `packet` to `out`.
pub fn write(packet: Packet<'_>, out: &mut Vec<u8>) {
    out.reserve(HEADER_BYTES + packet.body.len());
    out.extend_from_slice(&header(packet.version, packet.operation, packet.sequence, packet.body.len()));
    out.extend_from_slice(packet.body);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_oversized_packet_is_refused_on_its_length() {
        let mut input = &[0, 0, 16, 17][..];
        assert_eq!(unpack(&mut input, PACKET_BYTES_MAX), Err(BadPacket::Length(4113)));
        let mut input = &[0, 0, 0, 15][..];
        assert_eq!(unpack(&mut input, PACKET_BYTES_MAX), Err(BadPacket::Length(15)));
        let mut input = &[0, 0, 16, 16, 0, 15][..];
        assert_eq!(unpack(&mut input, PACKET_BYTES_MAX), Err(BadPacket::Header(15)));
    }

    #[test]
    fn an_incomplete_packet_is_left_alone() {
        let mut bytes = Vec::new();
        write(Packet { version: 1, operation: 7, sequence: 1, body: b"{}" }, &mut bytes);
        for end in 0..bytes.len() {
            let mut input = &bytes[..end];
            assert_eq!(unpack(&mut input, PACKET_BYTES_MAX), Ok(None));
            assert_eq!(input.len(), end);
        }
    }

    #[test]
    fn a_packet_that_claims_more_than_its_message_is_refused() {
        let mut bytes = Vec::new();
        write(Packet { version: 1, operation: 2, sequence: 1, body: b"" }, &mut bytes);
        write(Packet { version: 1, operation: 4, sequence: 2, body: b"twelve bytes" }, &mut bytes);
        let of = |end: usize| in_message(&bytes[..end], PACKET_BYTES_MAX).collect::<Vec<_>>();
        assert!(of(bytes.len()).iter().all(Result::is_ok));
        for end in HEADER_BYTES + 1..bytes.len() {
            assert_eq!((of(end).len(), of(end)[1]), (2, Err(BadPacket::Cut)));
        }
    }

    #[test]
    fn a_header_is_laid_out_as_goim_lays_it_out() {
        let mut bytes = Vec::new();
        write(Packet { version: 1, operation: 7, sequence: 0x0102_0304, body: b"ab" }, &mut bytes);
        assert_eq!(bytes, [0, 0, 0, 18, 0, 16, 0, 1, 0, 0, 0, 7, 1, 2, 3, 4, b'a', b'b']);
    }

    #[test]
    fn smoke_of_the_fuzz_body() {
        crate::fuzz::smoke(crate::packet_fuzz::run);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(packets in prop::collection::vec((any::<u16>(), any::<i32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..64)), 0..8)) {
            let mut bytes = Vec::new();
            let packets: Vec<_> = packets.iter().map(|(version, operation, sequence, body)| Packet { version: *version, operation: *operation, sequence: *sequence, body }).collect();
            packets.iter().for_each(|packet| write(*packet, &mut bytes));
            let read: Result<Vec<_>, _> = in_message(&bytes, PACKET_BYTES_MAX).collect();
            prop_assert_eq!(read, Ok(packets));
        }
    }
}
