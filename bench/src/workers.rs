//! Worker processes, since one process may have few descriptors: this program again (`barrage bench worker`), so that
//! its memory is not copied. What they say to each other is lines of JSON on standard input and output.
//!
//! ```text
//!   Workers ─[Part], then orders─▶ worker          worker ─what it tells, some times a second─▶ Workers
//! ```
//!
//! Invariant: workers end when their input does, whatever becomes of us.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::fanout::viewers;
use crate::lines::{Lines, write_line};
use crate::sessions::{crowd, order};

/// Lines of workers that wait to be looked at.
const LINES_MAX: usize = 1024;
/// How long workers may take to end by themselves.
const ENDING: Duration = Duration::from_secs(10);
/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(5);

/// The first line: what a worker is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Part {
    /// `idle` and `storm`: sessions that come, stay and go.
    Sessions(order::SessionsPlan),
    /// `fanout`: viewers that count what comes.
    Viewers(Box<viewers::ViewersPlan>),
}

impl Part {
    fn work(self, lines: Lines, orders: impl AsFd, told: impl Write) -> io::Result<()> {
        match self {
            Self::Sessions(plan) => crowd::Crowd::new(plan, lines)?.run(orders, told),
            Self::Viewers(plan) => viewers::run(*plan, lines, orders, told),
        }
    }
}

/// Does what standard input says until it ends: the whole life of a worker process.
///
/// # Errors
/// The first line is no part, or the machine has no epoll to give. What befalls sessions is told, and is no error here.
pub(crate) fn run() -> io::Result<()> {
    let mut lines = Lines::default();
    loop {
        if let Some(part) = lines.next::<Part>()? {
            return part.work(lines, io::stdin(), io::stdout().lock());
        }
        if lines.read(io::stdin())? == 0 {
            return Ok(());
        }
    }
}

/// Running workers that tell `T`s. They are ended when it is dropped.
pub(crate) struct Workers<T> {
    /// Goes before the workers do: one that waits for it to be heard would never end.
    lines: Receiver<(usize, io::Result<T>)>,
    workers: Vec<Running>,
}

struct Running {
    body: Body,
    orders: Option<Box<dyn Write + Send>>,
}

enum Body {
    Process(Child),
    Thread(Option<JoinHandle<()>>),
}

impl<T: DeserializeOwned + Send + 'static> Workers<T> {
    /// Starts a process for each part.
    ///
    /// # Errors
    /// This program cannot be started again.
    pub(crate) fn start(parts: impl IntoIterator<Item = Part>) -> Result<Self, Error> {
        let (told, lines) = sync_channel(LINES_MAX);
        let mut workers = Self { lines, workers: Vec::new() };
        let program = std::env::current_exe()?;
        for part in parts {
            let mut command = Command::new(&program);
            let mut child = command.args(["bench", "worker"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let (orders, lines) = (child.stdin.take(), child.stdout.take());
            // Owned from here on: if anything fails, it is ended.
            workers.workers.push(Running { body: Body::Process(child), orders: None });
            if let (Some(mut orders), Some(lines)) = (orders, lines) {
                write_line(&mut orders, &part)?;
                workers.listen(lines, told.clone(), Box::new(orders))?;
            }
        }
        Ok(workers)
    }

    /// One part, done by a thread of this process: where its descriptors are enough for it, it needs no other.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(crate) fn here(part: Part) -> Result<Self, Error> {
        let (told, lines) = sync_channel(LINES_MAX);
        let mut workers = Self { lines, workers: Vec::new() };
        let ((input, orders), (lines, output)) = (io::pipe()?, io::pipe()?);
        let thread = thread::Builder::new().name("worker".into()).spawn(move || {
            // That it has ended too early is told by the end of its lines, as with a process.
            drop(part.work(Lines::default(), input, output));
        })?;
        workers.workers.push(Running { body: Body::Thread(Some(thread)), orders: None });
        workers.listen(lines, told, Box::new(orders))?;
        Ok(workers)
    }

    /// The worker that was pushed last tells by `lines`.
    fn listen(
        &mut self,
        lines: impl Read + Send + 'static,
        told: SyncSender<(usize, io::Result<T>)>,
        orders: Box<dyn Write + Send>,
    ) -> Result<(), Error> {
        let number = self.workers.len() - 1;
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
        self.workers[number].orders = Some(orders);
        Ok(())
    }

    /// Tells all of them.
    ///
    /// # Errors
    /// One has ended.
    pub(crate) fn order(&mut self, order: &impl Serialize) -> Result<(), Error> {
        for orders in self.workers.iter_mut().filter_map(|worker| worker.orders.as_mut()) {
            write_line(orders, order).map_err(Error::Worker)?;
        }
        Ok(())
    }

    /// What one of them tells next, by its number; `None`: nothing until then.
    ///
    /// # Errors
    /// One has ended, or says what is none of ours.
    pub(crate) fn hear(&self, until: Instant) -> Result<Option<(usize, T)>, Error> {
        match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((number, told)) => Ok(Some((number, told.map_err(Error::Worker)?))),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Worker(io::Error::other("all have ended"))),
        }
    }

    /// The processes' IDs.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let pid = |worker: &Running| match &worker.body {
            Body::Process(child) => Some(child.id()),
            Body::Thread(_) => None,
        };
        self.workers.iter().filter_map(pid).collect()
    }
}

impl<T> Workers<T> {
    pub(crate) fn len(&self) -> usize {
        self.workers.len()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its orders end, and so does it; a process that hangs is killed.
        self.orders = None;
        match &mut self.body {
            Body::Process(child) => {
                let end = Instant::now() + ENDING;
                while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
                    thread::sleep(LOOK);
                }
                // Both fail where it has ended.
                let _ = child.kill();
                let _ = child.wait();
            }
            // One that panicked has said so.
            Body::Thread(thread) => drop(thread.take().map(JoinHandle::join)),
        }
    }
}

impl<T> Drop for Workers<T> {
    fn drop(&mut self) {
        // All at once, before the first is waited for.
        self.workers.iter_mut().for_each(|worker| worker.orders = None);
    }
}
