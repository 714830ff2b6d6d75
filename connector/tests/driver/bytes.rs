//! Bytes: each one arrives once and in order, however its peer reads, writes and ends.

use std::collections::HashSet;
use std::io::{Read as _, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use connector::driver::Kind;
use crossbeam::channel::bounded;
use machine::BATCH_MAX;
use socket2::SockRef;

use crate::probe::{PATIENCE, Seen, Server, Tell};

pub(super) fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(31) + at / 251 + seed) as u8).collect()
}

pub(super) fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

pub(super) fn every_byte_arrives_at_a_peer_that_reads_late(kind: Kind) {
    let server = Server::start(kind);
    let mut streams: Vec<_> = (0..3).map(|_| server.connect()).collect();
    let bytes = pattern(8 << 20, 1);
    let keys: Vec<_> = streams.iter().map(|_| server.opened()).collect();
    for &key in &keys {
        server.tell(Tell::Send(key, bytes.clone()));
        server.wait_for(|seen| *seen == Seen::Blocked(key));
    }
    for stream in &mut streams {
        let mut got = vec![0; bytes.len()];
        stream.read_exact(&mut got).unwrap();
        assert!(got == bytes);
    }
    drop(streams);
    server.stop();
}

pub(super) fn small_sends_arrive_and_so_does_the_last_before_a_close(kind: Kind) {
    const BYTES: usize = 300;
    let server = Server::start(kind);
    let connect = || {
        let stream = server.connect();
        // More than a segment of loopback (64 KiB): else the kernel announces no room when all has been read, and the
        // sender finds it only by its probes, seconds apart.
        SockRef::from(&stream).set_recv_buffer_size(200 * 1024).unwrap();
        (stream, server.opened())
    };
    let all = |pieces: usize| (0..pieces).flat_map(|at| pattern(BYTES, at)).collect::<Vec<_>>();
    // How many fit into both kernels: about as many as into those of the next connections.
    let (mut stream, key) = connect();
    let mut fit = 0;
    let mut told = 0;
    loop {
        server.tell(Tell::Send(key, pattern(BYTES, fit)));
        fit += 1;
        told += 1;
        server.tell(Tell::Report(told));
        let mut blocked = false;
        server.wait_for(|seen| {
            blocked |= *seen == Seen::Blocked(key);
            *seen == Seen::Told(told)
        });
        if blocked {
            break;
        }
    }
    server.tell(Tell::Close(key));
    assert!(read_all(&mut stream) == all(fit));
    // Among these are some whose last piece is the first that does not fit.
    let streams: Vec<_> = (fit - 4..fit + 2)
        .flat_map(|pieces| [(pieces, false), (pieces, true)])
        .map(|(pieces, half_closed)| {
            let (stream, key) = connect();
            for at in 0..pieces {
                server.tell(Tell::Send(key, pattern(BYTES, at)));
            }
            told += 1;
            server.tell(Tell::Report(told));
            server.wait_for(|seen| *seen == Seen::Told(told));
            if half_closed {
                stream.shutdown(Shutdown::Write).unwrap();
            }
            (stream, key, pieces, half_closed)
        })
        .collect();
    // All at once: a sender that was told of no room asks again at growing intervals.
    let readers: Vec<_> = streams
        .into_iter()
        .map(|(mut stream, key, pieces, half_closed)| {
            if !half_closed {
                server.tell(Tell::Close(key));
            }
            std::thread::spawn(move || {
                let got = read_all(&mut stream);
                assert!(got == all(pieces), "{} of {} pieces, half closed: {half_closed}", got.len() / BYTES, pieces);
            })
        })
        .collect();
    for reader in readers {
        reader.join().unwrap();
    }
    server.stop();
}

pub(super) fn what_goes_to_many_at_once_is_each_ones_own_affair(kind: Kind) {
    // More than a batch; every tenth does not read at first, and every tenth breaks off.
    const PEERS: usize = BATCH_MAX + 50;
    let server = Server::start(kind);
    let mut streams: Vec<_> = (0..PEERS).map(|_| (server.connect(), server.opened())).collect();
    let mut sent = 0;
    let mut send = |count: usize| {
        for _ in 0..count {
            server.tell(Tell::SendAll(pattern(8 * 1024, sent)));
            sent += 1;
        }
        (0..sent).flat_map(|at| pattern(8 * 1024, at)).collect::<Vec<_>>()
    };
    // Enough for the kernel's buffers of those who do not read.
    let (mut all, mut blocked, mut got) = (Vec::new(), HashSet::new(), 0);
    let slow: HashSet<_> = streams.iter().step_by(10).map(|(_, key)| *key).collect();
    while blocked != slow {
        all = send(8);
        for (at, (stream, _)) in streams.iter_mut().enumerate().filter(|(at, _)| at % 10 != 0) {
            let mut bytes = vec![0; all.len() - got];
            stream.read_exact(&mut bytes).unwrap();
            assert!(bytes == all[got..], "peer {at}");
        }
        got = all.len();
        server.tell(Tell::Report(0));
        server.wait_for(|seen| {
            if let Seen::Blocked(key) = seen {
                blocked.extend(slow.get(key));
            }
            matches!(seen, Seen::Told(_))
        });
    }
    let (broken, kept): (Vec<_>, Vec<_>) = streams.into_iter().enumerate().partition(|(at, _)| at % 10 == 1);
    for (_, (stream, _)) in &broken {
        SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    let mut gone: HashSet<_> = broken.into_iter().map(|(_, (_, key))| key).collect();
    let last = send(1);
    server.wait_for(|seen| {
        if let Seen::Closed(key) = seen {
            assert!(gone.remove(key), "{key:?} was not broken off");
        }
        gone.is_empty()
    });
    for (at, (mut stream, _)) in kept {
        let rest = if at % 10 == 0 { &last[..] } else { &last[all.len()..] };
        let mut bytes = vec![0; rest.len()];
        stream.read_exact(&mut bytes).unwrap();
        assert!(bytes == *rest, "peer {at}");
    }
    server.stop();
}

pub(super) fn a_reset_in_mid_frame_ends_that_connection_only(kind: Kind) {
    let server = Server::start(kind);
    let (mut broken, mut whole) = (server.connect(), server.connect());
    broken.write_all(b"\x81\x85\x01").unwrap();
    let key = loop {
        if let Seen::Bytes(key, _) = server.seen() {
            break key;
        }
    };
    SockRef::from(&broken).set_linger(Some(Duration::ZERO)).unwrap();
    drop(broken);
    server.wait_for(|seen| *seen == Seen::Closed(key));
    whole.write_all(b"still here").unwrap();
    let mut answer = [0; 10];
    whole.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still here");
    drop(whole);
    server.stop();
}

pub(super) fn what_came_before_a_half_close_is_answered(kind: Kind) {
    let server = Server::start(kind);
    // More than the kernels keep: the end of input is then known long before the last output.
    for bytes in [5, 4 << 20] {
        let mut stream = server.connect();
        let mut writing = stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            writing.write_all(&pattern(bytes, 2)).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        assert!(read_all(&mut stream) == pattern(bytes, 2), "{bytes}");
        writer.join().unwrap();
        server.wait_for(|seen| matches!(seen, Seen::Closed(_)));
    }
    server.stop();
}

pub(super) fn many_who_send_more_than_there_are_buffers_for_lose_nothing(kind: Kind) {
    const SENDERS: usize = 200;
    const BYTES: usize = 150_000;
    let server = Server::start(kind);
    let (entered, stalled) = bounded(0);
    let (go, held) = bounded::<()>(0);
    let streams: Vec<_> = (0..SENDERS).map(|_| server.connect()).collect();
    for _ in 0..SENDERS {
        server.opened();
    }
    // While the core is held up, megabytes come for it: of each sender what the kernel takes.
    server.tell(Tell::Stall(entered, held));
    stalled.recv_timeout(PATIENCE).unwrap();
    let (begun, sending) = bounded(SENDERS);
    let senders: Vec<_> = streams
        .into_iter()
        .enumerate()
        .map(|(at, mut stream)| {
            let begun = begun.clone();
            std::thread::spawn(move || {
                let bytes = pattern(BYTES, at);
                stream.write_all(&bytes[..20_000]).unwrap();
                begun.send(()).unwrap();
                let mut writing = stream.try_clone().unwrap();
                let rest = bytes[20_000..].to_vec();
                let writer = std::thread::spawn(move || writing.write_all(&rest).unwrap());
                let mut got = vec![0; BYTES];
                stream.read_exact(&mut got).unwrap();
                assert!(got == bytes, "sender {at}");
                writer.join().unwrap();
            })
        })
        .collect();
    for _ in 0..SENDERS {
        sending.recv_timeout(PATIENCE).unwrap();
    }
    drop(go);
    for sender in senders {
        sender.join().unwrap();
    }
    server.stop();
}

pub(super) fn a_close_delivers_the_last_bytes_to_a_peer_that_still_sends(kind: Kind) {
    let server = Server::start(kind);
    let mut stream = server.connect();
    let key = server.opened();
    server.tell(Tell::Pause(key));
    server.wait_for(|seen| *seen == Seen::Paused(key));
    // What lies unread when a socket is closed makes the kernel send an RST, which takes the last bytes with it.
    stream.write_all(&pattern(10_000, 3)).unwrap();
    let Seen::Bytes(_, echoed) = server.seen() else { panic!("not read") };
    let bytes = pattern(300_000, 4);
    server.tell(Tell::Send(key, bytes.clone()));
    let bytes = [&pattern(10_000, 3)[..echoed], &bytes].concat();
    server.tell(Tell::Close(key));
    let mut got = vec![0; 1000];
    stream.read_exact(&mut got).unwrap();
    for _ in 0..20 {
        stream.write_all(&[0; 1000]).unwrap();
        let at = got.len();
        got.resize(at + 1000, 0);
        stream.read_exact(&mut got[at..]).unwrap();
    }
    got.extend(read_all(&mut stream));
    assert!(got == bytes, "{} of {}", got.len(), bytes.len());
    drop(stream);
    server.stop();
}

pub(super) fn a_paused_peer_is_not_read_from(kind: Kind) {
    let server = Server::start(kind);
    let mut stream = server.connect();
    let key = server.opened();
    server.tell(Tell::Pause(key));
    server.wait_for(|seen| *seen == Seen::Paused(key));
    let mut writing = stream.try_clone().unwrap();
    let bytes = pattern(16 << 20, 5);
    let copy = bytes.clone();
    let writer = std::thread::spawn(move || writing.write_all(&copy).unwrap());
    // The machine can say so only when it is given bytes: once.
    server.wait_for(|seen| matches!(seen, Seen::Bytes(..)));
    let mut reads = 1;
    for at in 0..20 {
        std::thread::sleep(Duration::from_millis(10));
        server.tell(Tell::Report(at));
        server.wait_for(|seen| {
            reads += usize::from(matches!(seen, Seen::Bytes(..)));
            *seen == Seen::Told(at)
        });
    }
    assert_eq!(reads, 1);
    assert!(!writer.is_finished());
    server.tell(Tell::Resume(key));
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).unwrap();
    assert!(got == bytes);
    writer.join().unwrap();
    drop(stream);
    server.stop();
}
