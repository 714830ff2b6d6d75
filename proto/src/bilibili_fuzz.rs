//! Fuzz body of [`crate::bilibili`]: any message becomes JSON that says the same or is left out; any batch is read back
//! in every version, whatever was done to it does not panic and stays bounded.

use bytes::Bytes;

use crate::bilibili::{BadBody, Packer, Version, auth_reply, danmaku, heartbeat_reply, is_command, text, unpack};
use crate::client::{Message, Sender, Style};
use crate::fuzz::Dice;
use crate::native::{payload, payload_bytes};
use crate::packet::{Packet, in_message};

/// The body.
///
/// # Panics
/// Where a property does not hold.
pub fn run(data: &[u8]) {
    let mut dice = Dice::new(data);
    match dice.byte() % 5 {
        4 => crate::sniff_fuzz::bodies(&mut dice),
        0 => message(&mut dice),
        1 => replies(&mut dice),
        2 => broken(&mut dice),
        _ => batch(&mut dice),
    }
}

/// JSON of a command, or nearly, or something else.
fn body(dice: &mut Dice<'_>) -> Vec<u8> {
    let count = usize::from(dice.byte() % 64);
    match dice.byte() % 6 {
        0 => br#"{"cmd":"SEND_GIFT","data":{}}"#.to_vec(),
        1 => br#"{"cmd":"DANMU_MSG","info":[[],"hi"]}"#.to_vec(),
        2 => [br#"{"cmd":""#, dice.bytes(count), br#"","info":[0,"a"]}"#].concat(),
        3 => [b"{", dice.bytes(count)].concat(),
        _ => dice.bytes(count).to_vec(),
    }
}

fn message(dice: &mut Dice<'_>) {
    let style = Style { mode: dice.byte().into(), size: dice.byte().into(), colour: dice.number().into() };
    let (uid, name) = (dice.pick(&["42", "guest.1", "", "99999999999999999999"]), body(dice));
    let kind = dice.pick(&["text", "text", "gift", "goim.7", ""]);
    let raw = if dice.once_in(3) { body(dice) } else { Vec::new() };
    let message = Message {
        id: dice.number().to_string(),
        time_ms: i64::from(dice.number()) << (dice.byte() % 48),
        sender: (!dice.once_in(4))
            .then(|| Sender { uid: uid.to_owned(), name: String::from_utf8_lossy(&name).into_owned() }),
        r#type: kind.to_owned(),
        payload: Some(payload(Bytes::from(body(dice)))),
        style: (!dice.once_in(4)).then_some(style),
        ..Message::default()
    };
    let carried = payload_bytes(message.payload.as_ref());
    // Only the platform's own.
    let passes = |body: &[u8]| message.sender.is_none() && is_command(body);
    let Some(said) = danmaku(&message, &raw) else {
        assert!(!passes(&raw) && !passes(carried));
        assert!(std::str::from_utf8(carried).is_err() || (raw.is_empty() && matches!(kind, "gift" | "")));
        return;
    };
    assert!(is_command(&said));
    if passes(&raw) {
        assert_eq!(said, raw);
    } else if passes(carried) {
        assert_eq!(said, carried);
    } else {
        assert_eq!(text(&said).as_deref().map(str::as_bytes), Some(carried));
    }
}

fn replies(dice: &mut Dice<'_>) {
    let (sequence, online) = (dice.number().into(), u64::from(dice.number()) << (dice.byte() % 48));
    let mut out = Vec::new();
    auth_reply(sequence, i32::from(dice.byte()) - 128, &mut out);
    heartbeat_reply(sequence, online, b"", &mut out);
    let packets: Result<Vec<_>, _> = in_message(&out, 64).collect();
    let [auth, heartbeat] = packets.expect("it was just written")[..] else { panic!("two") };
    assert!(serde_json::from_slice::<serde_json::Value>(auth.body).is_ok_and(|body| body["code"].is_i64()));
    assert_eq!((auth.operation, auth.sequence, heartbeat.operation, heartbeat.sequence), (8, sequence, 3, sequence));
    assert_eq!(heartbeat.body, (online.min(0x7fff_ffff) as u32).to_be_bytes());
    let rest = dice.rest();
    assert!(text(rest).is_none() || is_command(rest));
}

fn version(dice: &mut Dice<'_>) -> Version {
    dice.pick(&[Version::Plain, Version::Zlib, Version::Brotli])
}

fn batch(dice: &mut Dice<'_>) {
    let version = version(dice);
    let mut bodies = Vec::new();
    while !dice.is_empty() && bodies.len() < 64 {
        bodies.push(body(dice));
    }
    let mut out = Vec::new();
    Packer::default().pack(version, &bodies, &mut out);
    let mut read = Vec::new();
    for packet in in_message(&out, usize::MAX) {
        let packet = packet.expect("it was just written");
        assert_eq!((packet.operation, packet.version), (5, version as u16));
        read.extend(unpack(packet, 1 << 20).expect("it was just written"));
    }
    assert_eq!(read, bodies);
}

fn broken(dice: &mut Dice<'_>) {
    let (version, limit) = (version(dice), usize::from(dice.number() % 512));
    let bodies = [body(dice), body(dice)];
    let (mut out, mut inflated) = (Vec::new(), Vec::new());
    let mut packer = Packer::default();
    packer.pack(version, &bodies, &mut out);
    packer.pack(Version::Plain, &bodies, &mut inflated);
    let of = |body: &[u8]| unpack(Packet { version: version as u16, operation: 5, sequence: 0, body }, limit);
    if version != Version::Plain {
        let expected = if inflated.len() > limit { Err(BadBody::TooLarge) } else { Ok(bodies.to_vec()) };
        assert_eq!(of(&out[16..]), expected);
    }
    let at = usize::from(dice.number()) % out.len();
    out[at] ^= dice.byte();
    out.extend_from_slice(dice.rest());
    for body in [&out[16..], &out[out.len() / 2..]] {
        match of(body) {
            Ok(bodies) => assert!(bodies.iter().map(Vec::len).sum::<usize>() <= limit),
            Err(BadBody::TooLarge | BadBody::Stream | BadBody::Packet(_)) => {}
        }
    }
}
