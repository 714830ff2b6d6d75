//! What bounds a driver's turn and its waiting: the same for every driver.

use std::io;

/// Reads in a turn; the others have theirs in the next. At some microseconds each a turn stays near a millisecond.
pub(super) const READS_A_TURN: usize = 256;
/// Accepted connections in a turn, of each listener.
pub(super) const ACCEPTS_A_TURN: usize = 64;
/// Inputs in a turn.
pub(super) const INPUTS_A_TURN: usize = 256;
/// The core's one read buffer: what one read takes at most.
pub(super) const READ_BUFFER_BYTES: usize = 64 * 1024;
/// Accepting pauses this long when there are no descriptors or no memory: connections wait in the backlog meanwhile.
pub(super) const ACCEPT_PAUSE_MS: u64 = 50;
/// Asks that are handed over together: a turn has seldom more.
pub(super) const ASKS_A_BATCH: usize = 64;
/// How soon asks are offered again that were given back.
pub(super) const ASK_PAUSE_MS: u64 = 2;
/// Longest sleep: only keeps the clock's arithmetic in bounds.
pub(super) const SLEEP_MS_MAX: u64 = 60_000;
/// How long a closed connection may wait for its peer to close too, milliseconds. Then it is closed for good, and an
/// RST may overtake bytes that the peer has not yet acknowledged.
pub(super) const LINGER_MS: u64 = 3_000;
/// Connections that linger; over it the oldest is closed for good. They are a descriptor each, and no more.
pub(super) const LINGERING_MAX: usize = 16 * 1024;

/// Whether accepting failed because of the one connection that would have been accepted (`accept(2)`, "Error handling"),
/// rather than for want of descriptors or memory.
pub(super) fn gave_up(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::ENOSPC))
}
