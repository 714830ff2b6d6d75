//! The driver to compare with: one glommio executor a core, under the loop of [`readiness`](super::readiness). Only with
//! the cargo feature `glommio`: its crate compiles a liburing of its own (C), and is MPL-2.0 in one of its parts.
//!
//! glommio asks io_uring for readiness (POLL_ADD) and then reads and sends with plain calls; what comes in is accepted
//! by the ring. Each executor has three rings and a thread for blocking calls, which sleeps.
//!
//! Invariants, beside the loop's:
//! - a connection that the ring has accepted is not lost when accepting stops: the listener is shut down first, and
//!   what is in flight is waited for;
//! - nothing sleeps longer than [`PULSE`], though glommio 0.9 can lose a wake-up (see [`PREEMPT`]);
//! - where the kernel refuses io_uring, starting fails and says so (glommio by itself would panic, or end the process).

use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::glommio::net::{AcceptedTcpStream, TcpListener, TcpStream};
use ::glommio::timer::Timer;
use ::glommio::{GlommioError, LocalExecutorBuilder, Placement};
use futures::{AsyncRead, AsyncWrite};
use socket2::SockRef;

use super::readiness::{Accepted, Listen, Runtime, Stream};

/// Submissions that a ring takes before it must be entered; its completions are twice that. Over it the kernel keeps
/// completions in a list, which costs it more.
const RING_ENTRIES: usize = 1024;
/// When glommio ends the turns of tasks: never, the loop's own turns are short. A preemption that falls between glommio's
/// look at its rings and at its tasks makes it sleep although a task is ready (`LocalExecutor::run` of 0.9: then
/// `run_task_queues` is as if there were none).
const PREEMPT: Duration = Duration::from_secs(24 * 3600);
/// A late wake-up from another thread counts as such a preemption, too. So nothing sleeps longer than this.
const PULSE: Duration = Duration::from_millis(100);
/// Of memory for files, bytes: there are none, so the least that glommio takes.
const FILE_MEMORY_BYTES: usize = 64 * 1024;

pub(super) struct Glommio;

impl Runtime for Glommio {
    type Stream = TcpStream;
    type Listener = Listener;

    fn run(core: impl Future<Output = ()>) -> io::Result<()> {
        permitted()
            .map_err(|error| io::Error::new(error.kind(), format!("the glommio driver needs io_uring: {error}")))?;
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(FILE_MEMORY_BYTES)
            .ring_depth(RING_ENTRIES)
            .preempt_timer(PREEMPT)
            .make()
            .map_err(io::Error::from)?;
        executor.run(async {
            let pulse = ::glommio::spawn_local(async {
                loop {
                    Timer::new(PULSE).await;
                }
            });
            core.await;
            pulse.cancel().await;
        });
        Ok(())
    }

    #[expect(unsafe_code, reason = "glommio takes a listening socket by its number only")]
    fn listener(socket: std::net::TcpListener) -> io::Result<Listener> {
        // Kernels before 5.13 end an accept in the ring at once with EAGAIN where the socket does not block; glommio's
        // own tries never do.
        socket.set_nonblocking(false)?;
        let shut = socket.try_clone()?;
        // SAFETY: the number is an open listening socket's, and `into_raw_fd` gives up its ownership.
        let socket = unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) };
        Ok(Listener { socket: Rc::new(socket), shut: Some(shut), accepting: None })
    }

    #[expect(unsafe_code, reason = "glommio takes a connected socket by its number only")]
    fn stream(socket: std::net::TcpStream) -> io::Result<TcpStream> {
        // SAFETY: the number is an open connected socket's, and `into_raw_fd` gives up its ownership.
        Ok(unsafe { TcpStream::from_raw_fd(socket.into_raw_fd()) })
    }

    async fn sleep(duration: Duration) {
        Timer::new(duration).await;
    }

    async fn pass() {
        // A task that is ready again at once keeps glommio from its rings until the preemption.
        Timer::new(Duration::ZERO).await;
    }
}

/// Whether the kernel lets us have a ring that can do what glommio wants: the newest is `IORING_OP_RECV`, of 5.6.
fn permitted() -> io::Result<()> {
    let ring = io_uring::IoUring::new(2)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    match probe.is_supported(io_uring::opcode::Recv::CODE) {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's cannot receive")),
    }
}

type Accepting = Pin<Box<dyn Future<Output = Result<AcceptedTcpStream, GlommioError<()>>>>>;

pub(super) struct Listener {
    socket: Rc<TcpListener>,
    /// To shut the same socket down; `None`: that is done.
    shut: Option<std::net::TcpListener>,
    /// An accept that is in the ring. Never dropped before it ends, as the connection that it brings would be lost.
    accepting: Option<Accepting>,
}

impl Listen<TcpStream> for Listener {
    fn accept(&mut self, waker: &Waker, last: bool) -> Poll<io::Result<Accepted<TcpStream>>> {
        let context = &mut Context::from_waker(waker);
        let socket = &self.socket;
        let accepting = self.accepting.get_or_insert_with(|| {
            let socket = socket.clone();
            Box::pin(async move { socket.shared_accept().await })
        });
        let Poll::Ready(accepted) = accepting.as_mut().poll(context) else {
            if let Some(listener) = self.shut.take_if(|_| last) {
                // What is in the ring then ends: with a connection that has come meanwhile, or with EINVAL.
                SockRef::from(&listener).shutdown(Shutdown::Read)?;
            }
            return Poll::Pending;
        };
        self.accepting = None;
        match accepted {
            Ok(accepted) => {
                let stream = accepted.bind_to_executor();
                let peer = stream.peer_addr()?;
                Poll::Ready(Ok(Accepted::Connection(stream, peer)))
            }
            Err(_) if self.shut.is_none() => Poll::Ready(Ok(Accepted::Ended)),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl Stream for TcpStream {
    fn receive(&mut self, reader: &Waker, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_read(&mut Context::from_waker(reader), buffer)
    }

    fn send(&mut self, writer: &Waker, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(&mut Context::from_waker(writer), bytes)
    }

    fn finish(&mut self) -> bool {
        let shut = Pin::new(self).poll_close(&mut Context::from_waker(Waker::noop()));
        matches!(shut, Poll::Ready(Ok(())))
    }
}
