//! What takes a process of its own: ten thousand connections at once, and too few descriptors for them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use connector::driver::{Kind, raise_descriptor_limit};

use crate::probe::{PATIENCE, Seen, Server};

/// Tells [`serves_for_its_parent`] what to serve with, and [`connects_for_its_parent`] where to connect.
const CHILD: &str = "BARRAGE_DRIVER_TEST_CHILD";

/// As many as one process can have of one driver; the clients' ends are another process's.
const AT_ONCE: u32 = 10_000;

pub(super) fn ten_thousand_connect_at_once(kind: Kind) {
    /// Two drivers at a time would need more descriptors than a process may be allowed.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(raise_descriptor_limit().unwrap() >= u64::from(AT_ONCE) + 5000, "too few descriptors for this test");
    let server = Server::start(kind);
    let mut clients = child("processes::connects_for_its_parent", &server.addresses[0].to_string())
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

pub(super) fn without_descriptors_accepting_waits_and_goes_on(kind: Kind) {
    const DESCRIPTORS: usize = 64;
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(format!("ulimit -n {DESCRIPTORS}; exec \"$0\" --exact processes::serves_for_its_parent --nocapture"))
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
