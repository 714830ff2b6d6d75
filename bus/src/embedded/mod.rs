//! The embedded bus: three logs in one directory, one thread that makes what was published durable.
//!
//! What it is: `rooms` and `pushes` share a log, so that one sync commits whatever was published to any of their
//! partitions; `control` and `dead-letters`, which are kept longer, have a log each. What it is not: shared by
//! processes; a lock on the directory sees to that.
//!
//! ```text
//!  publish ─▶ queue ─▶ writing thread: batch ─▶ write ─▶ sync ─▶ index ─▶ wake the readers ─▶ resolve the futures
//!                                                                  │
//!  consumers, readers ◀─ recent records in memory, else the file ◀─┘
//! ```
//!
//! Invariants:
//! - what is acknowledged or delivered is synced;
//! - after a failed write or sync nothing is taken until what it may have left is cut off and the disk has room; then it
//!   goes on by itself;
//! - the order of a slot's offsets is the order of the calls to publish, since the queue is filled under one lock.
//!
//! What a watched group has not read is deleted by the bound on bytes only, and before that `ready` refuses (rule 4).

mod checkpoint;
mod clock;
pub(crate) mod disk;
mod group;
mod log;
mod segment;
#[cfg(test)]
mod simulated;

use crate::{Bus, Config, Consumer, Error, Offset, RECORD_BYTES_MAX, Reader, Start, Topic};
use async_trait::async_trait;
use bytes::Bytes;
use checkpoint::Checkpoints;
use clock::{Clock, wall_ms};
use disk::Disk;
use fs4::FileExt;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use group::Group;
use log::{Appender, Incoming, Index, Retention};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Most bytes that wait to be written; over it publishing is refused. A quarter of a second of a fast disk.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Most bytes of one batch, so that the first of a burst is not kept waiting by the last.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// How often a disk that failed is tried again: a second is soon for whoever made room, and costs a full disk little.
const RECOVER_EVERY: Duration = Duration::from_secs(1);
/// How often the retention is looked at.
const RETENTION_EVERY: Duration = Duration::from_secs(1);

/// Where a topic's records lie.
#[derive(Clone, Copy)]
struct Place {
    log: usize,
    slot: u16,
}

/// The logs' directories.
const LOGS: [&str; 3] = ["live", "control", "dead-letters"];

/// The embedded bus.
pub(crate) struct Embedded(Arc<Open>);

/// An open directory. Closed when the last consumer, reader and handle are dropped.
struct Open {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// What the writing thread and everyone else share.
struct Shared {
    partitions: u32,
    accept_new_log: bool,
    watched: Vec<String>,
    logs: [Mutex<Index>; 3],
    queue: Mutex<Queue>,
    queued: Condvar,
    /// Counts commits, for each topic.
    committed: [watch::Sender<u64>; Topic::ALL.len()],
    checkpoints: Checkpoints,
    groups: Mutex<BTreeMap<(Topic, String), Arc<Group>>>,
    /// What the retention is about to take unread.
    lag: Mutex<Option<String>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    closed: bool,
    /// Why nothing is taken now.
    fault: Option<String>,
    /// How many records were refused since it began.
    refused: u64,
}

struct Waiting {
    topic: Topic,
    place: Place,
    value: Bytes,
    reply: oneshot::Sender<Result<Offset, Error>>,
}

impl Embedded {
    /// Opens the configured directory, or makes it. Blocking: it reads all that is kept.
    ///
    /// # Errors
    /// [`Error::Refused`] where another process has it, or it is damaged; [`Error::Unavailable`].
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        Self::open_on(Arc::new(disk::Real), config)
    }

    fn open_on(disk: Arc<dyn Disk>, config: &Config) -> Result<Self, Error> {
        let dir = &config.embedded.directory;
        let fault = |error| Error::Unavailable(format!("{}: {error}", dir.display()));
        disk.make_dir(dir).map_err(fault)?;
        // Simulated directories are nobody else's.
        let lock = if dir.is_dir() { Some(lock(dir)?) } else { None };

        let begun = Instant::now();
        let now = wall_ms();
        let live = 2 * config.partitions as usize;
        let seconds = [config.retention_s, config.control_retention_s, config.dead_letter_retention_s];
        let mut appenders = Vec::new();
        let mut indexes = Vec::new();
        for (number, name) in LOGS.iter().enumerate() {
            let retention = Retention {
                bytes: config.embedded.retention_bytes,
                ms: i64::try_from(seconds[number]).unwrap_or(i64::MAX / 1000) * 1000,
            };
            let slots = if number == 0 { live } else { 1 };
            let (appender, index) = log::open(disk.clone(), &dir.join(name), slots, retention, now)?;
            appenders.push(appender);
            indexes.push(Mutex::new(index));
        }
        let checkpoints = Checkpoints::open(disk.clone(), dir, config.accept_new_log)?;
        let logs: [Mutex<Index>; 3] = indexes.try_into().unwrap_or_else(|_| unreachable!("one for each of LOGS"));
        tracing::debug!(dir = %dir.display(), bytes = locked(&logs[0]).bytes(), took = ?begun.elapsed(), "the log is open");
        let shared = Arc::new(Shared {
            partitions: config.partitions,
            accept_new_log: config.accept_new_log,
            watched: config.watched_groups.clone(),
            logs,
            queue: Mutex::default(),
            queued: Condvar::new(),
            committed: std::array::from_fn(|_| watch::Sender::new(0)),
            checkpoints,
            groups: Mutex::default(),
            lag: Mutex::default(),
        });
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(run).map_err(fault)
        };
        let checkpointer = spawn("bus-checkpoint", {
            let shared = shared.clone();
            Box::new(move || shared.checkpoints.run())
        })?;
        let writer = spawn("bus-write", {
            let shared = shared.clone();
            let clock = Clock::new(appenders.iter().map(Appender::newest_ms).max().unwrap_or(0));
            Box::new(move || {
                Writer { shared: &shared, disk: &*disk, appenders, clock, looked: Instant::now() }.run();
                shared.checkpoints.close();
                if checkpointer.join().is_err() {
                    tracing::error!("the thread that writes checkpoints has panicked");
                }
                // Whoever opens the directory next finds everything written.
                drop(lock);
            })
        })?;
        Ok(Self(Arc::new(Open { shared, writer: Some(writer) })))
    }

    /// Makes durable what was taken, refuses more and releases the directory when `stop` is cancelled.
    pub(crate) fn stop_with(&self, stop: CancellationToken) {
        let shared = Arc::downgrade(&self.0.shared);
        tokio::spawn(async move {
            stop.cancelled().await;
            if let Some(shared) = shared.upgrade() {
                shared.close();
            }
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the bus's writing thread has panicked");
        }
    }
}

/// One process writes a directory.
fn lock(dir: &Path) -> Result<fs::File, Error> {
    let path = dir.join("lock");
    let fault = |error: &dyn std::fmt::Display| Error::Unavailable(format!("{}: {error}", path.display()));
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| fault(&e))?;
    match FileExt::try_lock(&file) {
        Ok(()) => Ok(file),
        Err(fs4::TryLockError::WouldBlock) => Err(Error::Refused(format!(
            "{} is in use by another process: stop it, or set bus.embedded.directory to another one",
            dir.display()
        ))),
        Err(fs4::TryLockError::Error(error)) => Err(fault(&error)),
    }
}

#[async_trait]
impl Bus for Embedded {
    fn partitions(&self, topic: Topic) -> u32 {
        self.0.shared.partitions(topic)
    }

    fn log(&self, topic: Topic) -> String {
        self.0.shared.log(topic)
    }

    fn publish(&self, topic: Topic, partition: u32, value: Bytes) -> BoxFuture<'static, Result<Offset, Error>> {
        match self.0.shared.enqueue(topic, partition, value) {
            Ok(reply) => {
                reply.map(|reply| reply.unwrap_or_else(|_| Err(Error::Unknown("the bus has stopped".into())))).boxed()
            }
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    async fn consume(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(group::Member::join(&self.0, topic, group)?))
    }

    async fn read(&self, topic: Topic, partition: u32, start: Start) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(group::Lone::new(&self.0, topic, partition, start)?))
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<(Offset, Offset), Error> {
        let place = self.0.shared.place(topic, partition)?;
        Ok(self.0.shared.index(place.log).bounds(place.slot))
    }

    async fn ends(&self, topic: Topic, partitions: &[u32]) -> Result<Vec<Offset>, Error> {
        let shared = &self.0.shared;
        let slots: Vec<u16> = partitions
            .iter()
            .map(|&partition| Ok(shared.place(topic, partition)?.slot))
            .collect::<Result<_, Error>>()?;
        let index = shared.index(log_of(topic));
        Ok(slots.into_iter().map(|slot| index.bounds(slot).1).collect())
    }

    fn ready(&self) -> Result<(), String> {
        let shared = &self.0.shared;
        let queue = locked(&shared.queue);
        if let Some(fault) = &queue.fault {
            return Err(fault.clone());
        }
        if queue.closed {
            return Err(stopped().to_string());
        }
        drop(queue);
        if let Some(fault) = shared.checkpoints.fault() {
            return Err(fault);
        }
        locked(&shared.lag).clone().map_or(Ok(()), Err)
    }
}

impl Shared {
    fn partitions(&self, topic: Topic) -> u32 {
        match topic {
            Topic::Rooms | Topic::Pushes => self.partitions,
            Topic::Control | Topic::DeadLetters => 1,
        }
    }

    fn log(&self, topic: Topic) -> String {
        self.index(log_of(topic)).id().to_owned()
    }

    fn index(&self, log: usize) -> MutexGuard<'_, Index> {
        locked(&self.logs[log])
    }

    fn place(&self, topic: Topic, partition: u32) -> Result<Place, Error> {
        let partitions = self.partitions(topic);
        if partition >= partitions {
            return Err(Error::Refused(format!("{} has no partition {partition}, but {partitions}", topic.name())));
        }
        let slot = if topic == Topic::Pushes { partitions + partition } else { partition };
        // Twice PARTITIONS_MAX at most.
        Ok(Place { log: log_of(topic), slot: slot as u16 })
    }

    fn enqueue(
        &self,
        topic: Topic,
        partition: u32,
        value: Bytes,
    ) -> Result<oneshot::Receiver<Result<Offset, Error>>, Error> {
        if value.len() > RECORD_BYTES_MAX {
            return Err(Error::TooLarge(value.len()));
        }
        let place = self.place(topic, partition)?;
        let mut queue = locked(&self.queue);
        if queue.closed {
            return Err(stopped());
        }
        if let Some(fault) = &queue.fault {
            let error = Error::Unavailable(fault.clone());
            queue.refused += 1;
            return Err(error);
        }
        if queue.bytes + value.len() > QUEUE_BYTES_MAX {
            return Err(Error::Unavailable("the disk is not keeping up".into()));
        }
        let (reply, replied) = oneshot::channel();
        queue.bytes += value.len();
        queue.waiting.push_back(Waiting { topic, place, value, reply });
        drop(queue);
        self.queued.notify_one();
        Ok(replied)
    }

    fn close(&self) {
        locked(&self.queue).closed = true;
        self.queued.notify_one();
    }

    /// Nothing is taken from now on, and what waits is told so: it is in no log.
    fn refuse(&self, fault: &str) {
        let mut queue = locked(&self.queue);
        let waiting = std::mem::take(&mut queue.waiting);
        queue.bytes = 0;
        queue.refused += waiting.len() as u64;
        queue.fault = Some(fault.to_owned());
        drop(queue);
        for one in waiting {
            // Whoever dropped the future does not want to know.
            let _ = one.reply.send(Err(Error::Unavailable(fault.to_owned())));
        }
    }

    /// Records are taken again; how many were refused.
    fn accept(&self) -> u64 {
        let mut queue = locked(&self.queue);
        queue.fault = None;
        std::mem::take(&mut queue.refused)
    }

    /// The offset that watched groups read next, for the slots of `log` that they have read from.
    fn done(&self, log: usize) -> Vec<(u16, Offset)> {
        let id = self.index(log).id().to_owned();
        let mut done = Vec::new();
        for ((_, name, partition), checkpoint_log, offset) in self.checkpoints.of(&self.watched) {
            let topic = Topic::ALL.into_iter().find(|topic| topic.name() == name && log_of(*topic) == log);
            if let Some(topic) = topic
                && checkpoint_log == id
                && let Ok(place) = self.place(topic, partition)
            {
                done.push((place.slot, offset + 1));
            }
        }
        done
    }
}

/// The writing thread.
struct Writer<'a> {
    shared: &'a Shared,
    disk: &'a dyn Disk,
    appenders: Vec<Appender>,
    clock: Clock,
    looked: Instant,
}

impl Writer<'_> {
    fn run(mut self) {
        loop {
            let (batch, closed) = self.wait();
            let end = closed && batch.is_empty();
            let result = if end {
                self.appenders.iter_mut().try_for_each(Appender::seal)
            } else {
                self.commit(batch).and_then(|()| self.retain())
            };
            match result {
                Ok(()) if end => return,
                Ok(()) => {}
                Err(error) if end => {
                    tracing::error!(%error, "the log's end is not marked: the next start takes longer to judge it");
                    return;
                }
                Err(error) => {
                    if !self.recover(&error) {
                        return;
                    }
                }
            }
        }
    }

    /// Refuses records until the disk works and has room. Logs the beginning and the end. False: closed meanwhile.
    fn recover(&mut self, error: &std::io::Error) -> bool {
        let began = Instant::now();
        self.shared.refuse(&unwritable(error));
        tracing::error!(%error, "the log cannot be written: records are refused until it can");
        loop {
            let queue = locked(&self.shared.queue);
            let waited = self.shared.queued.wait_timeout_while(queue, RECOVER_EVERY, |queue| !queue.closed);
            let closed = waited.unwrap_or_else(PoisonError::into_inner).0.closed;
            if closed {
                return false;
            }
            let tried = self
                .appenders
                .iter_mut()
                .try_for_each(Appender::mend)
                // What the retention takes makes room.
                .and_then(|()| self.retain())
                .and_then(|()| self.appenders[0].has_room(BATCH_BYTES_MAX));
            match tried {
                Ok(()) => break,
                Err(error) => self.shared.refuse(&unwritable(&error)),
            }
        }
        let refused = self.shared.accept();
        tracing::info!(refused, after = ?began.elapsed(), "the log is written again");
        true
    }

    /// What is to be written next, and whether nothing more will come. Empty when it is time to look at the retention.
    fn wait(&self) -> (Vec<Waiting>, bool) {
        let until = self.looked + RETENTION_EVERY;
        let mut queue = locked(&self.shared.queue);
        while queue.waiting.is_empty() && !queue.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (queue, _) = self.shared.queued.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner);
        }
        let mut bytes = 0;
        let mut batch = Vec::new();
        while let Some(one) = queue.waiting.front()
            && (bytes == 0 || bytes + one.value.len() <= BATCH_BYTES_MAX)
        {
            bytes += one.value.len().max(1);
            batch.extend(queue.waiting.pop_front());
        }
        queue.bytes -= batch.iter().map(|one| one.value.len()).sum::<usize>();
        (batch, queue.closed)
    }

    fn commit(&mut self, batch: Vec<Waiting>) -> std::io::Result<()> {
        let mut logs: [Vec<Waiting>; 3] = Default::default();
        for one in batch {
            logs[one.place.log].push(one);
        }
        let mut failed = None;
        for (number, waiting) in logs.into_iter().enumerate() {
            if waiting.is_empty() {
                continue;
            }
            if let Some(error) = &failed {
                // Nothing of it was written.
                for one in waiting {
                    let _ = one.reply.send(Err(Error::Unavailable(unwritable(error))));
                }
                continue;
            }
            let incoming =
                waiting.iter().map(|one| Incoming { slot: one.place.slot, value: one.value.clone() }).collect();
            let now = self.clock.now_ms();
            let appender = &mut self.appenders[number];
            let durable = match appender.append(incoming, now) {
                Ok(durable) => durable,
                Err(error) => {
                    let cut = appender.mend().is_ok();
                    for one in waiting {
                        let why = unwritable(&error);
                        let _ = one.reply.send(Err(if cut { Error::Unavailable(why) } else { Error::Unknown(why) }));
                    }
                    failed = Some(error);
                    continue;
                }
            };
            self.shared.index(number).commit(appender, &durable);
            let mut topics: Vec<Topic> = waiting.iter().map(|one| one.topic).collect();
            topics.dedup();
            for topic in topics {
                self.shared.committed[topic as usize].send_modify(|count| *count += 1);
            }
            for (one, durable) in waiting.into_iter().zip(durable) {
                let _ = one.reply.send(Ok(durable.record.offset));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Deletes what need not be kept.
    fn retain(&mut self) -> std::io::Result<()> {
        if self.looked.elapsed() < RETENTION_EVERY {
            return Ok(());
        }
        self.looked = Instant::now();
        let now = self.clock.now_ms();
        let mut lag = None;
        for (number, appender) in self.appenders.iter_mut().enumerate() {
            appender.begin_if_old(now)?;
            let done = self.shared.done(number);
            let mut index = self.shared.index(number);
            index.commit(appender, &[]);
            let paths = index.expire(now, &done);
            if index.would_lose(&done) {
                lag = Some(format!(
                    "{}: what watched groups have not read nears bus.embedded.retention_bytes",
                    LOGS[number]
                ));
            }
            drop(index);
            for path in paths {
                self.disk.remove(&path)?;
                // One by one, so that no crash brings an older one back without the one after it.
                self.disk.sync_dir(path.parent().unwrap_or(Path::new(".")))?;
            }
        }
        *locked(&self.shared.lag) = lag;
        Ok(())
    }
}

fn log_of(topic: Topic) -> usize {
    match topic {
        Topic::Rooms | Topic::Pushes => 0,
        Topic::Control => 1,
        Topic::DeadLetters => 2,
    }
}

fn unwritable(error: &std::io::Error) -> String {
    format!("the log cannot be written: {error}")
}

fn stopped() -> Error {
    Error::Unavailable("the bus has stopped".into())
}

/// A panic elsewhere leaves none of these half changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
