//! The sessions of `idle` and `storm`, spread over [`Workers`], and what all of them are told to do.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Error;
use crate::admission::{Admission, LoadRequest, SESSION_BYTES};
use crate::clock::now_ns;
use crate::credential::Token;
use crate::dialect::Dialect;
use crate::figures::grouped;
use crate::progress::Progress;
use crate::sessions::order::{BACKOFF, Credential, Order, SessionsPlan, WorkerStatus, marker};
use crate::workers::{Part, Workers};

/// How often the progress is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Nothing happens for so long: it never will.
const STANDSTILL: Duration = Duration::from_secs(30);

/// The sessions of `idle` and `storm`.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct Crew {
    /// Sessions, spread evenly over the rooms.
    #[arg(long, default_value_t = 1000)]
    pub sessions: u32,
    /// Rooms. They are new ones of this run.
    #[arg(long, default_value_t = 10)]
    pub rooms: u32,
    /// How many of them each session is in; more than one in the native dialect only.
    #[arg(long, default_value_t = 1)]
    pub rooms_each: u32,
    /// What the sessions speak.
    #[arg(long, value_enum, default_value = "native")]
    pub dialect: Dialect,
    /// They connect by bare TCP, not by WebSocket.
    #[arg(long)]
    pub tcp: bool,
    /// Where they connect; several places share them evenly.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:3102", value_name = "HOST:PORT,...")]
    pub connect: Vec<String>,
    /// Sessions that are on their way in at the same time. A server's queue of new connections is often 128 or 4,096;
    /// over it the kernel drops and the client tries again after a second.
    #[arg(long, default_value_t = 128)]
    pub at_once: u32,
    /// Worker processes. 0: as many as descriptors require.
    #[arg(long, default_value_t = 0)]
    pub workers: u32,
    /// The name (kid) of the HS256 key in --token-key.
    #[arg(long, default_value = "bench")]
    pub token_kid: String,
    /// Signs a token of its own for each session, a user each, with this HS256 key of logic.token.keys.
    #[arg(long, env = "BARRAGE_TOKEN_KEY", hide_env_values = true, default_value = "", conflicts_with = "token")]
    #[serde(skip)]
    pub token_key: String,
    /// One token for all sessions.
    #[command(flatten)]
    #[serde(skip)]
    pub token: Token,
    /// Seconds between two heartbeats of a session. 0: three quarters of what the server wants.
    #[arg(long, default_value_t = 0.0)]
    pub heartbeat: f64,
    /// Processes whose memory and CPU are measured. Empty: those of this machine that listen where the sessions connect.
    #[arg(long, value_delimiter = ',', value_name = "PID,...")]
    pub server_pid: Vec<u32>,
}

impl Crew {
    /// What the options make; what cannot work is refused, and so is what this machine does not admit.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::Admission`].
    pub(crate) fn check(&self) -> Result<Vec<SocketAddr>, Error> {
        let refuse = |right: bool, option, value: &dyn ToString, want: &str| {
            if right { Ok(()) } else { Err(Error::Option { option, value: value.to_string(), want: want.to_owned() }) }
        };
        refuse((1..=10_000_000).contains(&self.sessions), "sessions", &self.sessions, "1 to 10,000,000")?;
        let places = self.sessions.saturating_mul(self.rooms_each);
        refuse(
            (1..=places).contains(&self.rooms),
            "rooms",
            &self.rooms,
            "1 to as many as sessions have places in them",
        )?;
        let most = if self.dialect == Dialect::Native { self.rooms } else { 1 };
        let want = "1, or in the native dialect up to as many as there are";
        refuse((1..=most).contains(&self.rooms_each), "rooms-each", &self.rooms_each, want)?;
        refuse((1..=1_000_000).contains(&self.at_once), "at-once", &self.at_once, "1 to 1,000,000")?;
        refuse(self.workers <= self.sessions, "workers", &self.workers, "at most as many as sessions")?;
        let beats = self.heartbeat == 0.0 || (0.1..=3600.0).contains(&self.heartbeat);
        refuse(beats, "heartbeat", &self.heartbeat, "0, or 0.1 to 3,600")?;
        let mut addresses = Vec::new();
        for place in &self.connect {
            let address = place.to_socket_addrs().ok().and_then(|mut all| all.next());
            refuse(address.is_some(), "connect", place, "host:port of a connector")?;
            addresses.extend(address);
        }
        Ok(addresses)
    }

    fn credential(&self) -> Credential {
        if !self.token_key.is_empty() {
            Credential::Key { kid: self.token_kid.clone(), secret: self.token_key.clone() }
        } else if !self.token.token.is_empty() {
            Credential::Token(self.token.token.clone())
        } else {
            Credential::Guest
        }
    }
}

/// The running workers. They are ended when it is dropped.
pub(crate) struct Fleet {
    workers: Workers<WorkerStatus>,
    /// How each of them stands.
    told: Vec<WorkerStatus>,
    sessions: u64,
    at_once: u32,
    run: u32,
    orders: u32,
}

/// What became of an order.
pub(crate) struct Done {
    pub(crate) told: WorkerStatus,
    /// From the order to when the last session had done it, seconds.
    pub(crate) seconds: f64,
}

impl Fleet {
    /// Starts the workers; they do nothing yet.
    ///
    /// # Errors
    /// This machine does not admit them, or this program cannot be started again.
    pub(crate) fn start(crew: &Crew, connect: &[SocketAddr]) -> Result<Self, Error> {
        let asked = LoadRequest {
            sessions: crew.sessions.into(),
            workers: crew.workers,
            connect,
            memory_bytes: u64::from(crew.sessions) * SESSION_BYTES,
        };
        let workers = Admission::of_this_machine().workers(&asked)?;
        let (run, mut first) = (rand::random(), 0);
        let parts = (0..workers).map(|number| {
            let sessions = (crew.sessions - first).div_ceil(workers - number);
            let plan = SessionsPlan {
                first,
                sessions,
                rooms: crew.rooms,
                rooms_each: crew.rooms_each,
                run,
                connect: connect.to_vec(),
                host: crew.connect[0].clone(),
                dialect: crew.dialect,
                tcp: crew.tcp,
                credential: crew.credential(),
                heartbeat_ms: (crew.heartbeat > 0.0).then_some((crew.heartbeat * 1000.0) as u64),
                backoff: BACKOFF,
            };
            first += sessions;
            Part::Sessions(plan)
        });
        Ok(Self {
            workers: Workers::start(parts)?,
            told: vec![WorkerStatus::default(); workers as usize],
            sessions: crew.sessions.into(),
            at_once: crew.at_once.div_ceil(workers),
            run,
            orders: 0,
        })
    }

    /// What the payload of the push to all must contain to be counted.
    pub(crate) fn marker(&self) -> String {
        marker(self.run)
    }

    /// The workers' process IDs.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.workers.pids()
    }

    /// All sessions go in.
    pub(crate) fn enter(&mut self, progress: &Progress) -> Result<Done, Error> {
        self.order(Order::Enter { at_once: self.at_once }, progress)
    }

    /// All drop.
    pub(crate) fn leave(&mut self, progress: &Progress) -> Result<Done, Error> {
        self.order(Order::Leave, progress)
    }

    /// All come back.
    pub(crate) fn come_back(&mut self, progress: &Progress) -> Result<Done, Error> {
        self.order(Order::Return, progress)
    }

    fn order(&mut self, order: Order, progress: &Progress) -> Result<Done, Error> {
        let began_ns = now_ns();
        self.orders += 1;
        self.workers.order(&order)?;
        let (mut last, mut moved) = ((0, 0), Instant::now());
        loop {
            let told = self.listen(LOOK)?;
            if let Some(done_ns) = told.done_ns {
                return Ok(Done { told, seconds: done_ns.saturating_sub(began_ns) as f64 / 1e9 });
            }
            progress.show(|| format!("{} of {} sessions are in", grouped(told.joined), grouped(self.sessions)));
            if (told.joined, told.given_up) != last {
                (last, moved) = ((told.joined, told.given_up), Instant::now());
            } else if moved.elapsed() > STANDSTILL {
                let joined = grouped(told.joined);
                let reasons = reasons(&told.reasons).unwrap_or_else(|| "no server answers".to_owned());
                return Err(Error::Entering(format!("{joined} are in, and no more come: {reasons}")));
            }
        }
    }

    /// Waits for so long.
    pub(crate) fn hold(&mut self, time: Duration, mut look: impl FnMut(&WorkerStatus)) -> Result<WorkerStatus, Error> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let told = self.listen(left.min(LOOK))?;
            look(&told);
            if left.is_zero() {
                return Ok(told);
            }
        }
    }

    /// How all stand, after what comes within `time`. `done_ns` is there when all are done.
    fn listen(&mut self, time: Duration) -> Result<WorkerStatus, Error> {
        let end = Instant::now() + time;
        while let Some((number, mut told)) = self.workers.hear(end)? {
            let last = &mut self.told[number];
            if told.orders == last.orders && last.done_ns.is_some() {
                // It is told once.
                told.entering_us = std::mem::take(&mut last.entering_us);
            }
            *last = told;
        }
        let mut sum = WorkerStatus { orders: self.orders, ..WorkerStatus::default() };
        self.told.iter().for_each(|told| sum.add(told));
        let all = self.told.iter().all(|told| told.orders == self.orders && told.done_ns.is_some());
        sum.done_ns = sum.done_ns.filter(|_| all);
        Ok(sum)
    }
}

/// The most frequent ones, for a person.
pub(crate) fn reasons(reasons: &BTreeMap<String, u64>) -> Option<String> {
    let mut reasons: Vec<_> = reasons.iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let reasons: Vec<_> =
        reasons.iter().take(3).map(|(reason, count)| format!("{} x {reason}", grouped(**count))).collect();
    (!reasons.is_empty()).then(|| reasons.join(", "))
}
