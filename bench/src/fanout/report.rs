//! What a fan-out measured, as JSON and as a table.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::environment::Environment;
use crate::fanout::options::Fanout;
use crate::fanout::probe::Probed;
use crate::figures::grouped;
use crate::limit::{self, LimitRow};
use crate::processor::Usage;
use crate::publish::Published;
use crate::schedule::Schedule;
use crate::stand::Spent;
use crate::tally::{Account, Sum, microseconds};

/// Everything about one run.
pub(crate) struct Run {
    pub(crate) begin_ns: u64,
    /// When the measurement began.
    pub(crate) measured_ns: u64,
    pub(crate) published: Published,
    pub(crate) account: Account,
    pub(crate) spent: Spent,
    pub(crate) client_cpus: f64,
    /// Of heartbeats and of joins.
    pub(crate) probes: Option<(Probed, Probed)>,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was run.
    pub bench: &'static str,
    /// The machine.
    pub environment: Environment,
    /// With which options; secrets are left out.
    pub settings: Fanout,
    /// The sending side.
    pub published: Publishing,
    /// The receiving side.
    pub deliveries: Deliveries,
    /// From a message's intended time to its arrival at a checked viewer.
    pub latency: Millis,
    /// The same whole, microseconds.
    #[serde(skip)]
    pub distribution: Histogram<u64>,
    /// By the rooms' size.
    pub classes: Vec<ClassReport>,
    /// The connections.
    pub sessions: Sessions,
    /// What was asked beside it, with --probe.
    pub probes: Option<Probes>,
    /// What the server used and did; `None` where it cannot be seen.
    pub server: Option<ServerReport>,
    /// What this machine does without a server, in the same run.
    pub limit: Option<Vec<LimitRow>>,
    /// Processors that this client kept busy, on average. Near the number that it may use, it measures itself.
    pub client_cpus: f64,
}

/// The sending side.
#[derive(Debug, Clone, Serialize)]
pub struct Publishing {
    /// Messages that had their time.
    pub intended: u64,
    /// Those that the API accepted, or that were sent to the connector.
    pub accepted: u64,
    /// The others, by reason.
    pub failed: BTreeMap<String, u64>,
    /// From the intended time to the answer.
    pub acceptance: Millis,
    /// From the intended time to the sending: this client's own lateness.
    pub lag: Millis,
}

/// The receiving side.
#[derive(Debug, Clone, Serialize)]
pub struct Deliveries {
    /// Accepted messages times the viewers of their rooms.
    pub expected: u64,
    /// Of these, those that came. Of a session that is not checked it is told by its bytes.
    pub delivered: u64,
    /// The others.
    pub lost: u64,
    /// Sessions that were checked message by message.
    pub checked_sessions: u64,
    /// Sessions not checked that got other bytes than a checked one of their room that got everything.
    pub unequal_sessions: u64,
    /// How many the checked viewers were told that they missed.
    pub gaps_told: u64,
    /// How many they missed and were not told of.
    pub untold: u64,
    /// Messages that came again.
    pub duplicates: u64,
    /// Messages that came after a later one of the same publisher.
    pub disordered: u64,
    /// Messages that were not for the viewer they came to.
    pub strays: u64,
    /// Delivered, over the time from the first message's intended time to the last arrival.
    pub per_second: f64,
    /// That time.
    pub seconds: f64,
    /// That came, answers to heartbeats not counted.
    pub bytes: u64,
    /// Of these, for each delivery.
    pub bytes_each: f64,
}

/// Rooms of one size and rate.
#[derive(Debug, Clone, Serialize)]
pub struct ClassReport {
    /// How many of which size.
    pub name: String,
    /// Rooms.
    pub rooms: u32,
    /// Sessions of all of them.
    pub sessions: u32,
    /// Messages a second, to all of them.
    pub rate: f64,
    /// Accepted messages times the viewers of their rooms.
    pub expected: u64,
    /// Of these, those that came.
    pub delivered: u64,
    /// From a message's intended time to its arrival at a checked viewer.
    pub latency: Millis,
    /// The same whole, microseconds.
    #[serde(skip)]
    pub distribution: Histogram<u64>,
}

/// The connections.
#[derive(Debug, Clone, Serialize)]
pub struct Sessions {
    /// That were in their room when the first message was sent.
    pub viewers: u64,
    /// That the server ended.
    pub closed: u64,
    /// The reasons that they were told, each with its sessions.
    pub reasons: BTreeMap<String, u64>,
}

/// Whether heartbeats and joins were answered beside the load.
#[derive(Debug, Clone, Serialize)]
pub struct Probes {
    /// From a heartbeat's intended time to its answer, of a session in the first room.
    pub heartbeats: Millis,
    /// Answered.
    pub heartbeats_answered: u64,
    /// Not answered within 5 s.
    pub heartbeats_failed: u64,
    /// From the intended time of connecting to being in the first room.
    pub joins: Millis,
    /// Answered.
    pub joins_answered: u64,
    /// Refused, or not answered within 5 s.
    pub joins_failed: u64,
}

/// What a server used and did from when the measurement began.
#[derive(Debug, Clone, Serialize)]
pub struct ServerReport {
    /// Processor time; `None`: its process is not known.
    pub usage: Option<Usage>,
    /// Seconds of the connector's processor time (event loops and control thread) for a million deliveries.
    pub connector_cpu_s_a_million: Option<f64>,
    /// Of the whole process.
    pub process_cpu_s_a_million: Option<f64>,
    /// Processors that it kept busy.
    pub cpus: Option<f64>,
    /// What its connector counted; `None`: its metrics are not known.
    pub connector: Option<ConnectorReport>,
}

/// What a connector counted.
#[derive(Debug, Clone, Serialize)]
pub struct ConnectorReport {
    /// Sends to sockets.
    pub writes: u64,
    /// Of these, those that the kernel had no room for.
    pub short_writes: u64,
    /// Bytes of a write.
    pub bytes_a_write: f64,
    /// Deliveries of a write.
    pub deliveries_a_write: f64,
    /// Messages that slow readers were skipped over, each session counted.
    pub skipped: u64,
    /// Messages not sent because a pass over a room was late, each session counted. Bilibili's and goim's clients cannot be
    /// told of them.
    pub shed: u64,
    /// Messages that a core has not got, each room counted.
    pub missed: u64,
    /// Messages that a full core's queue dropped.
    pub queue_drops: u64,
    /// Writes a second of the connector's processor time.
    pub writes_per_cpu_s: Option<f64>,
    /// The same, of what `limit` makes at that size by plain calls.
    pub share_of_limit: Option<f64>,
    /// By batches through io_uring, where they are permitted.
    pub share_of_uring_limit: Option<f64>,
    /// Of what plain calls make when their rounds come as rarely as the run's messages, where nothing is to be batched.
    pub share_of_paced_limit: Option<f64>,
    /// Of what io_uring makes then.
    pub share_of_paced_uring_limit: Option<f64>,
}

/// A distribution, milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Millis {
    /// Half are at most this.
    pub p50: f64,
    /// Nine of ten.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p999: f64,
    /// All.
    pub max: f64,
}

impl From<&Histogram<u64>> for Millis {
    fn from(microseconds: &Histogram<u64>) -> Self {
        let at = |quantile| microseconds.value_at_quantile(quantile) as f64 / 1000.0;
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: microseconds.max() as f64 / 1000.0 }
    }
}

impl Report {
    pub(crate) fn new(
        settings: &Fanout,
        environment: Environment,
        schedule: &Schedule,
        run: &Run,
        limit: Option<Vec<LimitRow>>,
    ) -> Self {
        let (account, published) = (&run.account, &run.published);
        let (sums, latencies) = (account.sums(schedule, &published.accepted), account.latency());
        let total = |of: fn(&Sum) -> u64| sums.iter().map(of).sum::<u64>();
        let (expected, delivered, bytes) =
            (total(|sum| sum.expected), total(|sum| sum.delivered), total(|sum| sum.bytes));
        let seconds = account.last_ns.saturating_sub(run.begin_ns) as f64 / 1e9;
        let mut distribution = microseconds();
        latencies.iter().for_each(|class| distribution.add(class).expect("both have the same bounds"));
        let classes = schedule.classes().zip(&sums).zip(&latencies).map(|((class, sum), latency)| ClassReport {
            name: format!(
                "{} x {}",
                grouped(class.rooms.into()),
                grouped((f64::from(class.sessions) / f64::from(class.rooms)).round() as u64)
            ),
            rooms: class.rooms,
            sessions: class.sessions,
            rate: class.rate,
            expected: sum.expected,
            delivered: sum.delivered,
            latency: latency.into(),
            distribution: latency.clone(),
        });
        Self {
            bench: "fanout",
            environment,
            settings: settings.clone(),
            published: Publishing {
                intended: schedule.messages().into(),
                accepted: published.accepted.iter().map(|word| u64::from(word.count_ones())).sum(),
                failed: published.failed.clone(),
                acceptance: (&published.acceptance).into(),
                lag: (&published.lag).into(),
            },
            deliveries: Deliveries {
                expected,
                delivered,
                lost: expected - delivered,
                checked_sessions: total(|sum| sum.checked),
                unequal_sessions: total(|sum| sum.unequal),
                gaps_told: total(|sum| sum.gaps),
                untold: total(|sum| sum.untold),
                duplicates: account.duplicates,
                disordered: account.disordered,
                strays: account.strays,
                per_second: if seconds > 0.0 { delivered as f64 / seconds } else { 0.0 },
                seconds,
                bytes,
                bytes_each: bytes as f64 / delivered.max(1) as f64,
            },
            latency: (&distribution).into(),
            distribution,
            classes: classes.collect(),
            sessions: Sessions {
                viewers: schedule.sessions().into(),
                closed: account.closed.values().sum(),
                reasons: account.closed.clone(),
            },
            probes: run.probes.as_ref().map(|(heartbeats, joins)| Probes {
                heartbeats: (&heartbeats.answered).into(),
                heartbeats_answered: heartbeats.answered.len(),
                heartbeats_failed: heartbeats.failed,
                joins: (&joins.answered).into(),
                joins_answered: joins.answered.len(),
                joins_failed: joins.failed,
            }),
            server: ServerReport::new(
                &run.spent,
                delivered as f64 * schedule.measured_share(),
                account.last_ns.saturating_sub(run.measured_ns) as f64 / 1e9,
                limit.as_deref(),
            ),
            limit,
            client_cpus: run.client_cpus,
        }
    }

    /// What the server did wrong, `None`: everything that it accepted came once, in order, and nobody was closed.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let Deliveries { lost, duplicates, disordered, strays, gaps_told, unequal_sessions, .. } = self.deliveries;
        let failed: u64 = self.published.failed.values().sum();
        let faults: Vec<String> = [
            (failed, "messages were not accepted"),
            (lost, "deliveries are missing"),
            (gaps_told, "messages were told as missed"),
            (unequal_sessions, "sessions got other bytes than a checked one of their room"),
            (duplicates, "came twice"),
            (disordered, "came out of order"),
            (strays, "came to the wrong viewer"),
            (self.sessions.closed, "sessions were closed"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", grouped(count)))
        .collect();
        (!faults.is_empty()).then(|| faults.join(", "))
    }
}

impl ServerReport {
    /// What it spent on so many deliveries in as many seconds.
    fn new(spent: &Spent, delivered: f64, seconds: f64, limit: Option<&[LimitRow]>) -> Option<Self> {
        let million = delivered / 1e6;
        let connector_s = spent.usage.map(|usage| usage.cores_s + usage.control_s);
        let process_s = spent.usage.map(|usage| usage.cores_s + usage.control_s + usage.rest_s);
        let connector = spent.connector("writes").filter(|writes| *writes > 0).map(|writes| {
            let count = |name| spent.connector(name).unwrap_or_default();
            let bytes_a_write = count("sent_bytes") as f64 / writes as f64;
            let writes_per_cpu_s = connector_s.map(|seconds| writes as f64 / seconds);
            // The row of that size, or of 128 bytes where the writes are about as short.
            let share = |way: &str, paced: bool| {
                let rows = limit?.iter().filter(|row| row.way == way && paced == (row.pace > 0.0));
                let off = |row: &LimitRow| (row.bytes as f64 / bytes_a_write).ln().abs();
                let row = rows.min_by(|a, b| off(a).total_cmp(&off(b)))?;
                Some(writes_per_cpu_s? / row.writes_per_cpu_s)
            };
            ConnectorReport {
                writes,
                short_writes: count("short_writes"),
                bytes_a_write,
                deliveries_a_write: delivered / writes as f64,
                skipped: count("skipped"),
                shed: count("shed"),
                missed: count("missed"),
                queue_drops: count("queue_drops"),
                writes_per_cpu_s,
                share_of_limit: share(limit::SEND, false),
                share_of_uring_limit: share(limit::IO_URING, false),
                share_of_paced_limit: share(limit::SEND, true),
                share_of_paced_uring_limit: share(limit::IO_URING, true),
            }
        });
        (connector.is_some() || spent.usage.is_some()).then_some(Self {
            usage: spent.usage,
            connector_cpu_s_a_million: connector_s.map(|seconds| seconds / million),
            process_cpu_s_a_million: process_s.map(|seconds| seconds / million),
            cpus: process_s.map(|used| used / seconds),
            connector,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { environment, settings, published, deliveries, latency, sessions, classes, .. } = self;
        let carrier = if settings.tcp { "TCP" } else { "WebSocket" };
        let rate: f64 = classes.iter().map(|class| class.rate).sum();
        let rooms: u64 = classes.iter().map(|class| u64::from(class.rooms)).sum();
        writeln!(
            f,
            "fanout via {:?}: {} viewers, {} rooms, {rate} messages/s for {} s, {:?} on {carrier}",
            settings.via,
            grouped(sessions.viewers),
            grouped(rooms),
            settings.seconds,
            settings.dialect,
        )?;
        writeln!(f, "{environment}\n")?;
        let percent = 100.0 * deliveries.delivered as f64 / (deliveries.expected.max(1)) as f64;
        writeln!(f, "  deliveries/s   {:>16}", grouped(deliveries.per_second as u64))?;
        writeln!(
            f,
            "  delivered      {:>16}  of {} ({percent:.3} %)",
            grouped(deliveries.delivered),
            grouped(deliveries.expected)
        )?;
        writeln!(f, "  bytes each     {:>16.1}", deliveries.bytes_each)?;
        writeln!(
            f,
            "  checked        {:>16}  of {} sessions message by message, the others by their bytes",
            grouped(deliveries.checked_sessions),
            grouped(sessions.viewers)
        )?;
        for (name, count) in [
            ("unequal bytes", deliveries.unequal_sessions),
            ("gaps told", deliveries.gaps_told),
            ("missed untold", deliveries.untold),
            ("came twice", deliveries.duplicates),
            ("out of order", deliveries.disordered),
            ("strays", deliveries.strays),
        ] {
            writeln!(f, "  {name:<14} {:>16}", grouped(count))?;
        }
        writeln!(f, "  closed         {:>16}  of {} sessions", grouped(sessions.closed), grouped(sessions.viewers))?;
        for (reason, count) in &sessions.reasons {
            writeln!(f, "{:>34}  {reason}", grouped(*count))?;
        }
        writeln!(
            f,
            "  accepted       {:>16}  of {} messages",
            grouped(published.accepted),
            grouped(published.intended)
        )?;
        for (reason, count) in &published.failed {
            writeln!(f, "{:>34}  {reason}", grouped(*count))?;
        }
        writeln!(f, "  client's CPUs  {:>16.2}  of {}", self.client_cpus, environment.cpus)?;
        writeln!(f)?;
        writeln!(f, "  ms from the intended time      p50       p90       p99     p99.9       max")?;
        let mut rows = vec![("delivered", latency)];
        if classes.len() > 1 {
            rows.extend(classes.iter().map(|class| (class.name.as_str(), &class.latency)));
        }
        if let Some(probes) = &self.probes {
            rows.extend([("heartbeat answered", &probes.heartbeats), ("joined", &probes.joins)]);
        }
        rows.extend([("accepted", &published.acceptance), ("sent (our lag)", &published.lag)]);
        for (name, millis) in rows {
            let Millis { p50, p90, p99, p999, max } = millis;
            writeln!(f, "  {name:<23}{p50:>10.2}{p90:>10.2}{p99:>10.2}{p999:>10.2}{max:>10.2}")?;
        }
        if let Some(probes) = &self.probes {
            writeln!(
                f,
                "  heartbeats {} answered, {} not; joins {} answered, {} not",
                probes.heartbeats_answered, probes.heartbeats_failed, probes.joins_answered, probes.joins_failed
            )?;
        }
        if let Some(server) = &self.server {
            writeln!(f)?;
            write!(f, "{server}")?;
        }
        if let Some(rows) = &self.limit {
            writeln!(f)?;
            limit::table(rows, f)?;
            if let Some(verdict) = limit::verdict(rows) {
                writeln!(f, "  {verdict}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ServerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(usage) = self.usage {
            writeln!(
                f,
                "  server's CPU s {:>16.3}  event loops, {:.3} control thread, {:.3} all else; {:.2} CPUs busy",
                usage.cores_s,
                usage.control_s,
                usage.rest_s,
                self.cpus.unwrap_or_default()
            )?;
        }
        if let (Some(connector), Some(process)) = (self.connector_cpu_s_a_million, self.process_cpu_s_a_million) {
            writeln!(f, "  CPU s/million  {connector:>16.4}  connector, {process:.4} the whole process")?;
        }
        let Some(connector) = &self.connector else { return Ok(()) };
        writeln!(
            f,
            "  writes         {:>16}  of {:.1} bytes and {:.2} deliveries; {} short",
            grouped(connector.writes),
            connector.bytes_a_write,
            connector.deliveries_a_write,
            grouped(connector.short_writes)
        )?;
        if let Some(writes) = connector.writes_per_cpu_s {
            write!(f, "  writes a CPU s {:>16}", grouped(writes as u64))?;
            if let Some(share) = connector.share_of_limit {
                write!(f, "  of limit's at that size {:.1} %", share * 100.0)?;
            }
            for (share, of) in [
                (connector.share_of_uring_limit, "by io_uring"),
                (connector.share_of_paced_limit, "at that pace"),
                (connector.share_of_paced_uring_limit, "at that pace by io_uring"),
            ] {
                share.map_or(Ok(()), |share| write!(f, ", {of} {:.1} %", share * 100.0))?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "  skipped        {:>16}  deliveries, {} shed; {} messages missed, {} dropped at a core's queue",
            grouped(connector.skipped),
            grouped(connector.shed),
            grouped(connector.missed),
            grouped(connector.queue_drops)
        )
    }
}
