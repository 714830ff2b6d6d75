//! Where a measurement was made: a number without it says little.

use std::fmt;
use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::admission::meminfo;
use crate::processor::Cpus;

/// The machine and the build.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// Of the build.
    pub commit: String,
    /// The compiler of the build, with its version.
    pub rustc: &'static str,
    /// Of the kernel that runs.
    pub kernel: String,
    /// Its model.
    pub cpu: String,
    /// That are online.
    pub cpus: usize,
    /// MemTotal, bytes.
    pub memory_bytes: Option<u64>,
    /// Where the server is kept, or what sends in its place; `None`: it is not said.
    pub server_cpus: Option<Cpus>,
    /// Where this client and its workers may run.
    pub client_cpus: Option<Cpus>,
}

impl Environment {
    pub(crate) fn here(commit: &str) -> Self {
        let line = |path: &str| fs::read_to_string(path).ok();
        let processors = line("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()));
        // This process may be kept on some of them.
        let online = processors.lines().filter(|line| line.starts_with("processor")).count();
        Self {
            commit: commit.to_owned(),
            rustc: env!("BENCH_RUSTC"),
            kernel: line("/proc/sys/kernel/osrelease").map_or_else(unknown, |text| text.trim().to_owned()),
            cpu: model.unwrap_or_else(unknown),
            cpus: online.max(std::thread::available_parallelism().map_or(1, usize::from)),
            memory_bytes: meminfo("MemTotal"),
            server_cpus: None,
            client_cpus: Cpus::of_this_thread(),
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "commit {}, {}, Linux {}, {} x {}", self.commit, self.rustc, self.kernel, self.cpus, self.cpu)?;
        self.memory_bytes.map_or(Ok(()), |bytes| write!(f, ", {:.1} GiB", bytes as f64 / f64::from(1 << 30)))?;
        match (&self.server_cpus, &self.client_cpus) {
            (Some(server), Some(clients)) => write!(f, "; server on processors {server}, clients on {clients}"),
            _ => Ok(()),
        }
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// Lets this process have `wanted` open files, as far as the hard limit goes.
///
/// # Errors
/// The hard limit, where it is lower.
pub(crate) fn open_files(wanted: u64) -> Result<(), u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    match limit.maximum {
        Some(maximum) if maximum < wanted => Err(maximum),
        maximum => {
            let raised = Rlimit { current: Some(wanted), maximum };
            setrlimit(Resource::Nofile, raised).map_err(|_| limit.current.unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_files_than_the_hard_limit_are_refused_with_it() {
        assert_eq!(open_files(1), Ok(()));
        if let Some(maximum) = getrlimit(Resource::Nofile).maximum {
            assert_eq!(open_files(maximum + 1), Err(maximum));
        }
    }

    #[test]
    fn the_machine_is_told() {
        let here = Environment::here("abc");
        assert!(here.cpus >= 1 && !here.kernel.is_empty() && here.memory_bytes > Some(0));
        let told = Environment { server_cpus: Some("0".parse().unwrap()), ..here }.to_string();
        assert!(told.contains(here.rustc) && told.contains("server on processors 0, clients on "), "{told}");
    }
}
