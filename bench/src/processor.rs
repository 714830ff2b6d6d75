//! Which processors a side of a measurement runs on, and what a server's threads cost.
//!
//! Pinning is inherited: what a pinned thread starts, threads and processes, runs there too.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

/// Processors by their numbers: `0`, `0,2-3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus(Vec<usize>);

impl Serialize for Cpus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Cpus {
    /// Those that the calling thread may run on.
    pub(crate) fn of_this_thread() -> Option<Self> {
        let allowed = sched_getaffinity(None).ok()?;
        Some(Self((0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect()))
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            let number = part.trim().parse().ok().filter(|number| *number < CpuSet::MAX_CPU);
            number.ok_or_else(|| format!("{part:?} is no processor: want numbers and ranges like 0,2-3"))
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                Some((first, last)) => cpus.extend(number(first)?..=number(last)?),
                None => cpus.push(number(part)?),
            }
        }
        if cpus.is_empty() { Err("want at least one processor".into()) } else { Ok(Self(cpus)) }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

/// The two sides: the first processor that this process may use is the server's, the others are the clients'. `None`
/// where there is only one.
pub(crate) fn sides() -> Option<(Cpus, Cpus)> {
    let mut all = Cpus::of_this_thread()?.0.into_iter();
    let first = all.next()?;
    let others: Vec<usize> = all.collect();
    (!others.is_empty()).then(|| (Cpus(vec![first]), Cpus(others)))
}

/// Keeps the calling thread, and whatever it starts from now on, on `cpus`.
///
/// # Errors
/// The system's, where this process may use none of them.
pub(crate) fn pin(cpus: &Cpus) -> io::Result<()> {
    let mut set = CpuSet::new();
    cpus.0.iter().for_each(|cpu| set.set(*cpu));
    sched_setaffinity(None, &set).map_err(|error| io::Error::other(format!("cannot run on processors {cpus}: {error}")))
}

/// What a connector's process has used, by the work of its threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// The event loops, seconds.
    pub cores_s: f64,
    /// The control thread, seconds.
    pub control_s: f64,
    /// All others (in `barrage run`: HTTP, logic, bus, job), seconds.
    pub rest_s: f64,
}

impl Usage {
    /// Of a process so far.
    ///
    /// # Errors
    /// The system's: it has ended, or is another user's.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let mut usage = Self::default();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?.path();
            // A thread may end between the two.
            let Ok(name) = fs::read_to_string(task.join("comm")) else { continue };
            let Ok(stat) = fs::read_to_string(task.join("schedstat")) else { continue };
            // Nanoseconds on a processor, waiting for one, turns (Documentation/scheduler/sched-stats.rst).
            let ns: u64 = stat.split_ascii_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or_default();
            let seconds = Duration::from_nanos(ns).as_secs_f64();
            if name.starts_with("core-") {
                usage.cores_s += seconds;
            } else if name.trim_end() == "control" {
                usage.control_s += seconds;
            } else {
                usage.rest_s += seconds;
            }
        }
        Ok(usage)
    }

    /// Of some processes so far; `None`: of one of them it cannot be told, or there is none.
    pub(crate) fn of_all(pids: &[u32]) -> Option<Self> {
        let mut sum = Self::default();
        for pid in pids {
            let used = Self::of(*pid).ok()?;
            sum.cores_s += used.cores_s;
            sum.control_s += used.control_s;
            sum.rest_s += used.rest_s;
        }
        (!pids.is_empty()).then_some(sum)
    }

    /// What was used since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            cores_s: self.cores_s - before.cores_s,
            control_s: self.control_s - before.control_s,
            rest_s: self.rest_s - before.rest_s,
        }
    }
}

/// Counters of a server's `/metrics`, by name, those of one name (its labels) summed.
pub(crate) fn counters(text: &str) -> BTreeMap<String, f64> {
    let mut counters = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let name = name.split('{').next().unwrap_or_default();
        if let Ok(value) = value.parse::<f64>() {
            *counters.entry(name.to_owned()).or_default() += value;
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_numbers_and_ranges() {
        assert_eq!("0,2-4".parse(), Ok(Cpus(vec![0, 2, 3, 4])));
        for wrong in ["", "a", "1-", "3-2", "5000"] {
            assert!(wrong.parse::<Cpus>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn threads_are_told_apart_by_their_names() {
        let spin = || while crate::clock::thread_cpu() < Duration::from_millis(20) {};
        let (done, wait) = std::sync::mpsc::sync_channel(0);
        let hold = std::sync::Arc::new(std::sync::Barrier::new(2));
        let held = hold.clone();
        let core = std::thread::Builder::new().name("core-0".into()).spawn(move || {
            spin();
            done.send(()).unwrap();
            held.wait();
        });
        wait.recv().unwrap();
        let usage = Usage::of(std::process::id()).unwrap();
        hold.wait();
        core.unwrap().join().unwrap();
        assert!(usage.cores_s >= 0.01 && usage.control_s == 0.0 && usage.rest_s > 0.0, "{usage:?}");
    }

    #[test]
    fn counters_of_one_name_are_summed() {
        let text = "# HELP a b\na_total{core=\"0\"} 3\na_total{core=\"1\"} 4\nb 1.5\n# EOF\n";
        assert_eq!(counters(text), BTreeMap::from([("a_total".into(), 7.0), ("b".into(), 1.5)]));
    }
}
