//! A server for one measurement: `barrage run` of this build in a process of its own, in an empty directory, on free
//! loopback ports and on the server's processor; and what a server has cost so far, this one or another.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::processor::{Cpus, Usage, counters, pin};

/// How long it may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// How long it may take to end when it is told to; then it is killed.
const END: Duration = Duration::from_secs(5);

/// Status of a process that a signal has ended, as shells tell it (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// Servers that must not outlive us: process and directory.
static RUNNING: Mutex<Vec<(u32, PathBuf)>> = Mutex::new(Vec::new());

/// Ends what runs when this process is told to end, and then this process.
fn end_with_us() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (mut terminate, mut interrupt) =
                    (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                for (pid, directory) in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                    terminate_process(pid);
                    drop(std::fs::remove_dir_all(directory));
                }
                std::process::exit(INTERRUPTED);
                #[expect(unreachable_code, reason = "tells the block's type")]
                Ok::<(), io::Error>(())
            })
        });
    });
}

/// Whether it could be told to end.
fn terminate_process(pid: u32) -> bool {
    Pid::from_raw(pid as i32).is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok())
}

/// How to start it.
#[derive(Debug, Clone)]
pub(crate) struct ServerPlan {
    /// `None`: this one.
    pub(crate) binary: Option<PathBuf>,
    pub(crate) cpus: Option<Cpus>,
    /// Event-loop threads.
    pub(crate) cores: u32,
    /// Of its configuration, over what a bench needs.
    pub(crate) set: Vec<String>,
}

/// A running server; ends with it.
#[derive(Debug)]
pub(crate) struct Stand {
    child: Child,
    /// Where it keeps its log; goes with it.
    directory: TempDir,
    /// By the name under which it tells them.
    addresses: BTreeMap<String, String>,
    /// The cluster's.
    pub(crate) secret: String,
}

impl Stand {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// The system's, or what it said when it ended.
    pub(crate) fn start(plan: &ServerPlan) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let secret = format!("{:032x}", rand::random::<u128>());
        let binary = plan.binary.clone().map_or_else(std::env::current_exe, Ok)?;
        let mut command = Command::new(binary);
        command.arg("run").current_dir(&directory).env("BARRAGE_CLUSTER__SECRET", &secret);
        let cores = format!("connector.cores={}", plan.cores);
        let fixed = [
            cores.as_str(),
            "connector.listen=[\"127.0.0.1:0\"]",
            "connector.grpc=127.0.0.1:0",
            "connector.drain_s=1",
            "connector.buffers.drain_delay_ms=100",
            "logic.http=127.0.0.1:0",
            "logic.grpc=127.0.0.1:0",
            "admin.listen=127.0.0.1:0",
            // What it is for is chat; a bench is no chat.
            "job.room_messages_per_s_max=0",
            "log.level=warn",
        ];
        for set in fixed.into_iter().chain(plan.set.iter().map(String::as_str)) {
            command.args(["--set", set]);
        }
        let log = std::fs::File::create(directory.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        // Where a process runs is inherited: a thread goes there and starts it.
        let cpus = plan.cpus.clone();
        let starting = thread::spawn(move || {
            cpus.as_ref().map_or(Ok(()), pin)?;
            command.spawn()
        });
        end_with_us();
        let mut child = starting.join().map_err(|_| io::Error::other("a thread of the bench panicked"))??;
        let running = (child.id(), directory.path().to_owned());
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).push(running);
        let out = child.stdout.take().expect("it was asked for");
        let mut stand = Self { child, directory, addresses: BTreeMap::new(), secret };
        let (lines, said) = sync_channel(64);
        // Ends with the server's output.
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // After `ready` nobody listens any more: what it says then is still taken from it.
                let _ = lines.try_send(line);
            }
        });
        let deadline = Instant::now() + READY;
        loop {
            let Ok(line) = said.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                let log = std::fs::read_to_string(stand.directory.path().join("log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                return Err(io::Error::other(format!("the server is not ready: {}", last.join("; "))));
            };
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("ready"), None) => return Ok(stand),
                (Some(name), Some(address)) => drop(stand.addresses.insert(name.to_owned(), address.to_owned())),
                _ => {}
            }
        }
    }

    /// Where its `name` answers; empty if it does not say.
    pub(crate) fn address(&self, name: &str) -> String {
        self.addresses.get(name).cloned().unwrap_or_default().trim_end_matches('/').to_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).retain(|(pid, _)| *pid != self.child.id());
        let asked = terminate_process(self.child.id());
        let deadline = Instant::now() + END;
        while asked && Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// How to see what a server costs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter {
    /// Its processes; none: they are not on this machine.
    pub(crate) pids: Vec<u32>,
    /// `http://host:port` of their metrics; none: it is no Barrage.
    pub(crate) admin: Vec<String>,
}

/// What a server has used and done, up to a moment.
#[derive(Debug, Clone)]
pub(crate) struct UsageReading {
    usage: Option<Usage>,
    counters: Option<BTreeMap<String, f64>>,
}

/// What it used and did between two readings.
#[derive(Debug, Clone)]
pub(crate) struct Spent {
    pub(crate) usage: Option<Usage>,
    counters: Option<BTreeMap<String, f64>>,
}

impl Meter {
    pub(crate) fn read(&self) -> UsageReading {
        let text = |admin: &String| {
            ureq::get(format!("{}/metrics", admin.trim_end_matches('/'))).call().ok()?.body_mut().read_to_string().ok()
        };
        // First what it used, then what it did: what it does meanwhile, in the middle of a load, is held against it.
        let usage = Usage::of_all(&self.pids);
        // Those of one name are summed, of whichever process.
        let texts: Option<Vec<String>> = self.admin.iter().map(text).collect();
        UsageReading { usage, counters: texts.filter(|texts| !texts.is_empty()).map(|texts| counters(&texts.concat())) }
    }
}

impl UsageReading {
    pub(crate) fn since(&self, before: &Self) -> Spent {
        let counters = self.counters.as_ref().zip(before.counters.as_ref()).map(|(now, before)| {
            let difference =
                |(name, value): (&String, &f64)| (name.clone(), value - before.get(name).copied().unwrap_or_default());
            now.iter().map(difference).collect()
        });
        Spent { usage: self.usage.zip(before.usage).map(|(now, before)| now.since(&before)), counters }
    }
}

impl Spent {
    /// How far the connector's counter of this name went.
    pub(crate) fn connector(&self, name: &str) -> Option<u64> {
        let counters = self.counters.as_ref()?;
        Some(counters.get(&format!("barrage_connector_{name}_total")).copied().unwrap_or_default() as u64)
    }
}
