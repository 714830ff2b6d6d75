//! Sends to many sockets in batches through io_uring: the yardstick that `barrage bench limit` holds beside plain sends.
//! No driver: nothing is received, nothing waits.
//!
//! ```text
//!   send_all ─▶ SEND × BATCH (MSG_DONTWAIT, registered files) ─▶ submit and wait for all of them ─▶ told of each
//! ```
//!
//! Invariant: when [`BatchedSender::send_all`] returns, no send is under way, so that the bytes are the caller's again
//! (rule 24).

#![expect(unsafe_code, reason = "io_uring's queue takes raw addresses")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::{IoUring, opcode, types};

/// Sends that are submitted with one call: a connector's round of `round_sends`.
const BATCH: usize = 256;

/// A ring with the sockets that it sends to.
pub struct BatchedSender {
    ring: IoUring,
    sockets: usize,
}

impl std::fmt::Debug for BatchedSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchedSender").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

impl BatchedSender {
    /// For these sockets, which it keeps open; all sends are this thread's.
    ///
    /// # Errors
    /// The system's: io_uring is not permitted here, or there are too many sockets.
    pub fn new<S: AsFd>(sockets: &[S]) -> io::Result<Self> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(BATCH as u32)?;
        let descriptors: Vec<i32> = sockets.iter().map(|socket| socket.as_fd().as_raw_fd()).collect();
        ring.submitter().register_files(&descriptors)?;
        Ok(Self { ring, sockets: descriptors.len() })
    }

    /// Sends `bytes` once to each socket, as far as the kernel has room; `took` is told of each what it took.
    ///
    /// # Errors
    /// The ring's; a socket's own go to `took`.
    pub fn send_all(&mut self, bytes: &[u8], mut took: impl FnMut(usize, io::Result<usize>)) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut next = 0;
        while next < self.sockets {
            let batch = next..self.sockets.min(next + BATCH);
            next = batch.end;
            for socket in batch.clone() {
                let send = opcode::Send::new(types::Fixed(socket as u32), bytes.as_ptr(), length)
                    .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                    .build()
                    .user_data(socket as u64);
                // SAFETY: `bytes` is borrowed until every completion of this batch has been taken below; a full queue
                // cannot be, since a batch is no longer than it and the last one was submitted whole.
                unsafe { self.ring.submission().push(&send) }.map_err(io::Error::other)?;
            }
            let mut open = batch.len();
            while open > 0 {
                match self.ring.submit_and_wait(open) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // The bytes must not go while sends of them are under way.
                    Err(error) => panic!("io_uring does not tell what became of {open} sends: {error}"),
                }
                for done in self.ring.completion() {
                    open -= 1;
                    let result = done.result();
                    let result =
                        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as usize) };
                    took(done.user_data() as usize, result);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn everyone_gets_the_bytes_and_a_full_socket_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pair = |_| {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let (clients, served): (Vec<_>, Vec<_>) = (0..BATCH + 10).map(pair).unzip();
        let mut sender = match BatchedSender::new(&served) {
            Ok(sender) => sender,
            Err(error) => {
                eprintln!("skipped: no io_uring here ({error})");
                return;
            }
        };
        let mut told = vec![0; served.len()];
        sender.send_all(b"hello", |socket, took| told[socket] += took.unwrap()).unwrap();
        assert!(told.iter().all(|took| *took == 5), "{told:?}");
        for mut client in &clients {
            let mut bytes = [0; 5];
            client.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"hello");
        }
        // Nobody reads: in the end each has no room.
        let (long, mut full) = (vec![b'x'; 1 << 20], 0);
        for _ in 0..100 {
            full = 0;
            let blocked =
                |took: &io::Result<usize>| took.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
            sender.send_all(&long, |_, took| full += usize::from(blocked(&took))).unwrap();
            if full == served.len() {
                break;
            }
        }
        assert_eq!(full, served.len());
    }
}
