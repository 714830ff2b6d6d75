//! Where each group is: (group, topic, partition) ─▶ (log ID, offset), in one small file that is replaced whole.
//!
//! Not on the publishing path: a thread of its own writes it in a quiet period ([`QuietPeriod`]). What a crash takes is read again.

use super::disk::{self, Disk};
use crate::quiet::QuietPeriod;
use crate::{Error, Offset};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long until a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The file's first line; the CRC of the rest follows it.
const MAGIC: &str = "barrage-checkpoints-1 ";

/// Group, topic's name, partition.
pub(super) type Key = (String, &'static str, u32);

/// What is known, and what is written.
pub(super) struct Checkpoints {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    written: watch::Sender<Written>,
}

#[derive(Clone, Copy)]
struct Written {
    version: u64,
    /// No use waiting for more.
    over: bool,
}

#[derive(Default)]
struct State {
    at: BTreeMap<Key, (String, Offset)>,
    /// Counts changes.
    version: u64,
    quiet: QuietPeriod,
    /// Someone waits: it is written at once.
    hurry: bool,
    closed: bool,
    fault: Option<String>,
}

impl Checkpoints {
    /// Reads the file in `dir`, if there is one.
    ///
    /// # Errors
    /// [`Error::Refused`] where it is not as it was written, unless `accept`; [`Error::Unavailable`].
    pub(super) fn open(disk: Arc<dyn Disk>, dir: &Path, accept: bool) -> Result<Self, Error> {
        let path = dir.join("checkpoints");
        let fault = |error: io::Error| Error::Unavailable(format!("{}: {error}", path.display()));
        let there = disk.list(dir).map_err(fault)?.iter().any(|name| name == "checkpoints");
        let mut at = BTreeMap::new();
        if there {
            let bytes = disk.open(&path).and_then(|file| disk::read_all(&*file)).map_err(fault)?;
            match decode(&bytes) {
                Some(read) => at = read,
                None if accept => tracing::warn!(path = %path.display(), "damaged checkpoints are forgotten"),
                None => {
                    return Err(Error::Refused(format!(
                        "{} is damaged: set bus.accept_new_log to read every log from its beginning",
                        path.display()
                    )));
                }
            }
        }
        let state = Mutex::new(State { at, ..State::default() });
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            state,
            changed: Condvar::new(),
            written: watch::Sender::new(Written { version: 0, over: false }),
        })
    }

    pub(super) fn get(&self, key: &Key) -> Option<(String, Offset)> {
        self.lock().at.get(key).cloned()
    }

    pub(super) fn set(&self, key: Key, log: String, offset: Offset) {
        let mut state = self.lock();
        if state.at.get(&key).is_some_and(|old| old.0 == log && old.1 == offset) {
            return;
        }
        state.at.insert(key, (log, offset));
        self.note(state);
    }

    pub(super) fn forget(&self, key: &Key) {
        let mut state = self.lock();
        if state.at.remove(key).is_some() {
            self.note(state);
        }
    }

    /// Something has changed.
    fn note(&self, mut state: MutexGuard<'_, State>) {
        state.version += 1;
        let first = state.quiet.change(Instant::now());
        // Not under the lock that who wakes takes first.
        drop(state);
        // Else the thread sleeps until it is due, and then finds it put off.
        if first {
            self.changed.notify_all();
        }
    }

    /// Those of `groups`.
    pub(super) fn of(&self, groups: &[String]) -> Vec<(Key, String, Offset)> {
        let state = self.lock();
        let mine = state.at.iter().filter(|(key, _)| groups.contains(&key.0));
        mine.map(|(key, (log, offset))| (key.clone(), log.clone(), *offset)).collect()
    }

    /// Waits until everything set so far is durable, or cannot be made so.
    pub(super) async fn flush(&self) {
        let (version, mut written) = {
            let mut state = self.lock();
            state.hurry = true;
            self.changed.notify_all();
            (state.version, self.written.subscribe())
        };
        // Not closed: `self` holds the sender.
        let _ = written.wait_for(|written| written.version >= version || written.over).await;
    }

    /// Why they cannot be written, if so.
    pub(super) fn fault(&self) -> Option<String> {
        self.lock().fault.clone()
    }

    /// Lets [`Checkpoints::run`] write the rest and return.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The thread.
    pub(super) fn run(&self) {
        let (mut done, mut failures) = (0, 0_u64);
        loop {
            let mut state = self.lock();
            while state.version == done && !state.closed {
                state.hurry = false;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            while let (false, false, Some(due)) = (state.hurry, state.closed, state.quiet.due()) {
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            }
            let (bytes, version, closed) = (encode(&state.at), state.version, state.closed);
            state.quiet.take(Instant::now());
            state.hurry = false;
            drop(state);
            let result = if version == done { Ok(()) } else { self.write(&bytes) };
            let mut state = self.lock();
            match result {
                Ok(()) => {
                    if failures > 0 {
                        tracing::info!(failures, "checkpoints are written again");
                        failures = 0;
                    }
                    state.fault = None;
                    done = version;
                    drop(state);
                    self.written.send_replace(Written { version: done, over: closed });
                }
                Err(error) => {
                    if failures == 0 {
                        tracing::error!(%error, "checkpoints are not written: tried again every second");
                    }
                    failures += 1;
                    state.fault = Some(format!("checkpoints are not written: {error}"));
                    self.written.send_replace(Written { version: done, over: true });
                    if !closed {
                        let _ = self.changed.wait_timeout_while(state, RETRY, |state| !state.closed);
                        continue;
                    }
                }
            }
            if closed {
                return;
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let new = self.dir.join("checkpoints.new");
        let file = self.disk.create(&new)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        self.disk.rename(&new, &self.dir.join("checkpoints"))?;
        self.disk.sync_dir(&self.dir)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lines of `group topic partition log offset`, none of which can hold a space.
fn encode(at: &BTreeMap<Key, (String, Offset)>) -> Vec<u8> {
    let mut body = String::new();
    for ((group, topic, partition), (log, offset)) in at {
        body.push_str(&format!("{group} {topic} {partition} {log} {offset}\n"));
    }
    format!("{MAGIC}{:08x}\n{body}", crc32c::crc32c(body.as_bytes())).into_bytes()
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<Key, (String, Offset)>> {
    let (first, body) = std::str::from_utf8(bytes).ok()?.split_once('\n')?;
    if u32::from_str_radix(first.strip_prefix(MAGIC)?, 16).ok()? != crc32c::crc32c(body.as_bytes()) {
        return None;
    }
    let mut at = BTreeMap::new();
    for line in body.lines() {
        let mut words = line.split(' ');
        let group = words.next()?.to_owned();
        let name = words.next()?;
        let topic = crate::Topic::ALL.into_iter().find(|topic| topic.name() == name)?.name();
        let partition = words.next()?.parse().ok()?;
        let log = words.next()?.to_owned();
        at.insert((group, topic, partition), (log, words.next()?.parse().ok()?));
    }
    Some(at)
}
