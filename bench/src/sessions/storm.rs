//! `barrage bench storm`: sessions come as fast as it goes, all drop at once, and come back as clients do.
//!
//! ```text
//!   look ─▶ all go in, so many at once ─▶ settle ─▶ look ─▶ all drop; each comes back after its backoff ─▶ settle ─▶ look
//!    └──────────── first ───────────────────────────┴──────────────────────── back ───────────────────────────────────┘
//! ```
//!
//! Latency runs from when a session wants to be in: its first try, or when its backoff is over; tries that fail are part
//! of it. What coming sets off after a session is in (its routes are written in batches) is part of the cost.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::Error;
use crate::environment::Environment;
use crate::fanout::report::Millis;
use crate::figures::grouped;
use crate::output::Output;
use crate::progress::Progress;
use crate::servers::{Cpu, Servers};
use crate::sessions::fleet::{Crew, Done, Fleet};

/// After the last session is in: what its coming set off.
const SETTLING: Duration = Duration::from_secs(2);

/// Sessions that come as fast as it goes, drop at once and come back: sessions a second, time until joined, CPU.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct Storm {
    /// The sessions.
    #[command(flatten)]
    #[serde(flatten)]
    pub crew: Crew,
    /// Where the result goes.
    #[command(flatten)]
    #[serde(skip)]
    pub output: Output,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct StormReport {
    /// The machine.
    pub environment: Environment,
    /// The options of the run.
    pub settings: Storm,
    /// All go in.
    pub first: Wave,
    /// All drop and come back.
    pub back: Wave,
    /// Sessions that the server ended after they were in.
    pub closed: u64,
    /// Tries that failed, by reason.
    pub reasons: BTreeMap<String, u64>,
}

/// All sessions once.
#[derive(Debug, Clone, Serialize)]
pub struct Wave {
    /// That are in.
    pub sessions: u64,
    /// That tried too often.
    pub given_up: u64,
    /// Until the last was in, from the order to go in, or from the drop.
    pub seconds: f64,
    /// One over the other.
    pub sessions_per_s: f64,
    /// Until a session was in.
    pub entering: Millis,
    /// Processor time of the server; `None`: no process of it is to be seen here.
    pub cpu: Option<WaveCpu>,
    /// In microseconds, what `entering` summarises.
    #[serde(skip)]
    pub distribution: Histogram<u64>,
}

/// What sessions cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct WaveCpu {
    /// Connector, microseconds a session.
    pub connector_us: f64,
    /// Of these the event loops.
    pub cores_us: f64,
    /// Everything else of the server (logic and routes), microseconds a session.
    pub rest_us: f64,
    /// Sessions a connector's processor second.
    pub sessions_a_connector_s: f64,
}

impl Storm {
    pub(crate) fn run(&self, commit: &str) -> Result<(), Error> {
        let report = self.measure(commit)?;
        let latencies = [("first", &report.first.distribution), ("back", &report.back.distribution)];
        self.output.tell(&report, "storm: time until a session is in its room", &latencies)?;
        report.fault().map_or(Ok(()), |fault| Err(Error::Fault(fault)))
    }

    /// Measures; blocks until it is over.
    ///
    /// # Errors
    /// [`Error`], but never [`Error::Fault`]: that is [`StormReport::fault`]'s to say.
    pub fn measure(&self, commit: &str) -> Result<StormReport, Error> {
        let connect = self.crew.check()?;
        let servers = Servers::find(&self.crew.server_pid, &connect)?;
        let progress = Progress::new();
        let mut fleet = Fleet::start(&self.crew, &connect)?;
        let before = servers.look()?.cpu();
        let first = fleet.enter(&progress)?;
        fleet.hold(SETTLING, |_| ())?;
        let between = servers.look()?.cpu();
        let left = fleet.leave(&progress)?;
        let mut back = fleet.come_back(&progress)?;
        back.seconds += left.seconds;
        let last = fleet.hold(SETTLING, |_| ())?;
        let after = servers.look()?.cpu();
        progress.clear();
        let measured = !servers.is_empty();
        Ok(StormReport {
            environment: Environment::here(commit),
            settings: self.clone(),
            first: Wave::new(&first, measured.then(|| between.since(&before))),
            back: Wave::new(&back, measured.then(|| after.since(&between))),
            closed: last.closed,
            reasons: last.reasons,
        })
    }
}

impl Wave {
    fn new(done: &Done, cpu: Option<Cpu>) -> Self {
        let sessions = done.told.joined;
        let distribution = done.told.entering();
        let us = |seconds: f64| seconds * 1e6 / sessions.max(1) as f64;
        Self {
            sessions,
            given_up: done.told.given_up,
            seconds: done.seconds,
            sessions_per_s: sessions as f64 / done.seconds.max(f64::EPSILON),
            entering: Millis::from(&distribution),
            cpu: cpu.map(|cpu| WaveCpu {
                connector_us: us(cpu.connector_s),
                cores_us: us(cpu.cores_s),
                rest_us: us(cpu.rest_s),
                sessions_a_connector_s: sessions as f64 / cpu.connector_s.max(f64::EPSILON),
            }),
            distribution,
        }
    }
}

impl StormReport {
    /// What the server did wrong; `None`: all came, stayed and came back, whatever the number of tries.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let wanted = u64::from(self.settings.crew.sessions);
        let faults: Vec<String> = [
            (wanted - self.first.sessions.min(wanted), "sessions did not get in"),
            (wanted - self.back.sessions.min(wanted), "did not come back"),
            (self.closed, "were closed by the server"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", grouped(count)))
        .collect();
        (!faults.is_empty()).then(|| faults.join(", "))
    }
}

impl fmt::Display for StormReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Crew { sessions, rooms, dialect, tcp, at_once, .. } = &self.settings.crew;
        let carrier = if *tcp { "TCP" } else { "WebSocket" };
        writeln!(
            f,
            "storm: {} sessions in {} rooms, {} at once, {dialect:?} on {carrier}",
            grouped((*sessions).into()),
            grouped((*rooms).into()),
            grouped((*at_once).into())
        )?;
        writeln!(f, "{}\n", self.environment)?;
        writeln!(
            f,
            "                     sessions  seconds  sessions/s    ms until in: p50      p90      p99      max"
        )?;
        for (name, wave) in [("go in", &self.first), ("drop, come back", &self.back)] {
            let Millis { p50, p90, p99, max, .. } = wave.entering;
            writeln!(
                f,
                "  {name:<17} {:>10} {:>8.2} {:>11} {p50:>19.1} {p90:>8.1} {p99:>8.1} {max:>8.1}",
                grouped(wave.sessions),
                wave.seconds,
                grouped(wave.sessions_per_s as u64)
            )?;
        }
        if self.first.cpu.is_some() {
            writeln!(f, "\n  CPU, us a session  connector  (event loops)  all else   sessions a connector CPU second")?;
        }
        for (name, wave) in [("go in", &self.first), ("drop, come back", &self.back)] {
            let Some(cpu) = wave.cpu else { continue };
            writeln!(
                f,
                "  {name:<17} {:>10.1} {:>14.1} {:>9.1} {:>33}",
                cpu.connector_us,
                cpu.cores_us,
                cpu.rest_us,
                grouped(cpu.sessions_a_connector_s as u64)
            )?;
        }
        if !self.reasons.is_empty() {
            writeln!(f, "\n  tries that failed")?;
        }
        for (reason, count) in &self.reasons {
            writeln!(f, "{:>17}  {reason}", grouped(*count))?;
        }
        Ok(())
    }
}
