//! A client's socket, and from which address it dials.
//!
//! The kernel gives about 28,000 ports (net.ipv4.ip_local_port_range) to connections from one address to one other. On
//! loopback every address of 127.0.0.0/8 is ours, so that many clients of one server dial from several of them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Clients of one loopback address: half of what the kernel has ports for, so that all can come back while their former
/// connections are in TIME_WAIT.
pub(crate) const CLIENTS_OF_AN_ADDRESS: u32 = 10_000;

/// Client `number`'s socket, from its own address where the server is on 127.0.0.1.
fn socket(server: SocketAddr, number: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if server.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) && number >= CLIENTS_OF_AN_ADDRESS {
        let from = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + number / CLIENTS_OF_AN_ADDRESS);
        // Else the port would be taken for all destinations, and for a minute after the connection.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SockAddr::from(SocketAddr::from((from, 0))))?;
    }
    Ok(socket)
}

/// Connects client `number`, and waits for it.
pub(crate) fn connect(server: SocketAddr, number: u32) -> io::Result<Socket> {
    let socket = socket(server, number)?;
    socket.connect(&SockAddr::from(server))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Begins to connect client `number`: it can be written to when it is, or is broken.
pub(crate) fn begin(server: SocketAddr, number: u32) -> io::Result<Socket> {
    let socket = socket(server, number)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::from(server)) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn many_clients_dial_from_several_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        for (number, from) in [(0, "127.0.0.1"), (9_999, "127.0.0.1"), (10_000, "127.0.0.2"), (999_999, "127.0.0.100")]
        {
            let client = connect(address, number).unwrap();
            assert_eq!(client.local_addr().unwrap().as_socket().unwrap().ip().to_string(), from);
            drop(listener.accept().unwrap());
        }
    }
}
