//! Lines of JSON over pipes: what the bench and its workers say to each other.

use std::io::{self, Write};
use std::os::fd::AsFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What is read at once, bytes: what a pipe holds.
const READ_BYTES: usize = 64 * 1024;

/// Lines that come in whatever pieces.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
    /// Of these, those that are known to have no end of a line among them.
    searched: usize,
}

impl Lines {
    /// Reads once; how much. 0: it is over.
    ///
    /// # Errors
    /// The system's; `WouldBlock` among them where `from` does not wait.
    pub(crate) fn read(&mut self, from: impl AsFd) -> io::Result<usize> {
        let end = self.bytes.len();
        self.bytes.resize(end + READ_BYTES, 0);
        let read = rustix::io::read(from, &mut self.bytes[end..]);
        self.bytes.truncate(end + read.unwrap_or_default());
        Ok(read?)
    }

    /// The next line, if it is whole.
    ///
    /// # Errors
    /// It is not what it should be.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some(end) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.bytes.len();
            return Ok(None);
        };
        let rest = self.bytes.split_off(self.searched + end + 1);
        self.searched = 0;
        Ok(Some(serde_json::from_slice(&std::mem::replace(&mut self.bytes, rest))?))
    }
}

/// Writes a line.
///
/// # Errors
/// The reader is gone.
pub(crate) fn write_line(out: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn lines_are_read_in_any_pieces() {
        let ((from, mut to), mut lines) = (io::pipe().unwrap(), Lines::default());
        let long = "x".repeat(3 * READ_BYTES);
        let writing = thread::spawn(move || {
            for piece in ["[1", ",2]\n\"a", "\"\n"] {
                to.write_all(piece.as_bytes()).unwrap();
            }
            write_line(&mut to, &long).unwrap();
        });
        let mut next = || loop {
            if let Some(value) = lines.next::<serde_json::Value>().unwrap() {
                return Some(value);
            }
            if lines.read(&from).unwrap() == 0 {
                return None;
            }
        };
        assert_eq!((next().unwrap(), next().unwrap()), (serde_json::json!([1, 2]), "a".into()));
        assert_eq!(next().unwrap().as_str().map(str::len), Some(3 * READ_BYTES));
        writing.join().unwrap();
        assert_eq!(next(), None);
    }
}
