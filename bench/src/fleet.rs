//! Sessions that are spread over worker processes, since one process may have few descriptors, and what all of them are
//! told to do. The workers are this program again ([`crate::worker`]): its memory is not copied, and they end when
//! their standard input does, whatever becomes of us.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Error;
use crate::admission::Admission;
use crate::clock::now_ns;
use crate::order::{BACKOFF, Credential, Order, Plan, Told, marker};
use crate::progress::Progress;
use crate::report::grouped;
use crate::wire::Dialect;

/// Lines of workers that wait to be looked at.
const LINES_MAX: usize = 1024;
/// How often the progress is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Nothing happens for so long: it never will.
const STANDSTILL: Duration = Duration::from_secs(30);
/// How long workers may take to end by themselves.
const ENDING: Duration = Duration::from_secs(10);

/// The sessions of `idle` and `storm`.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct Crew {
    /// Sessions, spread evenly over the rooms.
    #[arg(long, default_value_t = 1000)]
    pub sessions: u32,
    /// Rooms. They are new ones of this run.
    #[arg(long, default_value_t = 10)]
    pub rooms: u32,
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
    #[arg(long, env = "BARRAGE_TOKEN_KEY", hide_env_values = true, default_value = "")]
    #[serde(skip)]
    pub token_key: String,
    /// One token for all sessions; without this and --token-key they are guests, where guests are let in.
    #[arg(long, env = "BARRAGE_TOKEN", hide_env_values = true, default_value = "", conflicts_with = "token_key")]
    #[serde(skip)]
    pub token: String,
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
        refuse((1..=self.sessions).contains(&self.rooms), "rooms", &self.rooms, "1 to as many as sessions")?;
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
        } else if !self.token.is_empty() {
            Credential::Token(self.token.clone())
        } else {
            Credential::Guest
        }
    }
}

/// The running workers. They are ended when it is dropped.
pub(crate) struct Fleet {
    workers: Vec<Worker>,
    lines: Receiver<(usize, io::Result<Told>)>,
    sessions: u64,
    at_once: u32,
    run: u32,
    orders: u32,
}

struct Worker {
    child: Child,
    orders: Option<ChildStdin>,
    told: Told,
}

/// What became of an order.
pub(crate) struct Done {
    pub(crate) told: Told,
    /// From the order to when the last session had done it, seconds.
    pub(crate) seconds: f64,
}

impl Fleet {
    /// Starts the workers; they do nothing yet.
    ///
    /// # Errors
    /// This machine does not admit them, or this program cannot be started again.
    pub(crate) fn start(crew: &Crew, connect: &[SocketAddr]) -> Result<Self, Error> {
        let admission = Admission::of_this_machine();
        let workers = admission.workers(crew, connect)?;
        let run = rand::random();
        let (sender, lines) = sync_channel(LINES_MAX);
        let mut fleet = Self {
            workers: Vec::new(),
            lines,
            sessions: crew.sessions.into(),
            at_once: crew.at_once.div_ceil(workers),
            run,
            orders: 0,
        };
        let mut first = 0;
        for number in 0..workers {
            let sessions = (crew.sessions - first).div_ceil(workers - number);
            let plan = Plan {
                first,
                sessions,
                rooms: crew.rooms,
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
            fleet.workers.push(Worker::start(number as usize, &plan, sender.clone())?);
        }
        Ok(fleet)
    }

    /// What the payload of the push to all must contain to be counted.
    pub(crate) fn marker(&self) -> String {
        marker(self.run)
    }

    /// The workers' process IDs.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.workers.iter().map(|worker| worker.child.id()).collect()
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
        let mut line = serde_json::to_vec(&order).expect("an order is a name and a number");
        line.push(b'\n');
        let began_ns = now_ns();
        self.orders += 1;
        for worker in &mut self.workers {
            let orders = worker.orders.as_mut().expect("they are open until the fleet ends");
            orders.write_all(&line).and_then(|()| orders.flush()).map_err(Error::Machine)?;
        }
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
    pub(crate) fn hold(&mut self, time: Duration, mut look: impl FnMut(&Told)) -> Result<Told, Error> {
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
    fn listen(&mut self, time: Duration) -> Result<Told, Error> {
        let end = Instant::now() + time;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((number, told)) => {
                    let (mut told, last) = (told.map_err(Error::Worker)?, &mut self.workers[number].told);
                    if told.orders == last.orders && last.done_ns.is_some() {
                        // It is told once.
                        told.entering_us = std::mem::take(&mut last.entering_us);
                    }
                    *last = told;
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Worker(io::Error::other("all have ended"))),
            }
        }
        let mut sum = Told { orders: self.orders, ..Told::default() };
        self.workers.iter().for_each(|worker| sum.add(&worker.told));
        let all = self.workers.iter().all(|Worker { told, .. }| told.orders == self.orders && told.done_ns.is_some());
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

impl Worker {
    fn start(number: usize, plan: &Plan, told: SyncSender<(usize, io::Result<Told>)>) -> Result<Self, Error> {
        let program = std::env::current_exe()?;
        let mut child =
            Command::new(program).args(["bench", "worker"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut orders = child.stdin.take();
        let lines = child.stdout.take();
        // Owned from here on: if anything fails, it is ended.
        let mut worker = Self { child, orders: None, told: Told::default() };
        if let Some(orders) = &mut orders {
            let mut line = serde_json::to_vec(plan).expect("a plan is numbers and text");
            line.push(b'\n');
            orders.write_all(&line)?;
        }
        if let Some(lines) = lines {
            thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                for line in BufReader::new(lines).lines() {
                    let line = line.and_then(|line| Ok(serde_json::from_str(&line)?));
                    if told.send((number, line)).is_err() {
                        return;
                    }
                }
                // Nobody may be listening any more.
                drop(told.send((number, Err(io::Error::other(format!("worker {number} ended"))))));
            })?;
        }
        worker.orders = orders;
        Ok(worker)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Its orders end, and so does it; a worker that hangs is killed.
        self.orders = None;
        let end = Instant::now() + ENDING;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(LOOK / 10);
        }
        // Both fail where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // All at once, before the first is waited for.
        self.workers.iter_mut().for_each(|worker| worker.orders = None);
    }
}
