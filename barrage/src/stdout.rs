//! Standard output, for people and for programs that read it. A reader that has gone (`| head`) is no fault.

use std::io::{ErrorKind, Write as _};

/// Writes `line` and its end.
///
/// # Errors
/// It cannot be written, but not because nobody reads on.
pub(crate) fn say(line: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(line.as_bytes()).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
