//! Where the time of a message goes inside the server: the histograms of its operators' ports, read before and after.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde::Serialize;

/// How long a port may take to answer.
const WITHIN: Duration = Duration::from_secs(5);

/// A stage, milliseconds. The percentiles are read off the buckets of the server's histogram (straight lines between
/// their bounds), `max` is the upper bound of the highest bucket that has something.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stage {
    /// What it was seen for: messages, or batches of them.
    pub count: u64,
    /// Exact.
    pub mean: f64,
    /// Half are at most this.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// None is over this.
    pub max: f64,
}

/// The histograms of some ports, by name, each summed over the ports.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Histograms(BTreeMap<String, Buckets>);

#[derive(Debug, Clone, Default, PartialEq)]
struct Buckets {
    sum: f64,
    /// Upper bound, seconds, and how many are at most that.
    upto: Vec<(f64, f64)>,
}

impl Histograms {
    /// Asks all of `ports` (`host:port`; an empty one is none).
    ///
    /// # Errors
    /// Which one did not answer, and why.
    pub(crate) fn read(ports: &[String]) -> Result<Self, String> {
        let mut all = Self::default();
        for port in ports.iter().filter(|port| !port.is_empty()) {
            let text = get(port).map_err(|error| format!("{port}: {error}"))?;
            all.add(&text);
        }
        Ok(all)
    }

    fn add(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            if let Some(name) = name.strip_suffix("_sum") {
                self.0.entry(name.to_owned()).or_default().sum += value;
            } else if let Some((name, bound)) = name.split_once("_bucket{le=\"")
                && let Ok(bound) = bound.trim_end_matches("\"}").replace("+Inf", "inf").parse::<f64>()
            {
                let upto = &mut self.0.entry(name.to_owned()).or_default().upto;
                match upto.iter_mut().find(|(known, _)| *known == bound) {
                    Some((_, count)) => *count += value,
                    None => upto.push((bound, value)),
                }
            }
        }
    }

    /// What came to `name` since `before`; `None`: nothing did.
    pub(crate) fn since(&self, before: &Self, name: &str) -> Option<Stage> {
        let (now, nothing) = (self.0.get(name)?, Buckets::default());
        let before = before.0.get(name).unwrap_or(&nothing);
        let was = |bound: f64| before.upto.iter().find(|(known, _)| *known == bound).map_or(0.0, |(_, count)| *count);
        let upto: Vec<(f64, f64)> = now.upto.iter().map(|&(bound, count)| (bound, count - was(bound))).collect();
        let count = upto.last()?.1;
        if count < 1.0 {
            return None;
        }
        let at = |quantile: f64| {
            let wanted = quantile * count;
            let place = upto.iter().position(|&(_, upto)| upto >= wanted)?;
            let (low, below) = place.checked_sub(1).map_or((0.0, 0.0), |place| upto[place]);
            let (high, upto) = upto[place];
            // Over the last bound nothing more is known.
            let part = if upto > below { (wanted - below) / (upto - below) } else { 1.0 };
            Some(if high.is_finite() { low + (high - low) * part } else { low })
        };
        let max = upto.iter().find(|(_, upto)| *upto >= count).map_or(0.0, |(bound, _)| *bound);
        let ms = |seconds: f64| seconds * 1000.0;
        Some(Stage {
            count: count as u64,
            mean: ms((now.sum - before.sum) / count),
            p50: ms(at(0.5)?),
            p99: ms(at(0.99)?),
            max: ms(max),
        })
    }
}

fn get(port: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(port)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {port}\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200") {
        Ok(text)
    } else {
        Err(std::io::Error::other(format!("answers {:?}", text.lines().next().unwrap_or_default())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(counts: [u64; 4], sum: f64) -> String {
        let [a, b, c, all] = counts;
        format!(
            "# TYPE x_seconds histogram\nx_seconds_sum {sum}\nx_seconds_count {all}\nx_seconds_bucket{{le=\"0.001\"}} {a}\n\
             x_seconds_bucket{{le=\"0.01\"}} {b}\nx_seconds_bucket{{le=\"0.1\"}} {c}\nx_seconds_bucket{{le=\"+Inf\"}} {all}\n"
        )
    }

    #[test]
    fn what_came_meanwhile_is_told() {
        let (mut before, mut after) = (Histograms::default(), Histograms::default());
        before.add(&text([10, 10, 10, 10], 0.005));
        after.add(&text([10, 110, 110, 110], 0.505));
        let stage = after.since(&before, "x_seconds").unwrap();
        assert_eq!((stage.count, stage.max), (100, 10.0));
        assert!((stage.mean - 5.0).abs() < 1e-9 && (stage.p50 - 5.5).abs() < 1e-9, "{stage:?}");
        assert_eq!(after.since(&after, "x_seconds"), None);
        assert_eq!(after.since(&before, "y_seconds"), None);
        // Two ports: summed.
        before.add(&text([10, 10, 10, 10], 0.005));
        after.add(&text([10, 110, 110, 120], 0.505));
        let stage = after.since(&before, "x_seconds").unwrap();
        assert_eq!((stage.count, stage.max), (210, f64::INFINITY));
        assert_eq!(stage.p99, 100.0, "over the last bound nothing more is known");
    }
}
