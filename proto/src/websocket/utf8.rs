//! UTF-8 across fragments and reads: judged as it comes, keeping no more than the beginning of one character.

use super::Failure;

/// UTF-8 that comes in pieces: at most three bytes of a character whose end has not come.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    open: [u8; 4],
    open_bytes: usize,
}

impl Utf8 {
    /// # Errors
    /// [`Failure::Utf8`] as soon as no continuation could make it right.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while self.open_bytes > 0 {
            let Some((&next, after)) = bytes.split_first() else {
                return Ok(());
            };
            self.open[self.open_bytes] = next;
            bytes = after;
            match std::str::from_utf8(&self.open[..=self.open_bytes]) {
                Ok(_) => self.open_bytes = 0,
                Err(error) if error.error_len().is_none() => self.open_bytes += 1,
                Err(_) if planted!("websocket_utf8") => self.open_bytes = 0,
                Err(_) => return Err(Failure::Utf8),
            }
        }
        if let Err(error) = simdutf8::compat::from_utf8(bytes) {
            if error.error_len().is_some() {
                return Err(Failure::Utf8);
            }
            let open = &bytes[error.valid_up_to()..];
            self.open[..open.len()].copy_from_slice(open);
            self.open_bytes = open.len();
        }
        Ok(())
    }

    /// # Errors
    /// [`Failure::Utf8`] if a character has begun and not ended.
    pub(super) fn end(&mut self) -> Result<(), Failure> {
        if std::mem::take(&mut self.open_bytes) > 0 { Err(Failure::Utf8) } else { Ok(()) }
    }
}
