//! `barrage bench limit`: what this machine does without a server. The sender alone on one processor, plain
//! non-blocking sends, and batches through io_uring, to loopback connections with the connector's own socket options; on
//! the others the clients that read in every other measurement. Whatever a server makes is held against this.
//!
//! ```text
//!   sender (server's processor): to each connection in turn: send(MSG_DONTWAIT)      one round
//!   reader (clients' processor): epoll ─▶ recv(MSG_TRUNC)
//! ```

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use connector::driver::{BatchedSender, Listeners, SocketOptions};
use machine::BATCH_MAX;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use serde::Serialize;

use crate::clock::thread_cpu;
use crate::environment::{Environment, open_files};
use crate::error::Error;
use crate::figures::grouped;
use crate::output::Printing;
use crate::processor::{Cpus, pin, sides};
use crate::reading::{Drain, Poller};

/// Most connections: two descriptors each, in one process.
const SESSIONS_MAX: u32 = 100_000;
/// Longest write, bytes: more than a send buffer takes at once says nothing.
const BYTES_MAX: usize = 1 << 20;
/// Most rounds a second: more are one after the other anyway.
const PACE_MAX: f64 = 10_000.0;
/// Open files beside the sockets.
const OTHER_FILES: u64 = 64;
/// Before the count begins: caches and windows are then as they stay.
const WARMING: Duration = Duration::from_millis(200);
/// The same before the first count of a size. What lies in the sockets needs memory that the kernel has not handed out
/// yet, and in a virtual machine its host neither: measured here, the first 500 ms make a quarter fewer writes.
const WARMING_MEMORY: Duration = Duration::from_millis(600);
/// The sender's pause after a round in which most connections were full: it waits for the readers, and not by trying.
const FULL_PAUSE: Duration = Duration::from_micros(200);
/// How long the readers may take for what is left after a measurement.
const DRAINING: Duration = Duration::from_secs(10);
/// Writes a processor second at 128 bytes under which this machine is no measure for another's numbers.
pub(crate) const FAIR_WRITES_PER_CPU_S: f64 = 150_000.0;
/// The write at which that is asked.
pub(crate) const FAIR_BYTES: usize = 128;

/// The way of plain calls, and that of batches through io_uring.
pub(crate) const SEND: &str = "send";
pub(crate) const IO_URING: &str = "io_uring";

/// What this machine does without a server: loopback connections, one processor that only sends.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct Limit {
    /// Connections.
    #[arg(long, default_value_t = 5000)]
    pub sessions: u32,
    /// Bytes of a write; each is measured.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 1024, 8192, 24_576])]
    pub sizes: Vec<usize>,
    /// How long each is measured.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Rounds a second, a write to each connection in each; 0: one round after the other. Between paced rounds both
    /// processors sleep, and a write after that costs more.
    #[arg(long, default_value_t = 0.0)]
    pub pace: f64,
    /// Without the rows of io_uring; they are left out too where it is not permitted.
    #[arg(long)]
    pub no_uring: bool,
    /// Processors of the sender; the first one, if not said.
    #[arg(long, value_name = "CPUS")]
    pub server_cpus: Option<Cpus>,
    /// Processors of the readers; all others, if not said.
    #[arg(long, value_name = "CPUS")]
    pub client_cpus: Option<Cpus>,
    /// Where the result goes.
    #[command(flatten)]
    #[serde(skip)]
    pub output: Printing,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct LimitReport {
    /// What was run.
    pub bench: &'static str,
    /// The machine.
    pub environment: Environment,
    /// With which options.
    pub settings: Limit,
    /// In the order of the sizes.
    pub rows: Vec<LimitRow>,
}

/// One way and one size.
#[derive(Debug, Clone, Serialize)]
pub struct LimitRow {
    /// How it was sent.
    pub way: &'static str,
    /// Rounds a second; 0: one after the other.
    pub pace: f64,
    /// Connections.
    pub sessions: u64,
    /// Of a write.
    pub bytes: usize,
    /// That the kernel took, wholly or in part.
    pub writes: u64,
    /// That it had no room for at all.
    pub full: u64,
    /// Taken, over the time.
    pub writes_per_s: f64,
    /// Taken, over the time.
    pub bytes_per_s: f64,
    /// The sender's processor time for a write that was taken, microseconds.
    pub cpu_us_a_write: f64,
    /// Writes that were taken in a second of the sender's processor time.
    pub writes_per_cpu_s: f64,
    /// From the first connection's write to the last one's, milliseconds, on average.
    pub round_ms: f64,
}

impl Limit {
    pub(crate) fn run(&self, commit: &str) -> Result<(), Error> {
        let report = self.measure(commit)?;
        self.output.print(&report);
        Ok(())
    }

    /// Measures; blocks until it is over.
    ///
    /// # Errors
    /// [`Error`]: options, or this machine's limits.
    pub fn measure(&self, commit: &str) -> Result<LimitReport, Error> {
        let refuse = |right: bool, option, value: &dyn ToString, want: &str| {
            if right { Ok(()) } else { Err(Error::Option { option, value: value.to_string(), want: want.to_owned() }) }
        };
        refuse((1..=SESSIONS_MAX).contains(&self.sessions), "sessions", &self.sessions, "1 to 100,000")?;
        refuse(self.seconds.is_finite() && self.seconds > 0.0, "seconds", &self.seconds, "more than 0")?;
        refuse((0.0..=PACE_MAX).contains(&self.pace), "pace", &self.pace, "0 to 10,000")?;
        for size in &self.sizes {
            refuse((1..=BYTES_MAX).contains(size), "sizes", size, "1 to 1,048,576")?;
        }
        let wanted = 2 * u64::from(self.sessions) + OTHER_FILES;
        let sessions = self.sessions.into();
        open_files(wanted).map_err(|limit| Error::OpenFiles { sessions, wanted, limit })?;
        let (sender, reader) = match sides() {
            Some((server, clients)) => {
                (Some(self.server_cpus.clone().unwrap_or(server)), Some(self.client_cpus.clone().unwrap_or(clients)))
            }
            None => (self.server_cpus.clone(), self.client_cpus.clone()),
        };
        let mut environment = Environment::here(commit);
        environment.server_cpus.clone_from(&sender);
        environment.client_cpus = reader.clone().or(environment.client_cpus);
        let rows = self.rows(sender, reader)?;
        Ok(LimitReport { bench: "limit", environment, settings: self.clone(), rows })
    }

    fn rows(&self, sender: Option<Cpus>, reader: Option<Cpus>) -> Result<Vec<LimitRow>, Error> {
        let (clients, served) = connections(self.sessions)?;
        let (stop, taken) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let reading = thread::Builder::new().name("reader".into()).spawn_scoped(scope, || {
                reader.as_ref().map_or(Ok(()), pin)?;
                read(&clients, &stop, &taken)
            })?;
            let sending = thread::Builder::new().name("sender".into()).spawn_scoped(scope, || {
                sender.as_ref().map_or(Ok(()), pin)?;
                self.send(&served, &taken)
            })?;
            let rows = sending.join().map_err(|_| panicked());
            stop.store(true, Ordering::Relaxed);
            reading.join().map_err(|_| panicked())??;
            Ok(rows??)
        })
    }
}

impl Limit {
    /// Every way and size, on the thread of the sender.
    fn send(&self, served: &[TcpStream], taken: &AtomicU64) -> io::Result<Vec<LimitRow>> {
        let (seconds, mut sent) = (Duration::from_secs_f64(self.seconds), 0);
        let mut ring = if self.no_uring { None } else { BatchedSender::new().ok() };
        let mut rows = Vec::new();
        for &bytes in &self.sizes {
            let work = |warming| Work { connections: served.len() as u64, bytes, warming, seconds, pace: self.pace };
            let first = work(WARMING_MEMORY);
            rows.push(row((SEND, &mut |payload| plain(served, payload)), &first, &mut sent, taken)?);
            if let Some(ring) = &mut ring {
                let next = work(WARMING);
                rows.push(row((IO_URING, &mut |payload| batched(ring, served, payload)), &next, &mut sent, taken)?);
            }
        }
        Ok(rows)
    }
}

fn panicked() -> io::Error {
    io::Error::other("a thread of the bench panicked")
}

/// The clients' sockets and the connector's side of each, accepted from its own listener.
fn connections(count: u32) -> io::Result<(Vec<TcpStream>, Vec<TcpStream>)> {
    let localhost = SocketAddr::from(([127, 0, 0, 1], 0));
    let listeners = Listeners::bind(&[localhost], 1, &SocketOptions::default())?;
    let (address, listener) = (listeners.addresses[0], &listeners.cores[0].sockets[0]);
    listener.set_nonblocking(false)?;
    let (mut clients, mut served) = (Vec::new(), Vec::new());
    for number in 0..count {
        let client = crate::dial::connect(address, number)?;
        let client = TcpStream::from(client);
        served.push(listener.accept()?.0);
        clients.push(client);
    }
    Ok((clients, served))
}

fn read(clients: &[TcpStream], stop: &AtomicBool, taken: &AtomicU64) -> io::Result<()> {
    let (mut poller, mut drain) = (Poller::new()?, Drain::new());
    for (number, client) in clients.iter().enumerate() {
        poller.add(client, number as u64)?;
    }
    while !stop.load(Ordering::Relaxed) {
        poller.wait(Duration::from_millis(20))?;
        let mut bytes = 0;
        for ready in poller.ready().filter(|ready| ready.readable) {
            bytes += drain.all(&clients[ready.token as usize])?;
        }
        taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Sends once to each connection: how many bytes were taken, and how many connections were full.
type Round<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<(u64, u64)>;

/// Every size, sent with plain calls.
fn plain(served: &[TcpStream], payload: &[u8]) -> io::Result<(u64, u64)> {
    let (mut took, mut full) = (0, 0);
    for socket in served {
        match send(socket, payload, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(bytes) => took += bytes as u64,
            Err(Errno::AGAIN) => full += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok((took, full))
}

/// Every size, in batches.
fn batched(sender: &mut BatchedSender, served: &[TcpStream], payload: &[u8]) -> io::Result<(u64, u64)> {
    let (mut took, mut full) = (0, 0);
    for some in served.chunks(BATCH_MAX) {
        for &result in sender.send(some.iter().map(|socket| (socket.as_fd(), payload))) {
            match result {
                0.. => took += result as u64,
                _ if result == -Errno::AGAIN.raw_os_error() => full += 1,
                _ => return Err(io::Error::from_raw_os_error(-result)),
            }
        }
    }
    Ok((took, full))
}

/// What a row measures.
struct Work {
    connections: u64,
    /// Of a write.
    bytes: usize,
    /// Before the count begins.
    warming: Duration,
    seconds: Duration,
    /// As [`Limit::pace`].
    pace: f64,
}

/// One way and one size; `sent` and `taken` are all bytes so far.
fn row(
    (way, round): (&'static str, Round<'_>),
    &Work { connections, bytes, warming, seconds, pace }: &Work,
    sent: &mut u64,
    taken: &AtomicU64,
) -> io::Result<LimitRow> {
    let payload = vec![b'x'; bytes];
    let (mut begun, mut warm, mut cpu) = (Instant::now(), false, thread_cpu());
    let (mut writes, mut full, mut took, mut rounds) = (0_u64, 0_u64, 0_u64, 0_u64);
    loop {
        let (bytes, refused) = round(&payload)?;
        took += bytes;
        writes += connections - refused;
        full += refused;
        rounds += 1;
        if !warm && begun.elapsed() >= warming {
            *sent += took;
            (warm, begun, cpu, writes, full, took, rounds) = (true, Instant::now(), thread_cpu(), 0, 0, 0, 0);
        } else if warm && begun.elapsed() >= seconds {
            break;
        }
        if pace > 0.0 && warm {
            let next = begun + Duration::from_secs_f64(rounds as f64 / pace);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        } else if refused * 2 > connections {
            thread::sleep(FULL_PAUSE);
        }
    }
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), (thread_cpu() - cpu).as_secs_f64());
    *sent += took;
    let deadline = Instant::now() + DRAINING;
    while taken.load(Ordering::Relaxed) < *sent {
        if Instant::now() > deadline {
            return Err(io::Error::other("the readers did not get all that was sent"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(LimitRow {
        way,
        pace,
        sessions: connections,
        bytes,
        writes,
        full,
        writes_per_s: writes as f64 / wall,
        bytes_per_s: took as f64 / wall,
        cpu_us_a_write: cpu * 1e6 / writes.max(1) as f64,
        writes_per_cpu_s: writes as f64 / cpu,
        round_ms: wall * 1e3 / rounds as f64,
    })
}

impl LimitReport {
    /// Whether the machine is quick enough for the targets to mean something, in words.
    #[must_use]
    pub fn verdict(&self) -> Option<String> {
        verdict(&self.rows)
    }
}

/// See [`LimitReport::verdict`].
pub(crate) fn verdict(rows: &[LimitRow]) -> Option<String> {
    let row = rows.iter().find(|row| row.bytes == FAIR_BYTES && row.way == SEND && row.pace == 0.0)?;
    let (made, fair) = (grouped(row.writes_per_cpu_s as u64), grouped(FAIR_WRITES_PER_CPU_S as u64));
    Some(if row.writes_per_cpu_s >= FAIR_WRITES_PER_CPU_S {
        format!("limit makes {made} writes a CPU second at 128 bytes: at least {fair}, this run counts")
    } else {
        format!("limit makes only {made} writes a CPU second at 128 bytes: under {fair}, this run does not count")
    })
}

/// The rows' table.
pub(crate) fn table(rows: &[LimitRow], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "  way       rounds/s  bytes a write    writes/s       MB/s   CPU us a write   writes a CPU s   round ms     full"
    )?;
    for row in rows {
        writeln!(
            f,
            "  {:<9}{:>9}{:>15}{:>12}{:>11.1}{:>17.3}{:>17}{:>11.2}{:>9}",
            row.way,
            if row.pace > 0.0 { row.pace.to_string() } else { "-".to_owned() },
            grouped(row.bytes as u64),
            grouped(row.writes_per_s as u64),
            row.bytes_per_s / 1e6,
            row.cpu_us_a_write,
            grouped(row.writes_per_cpu_s as u64),
            row.round_ms,
            grouped(row.full)
        )?;
    }
    Ok(())
}

impl fmt::Display for LimitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "limit: {} connections, the sender alone on one processor",
            grouped(self.settings.sessions.into())
        )?;
        writeln!(f, "{}\n", self.environment)?;
        table(&self.rows, f)?;
        match self.verdict() {
            Some(verdict) => writeln!(f, "\n  {verdict}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain sends of 128 bytes.
    fn small(sessions: u32, seconds: f64) -> Limit {
        Limit {
            sessions,
            sizes: vec![FAIR_BYTES],
            seconds,
            pace: 0.0,
            no_uring: true,
            server_cpus: None,
            client_cpus: None,
            output: Printing::default(),
        }
    }

    #[test]
    fn everything_that_was_sent_is_read() {
        let limit = Limit { sizes: vec![128, 40_000], no_uring: false, ..small(20, 0.05) };
        let report = limit.measure("test").unwrap();
        // Where io_uring is permitted, each size twice.
        assert!([2, 4].contains(&report.rows.len()));
        for row in &report.rows {
            assert!(row.writes > 0 && row.cpu_us_a_write > 0.0 && row.bytes_per_s > 0.0, "{row:?}");
            assert!(row.bytes_per_s <= row.writes_per_s * row.bytes as f64 * 1.001, "{row:?}");
        }
        assert!(report.verdict().unwrap().contains("at 128 bytes"));
        assert!(report.to_string().contains("40,000"), "{report}");
    }

    #[test]
    fn paced_rounds_come_at_their_time() {
        let limit = Limit { pace: 50.0, ..small(10, 0.2) };
        let report = limit.measure("test").unwrap();
        // One at the beginning, one at the end.
        assert!(report.rows[0].writes <= 10 * (10 + 2), "{:?}", report.rows);
        assert!(report.verdict().is_none(), "a paced row says nothing of how quick the machine is");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let limit = small(0, 1.0);
        assert!(matches!(limit.measure("test"), Err(Error::Option { option: "sessions", .. })));
        let limit = Limit { sessions: 1, sizes: vec![0], ..limit };
        assert!(matches!(limit.measure("test"), Err(Error::Option { option: "sizes", .. })));
    }
}
