//! Sends to many sockets with one system call: a batch of requests in an io_uring of its own, in which nothing else is
//! ever asked. The `uring` driver's way to send to the members of a room, and the yardstick that `barrage bench limit`
//! holds beside plain sends.
//!
//! ```text
//!   send ─▶ SEND × BATCH_MAX (MSG_DONTWAIT) ─▶ submit: the kernel does all of them before it returns ─▶ results in order
//! ```
//!
//! Invariant: when [`BatchedSender::send`] returns, no send is under way, so that the bytes are the caller's again
//! (rule 24).

#![expect(unsafe_code, reason = "io_uring's queue takes raw addresses")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, squeue, types};
use machine::BATCH_MAX;

/// A ring for sends.
pub struct BatchedSender {
    ring: IoUring,
    /// The batch that is being made.
    requests: Vec<squeue::Entry>,
    /// Of the last batch, in its order.
    results: Vec<i32>,
}

impl std::fmt::Debug for BatchedSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchedSender").finish_non_exhaustive()
    }
}

impl BatchedSender {
    /// To be made on the thread that uses it: only that one may (IORING_SETUP_SINGLE_ISSUER).
    ///
    /// # Errors
    /// The system's: io_uring is not permitted here.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .build(BATCH_MAX as u32)?;
        Ok(Self { ring, requests: Vec::with_capacity(BATCH_MAX), results: Vec::with_capacity(BATCH_MAX) })
    }

    /// Sends, as far as the kernel has room, in this order. What each came to, in the same order: bytes that were taken,
    /// or the negative number of the error, `-EAGAIN` where there is no room.
    ///
    /// # Panics
    /// If there are more than [`BATCH_MAX`], or the ring fails.
    pub fn send<'a>(&mut self, sends: impl IntoIterator<Item = (BorrowedFd<'a>, &'a [u8])>) -> &[i32] {
        self.requests.clear();
        self.requests.extend(sends.into_iter().enumerate().map(|(index, (socket, bytes))| {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            opcode::Send::new(types::Fd(socket.as_raw_fd()), bytes.as_ptr(), length)
                .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                .build()
                .user_data(index as u64)
        }));
        // SAFETY: sockets and bytes are borrowed for 'a, thus until this returns. Below, each request is handed over, and
        // the kernel does it while it takes it, since with MSG_DONTWAIT none can wait; every completion is taken before
        // this returns. Where the ring fails instead, the panic ends the core's thread, and its ring with it.
        let pushed = unsafe { self.ring.submission().push_multiple(&self.requests) };
        assert!(pushed.is_ok(), "at most {BATCH_MAX} sends in a batch");
        let (mut open, mut wait) = (self.requests.len(), 0);
        self.results.clear();
        self.results.resize(open, 0);
        while open > 0 {
            match self.ring.submit_and_wait(wait) {
                Ok(_) => {}
                // A signal came; memory is to be had, or completions to be taken first.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                Err(error) => panic!("io_uring does not tell what became of {open} sends: {error}"),
            }
            for done in self.ring.completion() {
                open -= 1;
                self.results[done.user_data() as usize] = done.result();
            }
            wait = open.min(1);
        }
        &self.results
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn everyone_gets_the_bytes_and_a_full_socket_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pair = |_| {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let (clients, served): (Vec<_>, Vec<_>) = (0..BATCH_MAX + 10).map(pair).unzip();
        let mut sender = match BatchedSender::new() {
            Ok(sender) => sender,
            Err(error) => {
                eprintln!("skipped: no io_uring here ({error})");
                return;
            }
        };
        let (first, others) = served.split_at(BATCH_MAX);
        for some in [first, others] {
            let results = sender.send(some.iter().map(|socket| (socket.as_fd(), &b"hello"[..])));
            assert!(results.len() == some.len() && results.iter().all(|took| *took == 5), "{results:?}");
        }
        for mut client in &clients {
            let mut bytes = [0; 5];
            client.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"hello");
        }
        // Nobody reads: in the end each has no room, and what goes to the others goes all the same.
        let long = vec![b'x'; 1 << 20];
        let filled = (0..100).any(|_| {
            let results = sender.send(others.iter().map(|socket| (socket.as_fd(), &long[..])));
            results.iter().all(|took| *took == -libc::EAGAIN)
        });
        assert!(filled);
        let both = [(others[0].as_fd(), &b"no"[..]), (first[0].as_fd(), b"yes")];
        assert_eq!(sender.send(both), [-libc::EAGAIN, 3]);
    }
}
