//! Where a measurement was made: a number without it says little.

use std::fmt;
use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

/// The machine and the build.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// Of the build.
    pub commit: String,
    /// Of the kernel that runs.
    pub kernel: String,
    /// Its model.
    pub cpu: String,
    /// That this process may use.
    pub cpus: usize,
}

impl Environment {
    pub(crate) fn here(commit: &str) -> Self {
        let line = |path: &str| fs::read_to_string(path).ok();
        let model = line("/proc/cpuinfo").and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        Self {
            commit: commit.to_owned(),
            kernel: line("/proc/sys/kernel/osrelease").map_or_else(unknown, |text| text.trim().to_owned()),
            cpu: model.unwrap_or_else(unknown),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "commit {}, Linux {}, {} x {}", self.commit, self.kernel, self.cpus, self.cpu)
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
        assert!(here.cpus >= 1 && !here.kernel.is_empty());
    }
}
