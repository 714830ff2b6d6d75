//! Whether this machine admits so many sessions, and over how many worker processes they go: descriptors, ports, memory.
//! What it does not admit is refused before anything begins, with the setting to raise.

use std::fs;
use std::net::SocketAddr;

use rustix::process::{Resource, getrlimit};

use crate::Error;
use crate::dial::CLIENTS_OF_AN_ADDRESS;
use crate::figures::grouped;

/// What the kernel keeps for one end of an idle connection, bytes: socket, inode, dentry, file, epoll's item. Measured on
/// Linux 6.18 with 100,000 sessions: 10,716 for both ends.
const END_BYTES: u64 = 5400;
/// What a session takes in a worker, bytes: itself, and what the allocator keeps of its way in. Measured: 331.
pub(crate) const SESSION_BYTES: u64 = 350;
/// Of a worker, bytes.
const WORKER_BYTES: u64 = 8 << 20;
/// Descriptors of a worker beside its sessions': the three of every process, epoll, and what the runtime opens for a moment.
pub(crate) const OTHER_FILES: u64 = 32;
/// Descriptors of a server beside its clients': listeners, event loops, logs, streams between services.
const SERVER_FILES: u64 = 200;

/// What is asked of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoadRequest<'a> {
    pub(crate) sessions: u64,
    /// 0: as many as descriptors require.
    pub(crate) workers: u32,
    /// Where the sessions connect; they share them evenly.
    pub(crate) connect: &'a [SocketAddr],
    /// That all sessions take in the workers.
    pub(crate) memory_bytes: u64,
}

/// The machine's limits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Admission {
    /// RLIMIT_NOFILE, hard; `None`: none.
    files_of_a_process: Option<u64>,
    /// fs.file-max less what is open.
    files: u64,
    /// net.ipv4.ip_local_port_range.
    ports: u64,
    /// MemAvailable, bytes.
    memory: u64,
}

impl Admission {
    pub(crate) fn of_this_machine() -> Self {
        let numbers = |path: &str| -> Vec<u64> {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
        };
        // Allocated, free (always 0), most.
        let files = match numbers("/proc/sys/fs/file-nr")[..] {
            [open, _, most] => most.saturating_sub(open),
            _ => u64::MAX,
        };
        let ports = match numbers("/proc/sys/net/ipv4/ip_local_port_range")[..] {
            [first, last] => (last + 1).saturating_sub(first),
            _ => u64::MAX,
        };
        Self {
            files_of_a_process: getrlimit(Resource::Nofile).maximum,
            files,
            ports,
            memory: meminfo("MemAvailable").unwrap_or(u64::MAX),
        }
    }

    /// Whether one process of a server can serve so many sessions.
    ///
    /// # Errors
    /// [`Error::Admission`].
    pub(crate) fn server(&self, sessions: u64) -> Result<(), Error> {
        match self.files_of_a_process {
            Some(files) if sessions + SERVER_FILES > files => Err(Error::Admission {
                sessions,
                what: format!(
                    "the server of --stand is one process, which may have {} open files: raise `ulimit -Hn`, or start as \
                     many connectors as it takes and name them in --connect instead (for --via connector in --grpc, too)",
                    grouped(files)
                ),
            }),
            _ => Ok(()),
        }
    }

    /// How many workers there are to be.
    ///
    /// # Errors
    /// [`Error::Admission`].
    pub(crate) fn workers(
        &self,
        &LoadRequest { sessions, workers, connect, memory_bytes }: &LoadRequest<'_>,
    ) -> Result<u32, Error> {
        let refuse = |what: String| Err(Error::Admission { sessions, what });
        let of_a_process = self.files_of_a_process.map_or(u64::MAX, |files| files.saturating_sub(OTHER_FILES));
        if of_a_process == 0 {
            return refuse(format!("a process may have {OTHER_FILES} open files: raise `ulimit -Hn`"));
        }
        let needed = sessions.div_ceil(of_a_process);
        let workers = if workers == 0 { needed } else { workers.into() };
        if workers < needed {
            return refuse(format!(
                "{workers} workers may have {} open files each: take {needed} --workers, or raise `ulimit -Hn`",
                grouped(of_a_process)
            ));
        }
        // A server that is here, too, has the other ends.
        let (here, elsewhere): (Vec<&SocketAddr>, Vec<&SocketAddr>) =
            connect.iter().partition(|address| address.ip().is_loopback());
        let ends = sessions * if here.is_empty() { 1 } else { 2 };
        if ends > self.files {
            return refuse(format!(
                "they have {} open files in all, and the system admits {} more: raise fs.file-max (sysctl)",
                grouped(ends),
                grouped(self.files)
            ));
        }
        let ports = self.ports * elsewhere.len() as u64;
        let sent_there = sessions * elsewhere.len() as u64 / connect.len().max(1) as u64;
        if sent_there > ports {
            return refuse(format!(
                "this machine has {} ports for connections to those places: widen net.ipv4.ip_local_port_range \
                 (sysctl), take more places to --connect to, or more machines",
                grouped(ports)
            ));
        }
        if !here.is_empty() && u64::from(CLIENTS_OF_AN_ADDRESS) > self.ports {
            return refuse(format!(
                "an address has only {} ports: widen net.ipv4.ip_local_port_range (sysctl) to {}",
                grouped(self.ports),
                grouped(CLIENTS_OF_AN_ADDRESS.into())
            ));
        }
        let memory = ends * END_BYTES + memory_bytes + workers * WORKER_BYTES;
        if memory > self.memory {
            return refuse(format!(
                "they take about {} MiB of memory, most of it the kernel's, and {} MiB are available",
                grouped(memory >> 20),
                grouped(self.memory >> 20)
            ));
        }
        u32::try_from(workers).or_else(|_| refuse(format!("{workers} workers")))
    }
}

/// A line of /proc/meminfo, bytes.
pub(crate) fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::sessions::fleet::Crew;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        crew: Crew,
    }

    const MACHINE: Admission =
        Admission { files_of_a_process: Some(20_000), files: 2_400_000, ports: 28_232, memory: 16 << 30 };

    fn workers(machine: &Admission, line: &str) -> Result<u32, String> {
        let crew = CommandLine::parse_from(std::iter::once("bench").chain(line.split_whitespace())).crew;
        let sessions = crew.sessions.into();
        let memory_bytes = sessions * SESSION_BYTES;
        let connect = &crew.check().unwrap();
        machine
            .workers(&LoadRequest { sessions, workers: crew.workers, connect, memory_bytes })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn there_are_as_many_workers_as_descriptors_require() {
        for (line, expected) in [
            ("--sessions 19968", 1),
            ("--sessions 19969", 2),
            ("--sessions 1000000", 51),
            ("--sessions 1000000 --workers 60", 60),
            ("--sessions 28000 --connect 10.0.0.1:1", 2),
        ] {
            assert_eq!(workers(&MACHINE, line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn what_the_machine_does_not_admit_is_refused_with_the_setting_to_raise() {
        for (machine, line, setting) in [
            (MACHINE, "--sessions 20000 --workers 1", "ulimit -Hn"),
            (Admission { files_of_a_process: Some(32), ..MACHINE }, "", "ulimit -Hn"),
            (Admission { files: 1999, ..MACHINE }, "--sessions 1000", "fs.file-max"),
            (MACHINE, "--sessions 28233 --connect 10.0.0.1:1", "net.ipv4.ip_local_port_range"),
            (Admission { ports: 100, ..MACHINE }, "", "net.ipv4.ip_local_port_range"),
            (Admission { memory: 1 << 30, ..MACHINE }, "--sessions 200000", "1,024 MiB are available"),
        ] {
            let refused = workers(&machine, line).unwrap_err();
            assert!(refused.contains(setting), "{line}: {refused}");
        }
    }

    #[test]
    fn a_server_of_one_process_serves_as_many_as_it_may_have_files() {
        assert!(MACHINE.server(19_800).is_ok());
        assert!(Admission { files_of_a_process: None, ..MACHINE }.server(1_000_000).is_ok());
        let refused = MACHINE.server(60_000).unwrap_err().to_string();
        assert!(refused.contains("20,000 open files") && refused.contains("--connect"), "{refused}");
    }

    #[test]
    fn this_machine_has_limits() {
        let here = Admission::of_this_machine();
        assert!(here.files > 0 && here.ports > 0 && here.memory > 0);
        assert!(meminfo("MemTotal") > meminfo("MemAvailable"));
    }
}
