//! The portable driver: one monoio runtime a core, on epoll, under the loop of [`readiness`](super::readiness).
//!
//! monoio would take io_uring where the system lets it. Not here: the same code would then run on two very different
//! kernel interfaces, and the one that is met in containers (where io_uring is refused) would be the less tried; the
//! `uring` driver is for those who have io_uring.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::monoio::LegacyDriver;
use ::monoio::net::tcp::stream_poll::TcpStreamPoll;
use ::monoio::net::{TcpListener, TcpStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::readiness::{Accepted, Listen, Runtime, Stream};

pub(super) struct Monoio;

impl Runtime for Monoio {
    type Stream = TcpStreamPoll;
    type Listener = TcpListener;

    fn run(core: impl Future<Output = ()>) -> io::Result<()> {
        let mut runtime = ::monoio::RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
        runtime.block_on(core);
        Ok(())
    }

    fn listener(socket: std::net::TcpListener) -> io::Result<TcpListener> {
        TcpListener::from_std(socket)
    }

    fn stream(socket: std::net::TcpStream) -> io::Result<TcpStreamPoll> {
        socket.set_nonblocking(true)?;
        // The conversion cannot fail on epoll, where the stream is polled already.
        TcpStream::from_std(socket)?.try_into_poll_io().map_err(|(error, _)| error)
    }

    fn sleep(duration: Duration) -> impl Future<Output = ()> {
        ::monoio::time::sleep(duration)
    }

    async fn pass() {
        let mut polled = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut polled, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

impl Listen<TcpStreamPoll> for TcpListener {
    fn accept(&mut self, waker: &Waker, last: bool) -> Poll<io::Result<Accepted<TcpStreamPoll>>> {
        // In epoll mode a poll is one accept4, or takes down the waker: nothing is lost with the future.
        let accepted = pin!(TcpListener::accept(self)).poll(&mut Context::from_waker(waker));
        match accepted {
            Poll::Pending if last => Poll::Ready(Ok(Accepted::Ended)),
            Poll::Pending => Poll::Pending,
            Poll::Ready(accepted) => {
                let connection = |(stream, peer): (TcpStream, SocketAddr)| {
                    // Cannot fail on epoll, where the stream is polled already.
                    let stream = stream.try_into_poll_io().map_err(|(error, _)| error)?;
                    Ok(Accepted::Connection(stream, peer))
                };
                Poll::Ready(accepted.and_then(connection))
            }
        }
    }
}

impl Stream for TcpStreamPoll {
    fn receive(&mut self, reader: &Waker, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        let read = Pin::new(self).poll_read(&mut Context::from_waker(reader), &mut buffer);
        read.map_ok(|()| buffer.filled().len())
    }

    fn send(&mut self, writer: &Waker, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(&mut Context::from_waker(writer), bytes)
    }

    fn finish(&mut self) -> bool {
        let shut = Pin::new(self).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        matches!(shut, Poll::Ready(Ok(())))
    }
}
