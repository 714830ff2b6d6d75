//! permessage-deflate (RFC 7692), server side: which offer is taken, and messages compressed and inflated one by one.
//! Not the frames that carry them ([`crate::websocket`]).
//!
//! ```text
//!   Sec-WebSocket-Extensions ─▶ agree ─▶ Agreed ─▶ the answer's line
//!   payload ─▶ Deflater ─▶ a compressed message          a compressed message ─▶ Inflater, bounded ─▶ payload
//! ```
//!
//! What the server sends takes no context over: a message depends on none before it, so that sessions can share it. A
//! client may refer back to what it sent before, unless it offers not to. Some libraries refuse an answer that forbids it
//! unasked, and some ignore that (docs/clients.md). For such a client its [`Window`] is kept: the last bytes that it sent,
//! as few as it lets the server say. No session owns a state of zlib: one [`Inflater`] and one [`Deflater`] serve a thread.
//!
//! Invariants, each the name of a test:
//! - `an_offer_is_taken_as_it_stands_or_not_at_all`: what cannot be done as asked is declined.
//! - `what_inflates_beyond_the_limit_is_refused_before_it_is_made`: memory follows the limit, not the bomb.
//! - `what_was_deflated_inflates_to_the_same`: whatever came before.
//! - `a_message_may_refer_back_to_the_window_and_no_further`.

use std::borrow::Cow;
use std::fmt;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// A header's value is no list of extensions (RFC 6455 section 9.1). The client's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Sec-WebSocket-Extensions is not a list of extensions")]
pub struct BadExtensions;

/// A compressed message that cannot be taken. The sender's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// It becomes more than the limit.
    #[error("the message is longer than the limit")]
    TooLarge,
    /// It is no stream of DEFLATE.
    #[error("a message that cannot be inflated")]
    Deflated,
}

/// What a compressed message ends with, and is sent without (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// The largest window's bytes as a power of two, and the default.
pub const WINDOW_BITS_MAX: u8 = 15;
/// The smallest window that a [`Deflater`] keeps to: zlib makes none of 8.
pub const WINDOW_BITS_MIN: u8 = 9;

/// The window that a client is asked to keep to where it lets the server say: what it sends is short, and its window is
/// kept.
const CLIENT_WINDOW_BITS: u8 = WINDOW_BITS_MIN;

/// Bytes that a window may refer back to.
const WINDOW_BYTES: usize = 1 << WINDOW_BITS_MAX;

/// zlib's level, of 1 to 9. What is compressed is sent to a whole room, so bytes count for more than the time to make it
/// once: `examples/compression.rs`, batches of 100 of goim's, 3.15 times shorter in 54 µs; 3 gives 3.05 in 51 µs, 9 gives
/// 3.21 in 71 µs.
const LEVEL: u32 = 6;

/// Output that an [`Inflater`] keeps for the next message, bytes; what is larger is given back.
const KEPT_BYTES_MAX: usize = 32 * 1024;

/// How often the stream of one message may end and begin anew (RFC 7692 section 7.2.3.4 allows it; nobody is known to
/// do it more than once). Each time may cost a window's copying, so over it: [`BadMessage::Deflated`].
const STREAMS_MAX: usize = 16;

/// Longest compressed message, bytes, where its payload may have `payload_bytes_max`: zlib's worst is an eighth more
/// (fixed codes, RFC 1951 section 3.2.6), and some flushes. Over it: [`BadMessage::TooLarge`].
#[must_use]
pub(crate) const fn message_bytes_max(payload_bytes_max: u32) -> u32 {
    payload_bytes_max.saturating_add(payload_bytes_max / 8).saturating_add(64)
}

/// Parameters of permessage-deflate that both sides keep to. Its [`fmt::Display`] is the value of the answer's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The window of what the server sends, where the client bounds it.
    server_window_bits: Option<u8>,
    /// The window of what the client sends, where it lets the server say.
    client_window_bits: Option<u8>,
    /// Each message of the client is compressed by itself.
    client_resets: bool,
}

impl Agreed {
    /// The window of what the server sends, bytes as a power of two.
    #[must_use]
    pub fn window_bits(self) -> u8 {
        self.server_window_bits.unwrap_or(WINDOW_BITS_MAX)
    }

    /// The window of what the client sends, if its messages refer back to those before.
    #[must_use]
    pub fn window(self) -> Option<Window> {
        (!self.client_resets).then(|| Window::new(self.client_window_bits.unwrap_or(WINDOW_BITS_MAX)))
    }
}

impl fmt::Display for Agreed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("permessage-deflate; server_no_context_takeover")?;
        if self.client_resets {
            out.write_str("; client_no_context_takeover")?;
        }
        if let Some(bits) = self.server_window_bits {
            write!(out, "; server_max_window_bits={bits}")?;
        }
        if let Some(bits) = self.client_window_bits {
            write!(out, "; client_max_window_bits={bits}")?;
        }
        Ok(())
    }
}

/// Takes the client's first offer (`extensions`: the values of `Sec-WebSocket-Extensions`) that can be kept to as it
/// stands; `None` where there is none. What the server sends refers back up to `2^window_bits_min` bytes at least: an
/// offer that allows less is declined, as is one that has a parameter unknown, twice or of a wrong value (RFC 7692
/// section 7.1), and one whose [`Window`] takes more than `window_bytes_max`.
///
/// ```
/// let agreed = proto::deflate::agree(&["permessage-deflate; client_max_window_bits"], 15, 4096).unwrap().unwrap();
/// let answer = "permessage-deflate; server_no_context_takeover; client_max_window_bits=9";
/// assert_eq!(agreed.to_string(), answer);
/// assert_eq!(agreed.window().unwrap().bytes_max(), 512);
/// ```
///
/// # Errors
/// [`BadExtensions`] where a value is no list of extensions (RFC 6455 section 9.1).
pub fn agree(
    extensions: &[&str],
    window_bits_min: u8,
    window_bytes_max: usize,
) -> Result<Option<Agreed>, BadExtensions> {
    let mut taken = None;
    for value in extensions {
        let mut rest = Rest(value);
        loop {
            rest.space();
            // An element of a list may be empty (RFC 9110 section 5.6.1).
            if !rest.0.is_empty() && !rest.0.starts_with(',') {
                let name = rest.token()?;
                let mut offer =
                    Some(Agreed { server_window_bits: None, client_window_bits: None, client_resets: false });
                let mut seen = [false; 4];
                while let Some((parameter, value)) = rest.parameter()? {
                    offer = offer.and_then(|offer| offer.with(parameter, value, &mut seen));
                }
                let keeps = |offer: &Agreed| {
                    name.eq_ignore_ascii_case("permessage-deflate")
                        && offer.window_bits() >= window_bits_min
                        && offer.window().is_none_or(|window| window.bytes_max() <= window_bytes_max)
                };
                taken = taken.or(offer.map(Agreed::narrowed).filter(keeps));
            }
            if rest.0.is_empty() {
                break;
            }
            rest.0 = rest.0.strip_prefix(',').ok_or(BadExtensions)?;
        }
    }
    Ok(taken)
}

impl Agreed {
    /// With as small a window of the client as it lets the server say.
    fn narrowed(self) -> Self {
        let narrow = |bits: u8| if self.client_resets { bits } else { bits.min(CLIENT_WINDOW_BITS) };
        Self { client_window_bits: self.client_window_bits.map(narrow), ..self }
    }

    /// With one more parameter; `None` where that cannot be.
    fn with(mut self, parameter: &str, value: Option<&str>, seen: &mut [bool; 4]) -> Option<Self> {
        let bits = |digits: &str| match digits.parse() {
            Ok(bits @ 8..=WINDOW_BITS_MAX) if !digits.starts_with(['0', '+']) => Some(bits),
            _ => None,
        };
        let at = match (parameter, value) {
            ("server_no_context_takeover", None) => 0,
            ("client_no_context_takeover", None) => {
                self.client_resets = true;
                1
            }
            ("server_max_window_bits", Some(digits)) => {
                self.server_window_bits = Some(bits(digits)?);
                2
            }
            ("client_max_window_bits", digits) => {
                self.client_window_bits = Some(digits.map_or(Some(WINDOW_BITS_MAX), bits)?);
                3
            }
            _ => return None,
        };
        (!std::mem::replace(&mut seen[at], true)).then_some(self)
    }
}

/// What is left of a header's value.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    fn space(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t']);
    }

    fn token(&mut self) -> Result<&'a str, BadExtensions> {
        let end = self.0.find(|letter| !is_token(letter)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        if token.is_empty() { Err(BadExtensions) } else { Ok(token) }
    }

    /// The next `; name`, `; name=value` or `; name="value"`; a value in quotes must be a token as well (RFC 6455
    /// section 9.1), so that nothing need be unescaped but what is escaped for no reason, which nobody does.
    fn parameter(&mut self) -> Result<Option<(&'a str, Option<&'a str>)>, BadExtensions> {
        self.space();
        let Some(rest) = self.0.strip_prefix(';') else { return Ok(None) };
        self.0 = rest;
        self.space();
        let name = self.token()?;
        self.space();
        let Some(rest) = self.0.strip_prefix('=') else { return Ok(Some((name, None))) };
        self.0 = rest;
        self.space();
        let quoted = self.0.strip_prefix('"');
        self.0 = quoted.unwrap_or(self.0);
        let value = self.token()?;
        if quoted.is_some() {
            self.0 = self.0.strip_prefix('"').ok_or(BadExtensions)?;
        }
        Ok(Some((name, Some(value))))
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(letter)
}

/// Compresses messages, each by itself. Holds some 300 KiB: one serves a thread.
pub struct Deflater {
    state: Compress,
}

impl fmt::Debug for Deflater {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Deflater").finish_non_exhaustive()
    }
}

impl Default for Deflater {
    fn default() -> Self {
        Self::new(WINDOW_BITS_MAX)
    }
}

impl Deflater {
    /// One that refers back at most `2^window_bits` bytes.
    ///
    /// # Panics
    /// Where `window_bits` is not of [`WINDOW_BITS_MIN`] to [`WINDOW_BITS_MAX`].
    #[must_use]
    pub fn new(window_bits: u8) -> Self {
        Self { state: Compress::new_with_window_bits(Compression::new(LEVEL), false, window_bits) }
    }

    /// Appends `payload` as a compressed message.
    pub fn deflate(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        if payload.is_empty() {
            // RFC 7692 section 7.2.3.6.
            return out.push(0);
        }
        self.state.reset();
        let mut rest = payload;
        loop {
            out.reserve(rest.len() / 2 + 64);
            let before = self.state.total_in();
            let status = self.state.compress_vec(rest, out, FlushCompress::Sync);
            assert!(matches!(status, Ok(Status::Ok | Status::BufError)), "deflating goes on for ever");
            rest = &rest[(self.state.total_in() - before) as usize..];
            // It stopped for want of input, and not of room: all is flushed.
            if rest.is_empty() && out.len() < out.capacity() {
                break;
            }
        }
        debug_assert!(out.ends_with(&TAIL));
        out.truncate(out.len() - TAIL.len());
    }
}

/// The last bytes of what a peer sent, inflated: its next compressed message may refer back to them (RFC 7692 section
/// 7.2.3.2). Empty until it has sent a compressed message.
#[derive(Debug, Clone)]
pub struct Window {
    bytes: Vec<u8>,
    bits: u8,
}

impl Window {
    /// An empty one of `2^bits` bytes.
    #[must_use]
    pub fn new(bits: u8) -> Self {
        // zlib's smallest, whatever was said.
        Self { bytes: Vec::new(), bits: bits.max(WINDOW_BITS_MIN) }
    }

    /// What it takes at most, bytes as a power of two.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// What it takes at most, bytes.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        1 << self.bits
    }

    /// What it takes now, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.capacity()
    }

    fn push(&mut self, payload: &[u8]) {
        let most = self.bytes_max();
        let new = &payload[payload.len().saturating_sub(most)..];
        let kept = self.bytes.len().min(most - new.len());
        self.bytes.drain(..self.bytes.len() - kept);
        if kept + new.len() > self.bytes.capacity() {
            // Doubling, as a Vec does, but not beyond what may be kept.
            let room = (kept + new.len()).max(2 * self.bytes.capacity()).min(most);
            self.bytes.reserve_exact(room - kept);
        }
        self.bytes.extend_from_slice(new);
    }
}

/// Inflates messages, each by itself or, while it has a [`Window`], on those before. Empty until the first one; then some
/// 50 KiB: one serves a thread.
#[derive(Default)]
pub struct Inflater {
    state: Option<Decompress>,
    out: Vec<u8>,
    window: Option<Window>,
}

impl fmt::Debug for Inflater {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Inflater").field("out", &self.out.capacity()).finish_non_exhaustive()
    }
}

impl Inflater {
    /// Goes on with the messages of a peer whose window this is.
    pub fn resume(&mut self, window: Option<Window>) {
        self.window = window;
    }

    /// Gives the peer's window back; the next messages are of another one.
    pub fn suspend(&mut self) -> Option<Window> {
        self.window.take()
    }

    /// What the compressed `message` becomes. Bounded: at most one byte beyond `payload_bytes_max` is made.
    ///
    /// # Errors
    /// [`BadMessage::TooLarge`] beyond the limit, [`BadMessage::Deflated`] where it is no stream of DEFLATE.
    pub(crate) fn inflate(&mut self, message: &[u8], payload_bytes_max: u32) -> Result<&[u8], BadMessage> {
        let most = if planted!("deflate_limit") { u32::MAX as usize } else { payload_bytes_max as usize };
        let state = self.state.get_or_insert_with(|| Decompress::new(false));
        state.reset(false);
        self.out.clear();
        self.out.shrink_to(KEPT_BYTES_MAX);
        let before = self.window.as_ref().map_or(&[][..], |window| &window.bytes);
        if !before.is_empty() {
            state.set_dictionary(before).map_err(|_| BadMessage::Deflated)?;
        }
        let mut streams = 1;
        for mut rest in [message, &TAIL] {
            // All input taken and no room left: what it has already understood may be waiting for room.
            while !rest.is_empty() || self.out.len() == self.out.capacity() {
                if self.out.len() == self.out.capacity() {
                    // Doubling, as a Vec does, but not beyond what may come.
                    let room = (2 * self.out.len()).max(3 * message.len()).max(256).min(most + 1);
                    self.out.reserve_exact(room - self.out.len());
                }
                let taken = state.total_in();
                let status = state.decompress_vec(rest, &mut self.out, FlushDecompress::Sync);
                rest = &rest[(state.total_in() - taken) as usize..];
                if self.out.len() > most {
                    return Err(BadMessage::TooLarge);
                }
                match status {
                    Ok(Status::StreamEnd) if streams < STREAMS_MAX => {
                        // What follows is another stream on the same window.
                        streams += 1;
                        state.reset(false);
                        let new = &self.out[self.out.len().saturating_sub(WINDOW_BYTES)..];
                        let old = &before[before.len().saturating_sub(WINDOW_BYTES - new.len())..];
                        let window = if old.is_empty() { Cow::Borrowed(new) } else { Cow::Owned([old, new].concat()) };
                        if !window.is_empty() {
                            state.set_dictionary(&window).map_err(|_| BadMessage::Deflated)?;
                        }
                    }
                    Ok(Status::StreamEnd) | Err(_) => return Err(BadMessage::Deflated),
                    // It stops for want of input or of room only.
                    Ok(Status::Ok | Status::BufError) if rest.is_empty() || self.out.len() == self.out.capacity() => {}
                    Ok(Status::Ok | Status::BufError) => return Err(BadMessage::Deflated),
                }
            }
        }
        if let Some(window) = &mut self.window {
            window.push(&self.out);
        }
        Ok(&self.out)
    }

    /// What its output takes, bytes.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.out.capacity()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(value: &str) -> Option<String> {
        agree(&[value], WINDOW_BITS_MIN, usize::MAX).expect("a list").map(|agreed| agreed.to_string())
    }

    fn deflated(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Deflater::default().deflate(payload, &mut out);
        out
    }

    #[test]
    fn an_offer_is_taken_as_it_stands_or_not_at_all() {
        let plain = "permessage-deflate; server_no_context_takeover";
        let with = |more: &str| Some(format!("{plain}{more}"));
        let resets = "; client_no_context_takeover";
        for (offer, expected) in [
            ("permessage-deflate", with("")),
            ("PerMessage-Deflate;server_no_context_takeover", with("")),
            ("permessage-deflate; client_no_context_takeover", with(resets)),
            ("permessage-deflate; client_max_window_bits", with("; client_max_window_bits=9")),
            ("permessage-deflate; client_max_window_bits=\"10\"", with("; client_max_window_bits=9")),
            ("permessage-deflate; client_max_window_bits=8", with("; client_max_window_bits=8")),
            (
                "permessage-deflate; client_max_window_bits; client_no_context_takeover",
                with("; client_no_context_takeover; client_max_window_bits=15"),
            ),
            ("permessage-deflate; server_max_window_bits=15", with("; server_max_window_bits=15")),
            ("permessage-deflate; server_max_window_bits=9", with("; server_max_window_bits=9")),
            // zlib makes no window of 8.
            ("permessage-deflate; server_max_window_bits=8", None),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=7", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; server_max_window_bits=09", None),
            ("permessage-deflate; server_max_window_bits=+9", None),
            ("permessage-deflate; client_max_window_bits=a", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", None),
            ("permessage-deflate; unknown", None),
            ("x-webkit-deflate-frame", None),
            ("", None),
            (" , ,", None),
            // The first that can be kept to.
            ("mux; max=3, permessage-deflate; server_max_window_bits=8, permessage-deflate", with("")),
            ("permessage-deflate; client_max_window_bits , permessage-deflate", with("; client_max_window_bits=9")),
        ] {
            assert_eq!(answer(offer), expected, "{offer}");
        }
        let narrow = "permessage-deflate; server_max_window_bits=10";
        let taken = |offers: &[&str], bytes| agree(offers, WINDOW_BITS_MAX, bytes).unwrap().map(|it| it.to_string());
        assert_eq!(taken(&[narrow], usize::MAX), None, "what is shared by sessions has one window");
        assert_eq!(taken(&[narrow, "permessage-deflate"], 32_768), with(""));
        assert_eq!(taken(&["permessage-deflate"], 32_767), None, "its window is beyond what may be kept");
        let offers = ["permessage-deflate, permessage-deflate; client_max_window_bits"];
        assert_eq!(taken(&offers, 32_767), with("; client_max_window_bits=9"));
        assert_eq!(taken(&offers, 511), None);
        assert_eq!(taken(&["permessage-deflate; client_no_context_takeover"], 0), with(resets));
    }

    #[test]
    fn what_is_no_list_of_extensions_fails_the_handshake() {
        for bad in
            [";", "permessage-deflate;", "permessage-deflate; =1", "a b", "permessage-deflate; a=", "a; b=\"c", "é"]
        {
            assert_eq!(agree(&[bad], WINDOW_BITS_MIN, 0), Err(BadExtensions), "{bad}");
            assert_eq!(agree(&["permessage-deflate", bad], WINDOW_BITS_MIN, 0), Err(BadExtensions), "{bad}");
        }
    }

    #[test]
    fn rfc7692_7_2_3_the_examples_of_the_specification() {
        let inflated = |message: &[u8]| Inflater::default().inflate(message, 100).map(<[u8]>::to_vec);
        // One block; another stored; with BFINAL; two blocks.
        for message in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ] {
            assert_eq!(inflated(message).as_deref(), Ok(&b"Hello"[..]), "{message:x?}");
        }
        assert_eq!(inflated(&[0]).as_deref(), Ok(&b""[..]));
        assert_eq!(deflated(b""), [0]);
        // It refers to a message before: no context is taken over.
        assert_eq!(inflated(&[0xf2, 0x00, 0x11, 0x00, 0x00]), Err(BadMessage::Deflated));
        assert_eq!(inflated(&[0xff]), Err(BadMessage::Deflated));
        assert_eq!(crate::websocket::Failure::from(BadMessage::Deflated).code(), 1007);
    }

    #[test]
    fn a_stream_that_ends_within_a_message_is_followed_by_another_on_the_same_window() {
        // "Hello" and its end, then a copy of it.
        let mut message = vec![0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        message.extend_from_slice(&[0xf2, 0x00, 0x11, 0x00, 0x00]);
        assert_eq!(Inflater::default().inflate(&message, 100), Ok(&b"HelloHello"[..]));
        let ends = |count: usize| [3, 0].repeat(count);
        assert_eq!(Inflater::default().inflate(&ends(STREAMS_MAX - 1), 100), Ok(&b""[..]));
        assert_eq!(Inflater::default().inflate(&ends(STREAMS_MAX), 100), Err(BadMessage::Deflated));
    }

    #[test]
    fn what_inflates_beyond_the_limit_is_refused_before_it_is_made() {
        let (bomb, mut inflater) = (deflated(&vec![7; 10 << 20]), Inflater::default());
        assert!(bomb.len() < 20_000, "{}", bomb.len());
        assert_eq!(inflater.inflate(&bomb, 100_000), Err(BadMessage::TooLarge));
        assert!(inflater.buffer_bytes() <= 100_001, "{}", inflater.buffer_bytes());
        // The limit itself, and one more.
        assert_eq!(inflater.inflate(&deflated(&[7; 1000]), 1000).map(<[u8]>::len), Ok(1000));
        assert_eq!(inflater.inflate(&deflated(&[7; 1001]), 1000), Err(BadMessage::TooLarge));
        assert!(inflater.buffer_bytes() <= KEPT_BYTES_MAX);
    }

    /// Found by fuzzing: a message whose last block does not end was cut to the room that was there at its last byte.
    #[test]
    fn what_was_understood_when_the_room_was_full_is_not_lost() {
        let message = [0xec, 0xc1, 0x31, 1, 0, 0, 0, 0xc2, 0xa0, 0x18, 0xeb, 0xdf, 0xd4, 0x16, 0x5e, 0x40, 1, 0];
        assert_eq!(Inflater::default().inflate(&message, 70_000), Ok(&[23; 4100][..]), "as zlib and miniz_oxide do");
        assert_eq!(Inflater::default().inflate(&message, 4099), Err(BadMessage::TooLarge));
    }

    #[test]
    fn what_cannot_be_compressed_is_within_what_a_message_may_be() {
        let noise: Vec<u8> = (0..100_000_u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
        for bytes in [0, 1, 100, 65_536, noise.len()] {
            assert!(deflated(&noise[..bytes]).len() <= message_bytes_max(bytes as u32) as usize);
        }
    }

    /// A peer that takes its context over, as zlib does by itself.
    fn taking_over(bits: u8, payloads: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut state = Compress::new_with_window_bits(Compression::new(9), false, bits);
        let message = |payload: &Vec<u8>| {
            if payload.is_empty() {
                return vec![0];
            }
            let mut out = Vec::with_capacity(2 * payload.len() + 100);
            state.compress_vec(payload, &mut out, FlushCompress::Sync).unwrap();
            out.truncate(out.len() - TAIL.len());
            out
        };
        payloads.iter().map(message).collect()
    }

    #[test]
    fn a_message_may_refer_back_to_the_window_and_no_further() {
        let noise =
            |from: u32| (from..from + 400).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect::<Vec<_>>();
        let payloads = [noise(0), noise(0), noise(1000), noise(0)];
        let messages = taking_over(WINDOW_BITS_MAX, &payloads);
        assert!(messages[1].len() < 20 && messages[3].len() < 20, "they refer back");
        let inflated = |window: Option<Window>| {
            let mut inflater = Inflater::default();
            inflater.resume(window);
            let results: Vec<_> =
                messages.iter().map(|message| inflater.inflate(message, 400).map(<[u8]>::to_vec)).collect();
            (results, inflater.suspend().map_or(0, |window| window.bytes()))
        };
        let (results, bytes) = inflated(Some(Window::new(WINDOW_BITS_MAX)));
        assert_eq!(results, payloads.clone().map(Ok));
        assert!((800..=1600).contains(&bytes), "{bytes}");
        // Whoever says 512 and refers back further is refused; nothing more was kept.
        let (results, bytes) = inflated(Some(Window::new(9)));
        assert_eq!(results[..3], payloads[..3].iter().cloned().map(Ok).collect::<Vec<_>>());
        assert_eq!((&results[3], bytes), (&Err(BadMessage::Deflated), 512));
        let (results, _) = inflated(None);
        assert_eq!(results[1], Err(BadMessage::Deflated), "without a window each stands by itself");
    }

    #[test]
    fn a_stream_that_ends_within_a_message_keeps_the_window_of_those_before() {
        let mut inflater = Inflater::default();
        inflater.resume(Some(Window::new(9)));
        assert_eq!(inflater.inflate(&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], 100), Ok(&b"Hello"[..]));
        // An empty last block, then a copy of what was before it (RFC 7692 section 7.2.3.2).
        assert_eq!(inflater.inflate(&[3, 0, 0xf2, 0x00, 0x11, 0x00, 0x00], 100), Ok(&b"Hello"[..]));
    }

    proptest! {
        #[test]
        fn what_a_peer_deflated_on_its_window_inflates_to_the_same(
            payloads in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..2000),
                prop::collection::vec(0..3_u8, 0..60_000),
                ".{0,300}".prop_map(String::into_bytes),
            ], 1..8),
            bits in WINDOW_BITS_MIN..=WINDOW_BITS_MAX,
        ) {
            let (mut inflater, mut window) = (Inflater::default(), Some(Window::new(bits)));
            for (payload, message) in payloads.iter().zip(taking_over(bits, &payloads)) {
                inflater.resume(window.take());
                prop_assert_eq!(inflater.inflate(&message, payload.len() as u32), Ok(&payload[..]));
                window = inflater.suspend();
                prop_assert!(window.as_ref().is_some_and(|window| window.bytes() <= window.bytes_max()));
                // Another peer's message meanwhile.
                let mut other = Vec::new();
                Deflater::default().deflate(payload, &mut other);
                prop_assert_eq!(inflater.inflate(&other, payload.len() as u32), Ok(&payload[..]));
            }
        }

        #[test]
        fn what_was_deflated_inflates_to_the_same(
            payloads in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..2000),
                prop::collection::vec(0..3_u8, 0..60_000),
                ".{0,300}".prop_map(String::into_bytes),
            ], 1..6),
            window_bits in WINDOW_BITS_MIN..=WINDOW_BITS_MAX,
        ) {
            let (mut deflater, mut inflater) = (Deflater::new(window_bits), Inflater::default());
            for payload in payloads {
                let mut message = Vec::new();
                deflater.deflate(&payload, &mut message);
                prop_assert_eq!(inflater.inflate(&message, payload.len() as u32), Ok(&payload[..]));
            }
        }
    }

    #[test]
    fn smoke_of_the_fuzz_body() {
        crate::fuzz::smoke(crate::deflate_fuzz::run);
    }
}
