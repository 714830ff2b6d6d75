//! All viewers of a fan-out, spread over as many workers ([`crate::fanout::viewers`]) as descriptors require: one is a thread of
//! this process, more are processes. What they count is put together here.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::Error;
use crate::admission::{Admission, LoadRequest};
use crate::environment::open_files;
use crate::fanout::viewers::{Cast, Order, Seen, ViewersPlan};
use crate::tally::Account;
use crate::workers::{Part, Workers};

/// Viewers that are on their way in at the same time, over all workers: a server's queue of new connections is often 128.
const ENTERING_MAX: u32 = 64;
/// How long workers may take to tell what it came to.
const TELLING: Duration = Duration::from_secs(60);

/// The running viewers. They go when it is dropped.
pub(crate) struct Audience {
    workers: Workers<Seen>,
    /// How each of them stands.
    seen: Vec<Seen>,
}

impl Audience {
    /// Sends all on their way. `workers`: 0, or how many; `memory_bytes`: what they take here; `other_files`: descriptors
    /// that this process has for something else.
    ///
    /// # Errors
    /// This machine does not admit them.
    pub(crate) fn start(cast: &Cast, workers: u32, memory_bytes: u64, other_files: u64) -> Result<Self, Error> {
        let sessions = u64::from(cast.schedule.sessions());
        let connect: Vec<SocketAddr> = cast.servers.iter().map(|(_, address)| *address).collect();
        let asked = LoadRequest { sessions, workers, connect: &connect, memory_bytes };
        let count = Admission::of_this_machine().workers(&asked)?;
        let part = |worker, is_process| {
            let at_once = ENTERING_MAX.div_ceil(count);
            Part::Viewers(Box::new(ViewersPlan { cast: cast.clone(), worker, workers: count, at_once, is_process }))
        };
        let workers = if count == 1 && open_files(sessions + other_files).is_ok() {
            Workers::here(part(0, false))?
        } else {
            let wanted = other_files + 4 * u64::from(count);
            open_files(wanted).map_err(|limit| Error::OpenFiles { sessions, wanted, limit })?;
            Workers::start((0..count).map(|worker| part(worker, true)))?
        };
        let seen = vec![Seen::default(); workers.len()];
        Ok(Self { workers, seen })
    }

    /// How all stand, after what comes within `time`.
    ///
    /// # Errors
    /// A worker has ended; who cannot enter is told.
    pub(crate) fn look(&mut self, time: Duration) -> Result<Seen, Error> {
        let end = Instant::now() + time;
        while let Some((number, seen)) = self.workers.hear(end)? {
            // It ends with it.
            if let Some(reason) = seen.failure {
                let entered: u64 = self.seen.iter().map(|seen| seen.entered).sum();
                return Err(Error::Entering(format!("{reason} ({entered} are in)")));
            }
            self.seen[number] = seen;
        }
        Ok(self.sum())
    }

    fn sum(&self) -> Seen {
        let mut sum = Seen::default();
        for Seen { entered, delivered, bytes, closed, cpu, .. } in &self.seen {
            sum.entered += entered;
            sum.delivered += delivered;
            sum.bytes += bytes;
            sum.closed += closed;
            sum.cpu += *cpu;
        }
        sum
    }

    /// Everything is published.
    ///
    /// # Errors
    /// A worker has ended.
    pub(crate) fn rest(&mut self) -> Result<(), Error> {
        self.workers.order(&Order::Rest)
    }

    /// Ends it: what it came to. `accepted` has a bit for each message.
    ///
    /// # Errors
    /// A worker has ended without having told.
    pub(crate) fn end(mut self, accepted: &[u64]) -> Result<Account, Error> {
        self.workers.order(&Order::End { accepted: accepted.to_vec() })?;
        let (mut account, mut left, end) = (Account::default(), self.seen.len(), Instant::now() + TELLING);
        while left > 0 {
            let Some((_, seen)) = self.workers.hear(end)? else {
                return Err(Error::Worker(std::io::ErrorKind::TimedOut.into()));
            };
            if let Some(of_worker) = seen.account {
                account.add(of_worker);
                left -= 1;
            }
        }
        Ok(account)
    }
}
