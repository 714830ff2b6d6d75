//! How the clients read, in every measurement and in `limit`: one epoll for a thread's sockets, told once for whatever
//! came (edge-triggered), and bytes that nobody looks at are thrown away in the kernel.
//!
//! Throwing away is `recv` with MSG_TRUNC, which on TCP takes bytes without copying them (tcp(7)): looking at everything
//! would make the client the bottleneck at a tenth of what a server sends.
//!
//! As long as something comes, and for some milliseconds after, a reader naps and then takes what there is, instead of
//! waiting to be woken: real clients are other machines, whereas on loopback whoever sends does the waking, again and
//! again. That took a tenth of the connector's time for a single write, and 24 ms of the p99 (106 ms, now 82) where it
//! shares its processor with all of `barrage run` (medians of eight and six runs). What is measured is later by up to a
//! nap.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::time::Timespec;

/// Sockets that are told of at once.
const EVENTS_MAX: usize = 1024;
/// How long a reader naps: long beside the 5 us of a write, short beside the milliseconds that are measured with it.
const NAP: Duration = Duration::from_micros(200);
/// Naps in which nothing came, after which a reader waits to be woken: what comes every millisecond or two wakes nobody.
const VAIN_NAPS_MAX: u32 = 15;
/// Most bytes that one call throws away: more than a receive buffer holds. None of this memory is ever touched.
const DISCARD_BYTES: usize = 8 << 20;

/// What a socket is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    /// As it was added.
    pub(crate) token: u64,
    /// There may be something to read, or it is broken.
    pub(crate) readable: bool,
    /// There may be room to write.
    pub(crate) writable: bool,
}

/// One thread's sockets.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    /// Since something came.
    vain_naps: u32,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS_MAX),
            vain_naps: VAIN_NAPS_MAX,
        })
    }

    /// Tells of `socket` from now on, each time that something has come, and once when it can be written to. It is
    /// forgotten when it is closed.
    pub(crate) fn add(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token), interest)?)
    }

    /// Waits at most so long; what was ready is in [`Poller::ready`]. Soon after something was, only naps.
    pub(crate) fn wait(&mut self, at_most: Duration) -> io::Result<()> {
        let at_most = if self.vain_naps >= VAIN_NAPS_MAX {
            at_most
        } else {
            // Where more was ready than fits, more is.
            if self.events.len() < EVENTS_MAX {
                thread::sleep(NAP);
            }
            Duration::ZERO
        };
        self.events.clear();
        let at_most = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: at_most.subsec_nanos().into() };
        let events = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, events, Some(&at_most)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.vain_naps = if self.events.is_empty() { self.vain_naps.saturating_add(1) } else { 0 };
        Ok(())
    }

    pub(crate) fn ready(&self) -> impl Iterator<Item = Ready> {
        self.events.iter().map(|event| {
            let (data, flags) = (event.data, event.flags);
            Ready {
                token: data.u64(),
                readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR),
                writable: flags.contains(EventFlags::OUT),
            }
        })
    }
}

/// Throws away what comes to sockets.
#[derive(Debug)]
pub(crate) struct Drain {
    untouched: Vec<u8>,
}

impl Drain {
    pub(crate) fn new() -> Self {
        Self { untouched: vec![0; DISCARD_BYTES] }
    }

    /// Takes everything that has come; how much.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` where the peer has ended.
    pub(crate) fn all(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let mut taken = 0;
        loop {
            match recv(&socket, &mut self.untouched[..], RecvFlags::TRUNC | RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, bytes)) => {
                    taken += bytes;
                    if bytes < DISCARD_BYTES {
                        return Ok(taken);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(taken),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn wait_for(poller: &mut Poller, what: impl Fn(&Ready) -> bool) {
        for _ in 0..300 {
            poller.wait(Duration::from_millis(100)).unwrap();
            if poller.ready().any(|ready| what(&ready)) {
                return;
            }
        }
        panic!("nothing was told of");
    }

    #[test]
    fn every_byte_is_counted_and_none_is_copied() {
        let ((client, mut server), mut poller, mut drain) = (pair(), Poller::new().unwrap(), Drain::new());
        poller.add(&client, 7).unwrap();
        wait_for(&mut poller, |ready| ready.token == 7 && ready.writable);
        assert_eq!(drain.all(&client).unwrap(), 0);
        let (mut sent, mut taken) = (0, 0);
        for bytes in [1, 100, 70_000, 3] {
            server.write_all(&vec![b'x'; bytes]).unwrap();
            sent += bytes;
            while taken < sent {
                wait_for(&mut poller, |ready| ready.token == 7 && ready.readable);
                taken += drain.all(&client).unwrap();
            }
        }
        assert_eq!(taken, sent);
        assert!(drain.untouched.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_end_is_told() {
        let ((client, server), mut poller, mut drain) = (pair(), Poller::new().unwrap(), Drain::new());
        poller.add(&client, 1).unwrap();
        drop(server);
        wait_for(&mut poller, |ready| ready.readable);
        assert_eq!(drain.all(&client).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
