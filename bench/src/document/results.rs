//! The results of a run of `make bench`, as the subcommands wrote them: a directory with `NAME.json` and beside it
//! `NAME.command`, the line that made it.
//!
//! Whatever a subcommand prints with `--json` is read by JSON pointers (RFC 6901), a series by its runs, so that a
//! report written by an older build can still be told.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use serde_json::Value;

use crate::limit::{FAIR_BYTES, FAIR_WRITES_PER_CPU_S, IO_URING, SEND};

/// All cases, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Results(pub(crate) BTreeMap<String, Case>);

/// What one command measured.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Case {
    /// The line that made it.
    pub(crate) command: String,
    /// One, or all of a series.
    pub(crate) runs: Vec<Value>,
}

impl Results {
    /// Reads a directory.
    ///
    /// # Errors
    /// The system's, and what is no JSON.
    pub(crate) fn read(directory: &Path) -> io::Result<Self> {
        let mut cases = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path)?;
            if text.trim().is_empty() {
                // The command ended without a result.
                continue;
            }
            let wrong = |error| io::Error::other(format!("{}: {error}", path.display()));
            let command = fs::read_to_string(path.with_extension("command")).unwrap_or_default();
            // Tried several times, a command has written several objects.
            let values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
            let values = values.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
            let runs = values.into_iter().flat_map(|mut value| match value.get_mut("runs").map(Value::take) {
                Some(Value::Array(runs)) => runs,
                _ => vec![value],
            });
            cases.insert(name, Case { command: command.trim().to_owned(), runs: runs.collect() });
        }
        Ok(Self(cases))
    }

    pub(crate) fn case(&self, name: &str) -> Option<&Case> {
        self.0.get(name)
    }
}

impl Case {
    /// The runs that count: those during which the machine was as fast as the targets take for granted, and those that
    /// did not ask how fast it was.
    pub(crate) fn counted(&self) -> Vec<&Value> {
        self.runs.iter().filter(|run| counts(run)).collect()
    }

    /// The median of a number over the runs that count, or over all where none does.
    pub(crate) fn median(&self, pointer: &str) -> Option<f64> {
        self.median_of(|run| number(run, pointer))
    }

    /// The same of what is computed from a run.
    pub(crate) fn median_of(&self, of: impl Fn(&Value) -> Option<f64>) -> Option<f64> {
        let counted = self.counted();
        let runs = if counted.is_empty() { self.runs.iter().collect() } else { counted };
        median(runs.into_iter().filter_map(of).collect())
    }

    /// The median over turns, in which this case and another were measured one soon after the other, of what is computed from
    /// both, and whether it is fair: over the turns in which both runs count, or over all where there is none. `None`: they
    /// were not measured so (as many runs of each, of the same commits).
    pub(crate) fn median_of_turns(
        &self,
        other: &Self,
        of: impl Fn(&Value, &Value) -> Option<f64>,
    ) -> Option<(f64, bool)> {
        let commit = |run: &Value| run.pointer("/environment/commit").cloned();
        let turns: Vec<_> = self.runs.iter().zip(&other.runs).collect();
        if self.runs.len() != other.runs.len() || turns.iter().any(|(run, beside)| commit(run) != commit(beside)) {
            return None;
        }
        let counted: Vec<_> = turns.iter().copied().filter(|(run, beside)| counts(run) && counts(beside)).collect();
        let fair = is_fair(counted.len(), turns.len());
        let turns = if counted.is_empty() { turns } else { counted };
        Some((median(turns.into_iter().filter_map(|(run, beside)| of(run, beside)).collect())?, fair))
    }

    /// Whether a median of what counts says something.
    pub(crate) fn is_fair(&self) -> bool {
        is_fair(self.counted().len(), self.runs.len())
    }
}

/// At least half of them count.
fn is_fair(counted: usize, all: usize) -> bool {
    counted > 0 && 2 * counted >= all
}

/// See [`Case::counted`].
fn counts(run: &Value) -> bool {
    machine(run).is_none_or(|writes| writes >= FAIR_WRITES_PER_CPU_S)
}

/// A number in a result.
pub(crate) fn number(run: &Value, pointer: &str) -> Option<f64> {
    run.pointer(pointer)?.as_f64()
}

/// The middle one, or the mean of the two in the middle; `None` of nothing.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some((values[last / 2] + values[last.div_ceil(2)]) / 2.0)
}

/// How many writes of 128 bytes a processor second the machine made without a server, by plain calls one after the other,
/// in the same run.
pub(crate) fn machine(run: &Value) -> Option<f64> {
    let row = limit(run).find(|row| number(row, "/bytes") == Some(FAIR_BYTES as f64) && is_way(row, SEND))?;
    number(row, "/writes_per_cpu_s")
}

/// The same at the size nearest to what the server wrote, by whichever way makes more: writes a processor second.
pub(crate) fn machine_near(run: &Value, bytes: f64) -> Option<f64> {
    let off = |row: &Value| number(row, "/bytes").map_or(f64::INFINITY, |of| (of / bytes).ln().abs());
    let of_a_way = |way| {
        let row = limit(run).filter(|row| is_way(row, way)).min_by(|a, b| off(a).total_cmp(&off(b)))?;
        number(row, "/writes_per_cpu_s")
    };
    [SEND, IO_URING].into_iter().filter_map(of_a_way).max_by(f64::total_cmp)
}

/// The rows of what the machine made flat out.
fn limit(run: &Value) -> impl Iterator<Item = &Value> {
    let rows = run.pointer("/limit").or_else(|| run.pointer("/rows")).and_then(Value::as_array);
    rows.into_iter().flatten().filter(|row| number(row, "/pace").is_none_or(|pace| pace == 0.0))
}

fn is_way(row: &Value, way: &str) -> bool {
    row.get("way").and_then(Value::as_str) == Some(way)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(p99: f64, writes: f64) -> Value {
        let row = |way: &str, bytes: u64, pace: u64, writes: f64| json!({ "way": way, "bytes": bytes, "pace": pace, "writes_per_cpu_s": writes });
        let limit = json!([
            row(IO_URING, 128, 0, writes * 1.2),
            row(SEND, 128, 0, writes),
            row(SEND, 24_576, 0, 90_000.0),
            row(IO_URING, 24_576, 0, 95_000.0),
            row(SEND, 20_000, 16, 400_000.0),
        ]);
        json!({ "latency": { "p99": p99 }, "limit": limit })
    }

    #[test]
    fn a_run_on_a_slow_machine_does_not_count() {
        let case = |runs: Vec<Value>| Case { command: String::new(), runs };
        let all = case(vec![run(9.0, 160_000.0), run(1.0, 100_000.0), run(7.0, 170_000.0), run(8.0, 180_000.0)]);
        assert_eq!((all.counted().len(), all.median("/latency/p99")), (3, Some(8.0)));
        let even = case(vec![run(9.0, 160_000.0), run(8.0, 180_000.0)]);
        assert_eq!((even.median("/latency/p99"), even.is_fair()), (Some(8.5), true));
        let few = case(vec![run(9.0, 160_000.0), run(1.0, 1.0), run(1.0, 1.0)]);
        assert!(!few.is_fair(), "one of three is no median");
        let none = case(vec![run(3.0, 1.0), run(5.0, 1.0)]);
        assert_eq!((none.counted().len(), none.median("/latency/p99")), (0, Some(4.0)));
        let without = case(vec![json!({ "total": { "p99": 4 } })]);
        assert_eq!((without.counted().len(), without.median("/total/p99")), (1, Some(4.0)));
        assert_eq!(without.median("/nothing"), None);
        // Of rows flat out; the fair one of plain calls, a size's of the way that makes more.
        assert_eq!(machine_near(&run(1.0, 1.0), 20_000.0), Some(95_000.0));
        assert_eq!(machine(&run(1.0, 7.0)), Some(7.0));
    }

    #[test]
    fn what_took_turns_is_compared_turn_by_turn() {
        let case = |runs: Vec<Value>| Case { command: String::new(), runs };
        let ratio = |run: &Value, beside: &Value| Some(number(run, "/latency/p99")? / number(beside, "/latency/p99")?);
        // The machine was half as fast in the second turn, and too slow to count in the last.
        let one = case(vec![run(10.0, 2e5), run(20.0, 2e5), run(10.0, 2e5), run(9.0, 2e5)]);
        let other = case(vec![run(11.0, 2e5), run(22.0, 2e5), run(12.0, 2e5), run(90.0, 1.0)]);
        assert_eq!(other.median_of_turns(&one, ratio), Some((1.1, true)));
        let few = |of: &Case| case(of.runs[3..].to_vec());
        assert_eq!(few(&other).median_of_turns(&few(&one), ratio), Some((10.0, false)), "the one turn does not count");
        assert_eq!(few(&other).median_of_turns(&one, ratio), None, "one has failed in some turn");
        let mut later = case(one.runs.clone());
        later.runs[0]["environment"] = json!({ "commit": "abc" });
        assert_eq!(other.median_of_turns(&later, ratio), None, "of another day");
        assert_eq!(case(Vec::new()).median_of_turns(&case(Vec::new()), ratio), None);
    }

    #[test]
    fn series_and_repetitions_are_their_runs() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| fs::write(directory.path().join(name), text).unwrap();
        write("a.json", json!({ "runs": [run(1.0, 2e5), run(2.0, 2e5)] }).to_string());
        write("a.command", "barrage bench fanout\n".into());
        write("b.json", format!("{}\n{}", run(1.0, 2e5), run(2.0, 2e5)));
        write("c.json", String::new());
        let results = Results::read(directory.path()).unwrap();
        assert_eq!(results.0.len(), 2);
        assert_eq!(results.case("a").unwrap().command, "barrage bench fanout");
        assert_eq!(results.case("a").unwrap().runs, results.case("b").unwrap().runs);
        write("d.json", "{".into());
        assert!(Results::read(directory.path()).is_err());
    }
}
