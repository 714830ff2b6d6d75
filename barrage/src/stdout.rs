//! Standard output, for people and for programs that read it. A reader that has gone (`| head`) is no fault.

use std::io::{ErrorKind, Write as _};

/// Writes `line` and its end; `false` where nobody reads any more.
///
/// # Errors
/// It cannot be written, but not because nobody reads on.
pub(crate) fn say(line: &str) -> anyhow::Result<bool> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(line.as_bytes()).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}
