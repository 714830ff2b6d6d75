//! Listening sockets: for each address one a core (SO_REUSEPORT), with the options that its connections inherit.
//! Who serves what comes is for [`share`](super::share) to say.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::share::{Balance, Share};

/// Connections that wait to be accepted, for each listener: a burst of reconnecting clients. The system caps it
/// (`net.core.somaxconn`); over it a client's SYN is dropped and sent again a second later.
const BACKLOG: i32 = 4096;

/// How long an address that is taken is tried again: the kernel lets go of the listeners that a killed process had given
/// to io_uring some milliseconds after the process is gone.
const TAKEN_MAX: Duration = Duration::from_secs(2);
/// How often.
const TAKEN_EVERY: Duration = Duration::from_millis(20);

/// What every accepted connection inherits (rule 29).
#[derive(Debug, Clone, Copy)]
pub struct SocketOptions {
    /// SO_SNDBUF: what the kernel keeps for a slow reader, bytes (it doubles it for its own bookkeeping).
    pub send_buffer_bytes: u32,
    /// SO_RCVBUF: what it keeps of a connection that is not read from, bytes (doubled too).
    pub receive_buffer_bytes: u32,
    /// TCP_NOTSENT_LOWAT: of that, what may lie there before it is sent, bytes: the remainder waits in the ring, where it
    /// can still be skipped.
    pub not_sent_bytes: u32,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self { send_buffer_bytes: 64 * 1024, receive_buffer_bytes: 64 * 1024, not_sent_bytes: 16 * 1024 }
    }
}

/// The bound listeners of all cores.
#[derive(Debug)]
pub struct Listeners {
    /// As bound, with the ports that the system chose for port 0.
    pub addresses: Vec<SocketAddr>,
    /// For each core, what it accepts from.
    pub cores: Vec<Intake>,
    /// What the cores hold.
    pub balance: Arc<Balance>,
}

/// Where one core's connections come from.
#[derive(Debug)]
pub struct Intake {
    /// A listener of each address, all this core's own.
    pub sockets: Vec<TcpListener>,
    /// And what the other cores hand over.
    pub(super) share: Share,
}

impl Listeners {
    /// Binds `addresses` for `cores` cores. Two programs that share a port by SO_REUSEPORT would each get half of the
    /// clients without a word, so an address that is taken is refused, if it still is after two seconds.
    ///
    /// # Errors
    /// The system's, naming the address.
    pub fn bind(addresses: &[SocketAddr], cores: usize, options: &SocketOptions) -> io::Result<Self> {
        let balance = Balance::new(cores);
        let intake = |core| Intake { sockets: Vec::new(), share: Share::new(balance.clone(), core) };
        let cores = (0..cores).map(intake).collect();
        let mut bound = Self { addresses: Vec::new(), cores, balance };
        for &address in addresses {
            let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
            if address.port() != 0 {
                drop(free_socket(address, options).map_err(named)?);
            }
            let mut actual = address;
            for core in &mut bound.cores {
                let socket = socket(actual, true, options).map_err(named)?;
                socket.listen(BACKLOG).map_err(named)?;
                let listener = TcpListener::from(socket);
                actual = listener.local_addr().map_err(named)?;
                core.sockets.push(listener);
            }
            bound.addresses.push(actual);
        }
        Ok(bound)
    }
}

/// A bound socket of an address that nobody else has. Waits for one that is being given up; blocks this thread.
fn free_socket(address: SocketAddr, options: &SocketOptions) -> io::Result<Socket> {
    let begun = Instant::now();
    loop {
        match socket(address, false, options) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < TAKEN_MAX => {
                std::thread::sleep(TAKEN_EVERY);
            }
            settled => return settled,
        }
    }
}

/// A bound socket; it does not listen yet.
fn socket(address: SocketAddr, shared: bool, options: &SocketOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two addresses: both can be listed.
        socket.set_only_v6(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(options.send_buffer_bytes as usize)?;
    socket.set_recv_buffer_size(options.receive_buffer_bytes as usize)?;
    socket.set_tcp_notsent_lowat(options.not_sent_bytes)?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn connections_inherit_what_bounds_the_kernel() {
        let options = SocketOptions { send_buffer_bytes: 40_000, receive_buffer_bytes: 50_000, not_sent_bytes: 12_345 };
        let bound = Listeners::bind(&["127.0.0.1:0".parse().unwrap()], 1, &options).unwrap();
        let _client = TcpStream::connect(bound.addresses[0]).unwrap();
        let begun = Instant::now();
        let accepted = loop {
            match bound.cores[0].sockets[0].accept() {
                Ok((accepted, _)) => break accepted,
                Err(error) => {
                    assert!(error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < Duration::from_secs(30));
                    std::thread::yield_now();
                }
            }
        };
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap());
        // The kernel doubles both (socket(7)).
        assert_eq!(socket.send_buffer_size().unwrap(), 80_000);
        assert_eq!(socket.recv_buffer_size().unwrap(), 100_000);
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 12_345);
    }

    #[test]
    fn an_address_that_is_being_given_up_is_waited_for() {
        let options = SocketOptions::default();
        let held = Listeners::bind(&["127.0.0.1:0".parse().unwrap()], 1, &options).unwrap();
        let addresses = held.addresses.clone();
        let refused = Listeners::bind(&addresses, 1, &options).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "one that somebody keeps is refused: {refused}");
        let giving_up = std::thread::spawn(move || {
            std::thread::sleep(TAKEN_MAX / 4);
            drop(held);
        });
        let bound = Listeners::bind(&addresses, 1, &options).unwrap();
        assert_eq!(bound.addresses, addresses);
        giving_up.join().unwrap();
    }

    #[test]
    fn every_core_listens_on_every_address() {
        let addresses = ["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
        let bound = Listeners::bind(&addresses, 3, &SocketOptions::default()).unwrap();
        assert_eq!(bound.cores.len(), 3);
        for core in &bound.cores {
            let listening: Vec<_> = core.sockets.iter().map(|listener| listener.local_addr().unwrap()).collect();
            assert_eq!(listening, bound.addresses);
        }
    }
}
