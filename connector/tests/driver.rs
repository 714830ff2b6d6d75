//! What every driver must do, over real sockets: one suite, run against each [`Kind`].
//!
//! The machine under it ([`probe::Probe`]) echoes or sends what it is told, reports everything as an ask, and panics at
//! an event of a connection that is not there.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod probe;

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use connector::driver::{Balance, Kind, raise_descriptor_limit, slack};
use crossbeam::channel::bounded;
use machine::BATCH_MAX;
use socket2::SockRef;

use crate::probe::{PATIENCE, Seen, Server, Tell};

/// Tells [`serves_for_its_parent`] what to serve with, and [`connects_for_its_parent`] where to connect.
const CHILD: &str = "BARRAGE_DRIVER_TEST_CHILD";

macro_rules! suite {
    ($($driver:ident: $kind:expr;)+) => {$(
        mod $driver {
            suite!(tests of $kind =>
                every_byte_arrives_at_a_peer_that_reads_late
                small_sends_arrive_and_so_does_the_last_before_a_close
                what_goes_to_many_at_once_is_each_ones_own_affair
                a_reset_in_mid_frame_ends_that_connection_only
                what_came_before_a_half_close_is_answered
                ten_thousand_connect_at_once
                many_who_send_more_than_there_are_buffers_for_lose_nothing
                without_descriptors_accepting_waits_and_goes_on
                an_input_wakes_an_idle_core
                a_close_delivers_the_last_bytes_to_a_peer_that_still_sends
                a_paused_peer_is_not_read_from
                a_slot_may_be_given_away_before_its_connection_is_closed
                slots_are_used_again_and_events_never_mixed_up
                a_full_queue_gives_the_input_back
                asks_that_are_given_back_come_again
                a_drained_core_ends_and_its_address_is_free
                every_address_has_its_own_index
                an_address_that_is_taken_is_refused
                connections_go_to_the_core_that_holds_fewer
                a_core_that_is_held_up_keeps_few_waiting
                a_core_that_stops_loses_nobody_who_was_handed_to_it
            );
        }
    )+};
    (tests of $kind:expr => $($test:ident)+) => {$(
        #[test]
        fn $test() {
            if super::is_here($kind) {
                super::$test($kind);
            }
        }
    )+};
}

suite! {
    monoio: connector::driver::Kind::Monoio;
    uring: connector::driver::Kind::Uring;
}

/// Whether the system permits this driver. Where it has to (CI=true), a refusal is a failure.
fn is_here(kind: Kind) -> bool {
    let Err(error) = kind.choose() else { return true };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{kind}: {error}");
    println!("SKIPPED: {kind}: {error}");
    false
}

#[cfg(feature = "glommio")]
suite! {
    glommio: connector::driver::Kind::Glommio;
}

fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(31) + at / 251 + seed) as u8).collect()
}

fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn every_byte_arrives_at_a_peer_that_reads_late(kind: Kind) {
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

fn small_sends_arrive_and_so_does_the_last_before_a_close(kind: Kind) {
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

fn what_goes_to_many_at_once_is_each_ones_own_affair(kind: Kind) {
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

fn a_reset_in_mid_frame_ends_that_connection_only(kind: Kind) {
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

fn what_came_before_a_half_close_is_answered(kind: Kind) {
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

/// As many as one process can have of one driver; the clients' ends are another process's.
const AT_ONCE: u32 = 10_000;

fn ten_thousand_connect_at_once(kind: Kind) {
    /// Two drivers at a time would need more descriptors than a process may be allowed.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(raise_descriptor_limit().unwrap() >= u64::from(AT_ONCE) + 5000, "too few descriptors for this test");
    let server = Server::start(kind);
    let mut clients = child("connects_for_its_parent", &server.addresses[0].to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..AT_ONCE {
        server.opened();
    }
    let mut told = String::new();
    let mut output = clients.stdout.take().unwrap();
    while !told.contains("all answered") {
        let mut bytes = [0; 256];
        let count = output.read(&mut bytes).unwrap();
        assert!(count > 0, "the clients failed: {told}");
        told.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    // Now they all go at once, too.
    drop(clients.stdin.take());
    assert!(clients.wait().unwrap().success());
    let mut open = AT_ONCE;
    while open > 0 {
        open -= u32::from(matches!(server.seen(), Seen::Closed(_)));
    }
    server.stop();
}

/// Not a test by itself: the clients' process.
#[test]
fn connects_for_its_parent() {
    let Ok(address) = std::env::var(CHILD) else { return };
    let address = address.parse::<SocketAddr>().unwrap().into();
    raise_descriptor_limit().unwrap();
    let mut streams = Vec::new();
    for at in 0..AT_ONCE {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let error = socket.connect(&address).err();
        assert!(error.is_none_or(|error| error.raw_os_error() == Some(libc::EINPROGRESS)), "{at}");
        streams.push(socket);
    }
    let mut streams: Vec<_> = streams.into_iter().map(TcpStream::from).collect();
    for (at, stream) in streams.iter_mut().enumerate() {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&(at as u32).to_be_bytes()).unwrap();
    }
    for (at, stream) in streams.iter_mut().enumerate() {
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(u32::from_be_bytes(answer), at as u32);
    }
    println!("all answered");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// This program again, for one of the tests that are none by themselves.
fn child(test: &str, told: &str) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]).env(CHILD, told);
    child
}

fn many_who_send_more_than_there_are_buffers_for_lose_nothing(kind: Kind) {
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

fn without_descriptors_accepting_waits_and_goes_on(kind: Kind) {
    const DESCRIPTORS: usize = 64;
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(format!("ulimit -n {DESCRIPTORS}; exec \"$0\" --exact serves_for_its_parent --nocapture"))
        .arg(program)
        .env(CHILD, kind.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = String::new();
    let mut output = child.stdout.take().unwrap();
    while !told.contains("serves on ") || !told.ends_with('\n') {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        told.push(char::from(byte[0]));
    }
    let address: SocketAddr = told.trim().rsplit(' ').next().unwrap().parse().unwrap();

    let mut streams: Vec<_> = (0..2 * DESCRIPTORS).map(|_| TcpStream::connect(address).unwrap()).collect();
    let answered = |stream: &mut TcpStream, patience: Duration| {
        stream.set_read_timeout(Some(patience)).unwrap();
        match stream.read(&mut [0; 16]) {
            Ok(count) => count > 0,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(error) => panic!("{error}"),
        }
    };
    for stream in &mut streams {
        stream.write_all(b"?").unwrap();
    }
    assert!(answered(&mut streams[0], PATIENCE));
    // The backlog holds more than there are descriptors for: these wait, and the server does not burn the processor.
    let before = processor_ticks(child.id());
    let begun = Instant::now();
    assert!(!answered(&mut streams[2 * DESCRIPTORS - 1], Duration::from_secs(1)));
    let spent = processor_ticks(child.id()) - before;
    assert!(spent * 10 < begun.elapsed().as_millis() as u64 / 4, "{spent} ticks of 10 ms in {:?}", begun.elapsed());
    // Those that had their turn go, and all others have theirs.
    while let Some(mut stream) = (!streams.is_empty()).then(|| streams.remove(0)) {
        if begun.elapsed() > PATIENCE {
            panic!("{} still wait", streams.len());
        }
        let first = streams.len() == 2 * DESCRIPTORS - 1;
        assert!(first || answered(&mut stream, PATIENCE), "{} still wait", streams.len());
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// Processor time of a process, in ticks of 10 ms (`proc_pid_stat(5)`, utime and stime).
fn processor_ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Not a test by itself: the process whose descriptors are few.
#[test]
fn serves_for_its_parent() {
    let Ok(kind) = std::env::var(CHILD) else { return };
    let kind: Kind = kind.parse().unwrap();
    let server = Server::start_quiet(kind);
    println!("serves on {}", server.addresses[0]);
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    server.stop();
}

fn an_input_wakes_an_idle_core(kind: Kind) {
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

fn a_close_delivers_the_last_bytes_to_a_peer_that_still_sends(kind: Kind) {
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

fn a_paused_peer_is_not_read_from(kind: Kind) {
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

fn a_slot_may_be_given_away_before_its_connection_is_closed(kind: Kind) {
    let server = Server::start(kind);
    let mut old = server.connect();
    let key = server.opened();
    // The last words of one and the connecting of the next are seen in one turn.
    let (entered, stalled) = bounded(0);
    let (go, held) = bounded::<()>(0);
    server.tell(Tell::Stall(entered, held));
    stalled.recv_timeout(PATIENCE).unwrap();
    old.write_all(probe::LAST_WORDS).unwrap();
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

fn slots_are_used_again_and_events_never_mixed_up(kind: Kind) {
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

fn a_full_queue_gives_the_input_back(kind: Kind) {
    let server = Server::start(kind);
    let (entered, stalled) = bounded(0);
    let (go, held) = bounded::<()>(0);
    server.tell(Tell::Stall(entered, held));
    stalled.recv_timeout(PATIENCE).unwrap();
    for at in 0..probe::INPUTS_MAX as u32 {
        assert!(server.port.tell(Tell::Report(at)).is_ok());
    }
    assert_eq!(server.port.room(), 0);
    assert!(matches!(server.port.tell(Tell::Report(999)), Err(Tell::Report(999))));
    drop(go);
    for at in 0..probe::INPUTS_MAX as u32 {
        server.wait_for(|seen| *seen == Seen::Told(at));
    }
    server.stop();
}

fn asks_that_are_given_back_come_again(kind: Kind) {
    let server = Server::start_refusing(kind, 3);
    for at in 0..10 {
        server.tell(Tell::Report(at));
    }
    let told: Vec<_> = (0..10).map(|_| server.seen()).collect();
    assert_eq!(told, (0..10).map(Seen::Told).collect::<Vec<_>>());
    server.stop();
}

fn a_drained_core_ends_and_its_address_is_free(kind: Kind) {
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

fn every_address_has_its_own_index(kind: Kind) {
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

fn an_address_that_is_taken_is_refused(kind: Kind) {
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

fn connections_go_to_the_core_that_holds_fewer(kind: Kind) {
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

fn a_core_that_is_held_up_keeps_few_waiting(kind: Kind) {
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

fn a_core_that_stops_loses_nobody_who_was_handed_to_it(kind: Kind) {
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
