//! One log: a directory of segments, the index of them in memory, and the one place that appends.
//!
//! Flow: [`open`] reads every segment and judges it ─▶ an [`Appender`] for the writing thread and an [`Index`] for
//! the readers. [`Appender::append`] returns when its batch is synced; only then [`Index::commit`] shows it.
//!
//! Invariants:
//! - a record is in the index only when it is durable;
//! - a slot's offsets have no gap between the first kept and the next, whatever the retention deleted: each segment's
//!   header names the first offset of every slot;
//! - record times never fall within a log, so that a time can be searched for.

use super::disk::{self, Disk, File};
use super::segment::{BATCH_HEAD_BYTES, Batch, End, Header, RECORD_HEAD_BYTES, RecordHead, judge};
use crate::{Error, Offset, Record};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most bytes of a segment. Positions are 32 bits; recovery reads a segment whole; retention deletes whole ones.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Segments that the retention is cut into, so that what is kept is at most an eighth over it.
const SEGMENTS_IN_RETENTION: u64 = 8;
/// Bytes of recent records that are kept in memory, so that who reads along never goes to the file.
const RECENT_BYTES_MAX: usize = 32 << 20;
/// Most records, and bytes of values, that one read gives: about what a consumer handles in a millisecond or two.
const READ_RECORDS_MAX: usize = 512;
const READ_BYTES_MAX: usize = 1 << 20;

/// What is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retention {
    pub(super) bytes: u64,
    pub(super) ms: i64,
}

impl Retention {
    fn segment_bytes(self) -> u64 {
        (self.bytes / SEGMENTS_IN_RETENTION).min(SEGMENT_BYTES_MAX)
    }
}

/// One segment as readers know it.
struct Segment {
    path: PathBuf,
    file: Arc<dyn File>,
    /// First offset of each slot.
    first: Vec<Offset>,
    /// Each slot's records' places in the file.
    positions: Vec<Vec<u32>>,
    bytes: u64,
    /// Time of its last record; of its creation while it has none.
    newest_ms: i64,
}

/// What can be read.
pub(super) struct Index {
    id: String,
    retention: Retention,
    segments: VecDeque<Segment>,
    next: Vec<Offset>,
    /// The last records of each slot, and the order in which they came.
    recent: Vec<VecDeque<Record>>,
    order: VecDeque<u16>,
    recent_bytes: usize,
}

/// A record on its way into the log.
pub(super) struct Incoming {
    pub(super) slot: u16,
    pub(super) value: Bytes,
}

/// A record that is durable.
pub(super) struct Durable {
    slot: u16,
    position: u32,
    pub(super) record: Record,
}

/// What a read found.
pub(super) enum Found {
    /// These, from memory.
    Records(Vec<Record>),
    /// They are in a file: [`OnDisk::read`], not on an async thread.
    OnDisk(OnDisk),
    /// Nothing yet.
    Nothing,
}

/// Records of one slot in one segment.
pub(super) struct OnDisk {
    file: Arc<dyn File>,
    path: PathBuf,
    slot: u16,
    first: Offset,
    positions: Vec<u32>,
}

/// The writing side: only the writing thread has it.
pub(super) struct Appender {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    id: String,
    retention: Retention,
    file: Arc<dyn File>,
    number: u64,
    salt: u32,
    created_ms: i64,
    position: u64,
    next: Vec<Offset>,
    last_ms: i64,
    buffer: Vec<u8>,
    /// A write or sync failed: what the file holds from `position` on is not known, and is cut before anything else.
    torn: bool,
    /// A segment that was begun, for the index.
    begun: Option<Segment>,
}

/// Opens the log in `dir`, or makes one.
///
/// # Errors
/// [`Error::Refused`] where it is damaged or of another count of slots; [`Error::Unavailable`] from the file system.
pub(super) fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    slots: usize,
    retention: Retention,
    now_ms: i64,
) -> Result<(Appender, Index), Error> {
    let fault = |error: io::Error| Error::Unavailable(format!("{}: {error}", dir.display()));
    disk.make_dir(dir).map_err(fault)?;
    let mut numbers: Vec<u64> =
        disk.list(dir).map_err(fault)?.iter().filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect();
    numbers.sort_unstable();
    if let Some(pair) = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1) {
        return Err(Error::Refused(format!("{}: segment {} is missing", dir.display(), pair[0] + 1)));
    }

    let mut segments: VecDeque<Segment> = VecDeque::new();
    let mut next: Vec<Offset> = vec![1; slots];
    let mut known: Option<Header> = None;
    let last = numbers.last().copied();
    for number in numbers {
        let path = dir.join(name(number));
        let file = disk.open(&path).map_err(fault)?;
        let mut bytes = disk::read_all(&*file).map_err(fault)?;
        let refuse = |at: usize, why: &str| {
            Error::Refused(format!(
                "{} is damaged at byte {at}: {why}. What follows was acknowledged and cannot be trusted; restore the \
                 file, or delete the directory to begin a new log",
                path.display()
            ))
        };
        let Some(header) = Header::decode(&bytes) else {
            // A header is synced before anything is written behind it.
            if Some(number) == last && bytes.len() <= Header::bytes(slots) {
                tracing::warn!(path = %path.display(), "a segment that was being made is removed");
                disk.remove(&path).and_then(|()| disk.sync_dir(dir)).map_err(fault)?;
                break;
            }
            return Err(refuse(0, "its header is unreadable"));
        };
        if header.first.len() != slots {
            return Err(Error::Refused(format!(
                "{} was made for {} partitions and topics, and the configuration says {slots}: bus.partitions is \
                 fixed in the life of a log",
                path.display(),
                header.first.len()
            )));
        }
        match &known {
            None => next.clone_from(&header.first),
            Some(known) if known.log != header.log => return Err(refuse(0, "it is another log's")),
            Some(_) if next != header.first => return Err(refuse(0, "it does not go on where the last one ended")),
            Some(_) => {}
        }
        if header.number != number {
            return Err(refuse(0, "its number is not its name's"));
        }
        let mut positions = vec![Vec::new(); slots];
        let mut newest_ms = header.created_ms;
        let end = judge(&bytes, &header, &mut next, |head, position| {
            positions[usize::from(head.slot)].push(position);
            newest_ms = newest_ms.max(head.time_ms);
        });
        match end {
            End::Whole => {}
            End::Damaged(at, why) => return Err(refuse(at, why)),
            End::Torn(at) if Some(number) == last => {
                tracing::warn!(path = %path.display(), at, bytes = bytes.len() - at, "a torn tail is cut");
                file.cut(at as u64).and_then(|()| file.sync()).map_err(fault)?;
                bytes.truncate(at);
            }
            End::Torn(at) => return Err(refuse(at, "it ends in the middle of a batch, and is not the last")),
        }
        segments.push_back(Segment {
            path,
            file,
            first: header.first.clone(),
            positions,
            bytes: bytes.len() as u64,
            newest_ms,
        });
        known = Some(header);
    }

    // What a killed process wrote may be in the page cache only: it is made durable before anyone sees it.
    if let Some(segment) = segments.back() {
        segment.file.sync().and_then(|()| disk.sync_dir(dir)).map_err(fault)?;
    }

    let id = known.as_ref().map_or_else(new_id, |header| header.log.clone());
    let mut appender = Appender {
        disk,
        dir: dir.to_owned(),
        id: id.clone(),
        retention,
        file: Arc::new(Nowhere),
        number: 0,
        salt: 0,
        created_ms: now_ms,
        position: 0,
        last_ms: segments.back().map_or(0, |segment| segment.newest_ms),
        next: next.clone(),
        buffer: Vec::new(),
        torn: false,
        begun: None,
    };
    match (known, segments.back()) {
        (Some(header), Some(segment)) => {
            appender.file = segment.file.clone();
            appender.number = header.number;
            appender.salt = header.salt;
            appender.created_ms = header.created_ms;
            appender.position = segment.bytes;
        }
        _ => appender.begin(now_ms).map_err(fault)?,
    }
    let mut index = Index {
        id,
        retention,
        segments,
        next,
        recent: (0..slots).map(|_| VecDeque::new()).collect(),
        order: VecDeque::new(),
        recent_bytes: 0,
    };
    index.segments.extend(appender.begun.take());
    Ok((appender, index))
}

/// In the place of a file before there is one.
struct Nowhere;

impl File for Nowhere {
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }
    fn cut(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}

fn name(number: u64) -> String {
    format!("{number:020}.log")
}

/// 128 random bits in base32.
fn new_id() -> String {
    let bits: u128 = rand::random();
    (0..26).map(|n| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[(bits >> (5 * n) & 31) as usize])).collect()
}

impl Appender {
    /// Writes `incoming` as one batch and syncs it.
    ///
    /// # Errors
    /// Whatever the file system says. Then it is not known what is on disk, until [`Appender::mend`] has cut it.
    pub(super) fn append(&mut self, incoming: Vec<Incoming>, now_ms: i64) -> io::Result<Vec<Durable>> {
        self.mend()?;
        let values: usize = incoming.iter().map(|one| RECORD_HEAD_BYTES + one.value.len()).sum();
        let after = self.position + (BATCH_HEAD_BYTES + values) as u64;
        let empty = self.position == Header::bytes(self.next.len()) as u64;
        let old = now_ms - self.created_ms > self.retention.ms / SEGMENTS_IN_RETENTION as i64;
        if !empty && (after > self.retention.segment_bytes() || old) {
            self.begin(now_ms)?;
        }
        self.last_ms = self.last_ms.max(now_ms);
        let mut batch = Batch::new(std::mem::take(&mut self.buffer), self.position);
        let durable: Vec<Durable> = incoming
            .into_iter()
            .map(|Incoming { slot, value }| {
                let next = &mut self.next[usize::from(slot)];
                let record = Record { offset: *next, time_ms: self.last_ms, value };
                *next += 1;
                Durable { slot, position: batch.push(slot, record.offset, record.time_ms, &record.value), record }
            })
            .collect();
        if let Err(error) = self.write(batch) {
            durable.iter().for_each(|durable| self.next[usize::from(durable.slot)] -= 1);
            return Err(error);
        }
        Ok(durable)
    }

    /// Durably cuts off what a failed write may have left, so that none of it is in the log, now or after a crash.
    /// Nothing to do where none failed.
    ///
    /// # Errors
    /// Whatever the file system says: call again later.
    pub(super) fn mend(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.cut(self.position)?;
            self.file.sync()?;
            self.torn = false;
        }
        Ok(())
    }

    /// Whether the disk takes as much as `bytes` now: a file of that size is written, synced and removed.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(super) fn has_room(&self, bytes: usize) -> io::Result<()> {
        let path = self.dir.join("room");
        let file = self.disk.create(&path)?;
        let tried = file.write_at(&vec![0; bytes], 0).and_then(|()| file.sync());
        self.disk.remove(&path)?;
        tried
    }

    /// Writes an empty batch, which proves at the next start that everything before it was durable.
    pub(super) fn seal(&mut self) -> io::Result<()> {
        self.mend()?;
        let batch = Batch::new(std::mem::take(&mut self.buffer), self.position);
        self.write(batch)
    }

    /// The segment that was begun since the last call.
    fn begun(&mut self) -> Option<Segment> {
        self.begun.take()
    }

    /// The file's length.
    fn position(&self) -> u64 {
        self.position
    }

    /// The last record's time, milliseconds since 1970; 0: there is none.
    pub(super) fn newest_ms(&self) -> i64 {
        self.last_ms
    }

    /// Begins a segment when the last record of the current one is past the retention, so that it can be deleted.
    pub(super) fn begin_if_old(&mut self, now_ms: i64) -> io::Result<()> {
        self.mend()?;
        let empty = self.position == Header::bytes(self.next.len()) as u64;
        if !empty && now_ms - self.last_ms > self.retention.ms { self.begin(now_ms) } else { Ok(()) }
    }

    fn write(&mut self, batch: Batch) -> io::Result<()> {
        let bytes = batch.finish(self.salt);
        self.torn = true;
        self.file.write_at(&bytes, self.position)?;
        self.file.sync()?;
        self.torn = false;
        self.position += bytes.len() as u64;
        self.buffer = bytes;
        Ok(())
    }

    fn begin(&mut self, now_ms: i64) -> io::Result<()> {
        let header = Header {
            number: self.number + 1,
            salt: rand::random(),
            created_ms: now_ms,
            log: self.id.clone(),
            first: self.next.clone(),
        };
        let path = self.dir.join(name(header.number));
        let file = self.disk.create(&path)?;
        let bytes = header.encode();
        file.write_at(&bytes, 0)?;
        file.sync()?;
        self.disk.sync_dir(&self.dir)?;
        self.file = file.clone();
        self.number = header.number;
        self.salt = header.salt;
        self.created_ms = now_ms;
        self.position = bytes.len() as u64;
        self.begun = Some(Segment {
            path,
            file,
            positions: vec![Vec::new(); header.first.len()],
            first: header.first,
            bytes: self.position,
            newest_ms: now_ms,
        });
        Ok(())
    }
}

impl Index {
    /// The log's ID.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Shows what [`Appender::append`] made durable.
    pub(super) fn commit(&mut self, appender: &mut Appender, durable: &[Durable]) {
        self.segments.extend(appender.begun());
        let Some(segment) = self.segments.back_mut() else { return };
        segment.bytes = appender.position();
        for Durable { slot, position, record } in durable {
            let at = usize::from(*slot);
            segment.positions[at].push(*position);
            segment.newest_ms = record.time_ms;
            self.next[at] = record.offset + 1;
            self.recent[at].push_back(record.clone());
            self.order.push_back(*slot);
            self.recent_bytes += RECORD_HEAD_BYTES + record.value.len();
        }
        while self.recent_bytes > RECENT_BYTES_MAX
            && let Some(slot) = self.order.pop_front()
        {
            if let Some(record) = self.recent[usize::from(slot)].pop_front() {
                self.recent_bytes -= RECORD_HEAD_BYTES + record.value.len();
            }
        }
    }

    /// First kept offset of `slot` and the next one.
    pub(super) fn bounds(&self, slot: u16) -> (Offset, Offset) {
        let at = usize::from(slot);
        (self.segments.front().map_or(self.next[at], |segment| segment.first[at]), self.next[at])
    }

    /// Records of `slot` from `from` on, or from the oldest that is kept.
    pub(super) fn read(&self, slot: u16, from: Offset) -> Found {
        let at = usize::from(slot);
        let (first, next) = self.bounds(slot);
        let from = from.max(first);
        if from >= next {
            return Found::Nothing;
        }
        let recent = &self.recent[at];
        if let Some(oldest) = recent.front()
            && from >= oldest.offset
        {
            let mut bytes = 0;
            let records = recent
                .range((from - oldest.offset) as usize..)
                .take(READ_RECORDS_MAX)
                .take_while(|record| {
                    bytes += record.value.len();
                    bytes <= READ_BYTES_MAX
                })
                .cloned()
                .collect();
            return Found::Records(records);
        }
        let number = self.segments.partition_point(|segment| segment.first[at] <= from) - 1;
        // Segments without a record of this slot have the same first offset as the next one: the last of them has it.
        let segment = &self.segments[number];
        let skip = (from - segment.first[at]) as usize;
        let positions = segment.positions[at].iter().skip(skip).take(READ_RECORDS_MAX).copied().collect();
        Found::OnDisk(OnDisk { file: segment.file.clone(), path: segment.path.clone(), slot, first: from, positions })
    }

    /// Where the first record of `slot` at or after `time_ms` is to be looked for: parts of segments in order.
    pub(super) fn since(&self, slot: u16, time_ms: i64) -> Vec<OnDisk> {
        let at = usize::from(slot);
        self.segments
            .iter()
            .skip_while(|segment| segment.newest_ms < time_ms)
            .filter(|segment| !segment.positions[at].is_empty())
            .map(|segment| OnDisk {
                file: segment.file.clone(),
                path: segment.path.clone(),
                slot,
                first: segment.first[at],
                positions: segment.positions[at].clone(),
            })
            .collect()
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Whether the oldest segment is the next that the bound on bytes takes, and holds what is not `done`: the next
    /// offset to be read, for slots that someone reads.
    pub(super) fn would_lose(&self, done: &[(u16, Offset)]) -> bool {
        self.bytes() + 2 * self.retention.segment_bytes() > self.retention.bytes && !self.is_read(done)
    }

    /// Takes the segments that need not be kept out of the index; the caller deletes their files, oldest first.
    /// What a watched group has not read goes by the bound on bytes only.
    pub(super) fn expire(&mut self, now_ms: i64, done: &[(u16, Offset)]) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        while self.segments.len() > 1 {
            let over = self.bytes() > self.retention.bytes;
            let old = now_ms - self.segments[0].newest_ms > self.retention.ms && self.is_read(done);
            if !over && !old {
                break;
            }
            if over && !self.is_read(done) {
                tracing::error!(log = self.id, "the retention takes records that a watched group has not read");
            }
            if let Some(segment) = self.segments.pop_front() {
                paths.push(segment.path);
            }
        }
        // What is in memory of them goes too; it is the beginning of `order`, since segments follow each other in time.
        if let Some(oldest) = self.segments.front() {
            while let Some(&slot) = self.order.front() {
                let at = usize::from(slot);
                let recent = &mut self.recent[at];
                if recent.front().is_none_or(|record| record.offset >= oldest.first[at]) {
                    break;
                }
                self.order.pop_front();
                if let Some(record) = recent.pop_front() {
                    self.recent_bytes -= RECORD_HEAD_BYTES + record.value.len();
                }
            }
        }
        paths
    }

    /// Whether all of the oldest segment is before what `done` says is next.
    fn is_read(&self, done: &[(u16, Offset)]) -> bool {
        let after = self.segments.get(1);
        done.iter().all(|&(slot, next)| {
            let at = usize::from(slot);
            next >= after.map_or(self.next[at], |segment| segment.first[at])
        })
    }
}

impl OnDisk {
    /// Reads them. Blocking.
    ///
    /// # Errors
    /// [`Error::Refused`] where a record is not what was written; [`Error::Unavailable`] from the file system.
    pub(super) fn read(&self) -> Result<Vec<Record>, Error> {
        let mut records = Vec::with_capacity(self.positions.len());
        let mut bytes = 0;
        for (offset, &position) in (self.first..).zip(&self.positions) {
            let head = self.head(position)?;
            let mut record = vec![0; RECORD_HEAD_BYTES + head.value_bytes];
            self.file.read_at(&mut record, position.into()).map_err(|error| self.fault(&error))?;
            if !head.holds(&record) || head.offset != offset || head.slot != self.slot {
                return Err(self.damage(position));
            }
            bytes += head.value_bytes;
            let value = Bytes::from(record).slice(RECORD_HEAD_BYTES..);
            records.push(Record { offset, time_ms: head.time_ms, value });
            if bytes > READ_BYTES_MAX {
                break;
            }
        }
        Ok(records)
    }

    /// The first offset at or after `time_ms`, if it is among these. Blocking.
    ///
    /// # Errors
    /// As [`OnDisk::read`].
    pub(super) fn since(&self, time_ms: i64) -> Result<Option<Offset>, Error> {
        let (mut low, mut high) = (0, self.positions.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.head(self.positions[middle])?.time_ms < time_ms { low = middle + 1 } else { high = middle }
        }
        Ok((low < self.positions.len()).then(|| self.first + low as Offset))
    }

    fn head(&self, position: u32) -> Result<RecordHead, Error> {
        let mut head = [0; RECORD_HEAD_BYTES];
        self.file.read_at(&mut head, position.into()).map_err(|error| self.fault(&error))?;
        RecordHead::decode(&head).ok_or_else(|| self.damage(position))
    }

    fn damage(&self, position: u32) -> Error {
        Error::Refused(format!("{} is damaged at byte {position}", self.path.display()))
    }

    fn fault(&self, error: &io::Error) -> Error {
        Error::Unavailable(format!("{}: {error}", self.path.display()))
    }
}
