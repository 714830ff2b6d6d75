//! A core beside its connections: its slots, its inputs, what it asks, its end.

use std::io::{ErrorKind, Read as _, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use connector::driver::Kind;
use crossbeam::channel::bounded;

use crate::bytes::{pattern, read_all};
use crate::probe::{PATIENCE, Seen, Server, Tell};

pub(super) fn an_input_wakes_an_idle_core(kind: Kind) {
    let server = Server::start(kind);
    let mut waits: Vec<_> = (0..50)
        .map(|at| {
            // Long enough for it to fall asleep.
            std::thread::sleep(Duration::from_millis(2));
            let begun = Instant::now();
            server.tell(Tell::Report(at));
            server.wait_for(|seen| *seen == Seen::Told(at));
            begun.elapsed()
        })
        .collect();
    waits.sort();
    assert!(waits[waits.len() / 2] < Duration::from_millis(50), "{waits:?}");
    server.stop();
}

pub(super) fn a_slot_may_be_given_away_before_its_connection_is_closed(kind: Kind) {
    let server = Server::start(kind);
    let mut old = server.connect();
    let key = server.opened();
    // The last words of one and the connecting of the next are seen in one turn.
    let (entered, stalled) = bounded(0);
    let (go, held) = bounded::<()>(0);
    server.tell(Tell::Stall(entered, held));
    stalled.recv_timeout(PATIENCE).unwrap();
    old.write_all(crate::probe::LAST_WORDS).unwrap();
    let mut new = server.connect();
    drop(go);
    let next = server.opened();
    assert_eq!(next.slot, key.slot);
    assert_ne!(next.generation, key.generation);
    assert_eq!(read_all(&mut old), b"");
    new.write_all(b"mine").unwrap();
    let mut answer = [0; 4];
    new.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"mine");
    drop((old, new));
    server.stop();
}

pub(super) fn slots_are_used_again_and_events_never_mixed_up(kind: Kind) {
    let server = Server::start(kind);
    let address = server.addresses[0];
    let clients: Vec<_> = (0..4)
        .map(|client| {
            std::thread::spawn(move || {
                for at in 0..200 {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let bytes = pattern(1 + at * 40, client * 1000 + at);
                    stream.write_all(&bytes).unwrap();
                    match at % 3 {
                        // Gone before the answer.
                        0 => continue,
                        1 => stream.shutdown(Shutdown::Write).unwrap(),
                        _ => {}
                    }
                    let mut got = vec![0; bytes.len()];
                    stream.read_exact(&mut got).unwrap();
                    assert!(got == bytes);
                }
            })
        })
        .collect();
    let (mut opened, mut closed, mut slots) = (0, 0, 0);
    while closed < 800 {
        match server.seen() {
            Seen::Opened(key, ..) => {
                opened += 1;
                slots = slots.max(key.slot);
            }
            Seen::Closed(_) => closed += 1,
            _ => {}
        }
    }
    assert_eq!(opened, 800);
    assert!(slots < 100, "{slots} slots for 4 connections at a time");
    for client in clients {
        client.join().unwrap();
    }
    server.stop();
}

pub(super) fn a_full_queue_gives_the_input_back(kind: Kind) {
    let server = Server::start(kind);
    let (entered, stalled) = bounded(0);
    let (go, held) = bounded::<()>(0);
    server.tell(Tell::Stall(entered, held));
    stalled.recv_timeout(PATIENCE).unwrap();
    for at in 0..crate::probe::INPUTS_MAX as u32 {
        assert!(server.port.tell(Tell::Report(at)).is_ok());
    }
    assert_eq!(server.port.room(), 0);
    assert!(matches!(server.port.tell(Tell::Report(999)), Err(Tell::Report(999))));
    drop(go);
    for at in 0..crate::probe::INPUTS_MAX as u32 {
        server.wait_for(|seen| *seen == Seen::Told(at));
    }
    server.stop();
}

pub(super) fn asks_that_are_given_back_come_again(kind: Kind) {
    let server = Server::start_refusing(kind, 3);
    for at in 0..10 {
        server.tell(Tell::Report(at));
    }
    let told: Vec<_> = (0..10).map(|_| server.seen()).collect();
    assert_eq!(told, (0..10).map(Seen::Told).collect::<Vec<_>>());
    server.stop();
}

pub(super) fn a_drained_core_ends_and_its_address_is_free(kind: Kind) {
    let server = Server::start(kind);
    let mut streams: Vec<_> = (0..20).map(|_| server.connect()).collect();
    server.opened();
    let address = server.addresses[0];
    server.tell(Tell::Drain);
    for stream in &mut streams {
        // Accepted before or after it was told: none is reset.
        assert_eq!(read_all(stream), b"");
    }
    drop(streams);
    server.join();
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    Server::start_on(kind, &[address]).stop();
}
