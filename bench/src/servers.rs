//! The processes of a server on this machine, and what they and the kernel take for its sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;

use serde::Serialize;

use crate::admission::meminfo;
use crate::processor::Usage;

/// TCP_LISTEN in /proc/net/tcp (include/net/tcp_states.h).
const LISTENING: &str = "0A";

/// The processes that are measured.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    /// Process ID and what it is.
    processes: Vec<(u32, String)>,
}

/// What the processes of one kind have in common.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Kind {
    /// How many there are.
    pub processes: u64,
    /// Resident memory of their own (RssAnon), bytes: heap and stacks, not the program.
    pub anonymous_bytes: u64,
    /// Resident memory, the program and what it maps included.
    pub resident_bytes: u64,
    /// Seconds on a processor, by work.
    pub cpu: Usage,
}

/// A look at the servers and the kernel.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Look {
    /// By kind: `connector`, `logic`, `run`, `redis-server`, ...
    pub kinds: BTreeMap<String, Kind>,
    /// The kernel's objects (Slab in /proc/meminfo), bytes: sockets, files, inodes, epoll's items.
    pub slab_bytes: u64,
    /// What lies in sockets' buffers (/proc/net/sockstat), bytes.
    pub buffer_bytes: u64,
}

impl Servers {
    /// Those that are named; else those that listen on `addresses`.
    ///
    /// # Errors
    /// A process that is named is not there.
    pub(crate) fn find(named: &[u32], addresses: &[SocketAddr]) -> io::Result<Self> {
        let pids = if named.is_empty() { listeners(addresses) } else { named.iter().copied().collect() };
        let processes = pids.into_iter().map(|pid| kind(pid).map(|kind| (pid, kind)));
        Ok(Self { processes: processes.collect::<io::Result<_>>()? })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// # Errors
    /// A process has ended.
    pub(crate) fn look(&self) -> io::Result<Look> {
        let mut look = Look {
            slab_bytes: meminfo("Slab").unwrap_or_default(),
            buffer_bytes: buffer_bytes().unwrap_or_default(),
            ..Look::default()
        };
        for (pid, kind) in &self.processes {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let bytes = |name: &str| -> u64 {
                let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                let word = line.and_then(|line| line.split_ascii_whitespace().next());
                word.and_then(|word| word.parse::<u64>().ok()).unwrap_or_default() * 1024
            };
            let sum = look.kinds.entry(kind.clone()).or_default();
            let used = Usage::of(*pid)?;
            sum.processes += 1;
            sum.anonymous_bytes += bytes("RssAnon");
            sum.resident_bytes += bytes("VmRSS");
            sum.cpu.cores_s += used.cores_s;
            sum.cpu.control_s += used.control_s;
            sum.cpu.rest_s += used.rest_s;
        }
        Ok(look)
    }
}

impl Look {
    /// Anonymous resident memory of all processes, bytes.
    pub(crate) fn anonymous_bytes(&self) -> u64 {
        self.kinds.values().map(|kind| kind.anonymous_bytes).sum()
    }

    /// What the kernel keeps, bytes.
    pub(crate) fn kernel_bytes(&self) -> u64 {
        self.slab_bytes + self.buffer_bytes
    }

    /// Of all processes: what serves connections, and the rest (logic, job, the bus, HTTP, Redis). In `barrage run`
    /// threads tell them apart; a connector's process is all connector.
    pub(crate) fn cpu(&self) -> Cpu {
        let mut cpu = Cpu::default();
        for (kind, Kind { cpu: used, .. }) in &self.kinds {
            let (cores, control) = (used.cores_s, used.control_s);
            if kind == "connector" {
                cpu.connector_s += cores + control + used.rest_s;
            } else if cores > 0.0 {
                cpu.connector_s += cores + control;
                cpu.rest_s += used.rest_s;
            } else {
                cpu.rest_s += control + used.rest_s;
            }
            cpu.cores_s += cores;
        }
        cpu
    }
}

/// Processor time of servers.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Cpu {
    /// Whatever is the connector: event loops and control thread, seconds.
    pub connector_s: f64,
    /// Of these the event loops.
    pub cores_s: f64,
    /// All others.
    pub rest_s: f64,
}

impl Cpu {
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            connector_s: self.connector_s - before.connector_s,
            cores_s: self.cores_s - before.cores_s,
            rest_s: self.rest_s - before.rest_s,
        }
    }

    pub(crate) fn times(&self, share: f64) -> Self {
        Self { connector_s: self.connector_s * share, cores_s: self.cores_s * share, rest_s: self.rest_s * share }
    }
}

/// What a process is: of this program its role, of others their name.
///
/// # Errors
/// It has ended, or belongs to another user.
fn kind(pid: u32) -> io::Result<String> {
    let command = fs::read(format!("/proc/{pid}/cmdline"))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm"))?.trim_end().to_owned();
    Ok(if is_ours(pid)? { role(&command).unwrap_or(name) } else { name })
}

/// Whether a process runs this program, whatever its file is called, or another build of it.
fn is_ours(pid: u32) -> io::Result<bool> {
    let program = format!("/proc/{pid}/exe");
    let file = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let ours = fs::metadata("/proc/self/exe").map(file)?;
    if fs::metadata(&program).map(file)? == ours {
        return Ok(true);
    }
    Ok(fs::read_link(program)?.file_name().is_some_and(|name| name == "barrage"))
}

/// The role that a command line of this program names.
fn role(command: &[u8]) -> Option<String> {
    let mut words = command.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    words.nth(1).filter(|word| !word.is_empty()).map(std::borrow::Cow::into_owned)
}

/// The processes that listen on these addresses, as far as this user may see them.
fn listeners(addresses: &[SocketAddr]) -> BTreeSet<u32> {
    let ports: BTreeSet<u16> = addresses.iter().filter(|at| at.ip().is_loopback()).map(SocketAddr::port).collect();
    let mut sockets = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (Some(local), Some(&LISTENING), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else {
                continue;
            };
            let port = local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
            if port.is_some_and(|port| ports.contains(&port)) {
                sockets.insert(format!("socket:[{inode}]"));
            }
        }
    }
    let mut pids = BTreeSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let mut files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        if files.any(|file| {
            fs::read_link(file.path()).is_ok_and(|link| link.to_str().is_some_and(|link| sockets.contains(link)))
        }) {
            pids.insert(pid);
        }
    }
    pids
}

/// /proc/net/sockstat tells pages.
fn buffer_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/net/sockstat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "mem").skip(1);
    let pages: u64 = words.next()?.parse().ok()?;
    let maps = fs::read_to_string("/proc/self/smaps").ok()?;
    let page = maps.lines().find_map(|line| line.strip_prefix("KernelPageSize:"))?;
    Some(pages * page.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_process_is_told_by_its_program_and_not_by_its_name() {
        // This test is a file of another name than `barrage`.
        assert!(is_ours(std::process::id()).unwrap());
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (ours, kind) = (is_ours(other.id()), kind(other.id()));
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(!ours.unwrap());
        assert_eq!(kind.unwrap(), "sleep");
        assert_eq!(role(b"/tmp/a-build\0connector\0--config\0a\0").as_deref(), Some("connector"));
        assert_eq!(role(b"/tmp/a-build\0"), None);
    }

    #[test]
    fn who_listens_is_found_and_measured() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let servers = Servers::find(&[], &[listener.local_addr().unwrap()]).unwrap();
        assert_eq!(servers.processes.len(), 1);
        assert_eq!(servers.processes[0].0, std::process::id());
        let look = servers.look().unwrap();
        let kind = look.kinds.values().next().unwrap();
        assert!(kind.processes == 1 && kind.anonymous_bytes > 0 && kind.resident_bytes >= kind.anonymous_bytes);
        assert!(look.cpu().rest_s > 0.0 && look.kernel_bytes() > 0);
        assert!(Servers::find(&[], &["127.0.0.1:1".parse().unwrap()]).unwrap().is_empty());
        assert!(Servers::find(&[u32::MAX], &[]).is_err());
    }
}
