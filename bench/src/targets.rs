//! What Barrage must reach, and whether it does: a row of the table for each part of a target, made from results.
//!
//! A number that was not measured is told so, and never counts as met.

use serde_json::Value;

use crate::report::grouped;
use crate::results::{Case, Results, machine, machine_near, number};

/// A row of the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// Its number, with a letter where it has parts.
    pub(crate) target: &'static str,
    pub(crate) what: &'static str,
    pub(crate) wanted: String,
    pub(crate) measured: String,
    /// Of the writes a processor second that the machine makes without a server, in the same run.
    pub(crate) of_limit: Option<f64>,
    pub(crate) verdict: Verdict,
    /// Names of the cases that it was made from.
    pub(crate) cases: Vec<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    NotMet,
    /// No run of it counts: the machine was slower than the targets take for granted.
    SlowMachine,
    NotMeasured,
}

impl Verdict {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "**not met**",
            Self::SlowMachine => "no run counts",
            Self::NotMeasured => "not measured",
        }
    }
}

/// Deliveries a second that are wanted straight into the connector.
const DIRECT: f64 = 20e6;
/// And through all of `barrage run` on one processor.
const WHOLE: f64 = 10e6;
/// What a wait for the last of the rounds may be, milliseconds, where three rounds are less.
const P99_MS: f64 = 100.0;
/// How late an answer to a heartbeat or a join may come under too much load, milliseconds.
const PROBED_MS: f64 = 1000.0;

/// All rows, in the order of the targets.
pub(crate) fn rows(results: &Results) -> Vec<Row> {
    let mut rows = vec![
        row("1", "nothing to batch: writes a CPU second, of `limit`'s at that pace", &["rare"], results, |case| {
            let (share, flat_out) = (case.median(PACED_SHARE)?, case.median(SHARE)?);
            let measured = format!("{} ({} of it flat out)", percent(share), percent(flat_out));
            Some((measured, ">= 90 %".into(), share >= 0.9))
        }),
        flood("2a", "into the connector, 5,000 sessions of a room", "direct", results, DIRECT),
        flood("2b", "the same, goim dialect, within 10 %", "direct-goim", results, DIRECT * 0.9),
        flood("2c", "`barrage run` whole on one core, goim, by HTTP", "whole", results, WHOLE),
    ];
    rows.push(row("3", "at twice the load: deliveries/s, of the best", &["over", "direct"], results, |case| {
        let best = results.case("direct")?.median(PER_SECOND)?;
        let (share, p99) = (case.median(PER_SECOND)? / best, case.median(P99)?);
        let whole = all(case, |run| {
            let count = |pointer| number(run, pointer).unwrap_or_default();
            count("/deliveries/untold") == 0.0
                && count("/deliveries/disordered") == 0.0
                && count("/sessions/closed") == 0.0
        });
        let asked = all(case, |run| {
            let answered = |what: &str| {
                number(run, &format!("/probes/{what}_failed")) == Some(0.0)
                    && number(run, &format!("/probes/{what}/max")).is_some_and(|max| max <= PROBED_MS)
            };
            answered("heartbeats") && answered("joins")
        });
        let answered = if asked { "heartbeats and joins within 1 s" } else { "heartbeats or joins later than 1 s" };
        let told = if whole { "every gap told, nobody closed" } else { "gaps untold, disorder or closed sessions" };
        let measured = format!("{}, p99 {}, {told}, {answered}", percent(share), ms(p99));
        let met = share >= 0.9 && p99 < 300.0 && whole && asked;
        Some((measured, ">= 90 %, p99 < 300 ms, all told, answers within 1 s".into(), met))
    }));
    for (target, what, name) in [
        ("4a", "1,000 rooms of 15: CPU a write, against one room's", "many-rooms"),
        ("4b", "one room of 10,000 beside 500 of 10: the same", "mixed-rooms"),
    ] {
        rows.push(row(target, what, &[name, "one-room"], results, |_| {
            let (case, one) = (results.case(name)?, results.case("one-room")?);
            let ratio = one.median(WRITES_PER_CPU_S)? / case.median(WRITES_PER_CPU_S)?;
            Some((format!("{:+.0} %", (ratio - 1.0) * 100.0), "at most +15 %".into(), ratio <= 1.15))
        }));
    }
    rows.push(row("4c", "a small room's p99 beside a flooded large one", &["flooded"], results, |case| {
        let p99 = case.median_of(|run| {
            let classes = run.pointer("/classes")?.as_array()?;
            let small = classes.iter().min_by_key(|class| {
                class.pointer("/sessions").and_then(Value::as_u64).unwrap_or(u64::MAX)
                    / class.pointer("/rooms").and_then(Value::as_u64).unwrap_or(1).max(1)
            })?;
            number(small, "/latency/p99")
        })?;
        Some((ms(p99), "< 20 ms".into(), p99 < 20.0))
    }));
    for (target, what, name, most) in [
        ("5a", "an idle session (16,000 after 2,000): user-space bytes, connector", "idle-connector", 300.0),
        ("5b", "the same, `barrage run` whole", "idle-whole", 470.0),
    ] {
        rows.push(row(target, what, &[name], results, |_| {
            let bytes = results.case(name)?.median("/user_bytes_a_session")?;
            Some((format!("{bytes:.0}"), format!("<= {most}"), bytes <= most))
        }));
    }
    rows.push(row(
        "6",
        "a million sessions, heartbeats, one push to all (`make bench.million`)",
        &["million"],
        results,
        |case| {
            let count = |pointer| case.median(pointer);
            let (sessions, reached) = (count("/sessions")?, count("/push/reached")?);
            let (closed, unanswered) = (count("/closed")?, count("/unanswered")?);
            let measured = format!(
                "{} held, {} reached, {closed:.0} closed, {unanswered:.0} heartbeats unanswered",
                grouped(sessions as u64),
                grouped(reached as u64)
            );
            let met = sessions >= 1e6 && reached >= sessions && closed == 0.0 && unanswered == 0.0;
            Some((measured, "1,000,000, all reached".into(), met))
        },
    ));
    rows.push(row("7", "sessions that enter, a connector CPU second", &["storm"], results, |case| {
        let rate = case.median("/first/cpu/sessions_a_connector_s")?;
        let p99 = case.median("/first/entering/p99")?;
        let measured = format!("{} (p99 until joined {})", grouped(rate as u64), ms(p99));
        Some((measured, ">= 20,000".into(), rate >= 20_000.0))
    }));
    for (target, what, name) in [
        ("8a", "publish to last receiver, light load, embedded: p99", "pipeline-embedded"),
        ("8b", "the same on Kafka", "pipeline-kafka"),
    ] {
        rows.push(row(target, what, &[name], results, |_| {
            let case = results.case(name)?;
            let over = case.median_of(|run| Some(number(run, "/total/p99")? - number(run, "/bound")?))?;
            let (p99, bound) = (case.median("/total/p99")?, case.median("/bound")?);
            let (than, more) = if target == "8a" { ("one fsync", 3) } else { ("bare", 5) };
            let wanted = format!("<= {} (p99 of {than} + {more} ms)", ms(bound));
            Some((ms(p99), wanted, over <= 0.0))
        }));
    }
    for (target, what, [name, without]) in COMPRESSED {
        rows.push(row(target, what, &[name, without], results, |_| {
            let (case, plain) = (results.case(name)?, results.case(without)?);
            let ratio = case.median(CPU_A_MILLION)? / plain.median(CPU_A_MILLION)?;
            let (bytes, before) = (case.median(BYTES_EACH)?, plain.median(BYTES_EACH)?);
            let whole = all(case, |run| number(run, "/deliveries/expected") == number(run, "/deliveries/delivered"));
            let lost = if whole { "" } else { ", some lost" };
            let share = percent(ratio - 1.0);
            let measured = format!("{share} more, {before:.0} bytes become {bytes:.0}: {:.2}{lost}", before / bytes);
            Some((measured, "at most 10 % more, all made".into(), ratio <= 1.1 && whole))
        }));
    }
    rows
}

/// Target 9: of each compression the case with it, and the same without. What a delivery of chat takes on the wire.
const COMPRESSED: [(&str, &str, [&str; 2]); 4] = [
    ("9a", "goim, permessage-deflate: CPU a delivery, against none", ["chat-goim-deflate", "chat-goim"]),
    ("9b", "native, permessage-deflate: the same", ["chat-native-deflate", "chat-native"]),
    ("9c", "Bilibili's zlib: the same", ["chat-bilibili-zlib", "chat-bilibili"]),
    ("9d", "Bilibili's brotli: the same", ["chat-bilibili-brotli", "chat-bilibili"]),
];

const BYTES_EACH: &str = "/deliveries/bytes_each";
const SHARE: &str = "/server/connector/share_of_limit";
const PACED_SHARE: &str = "/server/connector/share_of_paced_limit";
const PER_SECOND: &str = "/deliveries/per_second";
const P99: &str = "/latency/p99";
const CPU_A_MILLION: &str = "/server/connector_cpu_s_a_million";
const WRITES_PER_CPU_S: &str = "/server/connector/writes_per_cpu_s";

type Judged = (String, String, bool);

fn row(
    target: &'static str,
    what: &'static str,
    cases: &[&'static str],
    results: &Results,
    judge: impl FnOnce(&Case) -> Option<Judged>,
) -> Row {
    let first = cases.first().and_then(|name| results.case(name));
    let judged = first.and_then(judge);
    let slow = cases.iter().filter_map(|name| results.case(name)).any(|case| case.counted().is_empty());
    let (measured, wanted, verdict) = match judged {
        Some((measured, wanted, _)) if slow => (measured, wanted, Verdict::SlowMachine),
        Some((measured, wanted, true)) => (measured, wanted, Verdict::Met),
        Some((measured, wanted, false)) => (measured, wanted, Verdict::NotMet),
        None => (String::new(), String::new(), Verdict::NotMeasured),
    };
    let of_limit = first.and_then(|case| case.median(SHARE));
    Row { target, what, wanted, measured, of_limit, verdict, cases: cases.to_vec() }
}

/// So many deliveries a second, all made, in order, within the bound.
fn flood(target: &'static str, what: &'static str, name: &'static str, results: &Results, wanted: f64) -> Row {
    row(target, what, &[name], results, |case| {
        let (per_s, p99) = (case.median(PER_SECOND)?, case.median(P99)?);
        let bound = case.median_of(three_rounds).map_or(P99_MS, |rounds| rounds.max(P99_MS));
        let whole = all(case, |run| number(run, "/deliveries/expected") == number(run, "/deliveries/delivered"));
        let measured = format!("{:.1} M/s, p99 {}{}", per_s / 1e6, ms(p99), if whole { "" } else { ", some lost" });
        let met = per_s >= wanted && p99 <= bound && whole;
        Some((measured, format!(">= {:.0} M/s, p99 <= {}, all made", wanted / 1e6, ms(bound)), met))
    })
}

/// Three rounds, milliseconds: sessions times the seconds that the machine takes for such a write.
fn three_rounds(run: &Value) -> Option<f64> {
    let bytes = number(run, "/server/connector/bytes_a_write")?;
    let sessions = number(run, "/sessions/viewers")?;
    Some(3.0 * sessions / machine_near(run, bytes).or_else(|| machine(run))? * 1000.0)
}

/// Whether it holds of every run that counts.
fn all(case: &Case, holds: impl Fn(&Value) -> bool) -> bool {
    let counted = case.counted();
    !counted.is_empty() && counted.into_iter().all(holds)
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

pub(crate) fn ms(milliseconds: f64) -> String {
    if milliseconds < 10.0 { format!("{milliseconds:.2} ms") } else { format!("{milliseconds:.0} ms") }
}
