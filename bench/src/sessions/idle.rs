//! `barrage bench idle`: authenticated sessions in rooms that only send heartbeats, and what they cost the server.
//!
//! ```text
//!   look ─▶ (the first ones go in, and stay) ─▶ look ─▶ all go in ─▶ settle ─▶ look ─▶ hold (a push to all) ─▶ look
//!    └──────── memory from empty ──────────────────────────────────────────────────────────────────────────────┤
//!                                                └──────────── memory ─────────────┴──────────── CPU ──────────┘
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::Error;
use crate::clock::now_ns;
use crate::credential::ApiKey;
use crate::environment::Environment;
use crate::figures::grouped;
use crate::output::Printing;
use crate::progress::Progress;
use crate::servers::{Cpu, Look, Servers};
use crate::sessions::fleet::{Crew, Fleet, reasons};
use crate::sessions::order::WorkerStatus;

/// After the last session is in: what its coming set off (routes are written in batches, allocators give back).
const SETTLING: Duration = Duration::from_secs(3);
/// How long the API may take to accept the push.
const ANSWER: Duration = Duration::from_secs(20);

/// Sessions in rooms that only send heartbeats: memory a session, CPU while nothing happens.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct Idle {
    /// The sessions.
    #[command(flatten)]
    #[serde(flatten)]
    pub crew: Crew,
    /// How long they are held.
    #[arg(long, default_value_t = 60)]
    pub seconds: u32,
    /// So many others come first, and stay: what the server sets up once is then there, and is no session's cost.
    #[arg(long, default_value_t = 0)]
    pub first: u32,
    /// At half time pushes a message to all sessions, and counts whom it reaches.
    #[arg(long)]
    pub push_all: bool,
    /// Where the HTTP API answers.
    #[arg(long, default_value = "http://127.0.0.1:3111", value_name = "URL")]
    pub http: String,
    /// Who publishes.
    #[command(flatten)]
    #[serde(skip)]
    pub api_key: ApiKey,
    /// How it is printed.
    #[command(flatten)]
    #[serde(skip)]
    pub printing: Printing,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct IdleReport {
    /// The machine.
    pub environment: Environment,
    /// The options of the run.
    pub settings: Idle,
    /// Until all were in their rooms.
    pub entering_s: f64,
    /// Sessions that were in their rooms at the end.
    pub sessions: u64,
    /// Sessions that could not be had, and that the server ended.
    pub given_up: u64,
    /// Of those that were in.
    pub closed: u64,
    /// Why not, tries that went well later among them.
    pub reasons: BTreeMap<String, u64>,
    /// Sent while they were held, and those of them that were answered before the next.
    pub heartbeats: u64,
    /// That many.
    pub answered: u64,
    /// That were not when the next was due.
    pub unanswered: u64,
    /// Growth of the server's resident memory of its own, over those that came after the first; `None`: no process of a
    /// server is to be seen here.
    pub user_bytes_a_session: Option<f64>,
    /// The same from the empty server, over all.
    pub user_bytes_a_session_from_empty: Option<f64>,
    /// That growth over the rooms, which are new ones, too: what a quiet room takes, with its sessions.
    pub user_bytes_a_room: Option<f64>,
    /// Growth of the kernel's objects and buffers; both ends, where the server is here.
    pub kernel_bytes_a_session: f64,
    /// Growth of the workers' memory.
    pub client_bytes_a_session: f64,
    /// Processor seconds a second for 10,000 sessions, while they were held.
    pub cpu_a_10_000_sessions: Option<Cpu>,
    /// The push.
    pub push: Option<PushReach>,
    /// The server's processes before them.
    pub before: Look,
    /// And at the end.
    pub after: Look,
}

/// Whom the push reached.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct PushReach {
    /// Sessions that got it.
    pub reached: u64,
    /// From asking the API until the last of them did.
    pub seconds: f64,
}

impl Idle {
    pub(crate) fn run(&self, commit: &str) -> Result<(), Error> {
        let report = self.measure(commit)?;
        self.printing.print(&report);
        report.fault().map_or(Ok(()), |fault| Err(Error::Fault(fault)))
    }

    /// Measures; blocks until it is over.
    ///
    /// # Errors
    /// [`Error`], but never [`Error::Fault`]: that is [`IdleReport::fault`]'s to say.
    pub fn measure(&self, commit: &str) -> Result<IdleReport, Error> {
        let connect = self.crew.check()?;
        let servers = Servers::find(&self.crew.server_pid, &connect)?;
        let progress = Progress::new();
        let empty = servers.look()?;
        let first = self.first(&connect, &progress)?;
        let mut fleet = Fleet::start(&self.crew, &connect)?;
        let clients = Servers::find(&fleet.pids(), &[])?;
        let (before, clients_before) = (servers.look()?, clients.look()?);
        let entered = fleet.enter(&progress)?;
        fleet.hold(SETTLING, |_| ())?;

        let (settled, held_ns) = (servers.look()?, now_ns());
        let half = Duration::from_secs(self.seconds.into()) / 2;
        let show = |told: &WorkerStatus| progress.show(|| format!("{} sessions are held", grouped(told.joined)));
        fleet.hold(half, show)?;
        let pushed_ns = now_ns();
        if self.push_all {
            self.push(&fleet.marker())?;
        }
        let last = fleet.hold(half, show)?;
        let (after, clients_after, ended_ns) = (servers.look()?, clients.look()?, now_ns());
        progress.clear();
        drop(first);

        let a_session = |before: u64, after: u64| (after as f64 - before as f64) / (last.joined.max(1)) as f64;
        let used = after.cpu().since(&settled.cpu());
        let share = 10_000.0 / (last.joined.max(1)) as f64 / (ended_ns.saturating_sub(held_ns)) as f64 * 1e9;
        Ok(IdleReport {
            environment: Environment::here(commit),
            settings: self.clone(),
            entering_s: entered.seconds,
            sessions: last.joined,
            given_up: last.given_up,
            closed: last.closed,
            heartbeats: last.heartbeats,
            answered: last.answered,
            unanswered: last.unanswered,
            user_bytes_a_session: (!servers.is_empty())
                .then(|| a_session(before.anonymous_bytes(), after.anonymous_bytes())),
            user_bytes_a_room: (!servers.is_empty()).then(|| {
                let grown = after.anonymous_bytes() as f64 - before.anonymous_bytes() as f64;
                grown / f64::from(self.crew.rooms)
            }),
            user_bytes_a_session_from_empty: (!servers.is_empty()).then(|| {
                let grown = after.anonymous_bytes() as f64 - empty.anonymous_bytes() as f64;
                grown / (last.joined + u64::from(self.first)).max(1) as f64
            }),
            kernel_bytes_a_session: a_session(before.kernel_bytes(), after.kernel_bytes()),
            client_bytes_a_session: a_session(clients_before.anonymous_bytes(), clients_after.anonymous_bytes()),
            cpu_a_10_000_sessions: (!servers.is_empty()).then(|| used.times(share)),
            push: self.push_all.then(|| PushReach {
                reached: last.reached,
                seconds: last.reached_ns.saturating_sub(pushed_ns) as f64 / 1e9,
            }),
            reasons: last.reasons,
            before,
            after,
        })
    }

    /// Those that come first.
    fn first(&self, connect: &[SocketAddr], progress: &Progress) -> Result<Option<Fleet>, Error> {
        if self.first == 0 {
            return Ok(None);
        }
        let crew = Crew { sessions: self.first, ..self.crew.clone() };
        let mut fleet = Fleet::start(&crew, connect)?;
        fleet.enter(progress)?;
        fleet.hold(SETTLING, |_| ())?;
        Ok(Some(fleet))
    }

    fn push(&self, text: &str) -> Result<(), Error> {
        let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(ANSWER)).build().into();
        let mut request = agent.post(format!("{}/v1/all/messages", self.http.trim_end_matches('/')));
        if !self.api_key.api_key.is_empty() {
            request = request.header("Authorization", format!("Bearer {}", self.api_key.api_key));
        }
        let answer = request.send_json(serde_json::json!({ "message": { "type": "text", "text": text } }));
        answer.map(drop).map_err(|error| Error::Fault(format!("the push to all is not accepted: {error}")))
    }
}

impl IdleReport {
    /// What the server did wrong; `None`: all sessions came and stayed, their heartbeats were answered, the push reached
    /// all.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let wanted = u64::from(self.settings.crew.sessions);
        let unreached = self.push.map_or(0, |push| self.sessions.saturating_sub(push.reached));
        let faults: Vec<String> = [
            (wanted - self.sessions.min(wanted), "sessions are missing"),
            (self.unanswered, "heartbeats were not answered in time"),
            (unreached, "sessions were not reached by the push"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", grouped(count)))
        .collect();
        let reasons = reasons(&self.reasons).map_or_else(String::new, |reasons| format!(" ({reasons})"));
        (!faults.is_empty()).then(|| format!("{}{reasons}", faults.join(", ")))
    }
}

impl fmt::Display for IdleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Crew { dialect, tcp, rooms, rooms_each, .. } = &self.settings.crew;
        let carrier = if *tcp { "TCP" } else { "WebSocket" };
        writeln!(
            f,
            "idle: {} sessions in {} rooms, held for {} s, {dialect:?} on {carrier}",
            grouped(self.sessions),
            grouped((*rooms).into()),
            self.settings.seconds
        )?;
        writeln!(f, "{}\n", self.environment)?;
        writeln!(f, "  until all were in            {:>12.1} s", self.entering_s)?;
        if let Some(bytes) = self.user_bytes_a_session {
            write!(f, "  user space, server           {bytes:>12.0} bytes a session")?;
            match self.user_bytes_a_session_from_empty.filter(|_| self.settings.first > 0) {
                Some(bytes) => {
                    writeln!(f, " after the first {}; {bytes:.0} from empty", grouped(self.settings.first.into()))?;
                }
                None => writeln!(f)?,
            }
        }
        if let Some(bytes) = self.user_bytes_a_room.filter(|_| *rooms_each > 1) {
            let each = f64::from(*rooms_each) * self.sessions as f64 / f64::from(*rooms);
            writeln!(f, "                               {bytes:>12.0} bytes a room, with its {each:.1} sessions")?;
        }
        writeln!(f, "  kernel, the ends that are here {:>10.0} bytes a session", self.kernel_bytes_a_session)?;
        writeln!(f, "  user space, clients          {:>12.0} bytes a session", self.client_bytes_a_session)?;
        if let Some(cpu) = self.cpu_a_10_000_sessions {
            writeln!(
                f,
                "  CPU, connector               {:>12.2} % of one, for 10,000 sessions",
                cpu.connector_s * 100.0
            )?;
            writeln!(f, "  CPU, all else                {:>12.2} %", cpu.rest_s * 100.0)?;
        }
        writeln!(
            f,
            "  heartbeats                   {:>12}  {} answered, {} late",
            grouped(self.heartbeats),
            grouped(self.answered),
            grouped(self.unanswered)
        )?;
        writeln!(
            f,
            "  closed by the server         {:>12}  {} given up",
            grouped(self.closed),
            grouped(self.given_up)
        )?;
        if let Some(push) = self.push {
            writeln!(f, "  reached by the push to all   {:>12}  in {:.2} s", grouped(push.reached), push.seconds)?;
        }
        for (reason, count) in &self.reasons {
            writeln!(f, "{:>41}  {reason}", grouped(*count))?;
        }
        writeln!(f, "\n  memory, MiB             processes     before      after      grown, of their own")?;
        for (kind, after) in &self.after.kinds {
            let before = self.before.kinds.get(kind).map_or(0, |kind| kind.anonymous_bytes);
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            writeln!(
                f,
                "  {kind:<22} {:>10} {:>10.1} {:>10.1} {:>10.1}",
                after.processes,
                mib(before),
                mib(after.anonymous_bytes),
                mib(after.anonymous_bytes) - mib(before)
            )?;
        }
        Ok(())
    }
}
