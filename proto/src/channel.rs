//! Channel names: the one parser (rule 37), and the partition that a name belongs to (rule 3).

use std::fmt;

/// Longest ID, bytes: a UUID or a ULID fits with room to spare, and a route's key stays short.
pub const ID_BYTES_MAX: usize = 64;

/// Longest channel name, bytes: `direct:<a>~<b>`.
pub const CHANNEL_BYTES_MAX: usize = "direct:".len() + ID_BYTES_MAX + 1 + ID_BYTES_MAX;

/// What is delivered on (`room:1000`, `user:42`, `all`), borrowed from its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel<'a> {
    /// Whoever is watching now.
    Room(&'a str),
    /// All sessions of one user.
    User(&'a str),
    /// Every session.
    All,
}

/// Not a channel's name. The sender's fault, no use retrying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a channel: want `room:<id>`, `user:<id>` or `all`, an id being 1-64 of A-Z a-z 0-9 _ . -")]
pub struct BadChannel;

impl<'a> Channel<'a> {
    /// Reads a channel's name.
    ///
    /// ```
    /// use proto::channel::Channel;
    /// assert_eq!(Channel::parse("room:game.7"), Ok(Channel::Room("game.7")));
    /// assert!(Channel::parse("room:").is_err());
    /// ```
    ///
    /// # Errors
    /// [`BadChannel`] for an unknown kind or an ID of other letters or length.
    pub fn parse(name: &'a str) -> Result<Self, BadChannel> {
        match name.split_once(':') {
            Some(("room", id)) if is_id(id) => Ok(Self::Room(id)),
            Some(("user", id)) if is_id(id) => Ok(Self::User(id)),
            None if name == "all" => Ok(Self::All),
            _ => Err(BadChannel),
        }
    }
}

impl fmt::Display for Channel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Room(id) => write!(f, "room:{id}"),
            Self::User(id) => write!(f, "user:{id}"),
            Self::All => f.write_str("all"),
        }
    }
}

/// Whether `id` may name a room, a user, a device or a client message: 1-64 of `A-Z a-z 0-9 _ . -`.
#[must_use]
pub fn is_id(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Whether `name` matches `pattern`: the same name, or a pattern ending in `*` whose rest `name` begins with.
///
/// ```
/// use proto::channel::matches;
/// assert!(matches("room:game.*", "room:game.7"));
/// assert!(!matches("room:game.7", "room:game.77"));
/// ```
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

/// The partition of `key` out of `partitions`: FNV-1a, 64 bits, folded by modulo. Ours and not the client library's,
/// so that it is the same whatever writes to the log, for ever.
#[must_use]
pub fn partition(key: &str, partitions: u32) -> u32 {
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (hash % u64::from(partitions.max(1))) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for name in ["room:1000", "room:game.7", "user:a_B-9", "all"] {
            assert_eq!(Channel::parse(name).unwrap().to_string(), name);
        }
        let long = format!("room:{}", "x".repeat(ID_BYTES_MAX + 1));
        for bad in ["", "room", "room:", "room:a b", "room:ä", "all:x", "group:7", "room:a:b", long.as_str()] {
            assert_eq!(Channel::parse(bad), Err(BadChannel), "{bad}");
        }
    }

    #[test]
    fn a_partition_never_moves() {
        // Written down on the first day. A change here loses the order of every room.
        assert_eq!(["room:1", "room:1000", "user:42", "all"].map(|key| partition(key, 64)), [35, 17, 2, 36]);
    }
}
