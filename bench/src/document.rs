//! `barrage bench report`: the table of the targets, and BENCHMARKS.md, from what the runs of `make bench` wrote. Not a
//! number in them comes from anywhere else.

use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use serde_json::Value;

use crate::error::Error;
use crate::report::grouped;
use crate::results::{Case, Results, machine, number};
use crate::targets::{Row, Verdict, ms, percent, rows};

/// The table of the targets from the results of `make bench`, and the document that shows them.
#[derive(Debug, Clone, clap::Args)]
pub struct Document {
    /// Where the results are: NAME.json and NAME.command for each.
    #[arg(long, value_name = "DIR", default_value = "bench/results")]
    pub results: PathBuf,
    /// Writes the document, too.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

impl Document {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let failed = |path: &Path, reason: &dyn std::fmt::Display| Error::File {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        let results = Results::read(&self.results).map_err(|error| failed(&self.results, &error))?;
        let rows = rows(&results);
        print!("{}", plain(&rows));
        if let Some(out) = &self.out {
            // As the document's readers find them: from where it stands.
            let pictures = way(out, &self.results).map_err(|error| failed(&self.results, &error))?;
            let has = |name: &str| self.results.join(name).is_file();
            let text = write(&results, &rows, &pictures, has);
            fs::write(out, text).map_err(|error| failed(out, &error))?;
        }
        Ok(())
    }
}

/// The way from a document to a directory, whatever the working directory and on whichever machine: from where the document
/// stands, never from the root.
///
/// # Errors
/// The system's: one of the two directories is not there.
fn way(document: &Path, directory: &Path) -> io::Result<PathBuf> {
    // A bare file name has an empty parent.
    let from = document.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (from, to) = (from.canonicalize()?, directory.canonicalize()?);
    let shared = from.components().zip(to.components()).take_while(|(one, other)| one == other).count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    Ok(up.chain(to.components().skip(shared)).collect())
}

/// The table for a terminal.
fn plain(rows: &[Row]) -> String {
    let mut out = String::new();
    let mut line = |cells: [&str; 6]| {
        let [target, what, measured, wanted, limit, verdict] = cells;
        let _ = writeln!(out, "{target:<3} {what:<66} {measured:<52} {wanted:<40} {limit:>8}  {verdict}");
    };
    line(["", "target", "measured (median)", "wanted", "of limit", ""]);
    for row in rows {
        let limit = row.of_limit.map(percent).unwrap_or_default();
        let verdict = row.verdict.word().replace('*', "");
        line([row.target, row.what, &row.measured, &row.wanted, &limit, &verdict]);
    }
    out
}

/// A picture, and what it shows.
const PICTURES: [(&str, &str); 8] = [
    ("direct.svg", "Latency at 20 million deliveries/s, straight into the connector"),
    ("whole.svg", "Latency at 10 million deliveries/s through `barrage run`"),
    ("over.svg", "Latency of what is delivered at twice the load"),
    ("sweep.svg", "Over growing rates"),
    ("sweep-rooms.svg", "Over a growing number of rooms"),
    ("sweep-sessions.svg", "Over a growing number of sessions"),
    ("storm.svg", "Until joined, in a storm"),
    ("pipeline-embedded.svg", "From publishing to the last receiver, at a light load"),
];

/// The drivers' cases on the same work.
const DRIVERS: [(&str, &str); 3] =
    [("uring", "driver-uring"), ("monoio", "driver-monoio"), ("glommio", "driver-glommio")];

fn write(results: &Results, rows: &[Row], pictures: &Path, has: impl Fn(&str) -> bool) -> String {
    let mut out = String::from(
        "# Benchmarks\n\n`make bench` makes this page anew, on the machine that it runs on, from the results in \
         `bench/results/`; each number is the median of\nthe runs that count, and the command that made it stands \
         below. A run counts where the machine alone (`barrage bench limit`) makes at least 150,000\nwrites of 128 bytes \
         a CPU second in the same run. What a target asks, and what each subcommand measures, says `barrage bench \
         --help`.\n\n",
    );
    machine_section(results, &mut out);
    out.push_str("## Targets\n\n| | target | measured | wanted | of `limit` | |\n|---|---|---|---|---|---|\n");
    for row in rows {
        let Row { target, what, measured, wanted, .. } = row;
        let limit = row.of_limit.map(percent).unwrap_or_default();
        let _ = writeln!(out, "| {target} | {what} | {measured} | {wanted} | {limit} | {} |", row.verdict.word());
    }
    let missed = rows.iter().filter(|row| row.verdict == Verdict::NotMet).count();
    let _ = writeln!(
        out,
        "\n\"of `limit`\": the connector's writes a CPU second, of those that a plain loop of sends makes without a server. \
         {}\n",
        match missed {
            0 => "Nothing that was measured misses its target.".to_owned(),
            missed => format!("{missed} of them {} not met.", if missed == 1 { "is" } else { "are" }),
        }
    );
    fanouts(results, &mut out);
    drivers(results, &mut out);
    pipelines(results, &mut out);
    let shown: Vec<_> = PICTURES.iter().filter(|(file, _)| has(file)).collect();
    if !shown.is_empty() {
        out.push_str("## Curves\n\n");
        for (file, what) in shown {
            let _ = writeln!(out, "![{what}]({})\n", pictures.join(file).display());
        }
    }
    out.push_str("## Commands\n\n| result | runs | count | command |\n|---|---|---|---|\n");
    for (name, case) in &results.0 {
        let (runs, counted) = (case.runs.len(), case.counted().len());
        let _ = writeln!(out, "| {name} | {runs} | {counted} | `{}` |", case.command.replace('|', "\\|"));
    }
    out
}

fn machine_section(results: &Results, out: &mut String) {
    out.push_str("## The machine\n\n");
    let environment = results.0.values().flat_map(|case| &case.runs).find_map(|run| run.get("environment"));
    if let Some(environment) = environment {
        let text = |pointer| environment.pointer(pointer).and_then(Value::as_str).unwrap_or("unknown");
        let cpus = number(environment, "/cpus").unwrap_or_default();
        let _ = writeln!(
            out,
            "Linux {}, {cpus} x {}; commit {}. The server on the first processor, everything else on the others.\n",
            text("/kernel"),
            text("/cpu"),
            text("/commit")
        );
    }
    let Some(limit) = results.case("limit").and_then(|case| case.runs.first()) else { return };
    out.push_str("Without a server (`limit`), a processor that only sends:\n\n");
    out.push_str("| bytes a write | writes/s | GB/s | CPU us a write | writes a CPU second |\n|---|---|---|---|---|\n");
    for row in limit.pointer("/rows").and_then(Value::as_array).into_iter().flatten() {
        let get = |pointer| number(row, pointer).unwrap_or_default();
        let _ = writeln!(
            out,
            "| {} | {} | {:.2} | {:.2} | {} |",
            grouped(get("/bytes") as u64),
            grouped(get("/writes_per_s") as u64),
            get("/bytes_per_s") / 1e9,
            get("/cpu_us_a_write"),
            grouped(get("/writes_per_cpu_s") as u64)
        );
    }
    out.push('\n');
}

/// The numbers of a fan-out, for a row of a table.
fn fanout(case: &Case) -> Option<String> {
    let get = |pointer| case.median(pointer);
    let cell = |pointer, show: &dyn Fn(f64) -> String| get(pointer).map_or_else(|| "-".to_owned(), show);
    Some(format!(
        "{:.2} M | {} | {} | {} | {} | {} | {} | {}",
        get("/deliveries/per_second")? / 1e6,
        cell("/latency/p50", &ms),
        cell("/latency/p99", &ms),
        cell("/latency/max", &ms),
        cell("/server/connector/deliveries_a_write", &|value| format!("{value:.1}")),
        cell("/server/connector/bytes_a_write", &|value| grouped(value as u64)),
        cell("/server/connector_cpu_s_a_million", &|value| format!("{value:.3}")),
        cell("/server/connector/writes_per_cpu_s", &|value| grouped(value as u64)),
    ))
}

const FANOUT_HEAD: &str = "deliveries/s | p50 | p99 | max | deliveries a write | bytes a write | connector CPU s a \
                           million | writes a CPU second |\n|---|---|---|---|---|---|---|---|---|";

fn fanouts(results: &Results, out: &mut String) {
    let drivers: Vec<&str> = DRIVERS.iter().map(|driver| driver.1).collect();
    let all: Vec<_> = results.0.iter().filter(|(name, _)| !drivers.contains(&name.as_str())).collect();
    let lines: Vec<String> = all
        .into_iter()
        .filter_map(|(name, case)| {
            let machine = case.median_of(machine).map_or_else(|| "-".to_owned(), |writes| grouped(writes as u64));
            Some(format!("| {name} | {} | {machine} |", fanout(case)?))
        })
        .collect();
    if !lines.is_empty() {
        let _ = writeln!(
            out,
            "## Fan-out\n\n| result | {} `limit` at 128 bytes |\n|---|---|---|---|---|---|---|---|---|---|\n{}\n",
            FANOUT_HEAD.split('\n').next().unwrap_or_default(),
            lines.join("\n")
        );
    }
}

fn drivers(results: &Results, out: &mut String) {
    let lines: Vec<String> = DRIVERS
        .iter()
        .filter_map(|(driver, name)| Some(format!("| `{driver}` | {} |", fanout(results.case(name)?)?)))
        .collect();
    if !lines.is_empty() {
        let _ = writeln!(out, "## The drivers on the same work\n\n| driver | {FANOUT_HEAD}\n{}\n", lines.join("\n"));
    }
}

fn pipelines(results: &Results, out: &mut String) {
    let cases: Vec<_> = [("embedded", "pipeline-embedded"), ("Kafka", "pipeline-kafka")]
        .into_iter()
        .filter_map(|(bus, name)| Some((bus, results.case(name)?)))
        .collect();
    if cases.is_empty() {
        return;
    }
    out.push_str(
        "## From publishing to the last receiver\n\nAt 10 messages/s and 100 sessions; p50 and p99 of each stage, which do \
         not add up to those of the total.\n\n| bus | send | accept | bus | job | deliver | write | total | one fsync | bare \
         Kafka |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (bus, case) in cases {
        let two = |pointer: &str| {
            let p50 = case.median(&format!("{pointer}/p50"));
            p50.zip(case.median(&format!("{pointer}/p99")))
                .map_or_else(|| "-".to_owned(), |(p50, p99)| format!("{p50:.2} / {p99:.2}"))
        };
        let stage = |name: &str| {
            let quantile = |quantile: &str| {
                case.median_of(|run| {
                    let stages = run.pointer("/stages")?.as_array()?;
                    let stage = stages.iter().find(|stage| stage.get("name").and_then(Value::as_str) == Some(name))?;
                    number(stage, quantile)
                })
            };
            quantile("/p50")
                .zip(quantile("/p99"))
                .map_or_else(|| "-".to_owned(), |(p50, p99)| format!("{p50:.2} / {p99:.2}"))
        };
        let stages = ["accept", "bus", "job", "deliver", "write"].map(stage).join(" | ");
        let _ = writeln!(
            out,
            "| {bus} | {} | {stages} | {} | {} | {} |",
            two("/send"),
            two("/total"),
            two("/sync"),
            two("/kafka")
        );
    }
    out.push_str("\nMilliseconds, p50 / p99.\n\n");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fan(per_second: f64, p99: f64, lost: u64) -> Value {
        json!({
            "bench": "fanout",
            "environment": { "commit": "abc", "kernel": "6.18", "cpu": "a CPU", "cpus": 2 },
            "settings": { "deliveries": 20e6 },
            "deliveries": { "per_second": per_second, "expected": 100, "delivered": 100 - lost, "bytes_each": 123.0 },
            "latency": { "p50": 20.0, "p99": p99, "max": p99 },
            "sessions": { "viewers": 5000, "closed": 0 },
            "server": { "connector_cpu_s_a_million": 0.04, "connector": {
                "share_of_limit": 0.88, "share_of_paced_limit": 0.93, "writes_per_cpu_s": 150e3, "deliveries_a_write": 120.0, "bytes_a_write": 15e3,
            } },
            "limit": [{ "bytes": 128, "writes_per_cpu_s": 180e3 }, { "bytes": 24576, "writes_per_cpu_s": 170e3 }],
        })
    }

    fn results(cases: &[(&str, Value)]) -> Results {
        let case = |value: &Value| Case { command: "barrage bench fanout --x".into(), runs: vec![value.clone()] };
        Results(cases.iter().map(|(name, value)| ((*name).to_owned(), case(value))).collect())
    }

    fn verdict(results: &Results, target: &str) -> Verdict {
        rows(results).into_iter().find(|row| row.target == target).unwrap().verdict
    }

    #[test]
    fn a_target_is_met_by_every_part_of_it() {
        assert_eq!(verdict(&Results::default(), "2a"), Verdict::NotMeasured);
        assert_eq!(verdict(&results(&[("direct", fan(20.1e6, 95.0, 0))]), "2a"), Verdict::Met);
        assert_eq!(verdict(&results(&[("direct", fan(20.1e6, 120.0, 0))]), "2a"), Verdict::NotMet, "too late");
        assert_eq!(verdict(&results(&[("direct", fan(15e6, 95.0, 0))]), "2a"), Verdict::NotMet, "too few");
        assert_eq!(verdict(&results(&[("direct", fan(20.1e6, 95.0, 1))]), "2a"), Verdict::NotMet, "one lost");
        let mut slow = fan(20.1e6, 95.0, 0);
        slow["limit"][0]["writes_per_cpu_s"] = json!(140e3);
        assert_eq!(verdict(&results(&[("direct", slow)]), "2a"), Verdict::SlowMachine);
        assert_eq!(verdict(&results(&[("rare", fan(1e4, 9.0, 0))]), "1"), Verdict::Met);
        let light = json!({ "total": { "p99": 4.0 }, "bound": 3.9 });
        assert_eq!(verdict(&results(&[("pipeline-embedded", light)]), "8a"), Verdict::NotMet);
    }

    #[test]
    fn pictures_are_linked_from_where_the_document_stands() {
        let root = tempfile::tempdir().unwrap();
        let results = root.path().join("bench/results");
        fs::create_dir_all(&results).unwrap();
        fs::create_dir_all(root.path().join("docs")).unwrap();
        for (document, link) in [
            ("BENCHMARKS.md", "bench/results"),
            ("docs/BENCHMARKS.md", "../bench/results"),
            ("bench/results/BENCHMARKS.md", ""),
        ] {
            // However the two are named: whole, or with turns in them.
            for named in [results.clone(), root.path().join("docs/../bench/./results")] {
                assert_eq!(way(&root.path().join(document), &named).unwrap(), Path::new(link), "{document}");
            }
        }
        fs::write(results.join("direct.json"), fan(20e6, 90.0, 0).to_string()).unwrap();
        fs::write(results.join("direct.svg"), "<svg/>").unwrap();
        for (document, link) in
            [("BENCHMARKS.md", "](bench/results/direct.svg)"), ("bench/results/B.md", "](direct.svg)")]
        {
            let out = root.path().join(document);
            Document { results: results.clone(), out: Some(out.clone()) }.run().unwrap();
            let text = fs::read_to_string(out).unwrap();
            assert!(text.contains(link) && !text.contains(&root.path().display().to_string()), "{text}");
        }
        assert!(way(&root.path().join("nowhere/BENCHMARKS.md"), &results).is_err());
    }

    #[test]
    fn the_document_shows_what_was_measured_and_how() {
        let results = results(&[("direct", fan(20.1e6, 95.0, 0)), ("driver-monoio", fan(19e6, 97.0, 0))]);
        let rows = rows(&results);
        let text = write(&results, &rows, Path::new("bench/results"), |name| name == "direct.svg");
        for part in [
            "| 2a | into the connector, 5,000 sessions of a room | 20.1 M/s, p99 95 ms | >= 20 M/s, p99 <= 100 ms, all made",
            "Linux 6.18, 2 x a CPU; commit abc.",
            "](bench/results/direct.svg)",
            "| `monoio` | 19.00 M | 20 ms | 97 ms |",
            "`barrage bench fanout --x`",
            "| not measured |",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("whole.svg"));
        let table = plain(&rows);
        assert!(table.lines().count() > 15 && table.contains("88 %"), "{table}");
    }
}
