//! Listening and accepting: addresses, and the core that a connection goes to.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use connector::driver::{Balance, Kind, slack};
use crossbeam::channel::bounded;

use crate::bytes::read_all;
use crate::probe::{PATIENCE, Seen, Server, Tell};

pub(super) fn every_address_has_its_own_index(kind: Kind) {
    let addresses: Vec<SocketAddr> =
        ["127.0.0.1:0", "[::1]:0"].iter().map(|address| address.parse().unwrap()).collect();
    let server = Server::start_on(kind, &addresses);
    for (index, &address) in server.addresses.iter().enumerate() {
        let stream = TcpStream::connect(address).unwrap();
        let Seen::Opened(_, listener, _) = server.seen() else { panic!("not opened") };
        assert_eq!(listener, index);
        drop(stream);
        server.wait_for(|seen| matches!(seen, Seen::Closed(_)));
    }
    server.stop();
}

pub(super) fn an_address_that_is_taken_is_refused(kind: Kind) {
    let server = Server::start(kind);
    let options = connector::driver::SocketOptions::default();
    let error = connector::driver::Listeners::bind(&server.addresses, 1, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&server.addresses[0].to_string()), "{error}");
    server.stop();
}

/// Waits until so many connections are opened; says of whom, for each core of [`Server::start_two`].
fn opened(servers: &[Server; 2], connections: usize) -> [Vec<SocketAddr>; 2] {
    let mut peers = [Vec::new(), Vec::new()];
    let begun = Instant::now();
    while peers[0].len() + peers[1].len() < connections {
        assert!(begun.elapsed() < PATIENCE, "{} and {} of {connections}", peers[0].len(), peers[1].len());
        for (peers, server) in peers.iter_mut().zip(servers) {
            peers.extend(server.said().into_iter().filter_map(|seen| match seen {
                Seen::Opened(_, 0, peer) => Some(peer),
                _ => None,
            }));
        }
        std::thread::yield_now();
    }
    peers
}

fn held(balance: &Balance) -> [usize; 2] {
    [0, 1].map(|core| balance.held(core) as usize)
}

fn is_served(stream: &mut TcpStream, number: usize) {
    let bytes = (number as u32).to_be_bytes();
    stream.write_all(&bytes).unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, bytes);
}

pub(super) fn connections_go_to_the_core_that_holds_fewer(kind: Kind) {
    const CONNECTIONS: usize = 500;
    /// Fewer than an inbox has room for: all that should go to the second core can.
    const AT_ONCE: usize = 50;
    let (servers, balance) = Server::start_two(kind);
    let (mut streams, mut peers) = (Vec::new(), [Vec::new(), Vec::new()]);
    while streams.len() < CONNECTIONS {
        streams.extend((0..AT_ONCE).map(|_| servers[0].connect()));
        for (peers, more) in peers.iter_mut().zip(opened(&servers, AT_ONCE)) {
            peers.extend(more);
        }
    }
    let [first, second] = held(&balance);
    assert_eq!([first, second], [peers[0].len(), peers[1].len()]);
    assert!(first - second <= slack(second as u32) as usize + 1, "{first} and {second}");
    assert_eq!(balance.handed_over(), second as u64);
    let mut peers = peers.concat();
    let mut clients: Vec<_> = streams.iter().map(|stream| stream.local_addr().unwrap()).collect();
    peers.sort();
    clients.sort();
    assert_eq!(peers, clients);
    for (number, stream) in streams.iter_mut().enumerate() {
        is_served(stream, number);
    }
    // Who goes is counted no more, whoever ends it.
    drop(streams.split_off(CONNECTIONS / 2));
    let begun = Instant::now();
    while held(&balance).iter().sum::<usize>() > CONNECTIONS / 2 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", held(&balance));
        std::thread::yield_now();
    }
    servers.iter().for_each(|server| server.tell(Tell::Drain));
    for mut stream in streams {
        assert_eq!(read_all(&mut stream), b"");
    }
    servers.into_iter().for_each(Server::join);
    assert_eq!(held(&balance), [0, 0]);
}

pub(super) fn a_core_that_is_held_up_keeps_few_waiting(kind: Kind) {
    const CONNECTIONS: usize = 500;
    let (servers, balance) = Server::start_two(kind);
    let (entered, stalled) = bounded(0);
    let (go, hold) = bounded::<()>(0);
    servers[1].tell(Tell::Stall(entered, hold));
    stalled.recv_timeout(PATIENCE).unwrap();
    let mut streams: Vec<_> = (0..CONNECTIONS).map(|_| servers[0].connect()).collect();
    // Its inbox is full by now: whoever comes then is served where he is.
    is_served(streams.last_mut().unwrap(), CONNECTIONS);
    let [here, waiting] = held(&balance);
    assert_eq!(here + waiting, CONNECTIONS);
    assert!((1..100).contains(&waiting), "{waiting}");
    drop(go);
    assert_eq!(opened(&servers, CONNECTIONS).map(|peers| peers.len()), [here, waiting]);
    for (number, stream) in streams.iter_mut().enumerate() {
        is_served(stream, number);
    }
    drop(streams);
    servers.into_iter().for_each(Server::stop);
}

pub(super) fn a_core_that_stops_loses_nobody_who_was_handed_to_it(kind: Kind) {
    const CONNECTIONS: usize = 200;
    let ([first, second], balance) = Server::start_two(kind);
    let (entered, stalled) = bounded(0);
    let (go, hold) = bounded::<()>(0);
    second.tell(Tell::Stall(entered, hold));
    stalled.recv_timeout(PATIENCE).unwrap();
    let streams: Vec<_> = (0..CONNECTIONS).map(|_| first.connect()).collect();
    let begun = Instant::now();
    while held(&balance).iter().sum::<usize>() < CONNECTIONS {
        assert!(begun.elapsed() < PATIENCE, "{:?}", held(&balance));
        std::thread::yield_now();
    }
    let [_, waiting] = held(&balance);
    assert!(waiting > 0);
    second.tell(Tell::Drain);
    drop(go);
    let mut ended = 0;
    while held(&balance)[1] > 0 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", held(&balance));
        ended += second.said().iter().filter(|seen| matches!(seen, Seen::Opened(..))).count();
        std::thread::yield_now();
    }
    // Nobody is handed to it any more.
    let mut late: Vec<_> = (0..CONNECTIONS).map(|_| first.connect()).collect();
    for (number, stream) in late.iter_mut().enumerate() {
        is_served(stream, number);
    }
    assert_eq!(held(&balance), [2 * CONNECTIONS - waiting, 0]);
    first.tell(Tell::Drain);
    // Of the first's and of the second's, none was reset.
    for mut stream in streams.into_iter().chain(late) {
        assert_eq!(read_all(&mut stream), b"");
    }
    first.join();
    second.join_after(|seen| ended += usize::from(matches!(seen, Seen::Opened(..))));
    assert_eq!(ended, waiting);
}
