//! Fuzz body of [`crate::goim`]: whatever the bytes, nothing panics; keys and channels name each other or nothing; lists
//! and pushes are read as they were written.

use crate::channel::Channel;
use crate::fuzz::Dice;
use crate::goim::{auth_reply, batch, channel, heartbeat_reply, operations, push, reply, room_key};
use crate::packet::{Packet, in_message};

/// The body.
///
/// # Panics
/// Where a property does not hold.
pub fn run(data: &[u8]) {
    let mut dice = Dice::new(data);
    match dice.byte() % 4 {
        0 => names(&mut dice),
        1 => lists(&mut dice),
        2 => packets(&mut dice),
        _ => crate::sniff_fuzz::bodies(&mut dice),
    }
}

fn names(dice: &mut Dice<'_>) {
    let count = usize::from(dice.byte() % 8);
    let text = |dice: &mut Dice<'_>, count| String::from_utf8_lossy(dice.bytes(count)).into_owned();
    let kind = if dice.once_in(2) { "live".to_owned() } else { text(dice, count) };
    let separator = dice.pick(&["://", "://", "://", ":", ".", "room:"]);
    let key = format!("{kind}{separator}{}", text(dice, 70));
    if let Ok(name) = channel(&key) {
        assert!(matches!(Channel::parse(&name), Ok(Channel::Room(_))), "{name}");
        assert_eq!(room_key(&name).as_deref(), Some(key.as_str()));
    }
    let name = format!("room:{}", key.replace("://", "."));
    if let Some(key) = room_key(&name) {
        assert_eq!(channel(&key), Ok(name));
    }
}

fn lists(dice: &mut Dice<'_>) {
    let mut list = Vec::new();
    while dice.byte() > 32 {
        list.push(i32::from_be_bytes([dice.byte(), dice.byte(), dice.byte(), dice.byte()]));
    }
    let separator = dice.pick(&[",", ", ", " ,"]);
    let text = list.iter().map(i32::to_string).collect::<Vec<_>>().join(separator);
    assert_eq!(operations(text.as_bytes()), Ok(list));
    let bytes = dice.rest();
    if let Ok(list) = operations(bytes) {
        assert!(list.len() <= bytes.len());
    }
}

fn packets(dice: &mut Dice<'_>) {
    let (mut out, mut expected) = (Vec::new(), Vec::new());
    while !dice.is_empty() {
        let (operation, sequence) = (i32::from(dice.byte()), u32::from(dice.byte()));
        let count = usize::from(dice.byte() % 32);
        let body = dice.bytes(count);
        let (operation, sequence, body) = match operation % 4 {
            0 => {
                auth_reply(sequence, &mut out);
                (8, sequence, Vec::new())
            }
            1 => {
                heartbeat_reply(sequence, u64::MAX >> operation.cast_unsigned().min(63), &mut out);
                let online = (u64::MAX >> operation.min(63)).min(0x7fff_ffff) as u32;
                (3, sequence, online.to_be_bytes().to_vec())
            }
            2 => {
                push(operation, body, &mut out);
                (operation, 0, body.to_vec())
            }
            _ => {
                reply(operation, sequence, body, &mut out);
                (operation, sequence, body.to_vec())
            }
        };
        expected.push((operation, sequence, body));
    }
    let read = |bytes: &[u8]| -> Vec<_> {
        let owned = |packet: Packet<'_>| {
            assert_eq!(packet.version, 1);
            (packet.operation, packet.sequence, packet.body.to_vec())
        };
        in_message(bytes, usize::MAX).map(|packet| owned(packet.expect("it was just written"))).collect()
    };
    assert_eq!(read(&out), expected);
    let mut outer = Vec::new();
    batch(&out, &mut outer);
    assert_eq!(read(&outer), [(9, 0, out)]);
}
