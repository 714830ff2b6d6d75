//! Starts the real binary for black-box tests: random ports, its own data directory, ended when dropped.
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "every test binary uses its own part of this")]

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a process may take to say where it listens: two busy cores start it in well under a second.
const START: Duration = Duration::from_secs(60);

/// A running `barrage`.
pub struct Server {
    child: Option<Child>,
    directory: PathBuf,
    /// What it printed on standard output: a name, then its values.
    pub printed: Vec<(String, String)>,
}

impl Server {
    /// `barrage <role>` with `settings` (`SECTION.KEY`, value in TOML) in `directory`.
    pub fn start(role: &str, directory: &Path, settings: &[(&str, &str)]) -> Self {
        std::fs::create_dir_all(directory).expect("the directory can be made");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(directory.join(format!("{role}.log")))
            .expect("the log can be made");
        let mut command = Command::new(env!("CARGO_BIN_EXE_barrage"));
        command.arg(role).current_dir(directory).stdout(Stdio::piped()).stderr(log).stdin(Stdio::null());
        let ports = [
            ("connector.listen", r#"["127.0.0.1:0"]"#),
            ("connector.grpc", r#""127.0.0.1:0""#),
            ("logic.http", r#""127.0.0.1:0""#),
            ("logic.grpc", r#""127.0.0.1:0""#),
            ("admin.listen", r#""127.0.0.1:0""#),
        ];
        for (key, value) in ports.iter().chain(settings) {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let mut child = command.spawn().expect("the binary is built");
        let (lines, printed_lines) = mpsc::sync_channel(64);
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        let mut server = Self { child: Some(child), directory: directory.to_owned(), printed: Vec::new() };
        let deadline = Instant::now() + START;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = printed_lines.recv_timeout(left) else {
                panic!("barrage {role} did not start; its log:\n{}", server.log(role));
            };
            if let Some((name, value)) = line.trim().split_once(char::is_whitespace) {
                server.printed.push((name.to_owned(), value.trim().to_owned()));
            }
            if line.trim() == "ready" {
                break;
            }
        }
        server
    }

    /// `barrage run`.
    pub fn run(directory: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start("run", directory, settings)
    }

    fn log(&self, role: &str) -> String {
        std::fs::read_to_string(self.directory.join(format!("{role}.log"))).unwrap_or_default()
    }

    /// The addresses that it printed under `name`.
    pub fn addresses(&self, name: &str) -> Vec<SocketAddr> {
        let (_, value) =
            self.printed.iter().find(|(printed, _)| printed == name).unwrap_or_else(|| panic!("it printed no {name}"));
        value
            .split_whitespace()
            .filter_map(|word| word.trim_start_matches("http://").trim_end_matches('/').parse().ok())
            .collect()
    }

    /// Where clients connect.
    pub fn clients(&self) -> SocketAddr {
        self.addresses("clients")[0]
    }

    /// The HTTP API and the page.
    pub fn http(&self) -> SocketAddr {
        self.addresses("page")[0]
    }

    /// Metrics and readiness.
    pub fn admin(&self) -> SocketAddr {
        self.addresses("admin")[0]
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and its exit code when it has ended within `limit`.
    pub fn end(&mut self, limit: Duration) -> Option<i32> {
        let mut child = self.child.take()?;
        Command::new("kill").arg(child.id().to_string()).status().expect("kill is there");
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait().expect("it is our child") {
                return status.code();
            }
            if Instant::now() >= deadline {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for role in ["run", "connector", "logic", "job"] {
                let log = self.log(role);
                let tail: Vec<&str> = log.lines().rev().take(40).collect();
                for line in tail.into_iter().rev() {
                    eprintln!("{role}: {line}");
                }
            }
        }
        self.kill();
    }
}
