//! A connection of HTTP that is watched: how long its next head may take, and whether a head is ambiguous. hyper has one
//! time for both waiting for a request and reading its head; a pool of connections needs two.
//!
//! ```text
//!   accepted ─▶ Head (10 s) ─▶ Handling ─answered─▶ Idle (75 s) ─first byte─▶ Head (10 s) ─▶ ...
//! ```
//!
//! Invariants, each the name of a test:
//! - `a_connection_is_kept_while_it_is_idle_and_not_while_a_head_drips`;
//! - `two_lengths_are_ambiguous`: hyper drops `Content-Length` where `Transfer-Encoding` stands beside it, so the raw heads
//!   are looked at (RFC 9112, 6.1: such a request may hide another one from a proxy).
//! - `a_pipelined_head_is_looked_at_by_itself`: bodies are passed over, so that each request has its own head's verdict.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a head may take from its first byte, also the first one's: slow heads are a cheap way to hold connections.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits for a request.
    Idle,
    /// Has a part of a head.
    Head,
    /// A request is being handled; nothing is due.
    Handling,
}

/// The state machine; time comes in as `now`.
#[derive(Debug)]
struct ConnectionState {
    phase: Phase,
    since: Instant,
    idle: Duration,
    scan: RequestScan,
}

impl ConnectionState {
    fn new(idle: Duration, now: Instant) -> Self {
        Self { phase: Phase::Head, since: now, idle, scan: RequestScan::default() }
    }

    fn read(&mut self, bytes: &[u8], now: Instant) {
        self.scan.feed(bytes);
        if self.phase == Phase::Idle && self.scan.is_within_head() {
            (self.phase, self.since) = (Phase::Head, now);
        }
    }

    fn wrote(&mut self, now: Instant) {
        if self.phase == Phase::Idle {
            // An answer that is still being sent.
            self.since = now;
        }
    }

    fn begin(&mut self) -> bool {
        self.phase = Phase::Handling;
        // A head that was not seen would be one that hyper reads otherwise: refused.
        self.scan.heads.pop_front().unwrap_or(true)
    }

    fn answered(&mut self, now: Instant) {
        (self.phase, self.since) = (if self.scan.is_within_head() { Phase::Head } else { Phase::Idle }, now);
    }

    /// What becomes due next, and when.
    fn due(&self) -> Option<(Due, Instant)> {
        match self.phase {
            Phase::Idle => Some((Due::Idle, self.since + self.idle)),
            Phase::Head => Some((Due::Head, self.since + HEAD_WITHIN)),
            Phase::Handling => None,
        }
    }
}

/// What the connection, its requests and its timer share.
#[derive(Debug)]
pub(super) struct Watch {
    state: Mutex<ConnectionState>,
    changed: Notify,
}

/// What became due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing was asked for as long as a connection is kept.
    Idle,
    /// A head did not come in time.
    Head,
}

impl Watch {
    /// Of a connection that was just accepted, and may be idle for `idle` between requests.
    pub(super) fn new(idle: Duration) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(ConnectionState::new(idle, Instant::now())), changed: Notify::new() })
    }

    /// Changes the state, and has the timer look anew where the phase changed.
    fn change<T>(&self, change: impl FnOnce(&mut ConnectionState, Instant) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.phase;
        let result = change(&mut state, Instant::now());
        if state.phase != before {
            self.changed.notify_one();
        }
        result
    }

    /// A request's head is whole. Whether it has two lengths that may contradict each other.
    pub(super) fn begin(&self) -> bool {
        self.change(|state, _| state.begin())
    }

    /// The request is answered.
    pub(super) fn answered(&self) {
        self.change(ConnectionState::answered);
    }

    /// Waits until the connection is to be ended.
    pub(super) async fn due(&self) -> Due {
        loop {
            let due = self.state.lock().unwrap_or_else(PoisonError::into_inner).due();
            match due {
                None => self.changed.notified().await,
                Some((due, at)) if Instant::now() >= at => return due,
                Some((_, at)) => tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.changed.notified() => {}
                },
            }
        }
    }
}

/// Longest part of a line that is kept: the longer of the two names, and a length.
const LINE_BYTES_MAX: usize = 64;

/// Follows the requests of a connection in whatever pieces they come: of each head whether it has the two lengths of a
/// body (RFC 9112, 6.3), and where its body ends.
#[derive(Debug, Default)]
struct RequestScan {
    part: Part,
    /// The beginning of the line that is under way.
    line: Vec<u8>,
    /// The head has a line already.
    begun: bool,
    length: Option<u64>,
    encoding: bool,
    /// Of each whole head that was not begun with: whether it is ambiguous.
    heads: VecDeque<bool>,
}

/// The part of a request that comes next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Part {
    #[default]
    Head,
    /// So many bytes of a body, or of a chunk and its line end.
    Bytes { left: u64, chunked: bool },
    /// The line with a chunk's size.
    ChunkSize,
    /// The lines behind the last chunk.
    Trailer,
}

impl RequestScan {
    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if let Part::Bytes { left, chunked } = &mut self.part {
                let passed = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= passed as u64;
                if *left == 0 {
                    self.part = if *chunked { Part::ChunkSize } else { Part::Head };
                }
                bytes = &bytes[passed..];
                continue;
            }
            let end = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1);
            let (piece, rest) = bytes.split_at(end);
            let wanted = LINE_BYTES_MAX.saturating_sub(self.line.len()).min(piece.len());
            self.line.extend_from_slice(&piece[..wanted]);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.whole_line(line.trim_ascii());
                self.line = line;
                self.line.clear();
            }
            bytes = rest;
        }
    }

    fn whole_line(&mut self, line: &[u8]) {
        match self.part {
            Part::Head if line.is_empty() && self.begun => self.whole_head(),
            Part::Head => {
                self.begun |= !line.is_empty();
                let value = |name: &[u8]| {
                    line.get(..name.len()).filter(|it| it.eq_ignore_ascii_case(name)).map(|_| &line[name.len()..])
                };
                if let Some(length) = value(b"content-length:") {
                    // What is no number hyper refuses.
                    self.length =
                        Some(str::from_utf8(length.trim_ascii()).ok().and_then(|it| it.parse().ok()).unwrap_or(0));
                }
                self.encoding |= value(b"transfer-encoding:").is_some();
            }
            Part::ChunkSize => {
                let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
                let size = str::from_utf8(&line[..digits]).ok().and_then(|size| u64::from_str_radix(size, 16).ok());
                self.part = match size {
                    Some(0) | None => Part::Trailer,
                    Some(size) => Part::Bytes { left: size.saturating_add(2), chunked: true },
                };
            }
            Part::Trailer if line.is_empty() => self.part = Part::Head,
            Part::Trailer | Part::Bytes { .. } => {}
        }
    }

    fn whole_head(&mut self) {
        let (length, encoding) = (self.length.take(), std::mem::take(&mut self.encoding));
        self.begun = false;
        self.heads.push_back(length.is_some() && encoding);
        self.part = match length {
            _ if encoding => Part::ChunkSize,
            Some(left) if left > 0 => Part::Bytes { left, chunked: false },
            _ => Part::Head,
        };
    }

    /// Whether a part of a head has come, or all of one that was not begun with.
    fn is_within_head(&self) -> bool {
        !self.heads.is_empty() || (self.part == Part::Head && (self.begun || !self.line.is_empty()))
    }
}

/// A stream whose bytes its [`Watch`] sees.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    watch: Arc<Watch>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, watch: Arc<Watch>) -> Self {
        Self { stream, watch }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, to);
        if let Some(bytes) = to.filled().get(before..)
            && !bytes.is_empty()
        {
            self.watch.change(|state, now| state.read(bytes, now));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if matches!(written, Poll::Ready(Ok(_))) {
            self.watch.change(ConnectionState::wrote);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        if matches!(written, Poll::Ready(Ok(_))) {
            self.watch.change(ConnectionState::wrote);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(75);

    #[test]
    fn a_connection_is_kept_while_it_is_idle_and_not_while_a_head_drips() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut state = ConnectionState::new(IDLE, start);
        state.read(b"P", after(9));
        assert_eq!(state.due(), Some((Due::Head, start + HEAD_WITHIN)), "a byte now and then gains nothing");
        state.read(b"OST / HTTP/1.1\r\nContent-Length: 6\r\n\r\n", after(9));
        assert!(!state.begin());
        state.read(b"a body", after(100));
        state.wrote(after(200));
        assert_eq!(state.due(), None, "however long it is handled");
        state.answered(after(200));
        assert_eq!(state.due(), Some((Due::Idle, after(200) + IDLE)));
        state.wrote(after(210));
        assert_eq!(state.due(), Some((Due::Idle, after(210) + IDLE)), "its answer is still being sent");
        for second in 250..255 {
            state.read(b"G", after(second));
            assert_eq!(state.due(), Some((Due::Head, after(250) + HEAD_WITHIN)));
        }
    }

    #[test]
    fn two_lengths_are_ambiguous() {
        let length = "Content-Length: 3\r\n";
        let encoding = "transfer-encoding: chunked\r\n";
        for (headers, ambiguous) in [
            (String::new(), false),
            (length.to_owned(), false),
            (encoding.to_owned(), false),
            (format!("{length}{encoding}"), true),
            (format!("{encoding}X-Other: a\r\n{length}"), true),
            (format!("X-Said: {}\r\n{length}", encoding.trim_end()), false),
        ] {
            let head = format!("POST /content-length: HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
            for piece in [1, 2, 7, head.len()] {
                let mut scan = RequestScan::default();
                head.as_bytes().chunks(piece).for_each(|bytes| scan.feed(bytes));
                assert_eq!(scan.heads, [ambiguous], "{head:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_pipelined_head_is_looked_at_by_itself() {
        let plain = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let length = "POST / HTTP/1.1\r\nContent-Length: 21\r\n\r\nTransfer-Encoding: a\n";
        let chunked = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n\
            14;name=value\r\nContent-Length: 100\n\r\n3\r\nabc\r\n0\r\nContent-Length: 7\r\n\r\n";
        let both = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n";
        let requests = [plain, length, chunked, plain, length, length, chunked, both];
        let whole = requests.concat();
        let expected = requests.map(|request| request == both);
        for piece in [1, 3, 16, whole.len()] {
            let mut scan = RequestScan::default();
            whole.as_bytes().chunks(piece).for_each(|bytes| scan.feed(bytes));
            assert_eq!(scan.heads, expected, "in pieces of {piece}");
        }
    }
}
