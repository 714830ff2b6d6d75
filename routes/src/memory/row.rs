//! A row of the table of sessions: a name and the sessions under it, in one allocation.
//!
//! ```text
//!   row:   length of the name ▸ name (its kind's letter first) ▸ entry…      nearly always one
//!   entry: owner, 4 bytes ▸ 1: its incarnation and a dot come first ▸ length ▸ session ▸ length ▸ device
//! ```
//!
//! Lengths are LEB128. A user's session in 32 bytes or so: a million of them are what one process routes. Knows no lease.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};

use crate::By;

/// See the module's opening. Compares, and is found, by its name: see [`name`].
pub(super) struct Row(Box<[u8]>);

/// A session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// The number of the node that wrote it.
    pub(super) owner: u32,
    /// `session` is what follows the owner's incarnation and a dot.
    pub(super) short: bool,
    /// The session's ID.
    pub(super) session: &'a str,
    /// The device.
    pub(super) device: &'a str,
}

/// What the row of a name is found by.
pub(super) fn name(by: &By) -> Vec<u8> {
    let (kind, name) = match by {
        By::User(name) => (b'u', name),
        By::Key(name) => (b'k', name),
    };
    [&[kind], name.as_bytes()].concat()
}

impl Row {
    /// The sessions under a name.
    pub(super) fn new(name: &[u8], entries: &[Entry<'_>]) -> Self {
        let mut bytes = Vec::new();
        write(&mut bytes, name);
        for entry in entries {
            bytes.extend_from_slice(&entry.owner.to_le_bytes());
            bytes.push(entry.short.into());
            write(&mut bytes, entry.session.as_bytes());
            write(&mut bytes, entry.device.as_bytes());
        }
        Self(bytes.into())
    }

    /// The sessions, in the order in which they were written.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut rest = &self.0[..];
        read(&mut rest);
        std::iter::from_fn(move || {
            let (&owner, after) = rest.split_first_chunk()?;
            let (&short, after) = after.split_first()?;
            rest = after;
            let (session, device) = (read(&mut rest), read(&mut rest));
            let text = |bytes| str::from_utf8(bytes).expect("a row is made of strings");
            let (session, device) = (text(session), text(device));
            Some(Entry { owner: u32::from_le_bytes(owner), short: short > 0, session, device })
        })
    }
}

impl Borrow<[u8]> for Row {
    fn borrow(&self) -> &[u8] {
        read(&mut &self.0[..])
    }
}

impl Hash for Row {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        Borrow::<[u8]>::borrow(self).hash(hasher);
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        Borrow::<[u8]>::borrow(self) == Borrow::<[u8]>::borrow(other)
    }
}

impl Eq for Row {}

fn write(bytes: &mut Vec<u8>, part: &[u8]) {
    let mut length = part.len();
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(part);
}

/// Takes a part off `bytes`, which [`write`] wrote.
fn read<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let (mut length, mut shift) = (0, 0);
    while let Some(&byte) = bytes.split_off_first() {
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            break;
        }
    }
    bytes.split_off(..length).expect("a row holds the parts that its lengths say")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_was_put_in() {
        let long = "x".repeat(20_000);
        let entries = [
            Entry { owner: 7, short: true, session: "0.1f3a.0", device: "" },
            Entry { owner: u32::MAX, short: false, session: &long, device: "телефон" },
        ];
        for by in [By::User("42".into()), By::Key(long.clone()), By::User(String::new())] {
            let row = Row::new(&name(&by), &entries);
            assert_eq!(Borrow::<[u8]>::borrow(&row), name(&by));
            assert_eq!(row.entries().collect::<Vec<_>>(), entries);
        }
        assert_eq!(Row::new(&name(&By::User("user-000042".into())), &entries[..1]).0.len(), 28);
    }

    #[test]
    fn a_user_and_a_key_of_one_name_are_two() {
        assert!(Row::new(&name(&By::User("a".into())), &[]) != Row::new(&name(&By::Key("a".into())), &[]));
    }
}
