//! `barrage bench report`: the table of the targets, and BENCHMARKS.md, from what the runs of `make bench` wrote. Not a
//! number in them comes from anywhere else.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use serde_json::Value;

pub(crate) mod results;
mod targets;

use self::results::{Case, Results, machine, number};
use self::targets::{Row, SHARE, URING_SHARE, Verdict, rows};
use crate::error::Error;
use crate::figures::{grouped, ms, percent};
use crate::limit::SEND;

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
         `bench/results/`; each number is the median of\nthe runs that count (what one case costs more than another: of their turns), and the command that made it stands \
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
        "\n\"of `limit`\": the connector's writes a CPU second, of those that a loop of sends of that size makes without a server \
         in the same run, by plain calls or in batches through io_uring,\nwhichever makes more; both stand below. By which \
         rules a number is judged stands at the head of `bench/src/document/targets.rs`. Allocations a delivery (target 5) are \
         counted by\n`cargo test -p connector --test memory`. {}\n",
        match missed {
            0 => "Nothing that was measured misses its target.".to_owned(),
            missed => format!("{missed} of them {} not met.", if missed == 1 { "is" } else { "are" }),
        }
    );
    fanouts(results, &mut out);
    drivers(results, &mut out);
    pipelines(results, &mut out);
    memory(results, &mut out);
    let shown: Vec<_> = PICTURES.iter().filter(|(file, _)| has(file)).collect();
    if !shown.is_empty() {
        out.push_str("## Curves\n\n");
        for (file, what) in shown {
            let _ = writeln!(out, "![{what}]({})\n", pictures.join(file).display());
        }
    }
    out.push_str("## Commands\n\n| result | runs | count | commit | command |\n|---|---|---|---|---|\n");
    for (name, case) in &results.0 {
        let (runs, counted) = (case.runs.len(), case.counted().len());
        let commit = case.runs.last().and_then(commit).unwrap_or("unknown");
        let _ = writeln!(out, "| {name} | {runs} | {counted} | {commit} | `{}` |", case.command.replace('|', "\\|"));
    }
    out
}

fn machine_section(results: &Results, out: &mut String) {
    out.push_str("## The machine\n\n");
    let environments = results.0.values().flat_map(|case| &case.runs).filter_map(|run| run.get("environment"));
    // The one that tells most: cases of older builds may stand beside newer ones.
    if let Some(environment) = environments.max_by_key(|environment| environment.as_object().map_or(0, |all| all.len()))
    {
        let text = |pointer| environment.pointer(pointer).and_then(Value::as_str).unwrap_or("unknown");
        let cpus = number(environment, "/cpus").unwrap_or_default();
        let memory = number(environment, "/memory_bytes")
            .map_or_else(|| "unknown".to_owned(), |bytes| format!("{:.1} GiB", bytes / f64::from(1 << 30)));
        for (what, is) in [
            ("processors", format!("{cpus} x {}", text("/cpu"))),
            ("memory", memory),
            ("kernel", format!("Linux {}", text("/kernel"))),
            ("compiler", text("/rustc").to_owned()),
            ("commit", commits(results)),
        ] {
            let _ = writeln!(out, "- {what}: {is}");
        }
        out.push_str(
            "\nKept apart: the server with its one event-loop thread, its control thread and all else that it has (in `whole` \
             HTTP, logic, bus and job, too), or `limit`'s sender,\non the first processor; clients, publishers, Kafka and \
             Redis on all others, and in the pipelines logic, bus and job.",
        );
        match (environment.get("server_cpus").and_then(Value::as_str), environment.get("client_cpus")) {
            (Some(server), Some(Value::String(clients))) => {
                let _ = writeln!(out, " Here that is processor {server}, and {clients}.\n");
            }
            _ => out.push_str("\n\n"),
        }
    }
    let Some(limit) = results.case("limit").and_then(|case| case.runs.first()) else { return };
    out.push_str(
        "Without a server (`limit`), a processor that only sends, by plain calls or in batches through io_uring:\n\n| bytes a \
         write | way | writes/s | GB/s | CPU us a write | writes a CPU second |\n|---|---|---|---|---|---|\n",
    );
    for row in limit.pointer("/rows").and_then(Value::as_array).into_iter().flatten() {
        let get = |pointer| number(row, pointer).unwrap_or_default();
        let _ = writeln!(
            out,
            "| {} | `{}` | {} | {:.2} | {:.2} | {} |",
            grouped(get("/bytes") as u64),
            row.get("way").and_then(Value::as_str).unwrap_or(SEND),
            grouped(get("/writes_per_s") as u64),
            get("/bytes_per_s") / 1e9,
            get("/cpu_us_a_write"),
            grouped(get("/writes_per_cpu_s") as u64)
        );
    }
    out.push('\n');
}

/// The builds that made the results.
fn commits(results: &Results) -> String {
    let all: BTreeSet<&str> = results.0.values().flat_map(|case| &case.runs).filter_map(commit).collect();
    let all: Vec<&str> = all.into_iter().collect();
    match all[..] {
        [] => "unknown".to_owned(),
        [one] => one.to_owned(),
        _ => format!("{} (which is whose stands below)", all.join(", ")),
    }
}

fn commit(run: &Value) -> Option<&str> {
    run.pointer("/environment/commit")?.as_str()
}

/// The numbers of a fan-out, for a row of a table.
fn fanout(case: &Case) -> Option<String> {
    let get = |pointer| case.median(pointer);
    let cell = |pointer, show: &dyn Fn(f64) -> String| get(pointer).map_or_else(|| "-".to_owned(), show);
    Some(format!(
        "{:.2} M | {} | {} | {} | {} | {} | {} | {} | {} / {} | {}",
        get("/deliveries/per_second")? / 1e6,
        cell("/latency/p50", &ms),
        cell("/latency/p99", &ms),
        cell("/latency/max", &ms),
        cell("/server/connector/deliveries_a_write", &|value| format!("{value:.1}")),
        cell("/server/connector/bytes_a_write", &|value| grouped(value as u64)),
        cell("/server/connector_cpu_s_a_million", &|value| format!("{value:.3}")),
        cell("/server/connector/writes_per_cpu_s", &|value| grouped(value as u64)),
        cell(SHARE, &percent),
        cell(URING_SHARE, &percent),
        cell("/client_cpus", &|value| format!("{value:.2}")),
    ))
}

/// What stands over [`fanout`]'s cells.
const FANOUT_HEAD: &str = "deliveries/s | p50 | p99 | max | deliveries a write | bytes a write | connector CPU s a \
                           million | writes a CPU second | of `limit`: `send` / `io_uring` | client's CPUs |";
const FANOUT_RULE: &str = "---|---|---|---|---|---|---|---|---|---|";

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
            "## Fan-out\n\nMeasured from each room's 21st message on (why: docs/hot-path.md). A client that keeps all of its \
             processors busy has measured itself.\n\n| result | {FANOUT_HEAD} `limit` \
             at 128 bytes |\n|---|{FANOUT_RULE}---|\n{}\n",
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
        let _ = writeln!(
            out,
            "## The drivers on the same work\n\n| driver | {FANOUT_HEAD}\n|---|{FANOUT_RULE}\n{}\n",
            lines.join("\n")
        );
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

/// Where sessions that only stay are held: what each kind of process has for them.
fn memory(results: &Results, out: &mut String) {
    let mut lines = String::new();
    for name in ["idle-connector", "idle-whole", "million"] {
        let Some((case, run)) = results.case(name).and_then(|case| Some((case, case.runs.last()?))) else { continue };
        let each = |pointer| case.median(pointer).map_or_else(|| "-".to_owned(), |bytes| grouped(bytes as u64));
        let kinds = run.pointer("/after/kinds").and_then(Value::as_object);
        let kinds = kinds.into_iter().flatten().map(|(kind, after)| {
            let mib = |of: &Value| number(of, "/anonymous_bytes").unwrap_or_default() / f64::from(1 << 20);
            let before = run.pointer("/before/kinds").and_then(|kinds| kinds.get(kind)).map_or(0.0, mib);
            let processes = number(after, "/processes").unwrap_or_default();
            format!("{processes} x {kind}: {before:.0} -> {:.0}", mib(after))
        });
        let _ = writeln!(
            lines,
            "| {name} | {} | {:.1} s | {} | {} | {} | {} |",
            grouped(number(run, "/sessions").unwrap_or_default() as u64),
            number(run, "/entering_s").unwrap_or_default(),
            each("/user_bytes_a_session"),
            each("/kernel_bytes_a_session"),
            each("/client_bytes_a_session"),
            kinds.collect::<Vec<_>>().join("; ")
        );
    }
    if !lines.is_empty() {
        let _ = writeln!(
            out,
            "## Idle sessions\n\nThe kernel's bytes are of both ends of a connection.\n\n| result | sessions | until all were in | \
             server, bytes each | kernel, bytes each | clients, bytes each | memory of their own, MiB |\n|---|---|---|---|---|---|---|\n\
             {lines}"
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fan(per_second: f64, p99: f64, lost: u64) -> Value {
        json!({
            "bench": "fanout",
            "environment": {
                "commit": "abc", "rustc": "rustc 1.90", "kernel": "6.18", "cpu": "a CPU", "cpus": 2,
                "memory_bytes": 25_769_803_776_u64, "server_cpus": "0", "client_cpus": "1",
            },
            "settings": { "deliveries": 20e6, "seconds": 8 },
            "published": { "intended": 4000, "accepted": 4000 },
            "deliveries": { "per_second": per_second, "expected": 100, "delivered": 100 - lost, "bytes_each": 123.0 },
            "latency": { "p50": 20.0, "p99": p99, "max": p99 },
            "sessions": { "viewers": 5000, "closed": 0 },
            "server": { "connector_cpu_s_a_million": 0.04, "connector": {
                "share_of_limit": 0.95, "share_of_uring_limit": 0.8, "share_of_paced_limit": 0.93, "writes_per_cpu_s": 150e3,
                "deliveries_a_write": 1.0, "bytes_a_write": 15e3,
            } },
            "limit": [
                { "way": "send", "bytes": 128, "writes_per_cpu_s": 180e3 },
                { "way": "send", "bytes": 24576, "writes_per_cpu_s": 170e3 },
            ],
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
        assert_eq!(verdict(&results(&[("direct", slow.clone())]), "2a"), Verdict::SlowMachine);
        // Each case counts in two runs of three, both in one turn only.
        let turns = |slow_at: usize| {
            let mut runs = vec![fan(20.1e6, 95.0, 0); 3];
            runs[slow_at] = slow.clone();
            Case { command: String::new(), runs }
        };
        let apart = |one, other| Results([("many-rooms".into(), turns(one)), ("one-room".into(), turns(other))].into());
        assert_eq!(verdict(&apart(0, 0), "4a"), Verdict::Met);
        assert_eq!(verdict(&apart(0, 1), "4a"), Verdict::SlowMachine);
        assert_eq!(verdict(&results(&[("many-rooms", fan(20.1e6, 95.0, 0))]), "4a"), Verdict::NotMeasured);
        for (pointer, wrong) in [
            ("/published/accepted", 3999),
            ("/deliveries/disordered", 1),
            ("/deliveries/duplicates", 1),
            ("/sessions/closed", 1),
        ] {
            let mut fan = fan(20.1e6, 95.0, 0);
            let (of, name) = pointer[1..].split_once('/').unwrap();
            fan[of][name] = json!(wrong);
            assert_eq!(verdict(&results(&[("direct", fan)]), "2a"), Verdict::NotMet, "{pointer}");
        }
        let light = |p99: f64, wrong: u64| {
            let light = json!({ "total": { "p99": p99 }, "bound": 3.9, "wrong": wrong, "delivered": 5, "expected": 5 });
            verdict(&results(&[("pipeline-embedded", light)]), "8a")
        };
        assert_eq!([light(3.8, 0), light(4.0, 0), light(3.8, 1)], [Verdict::Met, Verdict::NotMet, Verdict::NotMet]);
    }

    #[test]
    fn quiet_rooms_are_counted_where_all_are_held() {
        let rooms = |rooms: u64, bytes: f64, closed: u64| {
            let idle = json!({
                "settings": { "sessions": 16_000, "rooms": rooms }, "sessions": 16_000, "closed": closed,
                "unanswered": 0, "user_bytes_a_room": bytes,
            });
            verdict(&results(&[("idle-rooms", idle)]), "4d")
        };
        assert_eq!(rooms(100_000, 4096.0, 0), Verdict::Met);
        assert_eq!(
            [rooms(99_999, 900.0, 0), rooms(100_000, 4097.0, 0), rooms(100_000, 900.0, 1)],
            [Verdict::NotMet; 3]
        );
    }

    #[test]
    fn single_writes_are_held_against_each_way_of_the_machine() {
        let rare = |target, name: &str, value: f64| {
            let mut fan = fan(8e4, 40.0, 0);
            fan["server"]["connector"][name] = json!(value);
            verdict(&results(&[("rare", fan)]), target)
        };
        assert_eq!(rare("1a", "share_of_limit", 0.91), Verdict::Met);
        assert_eq!(rare("1a", "share_of_limit", 0.89), Verdict::NotMet);
        assert_eq!(rare("1b", "share_of_uring_limit", 0.91), Verdict::Met);
        assert_eq!(rare("1b", "share_of_limit", 1.2), Verdict::NotMet);
        assert_eq!(rare("1a", "deliveries_a_write", 1.3), Verdict::NotMet, "not single writes");
    }

    #[test]
    fn too_much_load_is_held_against_the_best_and_must_be_told() {
        let over = |per_second: f64, change: &dyn Fn(&mut Value)| {
            let mut over = fan(per_second, 140.0, 30);
            over["deliveries"]["expected"] = json!(8 * 40_000_000_u64);
            over["deliveries"]["lost"] = json!(30);
            over["server"]["connector"]["shed"] = json!(30);
            let probe = json!({ "max": 170.0 });
            over["probes"] = json!({
                "heartbeats": probe, "heartbeats_answered": 9, "heartbeats_failed": 0,
                "joins": probe, "joins_answered": 9, "joins_failed": 0,
            });
            change(&mut over);
            let sweep = json!({ "steps": [{ "per_second": 21e6 }, { "per_second": 30e6 }] });
            verdict(&results(&[("direct", fan(20.1e6, 95.0, 0)), ("over", over), ("sweep", sweep)]), "3")
        };
        assert_eq!(over(28e6, &|_| {}), Verdict::Met);
        assert_eq!(over(26e6, &|_| {}), Verdict::NotMet, "a sweep's step made more");
        for (what, change) in [
            ("not counted", (|over| over["server"]["connector"]["shed"] = json!(20)) as fn(&mut Value)),
            ("not told", |over| over["deliveries"]["untold"] = json!(1)),
            ("closed", |over| over["sessions"]["closed"] = json!(1)),
            ("nobody asked", |over| over["probes"]["joins_answered"] = json!(0)),
            ("late", |over| over["probes"]["joins"]["max"] = json!(1001.0)),
            ("less than twice", |over| over["deliveries"]["expected"] = json!(8 * 30_000_000_u64)),
        ] {
            assert_eq!(over(28e6, &change), Verdict::NotMet, "{what}");
        }
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
    fn a_million_is_told_with_its_memory_by_kind_of_process() {
        let kinds = |mib: u64| json!({ "kinds": { "connector": { "processes": 52, "anonymous_bytes": mib << 20 } } });
        let million = |held: u64| {
            json!({
                "settings": { "sessions": 1_000_000, "seconds": held }, "sessions": 1_000_000, "entering_s": 301.5, "closed": 0,
                "unanswered": 0, "push": { "reached": 1_000_000 }, "user_bytes_a_session": 400.2,
                "kernel_bytes_a_session": 11_092.0, "client_bytes_a_session": 226.0, "before": kinds(700), "after": kinds(1000),
            })
        };
        let all = results(&[("million", million(300))]);
        let text = write(&all, &rows(&all), Path::new(""), |_| false);
        let line = "| million | 1,000,000 | 301.5 s | 400 | 11,092 | 226 | 52 x connector: 700 -> 1000 |";
        assert!(text.contains(line), "{text}");
        assert_eq!(verdict(&all, "6"), Verdict::Met);
        assert_eq!(verdict(&results(&[("million", million(299))]), "6"), Verdict::NotMet, "too short");
    }

    #[test]
    fn the_document_shows_what_was_measured_and_how() {
        let results = results(&[("direct", fan(20.1e6, 95.0, 0)), ("driver-monoio", fan(19e6, 97.0, 0))]);
        let rows = rows(&results);
        let text = write(&results, &rows, Path::new("bench/results"), |name| name == "direct.svg");
        for part in [
            "| 2a | into the connector, 5,000 sessions of a room | 20.1 M/s, p99 95 ms | >= 20 M/s, p99 <= 100 ms, all made",
            "- processors: 2 x a CPU\n- memory: 24.0 GiB\n- kernel: Linux 6.18\n- compiler: rustc 1.90\n- commit: abc\n",
            "Here that is processor 0, and 1.",
            "| 95 % / 80 % |",
            "| direct | 1 | 1 | abc |",
            "](bench/results/direct.svg)",
            "| `monoio` | 19.00 M | 20 ms | 97 ms |",
            "`barrage bench fanout --x`",
            "| not measured |",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("whole.svg"));
        let table = plain(&rows);
        assert!(table.lines().count() > 15 && table.contains("80 %"), "{table}");
    }
}
