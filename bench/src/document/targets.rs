//! What Barrage must reach, and whether it does: a row of the table for each part of a target, made from results.
//!
//! The rules, beside the numbers themselves:
//! - A number that was not measured is told so, and never counts as met.
//! - Numbers are medians of the runs that count ([`Case::counted`]); where fewer than half of them do, nothing is judged.
//!   What must hold of a server (everything made once, in order, nobody closed) must hold in every run that counts.
//! - What one case costs more than another is the median over their turns ([`Case::median_of_turns`]): from one turn to the
//!   next a shared machine's pace changes by more than what is asked for.
//! - The machine sends in two ways: plain calls, and batches through io_uring, which are what the connector's `uring` driver
//!   takes too. Target 1 is held against each of them, as it goes flat out; what it makes at the run's own pace, with
//!   pauses in between, is told beside it. Elsewhere the limit is that of the two which makes more writes a processor
//!   second. Whether a run counts at all is asked of plain calls.
//! - Deliveries a second are over the time until the last arrival: the last message's way is in it, so a run asks for 2 %
//!   more than its target and lasts for 8 s, of which that way is a hundredth.
//! - Target 3's best is the largest of these, whatever was asked for: the median of `direct`, the median of `over`, and each
//!   step of `sweep`, which is a single run without a `limit` beside it.
//! - Results are taken as they lie there: where only some cases were measured anew, the others' are of an earlier commit,
//!   which the document tells beside each.

use serde_json::Value;

use crate::document::results::{Case, Results, machine, machine_near, number};
use crate::figures::{grouped, ms, percent};

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
    /// Too few runs of it count: the machine was slower than the targets take for granted.
    SlowMachine,
    NotMeasured,
}

impl Verdict {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "**not met**",
            Self::SlowMachine => "too few runs count",
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
        single(
            "1a",
            "nothing to batch: writes a CPU second, of those of `limit`'s plain sends",
            results,
            (SHARE, PACED_SHARE),
        ),
        single("1b", "the same, of those of its batches through io_uring", results, (URING_SHARE, PACED_URING_SHARE)),
        flood("2a", "into the connector, 5,000 sessions of a room", "direct", results, DIRECT),
        flood("2b", "the same, goim dialect, within 10 %", "direct-goim", results, DIRECT * 0.9),
        flood("2c", "`barrage run` whole on one core, goim, by HTTP", "whole", results, WHOLE),
    ];
    rows.push(row("3", "at twice the load: deliveries/s, of the best", &["over", "direct"], results, |case| {
        let best = best(results)?;
        let (share, p99) = (case.median(PER_SECOND)? / best, case.median(P99)?);
        let told = all(case, |run| {
            let count = |pointer| number(run, pointer).unwrap_or_default();
            let skipped: f64 = ["/server/connector/skipped", "/server/connector/shed"].into_iter().map(count).sum();
            // What was lost of sessions that are not checked is known by their bytes, to some messages each.
            ONCE_IN_ORDER.iter().all(|pointer| count(pointer) == 0.0)
                && count("/deliveries/untold") == 0.0
                && skipped >= count("/deliveries/lost") * COUNTED_MIN
        });
        let asked = all(case, |run| {
            let answered = |what: &str| {
                number(run, &format!("/probes/{what}_failed")) == Some(0.0)
                    && number(run, &format!("/probes/{what}_answered")) > Some(0.0)
                    && number(run, &format!("/probes/{what}/max")).is_some_and(|max| max <= PROBED_MS)
            };
            answered("heartbeats") && answered("joins")
        });
        // What the bench itself could not hand over was no load.
        let load = case.median_of(|run| {
            let handed = number(run, "/deliveries/expected")?;
            Some(handed / number(run, "/settings/seconds")?)
        })?;
        let answers = if asked { "heartbeats and joins within 1 s" } else { "heartbeats or joins later than 1 s" };
        let gaps =
            if told { "every gap counted and told, nobody closed" } else { "gaps untold, disorder or closed sessions" };
        let measured = format!(
            "{} of {:.1} M/s at {:.1} M/s asked, p99 {}, {gaps}, {answers}",
            percent(share),
            best / 1e6,
            load / 1e6,
            ms(p99)
        );
        let met = share > 0.9 && p99 < 300.0 && told && asked && load >= 2.0 * DIRECT * 0.99;
        Some((measured, "> 90 % at 40 M/s, p99 < 300 ms, all told, answers within 1 s".into(), met))
    }));
    for (target, what, name) in [
        ("4a", "1,000 rooms of 15: CPU a write, against one room's", "many-rooms"),
        ("4b", "one room of 10,000 beside 500 of 10: the same", "mixed-rooms"),
    ] {
        let ratio = |run: &Value, one: &Value| Some(number(one, WRITES_PER_CPU_S)? / number(run, WRITES_PER_CPU_S)?);
        rows.push(compared(target, what, [name, "one-room"], results, ratio, |ratio, case, _| {
            let measured = format!("{:+.0} %{}", (ratio - 1.0) * 100.0, faults(case));
            Some((measured, "at most +15 %, all made".into(), ratio <= 1.15 && is_whole(case)))
        }));
    }
    rows.push(row("4c", "a small room's p99 beside a flooded large one", &["flooded"], results, |case| {
        let small = |run: &Value| {
            let classes = run.pointer("/classes")?.as_array()?;
            let small = classes.iter().min_by_key(|class| {
                class.pointer("/sessions").and_then(Value::as_u64).unwrap_or(u64::MAX)
                    / class.pointer("/rooms").and_then(Value::as_u64).unwrap_or(1).max(1)
            });
            small.cloned()
        };
        let p99 = case.median_of(|run| number(&small(run)?, "/latency/p99"))?;
        let made = all(case, |run| {
            small(run).is_some_and(|small| number(&small, "/expected") == number(&small, "/delivered"))
        });
        let lost = if made { "" } else { ", some lost" };
        Some((format!("{}{lost}", ms(p99)), "< 20 ms, all made there".into(), p99 < 20.0 && made))
    }));
    // After traffic a room keeps its recent messages, too: connector/tests/memory.rs holds such rooms to the same 4 KiB.
    let quiet = "a quiet room before its first message (100,000 of 2.6 sessions; after traffic: `connector/tests/memory.rs`): \
                 user-space bytes, sessions, logic and job included";
    rows.push(row("4d", quiet, &["idle-rooms"], results, |case| {
        let bytes = case.median("/user_bytes_a_room")?;
        let held = all(case, |run| {
            number(run, "/settings/rooms") >= Some(QUIET_ROOMS)
                && number(run, "/sessions") >= number(run, "/settings/sessions")
                && number(run, "/unanswered") == Some(0.0)
                && number(run, "/closed") == Some(0.0)
        });
        let lacking = if held { "" } else { ", not all of 100,000 held" };
        let measured = format!("{}{lacking}", grouped(bytes as u64));
        Some((measured, "<= 4,096, 100,000 held".into(), bytes <= QUIET_ROOM_BYTES && held))
    }));
    for (target, what, name, most) in [
        ("5a", "an idle session (16,000 after 2,000): user-space bytes, connector", "idle-connector", 300.0),
        ("5b", "the same, `barrage run` whole", "idle-whole", 470.0),
    ] {
        rows.push(row(target, what, &[name], results, |_| {
            let case = results.case(name)?;
            let bytes = case.median("/user_bytes_a_session")?;
            let held = all(case, |run| {
                let count = |pointer| number(run, pointer).unwrap_or_default();
                // Each has said at least once that it is there, and is.
                count("/sessions") >= count("/settings/sessions")
                    && count("/sessions") >= GROWN_SESSIONS
                    && count("/heartbeats") >= count("/sessions")
                    && count("/unanswered") + count("/closed") == 0.0
            });
            let lacking = if held { "" } else { ", not all of 15,000 held with a heartbeat each" };
            Some((format!("{bytes:.0}{lacking}"), format!("<= {most}"), bytes <= most && held))
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
            let (entering_s, held_s) = (count("/entering_s")?, count("/settings/seconds")?);
            let measured = format!(
                "{} in after {entering_s:.0} s and held for {held_s:.0} s, {} reached, {closed:.0} closed, {unanswered:.0} \
                 heartbeats unanswered",
                grouped(sessions as u64),
                grouped(reached as u64)
            );
            let met =
                sessions >= 1e6 && reached >= sessions && closed == 0.0 && unanswered == 0.0 && held_s >= HELD_S;
            Some((measured, "1,000,000 held for 300 s, all reached".into(), met))
        },
    ));
    rows.push(row("7", "sessions that enter, a connector CPU second", &["storm"], results, |case| {
        let rate = case.median("/first/cpu/sessions_a_connector_s")?;
        let p99 = case.median("/first/entering/p99")?;
        let back = case.median("/back/cpu/sessions_a_connector_s")?;
        let all_in = all(case, |run| {
            let wanted = number(run, "/settings/sessions");
            wanted.is_some() && [number(run, "/first/sessions"), number(run, "/back/sessions")] == [wanted, wanted]
        });
        let measured = format!(
            "{} (p99 until joined {}); coming back {}{}",
            grouped(rate as u64),
            ms(p99),
            grouped(back as u64),
            if all_in { "" } else { ", not all got in" }
        );
        Some((measured, ">= 20,000, all in".into(), rate >= 20_000.0 && all_in))
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
            let wanted = format!("<= {} (p99 of {than} + {more} ms), all made", ms(bound));
            let right = all(case, |run| {
                number(run, "/wrong") == Some(0.0) && number(run, "/delivered") == number(run, "/expected")
            });
            let wrong = if right { "" } else { ", some lost or out of order" };
            let measured = format!("{} ({over:+.2} ms against each run's own){wrong}", ms(p99));
            Some((measured, wanted, over <= 0.0 && right))
        }));
    }
    for (target, what, [name, without]) in COMPRESSED {
        let ratio = |run: &Value, plain: &Value| Some(number(run, CPU_A_MILLION)? / number(plain, CPU_A_MILLION)?);
        rows.push(compared(target, what, [name, without], results, ratio, |ratio, case, plain| {
            let (bytes, before) = (case.median(BYTES_EACH)?, plain.median(BYTES_EACH)?);
            let measured = format!(
                "{:+.0} %, {before:.0} bytes become {bytes:.0}: {:.2}{}",
                (ratio - 1.0) * 100.0,
                before / bytes,
                faults(case)
            );
            // What loses messages without compression is no measure either.
            let whole = is_whole(case) && is_whole(plain);
            Some((measured, "at most +10 %, all made".into(), ratio <= 1.1 && whole))
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

/// Most deliveries of a write where each is to be a write of its own: answers to heartbeats are writes, too.
const SINGLE_DELIVERIES_A_WRITE: f64 = 1.02;
/// What the connector counted as not sent, of what did not come.
const COUNTED_MIN: f64 = 0.99;
/// Rooms that a core is to hold, and what each may take while nothing has been said in it, bytes.
const QUIET_ROOMS: f64 = 100_000.0;
const QUIET_ROOM_BYTES: f64 = 4096.0;
/// Sessions over which memory is to have grown.
const GROWN_SESSIONS: f64 = 15_000.0;
/// How long a million sessions are held, seconds.
const HELD_S: f64 = 300.0;

const BYTES_EACH: &str = "/deliveries/bytes_each";
const DELIVERIES_A_WRITE: &str = "/server/connector/deliveries_a_write";
pub(crate) const SHARE: &str = "/server/connector/share_of_limit";
pub(crate) const URING_SHARE: &str = "/server/connector/share_of_uring_limit";
const PACED_SHARE: &str = "/server/connector/share_of_paced_limit";
const PACED_URING_SHARE: &str = "/server/connector/share_of_paced_uring_limit";
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
    let fair = cases.iter().filter_map(|name| results.case(name)).all(Case::is_fair);
    let judged = cases.first().and_then(|name| results.case(name)).and_then(judge);
    judged_row(target, what, cases, results, judged, fair)
}

/// What a case makes of a number beside another, as the median over their turns.
fn compared(
    target: &'static str,
    what: &'static str,
    cases: [&'static str; 2],
    results: &Results,
    of: impl Fn(&Value, &Value) -> Option<f64>,
    judge: impl FnOnce(f64, &Case, &Case) -> Option<Judged>,
) -> Row {
    let both = results.case(cases[0]).zip(results.case(cases[1]));
    let ratio = both.and_then(|(case, beside)| case.median_of_turns(beside, of));
    let judged = both.zip(ratio).and_then(|((case, beside), (ratio, _))| judge(ratio, case, beside));
    judged_row(target, what, &cases, results, judged, ratio.is_some_and(|(_, fair)| fair))
}

fn judged_row(
    target: &'static str,
    what: &'static str,
    cases: &[&'static str],
    results: &Results,
    judged: Option<Judged>,
    fair: bool,
) -> Row {
    let first = cases.first().and_then(|name| results.case(name));
    let (measured, wanted, verdict) = match judged {
        Some((measured, wanted, _)) if !fair => (measured, wanted, Verdict::SlowMachine),
        Some((measured, wanted, true)) => (measured, wanted, Verdict::Met),
        Some((measured, wanted, false)) => (measured, wanted, Verdict::NotMet),
        None => (String::new(), String::new(), Verdict::NotMeasured),
    };
    let of_limit = first.and_then(|case| case.median_of(of_limit));
    Row { target, what, wanted, measured, of_limit, verdict, cases: cases.to_vec() }
}

/// Target 1: a write for each delivery, held against the machine's of one way, flat out and at that pace.
fn single(
    target: &'static str,
    what: &'static str,
    results: &Results,
    (flat, paced): (&'static str, &'static str),
) -> Row {
    row(target, what, &["rare"], results, |case| {
        let share = case.median(flat)?;
        let single = case.median(DELIVERIES_A_WRITE)? <= SINGLE_DELIVERIES_A_WRITE;
        let batched = if single { "" } else { ", batched" };
        let paced = case.median(paced).map(|share| format!(" (at that pace {})", percent(share)));
        let measured = format!("{}{}{batched}{}", percent(share), paced.unwrap_or_default(), faults(case));
        Some((measured, ">= 90 %, all made".into(), share >= 0.9 && single && is_whole(case)))
    })
}

/// So many deliveries a second, all made, in order, within the bound.
fn flood(target: &'static str, what: &'static str, name: &'static str, results: &Results, wanted: f64) -> Row {
    row(target, what, &[name], results, |case| {
        let (per_s, p99) = (case.median(PER_SECOND)?, case.median(P99)?);
        let bound = case.median_of(three_rounds).map_or(P99_MS, |rounds| rounds.max(P99_MS));
        let measured = format!("{:.1} M/s, p99 {}{}", per_s / 1e6, ms(p99), faults(case));
        let met = per_s >= wanted && p99 <= bound && is_whole(case);
        Some((measured, format!(">= {:.0} M/s, p99 <= {}, all made", wanted / 1e6, ms(bound)), met))
    })
}

/// Three rounds, milliseconds: sessions times the seconds that the machine takes for such a write.
fn three_rounds(run: &Value) -> Option<f64> {
    let bytes = number(run, "/server/connector/bytes_a_write")?;
    let sessions = number(run, "/sessions/viewers")?;
    Some(3.0 * sessions / machine_near(run, bytes).or_else(|| machine(run))? * 1000.0)
}

/// Writes a processor second, of those of the machine by the way that makes more.
fn of_limit(run: &Value) -> Option<f64> {
    lesser(run, [SHARE, URING_SHARE])
}

fn lesser(run: &Value, pointers: [&str; 2]) -> Option<f64> {
    pointers.into_iter().filter_map(|pointer| number(run, pointer)).min_by(f64::total_cmp)
}

/// The best that is known of deliveries a second into the connector, to 5,000 sessions of one room: the medians of `direct`
/// and `over`, and single steps of `sweep`.
fn best(results: &Results) -> Option<f64> {
    let runs = ["direct", "over"].into_iter().filter_map(|name| results.case(name)?.median(PER_SECOND));
    let steps = results.case("sweep").into_iter().flat_map(|case| &case.runs);
    let steps = steps.filter_map(|run| run.pointer("/steps")?.as_array()).flatten();
    runs.chain(steps.filter_map(|step| number(step, "/per_second"))).max_by(f64::total_cmp)
}

/// What must never be, whatever the load.
const ONCE_IN_ORDER: [&str; 4] =
    ["/deliveries/duplicates", "/deliveries/disordered", "/deliveries/strays", "/sessions/closed"];

/// Whether everything that was to be published came once, in order, to everybody, in every run that counts.
fn is_whole(case: &Case) -> bool {
    faults(case).is_empty()
}

/// What is wrong with any of them, to stand behind a number.
fn faults(case: &Case) -> &'static str {
    let same = |one: &'static str, other: &'static str| move |run: &Value| number(run, one) == number(run, other);
    // Without a run that counts nothing is judged.
    if case.counted().is_empty() {
        ""
    } else if !all(case, same("/published/intended", "/published/accepted")) {
        ", not all published"
    } else if !all(case, same("/deliveries/expected", "/deliveries/delivered")) {
        ", some lost"
    } else if !all(case, |run| ONCE_IN_ORDER.iter().all(|pointer| number(run, pointer).unwrap_or_default() == 0.0)) {
        ", some twice, out of order, astray or closed"
    } else {
        ""
    }
}

/// Whether it holds of every run that counts.
fn all(case: &Case, holds: impl Fn(&Value) -> bool) -> bool {
    let counted = case.counted();
    !counted.is_empty() && counted.into_iter().all(holds)
}
