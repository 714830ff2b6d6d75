//! What was measured, as JSON and as a table.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::environment::Environment;
use crate::fanout::Fanout;

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was run.
    pub bench: &'static str,
    /// Where.
    pub environment: Environment,
    /// With which options; secrets are left out.
    pub settings: Fanout,
    /// The sending side.
    pub published: Publishing,
    /// The receiving side.
    pub deliveries: Deliveries,
    /// From a message's intended time to its arrival at a viewer.
    pub latency: Millis,
    /// The same whole, microseconds.
    #[serde(skip)]
    pub distribution: Histogram<u64>,
    /// The connections.
    pub sessions: Sessions,
    /// Processors that this client kept busy, on average. Near the number that it may use, it measures itself.
    pub client_cpus: Option<f64>,
}

/// The sending side.
#[derive(Debug, Clone, Serialize)]
pub struct Publishing {
    /// Messages that had their time.
    pub intended: u64,
    /// Those that the API accepted.
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
    /// Of these, those that came.
    pub delivered: u64,
    /// The others.
    pub lost: u64,
    /// How many the viewers were told that they missed.
    pub gaps_told: u64,
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
}

/// The connections.
#[derive(Debug, Clone, Serialize)]
pub struct Sessions {
    /// That were in their room when the first message was sent.
    pub viewers: u64,
    /// That the server ended.
    pub closed: u64,
    /// Why.
    pub reasons: BTreeMap<String, u64>,
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
    /// What the server did wrong, `None`: everything that it accepted came once, in order, and nobody was closed.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let Deliveries { lost, duplicates, disordered, strays, gaps_told, .. } = self.deliveries;
        let failed: u64 = self.published.failed.values().sum();
        let faults: Vec<String> = [
            (failed, "messages were not accepted"),
            (lost, "deliveries are missing"),
            (gaps_told, "messages were told as missed"),
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

/// 1234567 as 1,234,567.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { environment, settings, published, deliveries, latency, sessions, .. } = self;
        let carrier = if settings.tcp { "TCP" } else { "WebSocket" };
        writeln!(
            f,
            "fanout: {} viewers, {} rooms, {} messages/s of {} bytes for {} s, {:?} on {carrier}",
            grouped(settings.viewers.into()),
            grouped(settings.rooms.into()),
            settings.rate,
            settings.bytes,
            settings.seconds,
            settings.dialect,
        )?;
        writeln!(f, "{environment}")?;
        writeln!(f)?;
        let percent = 100.0 * deliveries.delivered as f64 / (deliveries.expected.max(1)) as f64;
        writeln!(f, "  deliveries/s   {:>16}", grouped(deliveries.per_second as u64))?;
        writeln!(
            f,
            "  delivered      {:>16}  of {} ({percent:.3} %)",
            grouped(deliveries.delivered),
            grouped(deliveries.expected)
        )?;
        for (name, count) in [
            ("gaps told", deliveries.gaps_told),
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
        if let Some(cpus) = self.client_cpus {
            writeln!(f, "  client's CPUs  {cpus:>16.2}  of {}", environment.cpus)?;
        }
        writeln!(f)?;
        writeln!(f, "  ms from the intended time      p50       p90       p99     p99.9       max")?;
        for (name, millis) in
            [("delivered", latency), ("accepted", &published.acceptance), ("sent (our lag)", &published.lag)]
        {
            let Millis { p50, p90, p99, p999, max } = millis;
            writeln!(f, "  {name:<23}{p50:>10.2}{p90:>10.2}{p99:>10.2}{p999:>10.2}{max:>10.2}")?;
        }
        Ok(())
    }
}
