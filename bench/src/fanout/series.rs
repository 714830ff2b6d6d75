//! Several runs of a fan-out with the same options, and of each the numbers that say most.

use std::fmt;

use serde::Serialize;

use crate::document::results::median;
use crate::fanout::report::Report;
use crate::figures::grouped;
use crate::limit::{self, LimitRow};

/// Some runs with the same options.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// What was run.
    pub bench: &'static str,
    /// The median of each number by itself.
    pub median: Headline,
    /// In their order.
    pub runs: Vec<Report>,
}

/// A run's numbers.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Headline {
    /// Deliveries a second.
    pub per_second: f64,
    /// Of what was expected.
    pub delivered_share: f64,
    /// Milliseconds from the intended time.
    pub p50: f64,
    /// Nine of ten.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p999: f64,
    /// All.
    pub max: f64,
    /// Of the connector; NaN (null in JSON) where it is not known, as with those below.
    pub cpu_s_a_million: f64,
    /// Of the connector.
    pub deliveries_a_write: f64,
    /// Writes a processor second, of `limit`'s.
    pub share_of_limit: f64,
    /// Writes a processor second that `limit` makes at 128 bytes.
    pub limit_writes_per_cpu_s: f64,
}

impl Report {
    /// Its numbers.
    #[must_use]
    pub fn headline(&self) -> Headline {
        let connector = self.server.as_ref().and_then(|server| server.connector.as_ref());
        let is_fair = |row: &&LimitRow| row.bytes == limit::FAIR_BYTES && row.way == limit::SEND && row.pace == 0.0;
        let limit = self.limit.iter().flatten().find(is_fair);
        Headline {
            per_second: self.deliveries.per_second,
            delivered_share: self.deliveries.delivered as f64 / self.deliveries.expected.max(1) as f64,
            p50: self.latency.p50,
            p90: self.latency.p90,
            p99: self.latency.p99,
            p999: self.latency.p999,
            max: self.latency.max,
            cpu_s_a_million: self
                .server
                .as_ref()
                .and_then(|server| server.connector_cpu_s_a_million)
                .unwrap_or(f64::NAN),
            deliveries_a_write: connector.map_or(f64::NAN, |connector| connector.deliveries_a_write),
            share_of_limit: connector.and_then(|connector| connector.share_of_limit).unwrap_or(f64::NAN),
            limit_writes_per_cpu_s: limit.map_or(f64::NAN, |row| row.writes_per_cpu_s),
        }
    }
}

impl Series {
    /// `runs` is not empty.
    pub(crate) fn new(runs: Vec<Report>) -> Self {
        let lines: Vec<Headline> = runs.iter().map(Report::headline).collect();
        let middle = |of: fn(&Headline) -> f64| median(lines.iter().map(of).collect()).expect("a series has a run");
        let median = Headline {
            per_second: middle(|line| line.per_second),
            delivered_share: middle(|line| line.delivered_share),
            p50: middle(|line| line.p50),
            p90: middle(|line| line.p90),
            p99: middle(|line| line.p99),
            p999: middle(|line| line.p999),
            max: middle(|line| line.max),
            cpu_s_a_million: middle(|line| line.cpu_s_a_million),
            deliveries_a_write: middle(|line| line.deliveries_a_write),
            share_of_limit: middle(|line| line.share_of_limit),
            limit_writes_per_cpu_s: middle(|line| line.limit_writes_per_cpu_s),
        };
        Self { bench: "fanout", median, runs }
    }
}

impl Headline {
    /// What stands over [`Headline`]s.
    pub(crate) const HEAD: &str = "  deliveries/s  delivered %     p50     p90     p99   p99.9     max ms  \
                                   CPU s/M  deliv./write  of limit  limit's writes/CPU s";
}

impl fmt::Display for Headline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |value: f64, shown: String| if value.is_nan() { "-".to_owned() } else { shown };
        write!(
            f,
            "{:>14}{:>13.4}{:>8.2}{:>8.2}{:>8.2}{:>8.2}{:>11.2}{:>9}{:>14}{:>10}{:>22}",
            grouped(self.per_second as u64),
            self.delivered_share * 100.0,
            self.p50,
            self.p90,
            self.p99,
            self.p999,
            self.max,
            known(self.cpu_s_a_million, format!("{:.4}", self.cpu_s_a_million)),
            known(self.deliveries_a_write, format!("{:.1}", self.deliveries_a_write)),
            known(self.share_of_limit, format!("{:.0} %", self.share_of_limit * 100.0)),
            known(self.limit_writes_per_cpu_s, grouped(self.limit_writes_per_cpu_s as u64)),
        )
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in &self.runs {
            writeln!(f, "{run}")?;
        }
        writeln!(f, "{} runs\n         {}", self.runs.len(), Headline::HEAD)?;
        for (number, run) in self.runs.iter().enumerate() {
            writeln!(f, "  run {:<3}{}", number + 1, run.headline())?;
        }
        writeln!(f, "  median {}", self.median)
    }
}
