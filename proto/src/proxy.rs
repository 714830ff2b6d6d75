//! The PROXY protocol, versions 1 and 2 (haproxy's `doc/proxy-protocol.txt`): who stands behind the proxy that has
//! connected. Read from listed addresses only, since whoever may send it may claim any address.
//!
//! Invariants, each the name of a test:
//! - `a_long_header_is_refused_on_its_length`: nothing waits for more than [`HEADER_BYTES_MAX`].
//! - `a_header_in_pieces_is_the_same_header`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What version 2 begins with.
pub const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Longest header of version 1, bytes with its line end (specification, section 2.1).
const LINE_BYTES_MAX: usize = 107;

/// Longest header, bytes: version 2 counts up to 65,551, but what proxies add (TLS details, unique IDs) stays within
/// hundreds. Over it: close.
pub const HEADER_BYTES_MAX: usize = 4096;

/// A header that the specification does not allow. The proxy's fault, no use retrying: close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadProxy {
    /// Neither version's first bytes.
    #[error("not a PROXY header")]
    NotProxy,
    /// Version 1.
    #[error("a PROXY line that cannot be read")]
    Line,
    /// Version 2: a version, a command or an address block that does not fit.
    #[error("a PROXY version 2 header that cannot be read")]
    Binary,
    /// Over [`HEADER_BYTES_MAX`].
    #[error("a PROXY header of {0} bytes")]
    TooLarge(usize),
}

/// Reads a header: the client's address (`None`: the proxy speaks for itself, or does not know), and how many bytes
/// it took. `None` while it is incomplete.
///
/// ```
/// let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\nGET /";
/// let client = "192.0.2.7:56324".parse().ok();
/// assert_eq!(proto::proxy::parse(line), Ok(Some((client, 45))));
/// ```
///
/// # Errors
/// [`BadProxy`] as soon as the bytes that are there cannot begin a header.
pub fn parse(bytes: &[u8]) -> Result<Option<(Option<SocketAddr>, usize)>, BadProxy> {
    let begins = |with: &[u8]| with.starts_with(&bytes[..bytes.len().min(with.len())]);
    if begins(b"PROXY ") {
        line(bytes)
    } else if begins(SIGNATURE) {
        binary(bytes)
    } else {
        Err(BadProxy::NotProxy)
    }
}

fn line(bytes: &[u8]) -> Result<Option<(Option<SocketAddr>, usize)>, BadProxy> {
    let judged = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = judged.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < LINE_BYTES_MAX { Ok(None) } else { Err(BadProxy::Line) };
    };
    let text = std::str::from_utf8(&judged[..end]).map_err(|_| BadProxy::Line)?;
    let mut fields = text.split(' ').skip(1);
    let mut field = || fields.next().ok_or(BadProxy::Line);
    let source = match field()? {
        // Whatever follows is to be ignored.
        "UNKNOWN" => None,
        family @ ("TCP4" | "TCP6") => {
            let (source, destination) = (ip(family, field()?)?, ip(family, field()?)?);
            let (port, _) = (port(field()?)?, port(field()?)?);
            if fields.next().is_some() || destination.is_ipv4() != source.is_ipv4() {
                return Err(BadProxy::Line);
            }
            Some(SocketAddr::new(source, port))
        }
        _ => return Err(BadProxy::Line),
    };
    Ok(Some((source, end + 2)))
}

fn ip(family: &str, text: &str) -> Result<IpAddr, BadProxy> {
    let parsed = match family {
        "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::V4),
        _ => text.parse::<Ipv6Addr>().map(IpAddr::V6),
    };
    parsed.map_err(|_| BadProxy::Line)
}

fn port(text: &str) -> Result<u16, BadProxy> {
    let plain = !text.starts_with('+') && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().map_err(|_| BadProxy::Line) } else { Err(BadProxy::Line) }
}

fn binary(bytes: &[u8]) -> Result<Option<(Option<SocketAddr>, usize)>, BadProxy> {
    let Some(&version_command) = bytes.get(12) else {
        return Ok(None);
    };
    if !matches!(version_command, 0x20 | 0x21) {
        return Err(BadProxy::Binary);
    }
    let Some(&[family, high, low]) = bytes[13..].first_chunk() else {
        return Ok(None);
    };
    let end = 16 + usize::from(u16::from_be_bytes([high, low]));
    if end > HEADER_BYTES_MAX {
        return Err(BadProxy::TooLarge(end));
    }
    let Some(block) = bytes.get(16..end) else {
        return Ok(None);
    };
    // LOCAL (0x20): a health check of the proxy's own; its addresses are to be ignored, and so are those of families
    // that no client of ours has (datagrams, Unix sockets, unspecified).
    let source = match (version_command, family) {
        (0x21, 0x11) => {
            let block: &[u8; 12] = block.first_chunk().ok_or(BadProxy::Binary)?;
            let [a, b, c, d, _, _, _, _, mut high, mut low, other, _] = *block;
            if planted!("sniff_port") {
                (high, low) = (low, other);
            }
            Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low])))
        }
        (0x21, 0x21) => {
            let block: &[u8; 36] = block.first_chunk().ok_or(BadProxy::Binary)?;
            let (source, rest) = block.split_first_chunk::<16>().ok_or(BadProxy::Binary)?;
            Some(SocketAddr::new(Ipv6Addr::from(*source).into(), u16::from_be_bytes([rest[16], rest[17]])))
        }
        _ => None,
    };
    Ok(Some((source, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<SocketAddr> {
        Some(text.parse().expect("an address"))
    }

    /// A header of version 2.
    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).expect("short").to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, block].concat()
    }

    const BLOCK_4: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb];

    #[test]
    fn lines_of_version_1_are_read() {
        let of = |line: &str| parse(line.as_bytes()).map(|parsed| parsed.expect("complete").0);
        assert_eq!(of("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"), Ok(address("192.0.2.7:56324")));
        assert_eq!(of("PROXY TCP6 2001:db8::7 ::1 65535 0\r\n"), Ok(address("[2001:db8::7]:65535")));
        assert_eq!(of("PROXY UNKNOWN\r\n"), Ok(None));
        assert_eq!(of("PROXY UNKNOWN ffff:f...f ffff:f...f 65535 65535\r\n"), Ok(None));
        for bad in [
            "PROXY \r\n",
            "PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n",
            "PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n",
            "PROXY TCP4 2001:db8::7 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 \r\n",
        ] {
            assert_eq!(of(bad), Err(BadProxy::Line), "{bad}");
        }
    }

    #[test]
    fn headers_of_version_2_are_read() {
        assert_eq!(parse(&v2(0x21, 0x11, BLOCK_4)), Ok(Some((address("192.0.2.7:56324"), 28))));
        let block_6 = [&Ipv6Addr::LOCALHOST.octets()[..], &[0; 16], &[0, 80, 0, 81]].concat();
        assert_eq!(parse(&v2(0x21, 0x21, &block_6)), Ok(Some((address("[::1]:80"), 52))));
        // What a proxy adds behind the addresses is skipped.
        assert_eq!(
            parse(&v2(0x21, 0x11, &[BLOCK_4, &[4, 0, 1, 0]].concat())),
            Ok(Some((address("192.0.2.7:56324"), 32)))
        );
        // Its own connection; no family; datagrams; Unix sockets.
        for (command, family) in [(0x20, 0x11), (0x21, 0x00), (0x21, 0x12), (0x21, 0x31)] {
            assert_eq!(parse(&v2(command, family, BLOCK_4)), Ok(Some((None, 28))));
        }
        for (command, family) in [(0x11, 0x11), (0x22, 0x11), (0x21, 0x21)] {
            assert_eq!(parse(&v2(command, family, BLOCK_4)), Err(BadProxy::Binary));
        }
        assert_eq!(parse(&v2(0x21, 0x11, &BLOCK_4[..11])), Err(BadProxy::Binary));
    }

    #[test]
    fn a_long_header_is_refused_on_its_length() {
        let long = v2(0x21, 0x11, &[0; HEADER_BYTES_MAX - 15]);
        assert_eq!(parse(&long[..16]), Err(BadProxy::TooLarge(HEADER_BYTES_MAX + 1)));
        let line = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
        assert_eq!(parse(&line[..106]), Ok(None));
        assert_eq!(parse(&line[..107]), Err(BadProxy::Line));
        assert_eq!(parse(b"PROXIES"), Err(BadProxy::NotProxy));
    }

    #[test]
    fn a_header_in_pieces_is_the_same_header() {
        let line = b"PROXY TCP6 2001:db8::7 ::1 56324 443\r\n".to_vec();
        for header in [line, v2(0x21, 0x11, BLOCK_4), v2(0x20, 0, &[])] {
            let whole = [&header[..], b"GET / HTTP/1.1"].concat();
            for end in 0..header.len() {
                assert_eq!(parse(&whole[..end]), Ok(None), "{end}");
            }
            for end in header.len()..=whole.len() {
                assert!(matches!(parse(&whole[..end]), Ok(Some((_, consumed))) if consumed == header.len()));
            }
        }
    }
}
