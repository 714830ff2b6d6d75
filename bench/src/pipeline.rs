//! `barrage bench pipeline`: how long a message takes from its publishing until the last receiver has it, at a load so
//! light that nothing waits for anything else; and where in the server that time goes.
//!
//! ```text
//!   publisher ─HTTP─▶ logic ─▶ bus ─▶ job ─▶ connector ─▶ core ─▶ sessions        bare: one sync, or one record through
//!        send    accept     bus     job  deliver      write    receive            Kafka, in the pauses of the same run
//!        └──────────────────────── total ─────────────────────────┘
//! ```
//!
//! `send` and the total are measured here, the stages between by the server's own histograms, which are read from its
//! operators' ports before and after. What is left of the mean total is `receive`: the kernel's ways between the
//! processes, and the last session's reading. Percentiles of stages do not add up to those of the total, means do.
//!
//! Invariant: a message that did not reach every session, or not in order, makes the run a fault.

mod bare;
mod light;
mod stages;

use std::fmt;
use std::net::ToSocketAddrs as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::credential::{ApiKey, Token};
use crate::dialect::Dialect;
use crate::environment::Environment;
use crate::error::Error;
use crate::fanout::report::Millis;
use crate::figures::grouped;
use crate::note::NOTE_BYTES;
use crate::output::Output;
use crate::publish::Api;
use crate::tally::{microseconds, record};

use bare::Beat;
use light::{Progress, Publisher, Room, Seen, Sent};
use stages::Histograms;
pub use stages::Stage;

/// Before the first message, so that the sessions' entering is over.
const SETTLING: Duration = Duration::from_millis(500);
/// How long sessions may take to enter, all together.
const ENTERING: Duration = Duration::from_secs(30);
/// After the last answer, how long what is missing is waited for.
const QUIET: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Target: what a message may take beyond one sync of the disk, milliseconds.
const OVER_SYNC_MS: f64 = 3.0;
/// Target: what it may take beyond a bare produce-and-consume, milliseconds.
const OVER_KAFKA_MS: f64 = 5.0;

/// The server's stages: name, histogram, what it is.
const STAGES: [(&str, &str, &str); 5] = [
    ("accept", "barrage_logic_accept_seconds", "request read, to handed to the bus"),
    ("bus", "barrage_job_bus_seconds", "handed to the bus, to read by job"),
    ("job", "barrage_job_handling_seconds", "read, to queued for the connectors"),
    ("deliver", "barrage_connector_delivery_seconds", "queued, to taken by the connector"),
    ("write", "barrage_connector_writing_seconds", "taken, to sent to the last session"),
];
/// Beside the way to the receiver: the answer to the publisher waits for it.
const DURABLE: &str = "barrage_logic_durable_seconds";

/// From publishing to the last receiver at a light load, and where that time goes.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct Pipeline {
    /// Sessions, all in one room.
    #[arg(long, default_value_t = 100)]
    pub viewers: u32,
    /// Messages a second.
    #[arg(long, default_value_t = 10.0)]
    pub rate: f64,
    /// How long messages are sent.
    #[arg(long, default_value_t = 30)]
    pub seconds: u32,
    /// How long messages are sent before that, and not counted: brokers in Java compile what they run.
    #[arg(long, default_value_t = 3)]
    pub warm_up: u32,
    /// Bytes of a payload, at least 32.
    #[arg(long, default_value_t = 64)]
    pub bytes: usize,
    /// What the sessions speak, and which API the messages are published through.
    #[arg(long, value_enum, default_value = "native")]
    pub dialect: Dialect,
    /// Where the sessions connect.
    #[arg(long, default_value = "127.0.0.1:3102", value_name = "HOST:PORT")]
    pub connect: String,
    /// Where the HTTP API answers.
    #[arg(long, default_value = "http://127.0.0.1:3111", value_name = "URL")]
    pub http: String,
    /// The operators' ports of all processes of the server, for the stages; none for a server that is not Barrage.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:3199", value_name = "HOST:PORT,...")]
    pub admin: Vec<String>,
    /// Measures one sync of a small append in this directory, too: of the disk that holds the embedded bus.
    #[arg(long, value_name = "DIR")]
    pub sync: Option<PathBuf>,
    /// Measures a bare produce-and-consume on these brokers, too.
    #[arg(long, value_name = "HOST:PORT,...")]
    pub kafka: Option<String>,
    /// Who the sessions are.
    #[command(flatten)]
    #[serde(skip)]
    pub token: Token,
    /// Who publishes.
    #[command(flatten)]
    #[serde(skip)]
    pub api_key: ApiKey,
    /// Where the result goes.
    #[command(flatten)]
    #[serde(skip)]
    pub output: Output,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct PipelineReport {
    /// What was run.
    pub bench: &'static str,
    /// The machine.
    pub environment: Environment,
    /// With which options; secrets are left out.
    pub settings: Pipeline,
    /// Messages that had their time.
    pub messages: u64,
    /// Those that the API accepted.
    pub accepted: u64,
    /// Deliveries that came, and should have come.
    pub delivered: u64,
    /// Accepted messages times the sessions.
    pub expected: u64,
    /// Messages that a session got out of order, or was told that it missed, and sessions that ended.
    pub wrong: u64,
    /// From a message's intended time until the last session has it.
    pub total: Measured,
    /// From the intended time until the answer that accepts it.
    pub answered: Measured,
    /// From the intended time to the sending: this client's own lateness.
    pub send: Measured,
    /// From the first session that has it to the last.
    pub spread: Measured,
    /// By name, in the order of the way; empty where no port was asked.
    pub stages: Vec<Named>,
    /// What the stages leave of the mean total, milliseconds.
    pub receive_mean: Option<f64>,
    /// One sync of a small append, in the same run.
    pub sync: Option<Measured>,
    /// One record through Kafka, in the same run.
    pub kafka: Option<Measured>,
    /// The 99th percentile of the total may be this, milliseconds: what cannot be avoided and what is allowed beyond.
    pub bound: Option<f64>,
    /// Why deliveries are wrong.
    pub faults: Vec<String>,
    /// The total whole, microseconds.
    #[serde(skip)]
    distribution: Histogram<u64>,
    #[serde(skip)]
    beside: Vec<(&'static str, Histogram<u64>)>,
}

/// What was measured here, milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    /// Of all.
    pub mean: f64,
    /// How they lie.
    #[serde(flatten)]
    pub millis: Millis,
}

impl From<&Histogram<u64>> for Measured {
    fn from(microseconds: &Histogram<u64>) -> Self {
        Self { mean: microseconds.mean() / 1000.0, millis: microseconds.into() }
    }
}

/// A stage of the server.
#[derive(Debug, Clone, Serialize)]
pub struct Named {
    /// Short.
    pub name: &'static str,
    /// From what to what.
    pub what: &'static str,
    /// How long it took.
    #[serde(flatten)]
    pub stage: Stage,
}

impl Pipeline {
    pub(crate) fn run(&self, commit: &str) -> Result<(), Error> {
        let report = self.measure(commit)?;
        let beside = report.beside.iter().map(|(name, histogram)| (*name, histogram));
        let latencies: Vec<_> =
            [("publish to last receiver", &report.distribution)].into_iter().chain(beside).collect();
        let title = format!("pipeline: {} sessions, {} messages/s", self.viewers, self.rate);
        self.output.tell(&report, &title, &latencies)?;
        if report.faults.is_empty() { Ok(()) } else { Err(Error::Fault(report.faults.join(", "))) }
    }

    /// Measures; blocks until it is over.
    ///
    /// # Errors
    /// [`Error`], but never [`Error::Fault`]: that is for [`PipelineReport::faults`] to say.
    pub fn measure(&self, commit: &str) -> Result<PipelineReport, Error> {
        let (room, host) = self.check()?;
        let (progress, stop) = (Arc::new(Progress::default()), CancellationToken::new());
        // However this function is left, the sessions go.
        let _stop = stop.clone().drop_guard();
        let watching = {
            let (room, progress, stop) = (room.clone(), progress.clone(), stop.clone());
            thread::Builder::new().name("sessions".into()).spawn(move || light::watch(&room, &progress, &stop))?
        };
        self.enter(&progress)?;
        thread::sleep(SETTLING);
        let kafka = self.kafka.as_deref().map(|brokers| {
            bare::Kafka::open(brokers).map_err(|error| Error::Bare { reason: format!("{brokers}: {error}") })
        });
        let kafka = kafka.transpose()?;
        let every = Duration::from_secs_f64(1.0 / self.rate);
        let warming = (self.rate * f64::from(self.warm_up)) as u32;
        let api = Api { dialect: self.dialect, host, api_key: self.api_key.api_key.clone() };
        let publisher = Publisher { room: room.clone(), api, bytes: self.bytes };
        light::publish(&publisher, Beat { first: Instant::now() + SETTLING, every, count: warming }, 0)?;
        let before = Histograms::read(&self.admin).map_err(Error::Entering)?;
        let first = Instant::now() + SETTLING;
        let beat = Beat { first, every, count: room.messages - warming };
        // In the pauses: a third and two thirds after each message.
        let sync = self.sync.clone().map(|directory| {
            let beat = Beat { first: first + every / 3, ..beat };
            thread::spawn(move || {
                bare::syncs(&directory, beat).map_err(|error| format!("{}: {error}", directory.display()))
            })
        });
        let kafka = kafka.map(|kafka| {
            let beat = Beat { first: first + every * 2 / 3, ..beat };
            thread::spawn(move || kafka.measure(beat))
        });
        let sent = light::publish(&publisher, beat, warming)?;
        let bare = |thread: Option<thread::JoinHandle<Result<Histogram<u64>, String>>>| {
            let joined = thread.map(|thread| thread.join().unwrap_or_else(|_| Err("its thread panicked".into())));
            joined.transpose().map_err(|reason| Error::Bare { reason })
        };
        let (sync, kafka) = (bare(sync)?, bare(kafka)?);
        let accepted = sent.accepted.iter().filter(|accepted| **accepted).count() as u64;
        let until = Instant::now() + QUIET;
        let expected = (u64::from(warming) + accepted) * u64::from(self.viewers);
        while progress.delivered.load(Ordering::Relaxed) < expected && Instant::now() < until {
            thread::sleep(LOOK);
        }
        // What comes twice comes soon after.
        thread::sleep(LOOK * 5);
        let after = Histograms::read(&self.admin).map_err(Error::Entering)?;
        stop.cancel();
        let mut seen = watching.join().map_err(|_| std::io::Error::other("the thread of sessions panicked"))??;
        let stages = STAGES
            .iter()
            .filter_map(|&(name, histogram, what)| Some(Named { name, what, stage: after.since(&before, histogram)? }));
        let durable = after.since(&before, DURABLE);
        let durable = durable.map(|stage| Named { name: "durable", what: "handed to the bus, to acknowledged", stage });
        let stages = stages.chain(durable).collect();
        seen.messages.drain(..warming as usize);
        let intended_ns = |number: u32| (beat.due(number) - room.zero).as_nanos() as u64;
        Ok(self.report(commit, intended_ns, &sent, &seen, stages, sync, kafka))
    }

    fn check(&self) -> Result<(Room, String), Error> {
        let refuse = |right: bool, option, value: &dyn ToString, want: &str| {
            if right { Ok(()) } else { Err(Error::Option { option, value: value.to_string(), want: want.to_owned() }) }
        };
        refuse((1..=1000).contains(&self.viewers), "viewers", &self.viewers, "1 to 1,000: a light load")?;
        refuse((0.1..=100.0).contains(&self.rate), "rate", &self.rate, "0.1 to 100: a light load")?;
        refuse((1..=3600).contains(&self.seconds), "seconds", &self.seconds, "1 to 3,600")?;
        refuse((NOTE_BYTES..=4096).contains(&self.bytes), "bytes", &self.bytes, "32 to 4,096")?;
        refuse(self.warm_up <= 600, "warm-up", &self.warm_up, "0 to 600")?;
        let messages = |seconds: u32| (self.rate * f64::from(seconds)) as u32;
        refuse(messages(self.seconds) >= 1, "rate", &self.rate, "at least one message in --seconds")?;
        let address = self.connect.to_socket_addrs().ok().and_then(|mut all| all.next());
        let address = address.ok_or_else(|| Error::Option {
            option: "connect",
            value: self.connect.clone(),
            want: "host:port of a connector".into(),
        })?;
        let host = crate::fanout::places::http_host(&self.http)?;
        let run = rand::random();
        let room = Room {
            dialect: self.dialect,
            address,
            host: self.connect.clone(),
            token: self.token.token.clone(),
            room: format!("bench-{run:08x}"),
            sessions: self.viewers,
            run,
            messages: messages(self.warm_up) + messages(self.seconds),
            zero: Instant::now(),
        };
        Ok((room, host))
    }

    fn enter(&self, progress: &Progress) -> Result<(), Error> {
        let until = Instant::now() + ENTERING;
        loop {
            let entered = progress.entered.load(Ordering::Relaxed);
            if let Some(reason) = progress.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Err(Error::Entering(format!("{reason} ({} are in)", grouped(entered))));
            }
            if entered >= self.viewers.into() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Error::Entering(format!("only {} of {} are in", grouped(entered), self.viewers)));
            }
            thread::sleep(LOOK);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all that was measured, put together once")]
    fn report(
        &self,
        commit: &str,
        intended_ns: impl Fn(u32) -> u64,
        sent: &Sent,
        seen: &Seen,
        stages: Vec<Named>,
        sync: Option<Histogram<u64>>,
        kafka: Option<Histogram<u64>>,
    ) -> PipelineReport {
        let (mut total, mut spread) = (microseconds(), microseconds());
        let (mut delivered, mut lost) = (0, 0);
        for (number, &(sessions, first_ns, last_ns)) in seen.messages.iter().enumerate() {
            if !sent.accepted[number] {
                continue;
            }
            delivered += u64::from(sessions.min(self.viewers));
            if sessions == self.viewers {
                record(&mut total, last_ns.saturating_sub(intended_ns(number as u32)) / 1000);
                record(&mut spread, (last_ns - first_ns) / 1000);
            } else {
                lost += u64::from(self.viewers.saturating_sub(sessions));
            }
        }
        let accepted = sent.accepted.iter().filter(|accepted| **accepted).count() as u64;
        let twice: u64 = seen.messages.iter().map(|message| u64::from(message.0.saturating_sub(self.viewers))).sum();
        let closed: u64 = seen.closed.values().sum();
        let messages = sent.accepted.len() as u64;
        let failed = messages - accepted;
        let faults = [
            (failed, "messages were not accepted"),
            (lost, "deliveries are missing"),
            (twice, "came twice"),
            (seen.disordered, "came out of order"),
            (seen.gaps, "messages were told as missed"),
            (closed, "sessions were closed"),
        ];
        let wrong = seen.disordered + seen.gaps + closed + twice;
        let reasons = sent.failed.keys().chain(seen.closed.keys()).cloned();
        let faults = faults.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let on_the_way: f64 = stages.iter().filter(|stage| stage.name != "durable").map(|stage| stage.stage.mean).sum();
        let bare = |bare: &Option<Histogram<u64>>| bare.as_ref().map(Measured::from);
        let p99 = |bare: &Option<Histogram<u64>>| bare.as_ref().map(|bare| Millis::from(bare).p99);
        let bound = p99(&kafka).map(|p99| p99 + OVER_KAFKA_MS).or(p99(&sync).map(|p99| p99 + OVER_SYNC_MS));
        let (sync_millis, kafka_millis) = (bare(&sync), bare(&kafka));
        let beside = [("one sync of the disk", sync), ("one record through Kafka", kafka)];
        PipelineReport {
            bench: "pipeline",
            environment: Environment::here(commit),
            settings: self.clone(),
            messages,
            accepted,
            delivered,
            expected: accepted * u64::from(self.viewers),
            wrong,
            total: (&total).into(),
            answered: (&sent.answered).into(),
            send: (&sent.lag).into(),
            spread: (&spread).into(),
            receive_mean: (!stages.is_empty()).then(|| (total.mean() - sent.lag.mean()) / 1000.0 - on_the_way),
            stages,
            sync: sync_millis,
            kafka: kafka_millis,
            bound,
            faults: faults.chain(reasons).collect(),
            distribution: total,
            beside: beside.into_iter().filter_map(|(name, bare)| Some((name, bare?))).collect(),
        }
    }
}

impl PipelineReport {
    /// Whether the target is met; `None`: nothing bare was measured beside it.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        let bound = self.bound?;
        Some(self.faults.is_empty() && self.total.millis.p99 <= bound)
    }
}

impl fmt::Display for PipelineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { settings, environment, .. } = self;
        writeln!(
            f,
            "pipeline: {} sessions, {} messages/s of {} bytes for {} s, {:?}",
            settings.viewers, settings.rate, settings.bytes, settings.seconds, settings.dialect
        )?;
        writeln!(f, "{environment}\n")?;
        writeln!(f, "  delivered {} of {}, wrong {}\n", grouped(self.delivered), grouped(self.expected), self.wrong)?;
        writeln!(f, "  ms{:<44}{:>9}{:>9}{:>9}{:>9}", "", "mean", "p50", "p99", "max")?;
        let exact = |f: &mut fmt::Formatter<'_>, name: &str, what: &str, measured: &Measured| {
            let Measured { mean, millis: Millis { p50, p99, max, .. } } = measured;
            writeln!(f, "  {name:<9} {what:<36}{mean:>9.2}{p50:>9.2}{p99:>9.2}{max:>9.2}")
        };
        exact(f, "send", "intended, to sent (our lag)", &self.send)?;
        let (on_the_way, beside): (Vec<_>, Vec<_>) = self.stages.iter().partition(|named| named.name != "durable");
        for Named { name, what, stage } in on_the_way {
            let Stage { mean, p50, p99, max, .. } = stage;
            writeln!(f, "  {name:<9} {what:<36}{mean:>9.2}{p50:>9.2}{p99:>9.2}{max:>9.2}")?;
        }
        if let Some(mean) = self.receive_mean {
            writeln!(f, "  {:<9} {:<36}{mean:>9.2}", "receive", "the rest: kernel, client")?;
        }
        exact(f, "total", "intended, to the last session", &self.total)?;
        writeln!(f)?;
        for Named { name, what, stage } in beside {
            let Stage { mean, p50, p99, max, .. } = stage;
            writeln!(f, "  {name:<9} {what:<36}{mean:>9.2}{p50:>9.2}{p99:>9.2}{max:>9.2}")?;
        }
        exact(f, "answered", "intended, to the API's answer", &self.answered)?;
        exact(f, "spread", "first session, to the last", &self.spread)?;
        if let Some(sync) = &self.sync {
            exact(f, "sync", "one sync of this disk", sync)?;
        }
        if let Some(kafka) = &self.kafka {
            exact(f, "kafka", "one record through it, bare", kafka)?;
        }
        if let (Some(bound), Some(met)) = (self.bound, self.met()) {
            let word = if met { "met" } else { "not met" };
            writeln!(f, "\n  target: p99 {:.2} ms of at most {bound:.2} ms: {word}", self.total.millis.p99)?;
        }
        Ok(())
    }
}
