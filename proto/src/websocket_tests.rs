//! Tests of [`crate::websocket`], named by the section of RFC 6455 that they hold.

use proptest::prelude::*;

use crate::deflate::Deflater;
use crate::deflate_fuzz::decode as inflate;
use crate::fuzz::{pieces, smoke};
use crate::websocket::*;
use crate::websocket_fuzz::{Decoded, Owned, decode, run};

const LIMIT: u32 = 1000;

/// Decodes at once and byte by byte, which must be the same.
fn server(stream: &[u8]) -> Decoded {
    let decoded = decode(Role::Server, LIMIT, pieces(stream, &[]));
    assert_eq!(decoded, decode(Role::Server, LIMIT, pieces(stream, &[0])));
    decoded
}

fn fails(stream: &[u8]) -> Failure {
    server(stream).1.expect("a failure")
}

/// A client's frame, of any first byte.
fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    frame(true, Opcode::Binary, Some([1, 2, 3, 4]), payload, &mut stream);
    stream[0] = first;
    stream
}

fn frames(parts: &[(u8, &[u8])]) -> Vec<u8> {
    parts.iter().flat_map(|(first, payload)| raw(*first, payload)).collect()
}

fn text(text: &str) -> Owned {
    Owned::Text(text.to_owned())
}

#[test]
fn rfc6455_5_7_the_examples_of_the_specification() {
    let client = |bytes: &[u8]| decode(Role::Client, 70_000, pieces(bytes, &[]));
    assert_eq!(client(&[0x81, 5, 0x48, 0x65, 0x6c, 0x6c, 0x6f]), (vec![text("Hello")], None));
    let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(server(&masked), (vec![text("Hello")], None));
    assert_eq!(client(&[0x01, 3, 0x48, 0x65, 0x6c, 0x80, 2, 0x6c, 0x6f]), (vec![text("Hello")], None));
    let ping = [0x89, 5, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
    assert_eq!(client(&ping), (vec![Owned::Ping(b"Hello".to_vec())], None));
    let masked = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(server(&masked), (vec![Owned::Pong(b"Hello".to_vec())], None));
    for bytes in [256, 65536] {
        let mut stream = Vec::new();
        encode(Opcode::Binary, &vec![7; bytes], &mut stream);
        let start: &[u8] = if bytes == 256 { &[0x82, 126, 1, 0] } else { &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0] };
        assert!(stream.starts_with(start));
        assert_eq!(client(&stream), (vec![Owned::Binary(vec![7; bytes])], None));
    }
}

#[test]
fn rfc6455_5_1_a_client_masks_and_a_server_does_not() {
    assert_eq!(fails(b"\x81\x05hello"), Failure::Masking);
    let masked = raw(0x81, b"hello");
    assert_eq!(decode(Role::Client, LIMIT, pieces(&masked, &[])).1, Some(Failure::Masking));
    assert_eq!(Failure::Masking.code(), 1002);
}

#[test]
fn rfc6455_5_2_reserved_bits_and_opcodes_fail() {
    for bit in [0x10, 0x20, 0x40] {
        assert_eq!(fails(&raw(0x81 | bit, b"")), Failure::ReservedBits);
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_eq!(fails(&raw(0x80 | opcode, b"")), Failure::ReservedOpcode(opcode));
        assert_eq!(fails(&[0x80 | opcode]), Failure::ReservedOpcode(opcode), "on its first byte");
    }
}

#[test]
fn rfc7692_6_only_a_messages_first_frame_says_that_it_is_compressed() {
    let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    let inflated = |parts: &[(u8, &[u8])]| {
        let stream = frames(parts);
        let decoded = inflate(Role::Server, LIMIT, pieces(&stream, &[]));
        assert_eq!(decoded, inflate(Role::Server, LIMIT, pieces(&stream, &[0])));
        decoded
    };
    assert_eq!(inflated(&[(0xc1, &hello)]), (vec![text("Hello")], None));
    // In fragments, a ping between them; what is not compressed goes through as it is.
    let parts: &[(u8, &[u8])] = &[(0x42, &hello[..3]), (0x89, b"p"), (0x80, &hello[3..]), (0x81, b"plain")];
    let events = vec![Owned::Ping(b"p".to_vec()), Owned::Binary(b"Hello".to_vec()), text("plain")];
    assert_eq!(inflated(parts), (events, None));
    let bad: &[&[(u8, &[u8])]] = &[
        &[(0x41, &hello[..3]), (0xc0, &hello[3..])],
        &[(0x01, b"x"), (0xc0, b"y")],
        &[(0xc9, b"")],
        &[(0xc8, b"")],
        &[(0xa1, b"")],
        &[(0x91, b"")],
        &[(0xe1, &hello)],
    ];
    for parts in bad {
        assert_eq!(inflated(parts), (Vec::new(), Some(Failure::ReservedBits)), "{parts:x?}");
    }
}

#[test]
fn rfc7692_the_limit_and_utf8_are_judged_of_what_was_inflated() {
    let mut deflater = Deflater::default();
    let mut compressed = |opcode, payload: &[u8]| {
        let mut stream = Vec::new();
        encode_deflated(opcode, payload, &mut deflater, &mut stream);
        inflate(Role::Client, LIMIT, pieces(&stream, &[]))
    };
    assert_eq!(compressed(Opcode::Binary, &[7; 1000]), (vec![Owned::Binary(vec![7; 1000])], None));
    assert_eq!(compressed(Opcode::Binary, &[7; 1001]), (Vec::new(), Some(Failure::TooLarge)));
    assert_eq!(compressed(Opcode::Text, &[0xff; 100]), (Vec::new(), Some(Failure::Utf8)));
    assert_eq!(compressed(Opcode::Text, "弹".repeat(100).as_bytes()), (vec![text(&"弹".repeat(100))], None));
    // On the wire, too, before anything is allocated.
    let mut long = raw(0xc2, &[0; 1000]);
    long[2..4].copy_from_slice(&(LIMIT as u16 + LIMIT as u16 / 8 + 65).to_be_bytes());
    let decoded = inflate(Role::Server, LIMIT, pieces(&long[..8], &[]));
    assert_eq!(decoded, (Vec::new(), Some(Failure::TooLarge)));
}

#[test]
fn what_would_grow_by_compression_is_sent_as_it_is() {
    let mut out = Vec::new();
    encode_deflated(Opcode::Binary, b"abc", &mut Deflater::default(), &mut out);
    assert_eq!(out, b"\x82\x03abc");
}

#[test]
fn rfc6455_5_2_a_length_need_not_be_the_shortest_but_below_two_to_the_63() {
    let long = [0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 7];
    assert_eq!(server(&long), (vec![Owned::Binary(vec![7])], None));
    let medium = [0x82, 0xfe, 0, 1, 0, 0, 0, 0, 7];
    assert_eq!(server(&medium), (vec![Owned::Binary(vec![7])], None));
    assert_eq!(fails(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1]), Failure::Length);
}

#[test]
fn rfc6455_5_3_unmasking_is_the_same_at_every_length_and_its_own_inverse() {
    for length in 0..100_usize {
        let plain: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let mut masked = plain.clone();
        unmask(&mut masked, [9, 8, 7, 6]);
        for (at, byte) in masked.iter().enumerate() {
            assert_eq!(*byte, plain[at] ^ [9, 8, 7, 6][at % 4]);
        }
        unmask(&mut masked, [9, 8, 7, 6]);
        assert_eq!(masked, plain);
    }
}

#[test]
fn rfc6455_5_4_fragments_make_one_message() {
    let stream = frames(&[(0x01, b"Hel"), (0x00, b""), (0x00, b"l"), (0x80, b"o"), (0x82, b"x")]);
    assert_eq!(server(&stream), (vec![text("Hello"), Owned::Binary(b"x".to_vec())], None));
    let empty = frames(&[(0x02, b""), (0x80, b"")]);
    assert_eq!(server(&empty), (vec![Owned::Binary(Vec::new())], None));
}

#[test]
fn rfc6455_5_4_control_frames_come_between_fragments() {
    let stream = frames(&[(0x01, b"Hel"), (0x89, b"ping"), (0x00, b"l"), (0x8a, b""), (0x80, b"o")]);
    let events = vec![Owned::Ping(b"ping".to_vec()), Owned::Pong(Vec::new()), text("Hello")];
    assert_eq!(server(&stream), (events, None));
}

#[test]
fn rfc6455_5_4_messages_are_not_mixed() {
    assert_eq!(fails(&frames(&[(0x80, b"x")])), Failure::Continuation);
    assert_eq!(fails(&frames(&[(0x01, b"x"), (0x81, b"y")])), Failure::Interrupted);
    assert_eq!(fails(&frames(&[(0x02, b"x"), (0x01, b"y")])), Failure::Interrupted);
    assert_eq!(fails(&frames(&[(0x01, b"x"), (0x80, b"y"), (0x80, b"z")])), Failure::Continuation);
}

#[test]
fn rfc6455_5_5_control_frames_are_short_and_whole() {
    assert_eq!(server(&raw(0x89, &[7; 125])), (vec![Owned::Ping(vec![7; 125])], None));
    for opcode in [8, 9, 10] {
        assert_eq!(fails(&raw(0x80 | opcode, &[7; 126])), Failure::LongControl);
        assert_eq!(fails(&raw(opcode, b"")), Failure::FragmentedControl);
    }
}

#[test]
fn rfc6455_5_5_1_a_close_carries_nothing_or_a_code_and_a_reason() {
    assert_eq!(server(&raw(0x88, b"")), (vec![Owned::Close(None)], None));
    let close = Owned::Close(Some((1000, "再见".to_owned())));
    assert_eq!(server(&raw(0x88, &[&[3, 0xe8], "再见".as_bytes()].concat())), (vec![close], None));
    assert_eq!(fails(&raw(0x88, &[3])), Failure::CloseBody);
    assert_eq!(fails(&raw(0x88, b"\x03\xe8\xff")), Failure::Utf8);
}

#[test]
fn rfc6455_5_5_1_nothing_is_read_after_a_close() {
    let stream = frames(&[(0x88, b"\x03\xe8"), (0x81, b"after"), (0x83, b"")]);
    assert_eq!(server(&stream), (vec![Owned::Close(Some((1000, String::new())))], None));
    let stream = frames(&[(0x83, b""), (0x81, b"after")]);
    assert_eq!(server(&stream), (Vec::new(), Some(Failure::ReservedOpcode(3))));
}

#[test]
fn rfc6455_7_4_codes_that_may_not_be_sent_fail() {
    for code in 0..=u16::MAX {
        let known = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        let decoded = decode(Role::Server, LIMIT, [&raw(0x88, &code.to_be_bytes())[..]].into_iter());
        match known {
            true => assert_eq!(decoded, (vec![Owned::Close(Some((code, String::new())))], None)),
            false => assert_eq!(decoded, (Vec::new(), Some(Failure::CloseCode(code)))),
        }
    }
}

#[test]
fn rfc6455_8_1_utf8_fails_at_the_first_impossible_byte() {
    // Each: the bytes before, and the one that no continuation can make right.
    let cases: &[(&[u8], u8)] = &[
        (b"ok", 0xff),
        (b"", 0x80),
        (b"", 0xc0),
        (b"", 0xc1),
        (b"", 0xf5),
        (b"\xc3", b'a'),
        (b"\xe0", 0x9f),
        (b"\xed", 0xa0),
        (b"\xe5\xbc", b'a'),
        (b"\xf0", 0x8f),
        (b"\xf4", 0x90),
        (b"\xf0\x9f\x98", b'a'),
    ];
    for (before, bad) in cases {
        // In one frame of which more is to come, and split between two fragments.
        let long = raw(0x81, &[before, &[*bad][..], b"and more"].concat());
        let prefix = &long[..6 + before.len()];
        assert_eq!(server(prefix), (Vec::new(), None), "{before:x?}");
        assert_eq!(fails(&long[..=6 + before.len()]), Failure::Utf8, "{before:x?} {bad:x}");
        assert_eq!(fails(&frames(&[(0x01, before), (0x00, &[*bad])])), Failure::Utf8, "{before:x?} {bad:x}");
    }
    assert_eq!(Failure::Utf8.code(), 1007);
}

#[test]
fn rfc6455_8_1_a_character_may_be_split_but_must_end() {
    let bytes = "弹\u{10ffff}é".as_bytes();
    for cut in 0..=bytes.len() {
        let stream = frames(&[(0x01, &bytes[..cut]), (0x89, b"\xff"), (0x80, &bytes[cut..])]);
        assert_eq!(server(&stream), (vec![Owned::Ping(vec![0xff]), text("弹\u{10ffff}é")], None));
    }
    assert_eq!(fails(&raw(0x81, &bytes[..2])), Failure::Utf8);
    assert_eq!(fails(&frames(&[(0x01, &bytes[..2]), (0x80, b"")])), Failure::Utf8);
    assert_eq!(server(&raw(0x82, b"\xff")).1, None, "binary is not judged");
}

#[test]
fn rfc6455_10_4_a_length_is_judged_before_anything_is_allocated() {
    // The limit, in one frame and in two; one byte more, told on the header, before any payload.
    assert_eq!(server(&raw(0x82, &[7; 1000])).1, None);
    assert_eq!(server(&frames(&[(0x02, &[7; 600]), (0x80, &[7; 400])])).1, None);
    assert_eq!(fails(&raw(0x82, &[7; 1001])[..8]), Failure::TooLarge);
    let two = frames(&[(0x02, &[7; 600]), (0x80, &[7; 401])]);
    assert_eq!(fails(&two[..608 + 8]), Failure::TooLarge);
    assert_eq!(fails(&[0x82, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]), Failure::TooLarge);
    assert_eq!(Failure::TooLarge.code(), 1009);
    // What was claimed is not allocated: 60,000 bytes said, 10 there.
    let mut decoder = Decoder::new(Role::Server, 70_000);
    let mut claim = raw(0x82, &[7; 60_000]);
    assert_eq!(decoder.next(&mut &mut claim[..18]), Ok(None));
    assert!(decoder.buffer_bytes() <= 20, "{}", decoder.buffer_bytes());
}

#[test]
fn an_idle_decoder_owns_nothing() {
    assert!(size_of::<Decoder>() <= 16);
    let mut decoder = Decoder::new(Role::Server, LIMIT);
    let stream = frames(&[(0x01, b"Hel"), (0x89, b"ping"), (0x80, b"lo"), (0x82, b"x")]);
    for piece in pieces(&stream, &[0]) {
        let mut piece = piece.to_vec();
        let mut input = &mut piece[..];
        while decoder.next(&mut input).expect("valid").is_some() {}
    }
    assert!(decoder.is_idle());
}

#[test]
fn a_whole_message_is_borrowed_from_the_input() {
    let mut decoder = Decoder::new(Role::Server, LIMIT);
    let mut stream = raw(0x81, b"hello");
    let within = stream.as_ptr_range();
    let mut input = &mut stream[..];
    let Ok(Some(Event::Text(text))) = decoder.next(&mut input) else { panic!("a text") };
    assert!(within.contains(&text.as_ptr()));
    assert!(decoder.is_idle());
}

#[test]
fn a_close_reason_is_cut_to_what_fits_between_characters() {
    let mut stream = Vec::new();
    close(4008, &"弹".repeat(100), &mut stream);
    let close = Owned::Close(Some((4008, "弹".repeat(41))));
    assert_eq!(decode(Role::Client, LIMIT, pieces(&stream, &[])), (vec![close], None));
}

#[test]
fn smoke_of_the_fuzz_body() {
    smoke(run);
}

/// A message with where it is cut into fragments, and a ping after each.
fn message() -> impl Strategy<Value = (Owned, Vec<usize>)> {
    let text = ".{0,80}".prop_map(Owned::Text);
    let binary = prop::collection::vec(any::<u8>(), 0..400).prop_map(Owned::Binary);
    (prop_oneof![text, binary], prop::collection::vec(0..400_usize, 0..4))
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded_in_any_split(
        messages in prop::collection::vec(message(), 0..6),
        sizes in prop::collection::vec(any::<u8>(), 1..5),
        mask: [u8; 4],
        client: bool,
    ) {
        let mask = client.then_some(mask);
        let role = if client { Role::Server } else { Role::Client };
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for (message, cuts) in messages {
            let (mut opcode, mut rest) = match &message {
                Owned::Text(text) => (Opcode::Text, text.as_bytes()),
                Owned::Binary(bytes) => (Opcode::Binary, &bytes[..]),
                other => unreachable!("{other:?}"),
            };
            for cut in cuts {
                let (fragment, after) = rest.split_at(cut.min(rest.len()));
                frame(false, opcode, mask, fragment, &mut stream);
                frame(true, Opcode::Ping, mask, b"between", &mut stream);
                expected.push(Owned::Ping(b"between".to_vec()));
                (opcode, rest) = (Opcode::Continuation, after);
            }
            frame(true, opcode, mask, rest, &mut stream);
            expected.push(message);
        }
        prop_assert_eq!(decode(role, 1000, pieces(&stream, &sizes)), (expected, None));
    }
}
