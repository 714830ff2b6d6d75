//! A connection of HTTP that is watched: how long its next head may take, and whether a head is ambiguous. hyper has one
//! time for both waiting for a request and reading its head; a pool of connections needs two.
//!
//! ```text
//!   accepted ─▶ Head (10 s) ─▶ Handling ─answered─▶ Idle (75 s) ─first byte─▶ Head (10 s) ─▶ ...
//! ```
//!
//! Invariants, each the name of a test:
//! - `a_connection_is_kept_while_it_is_idle_and_not_while_a_head_drips`;
//! - `two_lengths_are_ambiguous`: hyper drops `Content-Length` where `Transfer-Encoding` stands beside it, so the raw head
//!   is looked at (RFC 9112, 6.1: such a request may hide another one from a proxy).
//!
//! Heads that a client pipelines behind a request that is being handled are not looked at.

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
struct State {
    phase: Phase,
    since: Instant,
    idle: Duration,
    head: HeadScan,
}

impl State {
    fn new(idle: Duration, now: Instant) -> Self {
        Self { phase: Phase::Head, since: now, idle, head: HeadScan::default() }
    }

    fn read(&mut self, bytes: &[u8], now: Instant) {
        if self.phase == Phase::Handling {
            return;
        }
        self.head.feed(bytes);
        if self.phase == Phase::Idle {
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
        std::mem::take(&mut self.head).is_ambiguous()
    }

    fn answered(&mut self, now: Instant) {
        (self.phase, self.since) = (Phase::Idle, now);
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
    state: Mutex<State>,
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
        Arc::new(Self { state: Mutex::new(State::new(idle, Instant::now())), changed: Notify::new() })
    }

    /// Changes the state, and has the timer look anew where the phase changed.
    fn change<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
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
        self.change(State::answered);
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

/// Looks for the two lengths of a body among a head's names, whatever pieces it comes in.
#[derive(Debug, Default)]
struct HeadScan {
    /// The beginning of the line that is under way, as far as a name of interest goes.
    line: Vec<u8>,
    length: bool,
    encoding: bool,
}

/// `transfer-encoding:`, the longer of the two names.
const NAME_BYTES_MAX: usize = 18;

impl HeadScan {
    fn feed(&mut self, bytes: &[u8]) {
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            let wanted = NAME_BYTES_MAX.saturating_sub(self.line.len()).min(line.len());
            self.line.extend_from_slice(&line[..wanted]);
            if line.ends_with(b"\n") {
                let named =
                    |name: &[u8]| self.line.get(..name.len()).is_some_and(|line| line.eq_ignore_ascii_case(name));
                self.length |= named(b"content-length:");
                self.encoding |= named(b"transfer-encoding:");
                self.line.clear();
            }
        }
    }

    fn is_ambiguous(&self) -> bool {
        self.length && self.encoding
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
            self.watch.change(State::wrote);
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
            self.watch.change(State::wrote);
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
        let mut state = State::new(IDLE, start);
        state.read(b"G", after(9));
        assert_eq!(state.due(), Some((Due::Head, start + HEAD_WITHIN)), "a byte now and then gains nothing");
        state.read(b"ET / HTTP/1.1\r\n\r\n", after(9));
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
                let mut scan = HeadScan::default();
                head.as_bytes().chunks(piece).for_each(|bytes| scan.feed(bytes));
                assert_eq!(scan.is_ambiguous(), ambiguous, "{head:?} in pieces of {piece}");
            }
        }
    }
}
