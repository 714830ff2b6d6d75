//! Fuzz body of [`crate::packet`]: what is unpacked is what a plain reading of compat.md's table gives, in any split,
//! and packs to the same bytes.

use crate::fuzz::{Dice, pieces};
use crate::packet::{BadPacket, HEADER_BYTES, Packet, in_message, unpack, write};

/// The body.
///
/// # Panics
/// Where a property does not hold.
pub fn run(data: &[u8]) {
    let mut dice = Dice::new(data);
    let limit = dice.pick(&[HEADER_BYTES, 64, 4112]);
    let sizes = dice.bytes(3);
    let stream = stream(&mut dice, limit);
    let expected = plain(&stream, limit);

    let mut input = &stream[..];
    let mut got = Vec::new();
    let failure = loop {
        match unpack(&mut input, limit) {
            Ok(Some(packet)) => got.push(packet),
            Ok(None) => break None,
            Err(bad) => break Some(bad),
        }
    };
    assert_eq!((&got, failure), (&expected.0, expected.1));

    // On TCP: what is incomplete waits, and never for more than the limit.
    let (mut waiting, mut count, mut stopped) = (Vec::new(), 0, None);
    for piece in pieces(&stream, sizes) {
        waiting.extend_from_slice(piece);
        let mut input = &waiting[..];
        while stopped.is_none() {
            match unpack(&mut input, limit) {
                Ok(Some(packet)) => {
                    assert_eq!(packet, got[count]);
                    count += 1;
                }
                Ok(None) => break,
                Err(bad) => stopped = Some(bad),
            }
        }
        let rest = input.len();
        waiting.drain(..waiting.len() - rest);
        assert!(stopped.is_some() || rest < limit);
    }
    assert_eq!((count, stopped), (got.len(), failure));

    // On WebSocket: whole packets, or the message is refused.
    let message: Result<Vec<_>, _> = in_message(&stream, limit).collect();
    match (message, failure) {
        (Ok(packets), None) => {
            assert_eq!(packets, got);
            let mut again = Vec::new();
            packets.iter().for_each(|packet| write(*packet, &mut again));
            assert_eq!(again, stream);
        }
        (Err(bad), Some(failure)) => assert_eq!(bad, failure),
        (Err(bad), None) => assert!(bad == BadPacket::Cut && !input.is_empty()),
        (Ok(packets), Some(failure)) => panic!("{failure}, but as a message {packets:?}"),
    }
}

fn stream(dice: &mut Dice<'_>, limit: usize) -> Vec<u8> {
    let mut stream = Vec::new();
    while !dice.is_empty() {
        let kind = dice.byte();
        let start = stream.len();
        let body_bytes = match kind % 8 {
            0 => limit - HEADER_BYTES,
            1 => limit - HEADER_BYTES + 1,
            _ => usize::from(dice.byte() % 48),
        };
        let mut body = dice.bytes(body_bytes).to_vec();
        if kind % 8 < 2 {
            body.resize(body_bytes, kind);
        }
        let (operation, sequence) = (i32::from(dice.byte()), dice.number().into());
        write(Packet { version: kind.into(), operation, sequence, body: &body }, &mut stream);
        if kind > 240 {
            // A lie in the lengths.
            stream[start + usize::from(dice.byte() % 6)] = dice.byte();
        } else if kind > 230 {
            stream.truncate(start + usize::from(dice.byte()).min(stream.len() - start));
        }
    }
    stream
}

fn plain(mut stream: &[u8], limit: usize) -> (Vec<Packet<'_>>, Option<BadPacket>) {
    let mut packets = Vec::new();
    let number = |bytes: &[u8]| bytes.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    while stream.len() >= 4 {
        let length = number(&stream[..4]);
        if (length as usize) < 16 || length as usize > limit {
            return (packets, Some(BadPacket::Length(length)));
        }
        if stream.len() >= 6 && number(&stream[4..6]) != 16 {
            return (packets, Some(BadPacket::Header(number(&stream[4..6]) as u16)));
        }
        if stream.len() < length as usize {
            break;
        }
        packets.push(Packet {
            version: number(&stream[6..8]) as u16,
            operation: number(&stream[8..12]) as i32,
            sequence: number(&stream[12..16]),
            body: &stream[16..length as usize],
        });
        stream = &stream[length as usize..];
    }
    (packets, None)
}
