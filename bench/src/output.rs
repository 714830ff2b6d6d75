//! Where a result goes: a table or JSON to standard output, distributions to files.
//!
//! Every subcommand has [`Printing`]; one that measures latency has [`Output`], and hands over its report and its
//! histograms of microseconds at the end.

use std::fmt::Display;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::error::Error;
use crate::plot;

/// Lines of a distribution for each halving of what is left: what HdrHistogram's own tools write.
const TICKS_A_HALVING: u32 = 5;

/// The option of every subcommand.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Printing {
    /// Prints one JSON object instead of the table.
    #[arg(long)]
    pub json: bool,
}

/// The options of every subcommand that measures latency.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Output {
    /// How it is printed.
    #[command(flatten)]
    pub printing: Printing,
    /// Writes the distribution of latency, in HdrHistogram's text format (values in milliseconds).
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Draws it.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

impl Output {
    /// Prints `report` and writes the files. The first of `latencies` (microseconds) is the one for the log; the drawing
    /// has all of them under `title`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(crate) fn tell(
        &self,
        report: &(impl Serialize + Display),
        title: &str,
        latencies: &[(&str, &Histogram<u64>)],
    ) -> Result<(), Error> {
        self.printing.print(report);
        if let (Some(path), Some((_, histogram))) = (&self.hgrm, latencies.first()) {
            let mut file = Vec::new();
            hgrm(histogram, &mut file)
                .and_then(|()| fs::write(path, file))
                .map_err(|error| Error::File { path: path.clone(), reason: error.to_string() })?;
        }
        if let Some(path) = &self.svg {
            plot::percentiles(path, title, latencies).map_err(|reason| Error::File { path: path.clone(), reason })?;
        }
        Ok(())
    }
}

impl Printing {
    /// Prints `report`.
    pub(crate) fn print(&self, report: &(impl Serialize + Display)) {
        if self.json {
            println!("{}", serde_json::to_string_pretty(report).expect("a report is numbers and text"));
        } else {
            print!("{report}");
        }
    }
}

/// Writes `microseconds` as HdrHistogram's percentile distribution (its `outputPercentileDistribution`; hdrhistogram's
/// plotter reads it), values in milliseconds.
fn hgrm(microseconds: &Histogram<u64>, out: &mut Vec<u8>) -> std::io::Result<()> {
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    for at in microseconds.iter_quantiles(TICKS_A_HALVING) {
        let (value, quantile) = (at.value_iterated_to() as f64 / 1000.0, at.quantile_iterated_to());
        let count = microseconds.count_between(0, at.value_iterated_to());
        if quantile < 1.0 {
            writeln!(out, "{value:>12.3} {quantile:>1.12} {count:>10} {:>14.2}", 1.0 / (1.0 - quantile))?;
        } else {
            writeln!(out, "{value:>12.3} {quantile:>1.12} {count:>10}")?;
        }
    }
    let milliseconds = |us: f64| us / 1000.0;
    let (mean, deviation) = (milliseconds(microseconds.mean()), milliseconds(microseconds.stdev()));
    writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]")?;
    let (max, count) = (milliseconds(microseconds.max() as f64), microseconds.len());
    writeln!(out, "#[Max     = {max:>12.3}, Total count    = {count:>12}]")?;
    let (buckets, parts) =
        (microseconds.buckets(), 1 << (64 - (2 * 10_u64.pow(microseconds.sigfig().into()) - 1).leading_zeros()));
    writeln!(out, "#[Buckets = {buckets:>12}, SubBuckets     = {parts:>12}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_what_the_tools_of_others_read() {
        let mut histogram = crate::tally::microseconds();
        for us in 1..=1000 {
            histogram.record(us * 1000).unwrap();
        }
        let mut out = Vec::new();
        hgrm(&histogram, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next().unwrap().split_whitespace().next(), Some("Value"));
        assert_eq!(lines.next(), Some(""));
        // Value, percentile and count rise; half of the values lie up to the half.
        let mut before = (0.0, 0.0, 0);
        for line in lines.by_ref().take_while(|line| !line.starts_with('#')) {
            let mut numbers = line.split_whitespace();
            let mut next = || numbers.next().unwrap().parse::<f64>().unwrap();
            let now = (next(), next(), next() as u64);
            assert!(now.0 >= before.0 && now.1 >= before.1 && now.2 >= before.2, "{line}");
            before = now;
            if now.1 == 0.5 {
                assert!((499.0..502.0).contains(&now.0) && (499..502).contains(&now.2), "{line}");
            }
        }
        assert_eq!((before.1, before.2), (1.0, 1000));
        assert!(text.contains("#[Max     =     1000.4") || text.contains("#[Max     =     1000.0"), "{text}");
        assert!(text.contains("Total count    =         1000]") && text.contains("SubBuckets     =         2048]"));
    }
}
