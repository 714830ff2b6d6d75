//! `barrage bench fanout`: viewers in rooms, messages to them at a steady rate.
//!
//! All viewers are in their room before the first message is sent; the run ends by itself when everything that was
//! accepted has come, or when nothing comes any more.

use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::environment::{Environment, cpu_seconds, open_files};
use crate::note::NOTE_BYTES;
use crate::publish::{self, Plan, Published};
use crate::report::{Deliveries, Publishing, Report, Sessions, grouped};
use crate::tally::{Ledger, Spread, Tally};
use crate::viewers::{self, Stage, Template};
use crate::wire::Dialect;

/// Most viewers of one process: as many sockets as some GiB of kernel memory hold.
const VIEWERS_MAX: u32 = 1_000_000;
/// Most bytes of all ledgers together: over it the run is too long for its viewers.
const LEDGER_BYTES_MAX: u64 = 4 << 30;
/// Open files beside the sockets.
const OTHER_FILES: u64 = 64;
/// Between the last viewer's entry and the first message: what the entries set off has come to rest.
const SETTLING: Duration = Duration::from_millis(500);
/// Nothing new for as long after the last message was answered: nothing more will come.
const QUIET: Duration = Duration::from_secs(3);
/// How often the progress is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How often it is shown.
const SHOW: Duration = Duration::from_millis(500);
/// The longest payload that the API takes, bytes.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Viewers in rooms, messages at a steady rate: deliveries a second, what is lost, how late they are.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct Fanout {
    /// Sessions, spread evenly over the rooms.
    #[arg(long, default_value_t = 1000)]
    pub viewers: u32,
    /// Messages a second, over all rooms.
    #[arg(long, default_value_t = 50.0)]
    pub rate: f64,
    /// Rooms. They are new ones of this run.
    #[arg(long, default_value_t = 1)]
    pub rooms: u32,
    /// Bytes of a payload, at least 32.
    #[arg(long, default_value_t = 64)]
    pub bytes: usize,
    /// How long messages are sent.
    #[arg(long, default_value_t = 10)]
    pub seconds: u32,
    /// What the viewers speak, and which API the messages are published through.
    #[arg(long, value_enum, default_value = "native")]
    pub dialect: Dialect,
    /// The viewers connect by bare TCP, not by WebSocket.
    #[arg(long)]
    pub tcp: bool,
    /// Where the viewers connect.
    #[arg(long, default_value = "127.0.0.1:3102", value_name = "HOST:PORT")]
    pub connect: String,
    /// Where the HTTP API answers.
    #[arg(long, default_value = "http://127.0.0.1:3111", value_name = "URL")]
    pub http: String,
    /// HTTP connections that publish; what one of them sends is checked to come in its order.
    #[arg(long, default_value_t = 16)]
    pub publishers: u32,
    /// Threads that receive; the rest of the machine is left to the server, where it runs here too.
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// The viewers' token; without one they are guests, where guests are let in.
    #[arg(long, env = "BARRAGE_TOKEN", hide_env_values = true, default_value = "")]
    #[serde(skip)]
    pub token: String,
    /// A key with the scope to publish; not needed where none is configured, on loopback.
    #[arg(long, env = "BARRAGE_API_KEY", hide_env_values = true, default_value = "")]
    #[serde(skip)]
    pub api_key: String,
    /// Where the result goes.
    #[command(flatten)]
    #[serde(skip)]
    pub output: crate::output::Output,
}

/// Why there is no measurement, or no good one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's fault.
    #[error("--{option} {value}: {want}")]
    Option {
        /// Without dashes.
        option: &'static str,
        /// As given.
        value: String,
        /// What would be right.
        want: String,
    },
    /// This machine's limit.
    #[error(
        "{sessions} sessions need {wanted} open files, and the hard limit is {limit}: raise it (`ulimit -Hn {wanted}` as \
         root, `nofile` in /etc/security/limits.conf, `LimitNOFILE=` of a systemd unit) or take fewer --viewers"
    )]
    OpenFiles {
        /// Viewers and publishers.
        sessions: u64,
        /// With what else is open.
        wanted: u64,
        /// RLIMIT_NOFILE's.
        limit: u64,
    },
    /// The server's fault, or it is not there.
    #[error("not all viewers could enter: {0}")]
    Entering(String),
    /// This machine has no thread or no runtime to give.
    #[error("cannot run: {0}")]
    Machine(#[from] std::io::Error),
    /// A result's file cannot be written.
    #[error("{}: {reason}", .path.display())]
    File {
        /// As given.
        path: std::path::PathBuf,
        /// The system's, or the drawing's.
        reason: String,
    },
    /// What was to be measured beside the server could not be.
    #[error("the bare measurement: {reason}")]
    Bare {
        /// The disk's or Kafka's.
        reason: String,
    },
    /// It was measured, and it is not right.
    #[error("{0}")]
    Fault(String),
}

impl Fanout {
    pub(crate) fn run(&self, commit: &str) -> Result<(), Error> {
        let report = self.measure(commit)?;
        self.output.tell(&report, "fanout: latency from the intended time", &[("delivered", &report.distribution)])?;
        report.fault().map_or(Ok(()), |fault| Err(Error::Fault(fault)))
    }

    /// Measures; blocks until it is over.
    ///
    /// # Errors
    /// [`Error`], but never [`Error::Fault`]: that is [`Report::fault`]'s to say.
    pub fn measure(&self, commit: &str) -> Result<Report, Error> {
        let (spread, address, host) = self.check()?;
        let sessions = u64::from(self.viewers) + u64::from(self.publishers);
        let wanted = sessions + OTHER_FILES;
        open_files(wanted).map_err(|limit| Error::OpenFiles { sessions, wanted, limit })?;
        let rooms: Vec<String> = (0..spread.rooms).map(|room| format!("bench-{:08x}-{room}", spread.run)).collect();
        let stage = Arc::new(Stage {
            spread,
            template: Template {
                dialect: self.dialect,
                tcp: self.tcp,
                host: self.connect.clone(),
                token: self.token.clone(),
                rooms: rooms.clone(),
            },
            address,
            zero: Instant::now(),
            stop: CancellationToken::new(),
            entered: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            failure: Mutex::new(None),
        });
        let progress = Progress::new();
        // However this function is left, the viewers go.
        let _stop = stage.stop.clone().drop_guard();
        let mut threads = Vec::new();
        for thread in 0..self.threads {
            let (stage, viewers, step) = (stage.clone(), self.viewers, self.threads as usize);
            threads.push(
                thread::Builder::new()
                    .name(format!("viewers-{thread}"))
                    .spawn(move || viewers::run(&stage, (thread..viewers).step_by(step)))?,
            );
        }
        self.enter(&stage, &threads, &progress)?;
        thread::sleep(SETTLING);

        let accepted = Arc::new(AtomicU64::new(0));
        let begin = stage.zero.elapsed() + LOOK;
        let plan = Plan {
            spread,
            dialect: self.dialect,
            rate: self.rate,
            bytes: self.bytes,
            host,
            api_key: self.api_key.clone(),
            rooms,
            zero: stage.zero,
            begin,
        };
        let cpu_before = cpu_seconds();
        let publisher = {
            let accepted = accepted.clone();
            thread::Builder::new().name("publisher".into()).spawn(move || publish::run(plan, accepted))?
        };
        while !publisher.is_finished() {
            progress.show(|| self.state(&stage, &accepted));
            thread::sleep(LOOK);
        }
        let published = publisher.join().map_err(|_| panicked())??;
        self.rest(&stage, &published, &progress, &accepted);
        let cpus = cpu_before.zip(cpu_seconds()).map(|(before, after)| {
            let wall = stage.zero.elapsed().saturating_sub(begin).as_secs_f64();
            (after - before) / wall.max(f64::EPSILON)
        });
        stage.stop.cancel();
        let mut tally = Tally::default();
        for thread in threads {
            tally.add(thread.join().map_err(|_| panicked())??);
        }
        progress.clear();
        Ok(self.report(commit, &spread, begin, &published, &tally, cpus))
    }

    /// What the options make; what cannot work is refused.
    fn check(&self) -> Result<(Spread, SocketAddr, String), Error> {
        let refuse = |right: bool, option, value: &dyn ToString, want: &str| {
            if right { Ok(()) } else { Err(Error::Option { option, value: value.to_string(), want: want.to_owned() }) }
        };
        refuse((1..=VIEWERS_MAX).contains(&self.viewers), "viewers", &self.viewers, "1 to 1,000,000")?;
        refuse((1..=self.viewers).contains(&self.rooms), "rooms", &self.rooms, "1 to as many as viewers")?;
        let sizes = NOTE_BYTES..=PAYLOAD_BYTES_MAX;
        refuse(sizes.contains(&self.bytes), "bytes", &self.bytes, "32 to 65,536")?;
        refuse((1..=86_400).contains(&self.seconds), "seconds", &self.seconds, "1 to 86,400")?;
        refuse((1..=1024).contains(&self.publishers), "publishers", &self.publishers, "1 to 1,024")?;
        refuse((1..=64).contains(&self.threads), "threads", &self.threads, "1 to 64")?;
        let messages = self.rate * f64::from(self.seconds);
        let right = self.rate.is_finite() && messages >= 1.0 && messages <= f64::from(u32::MAX / 2);
        refuse(right, "rate", &self.rate, "at least one message, and at most 2,000,000,000, in --seconds")?;
        let messages = messages as u32;
        let spread = Spread { run: rand::random(), messages, rooms: self.rooms, publishers: self.publishers };
        refuse(
            Ledger::bytes(&spread) * u64::from(self.viewers) <= LEDGER_BYTES_MAX,
            "seconds",
            &self.seconds,
            "fewer: what has come to each viewer is remembered, and would take more than 4 GiB",
        )?;
        let address = self.connect.to_socket_addrs().ok().and_then(|mut all| all.next());
        let address = address.ok_or_else(|| Error::Option {
            option: "connect",
            value: self.connect.clone(),
            want: "host:port of a connector".into(),
        })?;
        Ok((spread, address, http_host(&self.http)?))
    }

    /// Waits until all viewers are in.
    fn enter<T>(&self, stage: &Stage, threads: &[thread::JoinHandle<T>], progress: &Progress) -> Result<(), Error> {
        loop {
            let over = threads.iter().any(thread::JoinHandle::is_finished);
            let entered = stage.entered.load(Ordering::Relaxed);
            if let Some(reason) = stage.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
                progress.clear();
                return Err(Error::Entering(format!("{reason} ({} are in)", grouped(entered))));
            }
            if entered >= self.viewers.into() {
                return Ok(());
            }
            if over {
                return Err(Error::Entering("a thread of viewers ended".into()));
            }
            progress.show(|| format!("{} of {} viewers are in", grouped(entered), grouped(self.viewers.into())));
            thread::sleep(LOOK);
        }
    }

    fn state(&self, stage: &Stage, accepted: &AtomicU64) -> String {
        let count = |count: &AtomicU64| grouped(count.load(Ordering::Relaxed));
        format!(
            "{} of {} messages accepted, {} delivered, {} closed",
            count(accepted),
            grouped(stage.spread.messages.into()),
            count(&stage.delivered),
            count(&stage.closed)
        )
    }

    /// Waits until everything has come, or nothing comes any more.
    fn rest(&self, stage: &Stage, published: &Published, progress: &Progress, accepted: &AtomicU64) {
        let expected = self.expected(&stage.spread, published);
        let mut seen = (stage.delivered.load(Ordering::Relaxed), Instant::now());
        // What was not accepted may have come too, so the count may be reached too early: then a look more does no
        // harm, and the ledgers are read exactly.
        while seen.0 < expected && seen.1.elapsed() < QUIET {
            thread::sleep(LOOK);
            progress.show(|| self.state(stage, accepted));
            let delivered = stage.delivered.load(Ordering::Relaxed);
            if delivered != seen.0 {
                seen = (delivered, Instant::now());
            }
        }
        // Something that comes twice comes soon after.
        thread::sleep(LOOK * 4);
    }

    /// Accepted messages times the viewers of their rooms.
    fn expected(&self, spread: &Spread, published: &Published) -> u64 {
        let mut of_room = vec![0_u64; spread.rooms as usize];
        for number in 0..spread.messages {
            of_room[(number % spread.rooms) as usize] +=
                u64::from(crate::tally::bit(&published.accepted, number as usize));
        }
        (0..self.viewers).map(|viewer| of_room[(viewer % spread.rooms) as usize]).sum()
    }

    fn report(
        &self,
        commit: &str,
        spread: &Spread,
        begin: Duration,
        published: &Published,
        tally: &Tally,
        client_cpus: Option<f64>,
    ) -> Report {
        let expected = self.expected(spread, published);
        let delivered: u64 = tally.ledgers.iter().map(|ledger| ledger.delivered(&published.accepted, spread)).sum();
        let seconds = Duration::from_nanos(tally.last_ns).saturating_sub(begin).as_secs_f64();
        let accepted = published.accepted.iter().map(|word| u64::from(word.count_ones())).sum();
        Report {
            bench: "fanout",
            environment: Environment::here(commit),
            settings: self.clone(),
            published: Publishing {
                intended: spread.messages.into(),
                accepted,
                failed: published.failed.clone(),
                acceptance: (&published.acceptance).into(),
                lag: (&published.lag).into(),
            },
            deliveries: Deliveries {
                expected,
                delivered,
                lost: expected - delivered,
                gaps_told: tally.gaps,
                duplicates: tally.duplicates,
                disordered: tally.disordered,
                strays: tally.strays,
                per_second: if seconds > 0.0 { delivered as f64 / seconds } else { 0.0 },
                seconds,
            },
            latency: (&tally.latency).into(),
            distribution: tally.latency.clone(),
            sessions: Sessions {
                viewers: self.viewers.into(),
                closed: tally.closed.values().sum(),
                reasons: tally.closed.clone(),
            },
            client_cpus,
        }
    }
}

/// `host:port` of the API's `url`.
///
/// # Errors
/// It is none.
pub(crate) fn http_host(url: &str) -> Result<String, Error> {
    let host = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let host = host.filter(|host| !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']));
    let host = host.ok_or_else(|| Error::Option {
        option: "http",
        value: url.to_owned(),
        want: "http://host:port, without a path".into(),
    })?;
    Ok(if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    })
}

fn panicked() -> std::io::Error {
    std::io::Error::other("a thread of the bench panicked")
}

/// One line on a terminal's standard error, written over and over; nothing elsewhere.
struct Progress {
    shown: Mutex<Option<Instant>>,
}

impl Progress {
    fn new() -> Self {
        Self { shown: Mutex::new(None) }
    }

    fn show(&self, line: impl FnOnce() -> String) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if std::io::stderr().is_terminal() && shown.is_none_or(|shown| shown.elapsed() >= SHOW) {
            *shown = Some(Instant::now());
            eprint!("\r\x1b[K{}", line());
            // A progress that cannot be shown hinders nothing.
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&self) {
        if self.shown.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
