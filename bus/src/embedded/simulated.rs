//! Power loss, simulated: a file layer that keeps after a crash only what was synced, and of the rest whatever it
//! likes, and the log under random work and random crashes on it. A seed gives the same run again.

use super::disk::{Disk, File};
use super::log::{self, Appender, Found, Incoming, Index, Retention};
use super::segment::{BATCH_HEAD_BYTES, RECORD_HEAD_BYTES};
use crate::{Error, Offset, Record};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Unsynced bytes are kept or lost in pieces of so many: a disk's sector.
const SECTOR_BYTES: usize = 512;

#[derive(Default, Clone)]
struct Content {
    now: Vec<u8>,
    /// What a crash leaves for certain.
    durable: Vec<u8>,
    /// Where `now` may differ.
    dirty_from: usize,
}

#[derive(Default, Clone)]
struct Tree {
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Names changed since the last sync of their directory, in order.
    unsynced: Vec<(PathBuf, Option<usize>)>,
    contents: Vec<Content>,
    /// Changes and syncs until the power goes; then everything fails.
    left: u64,
    /// Bytes that all files together may have; `None`: any.
    room: Option<usize>,
}

impl Tree {
    fn spend(&mut self) -> io::Result<()> {
        if self.left == 0 {
            return Err(io::Error::other("the power is gone"));
        }
        self.left -= 1;
        Ok(())
    }

    fn set_name(&mut self, path: &Path, content: Option<usize>) {
        match content {
            Some(content) => self.names.insert(path.to_owned(), content),
            None => self.names.remove(path),
        };
        self.unsynced.push((path.to_owned(), content));
    }
}

/// A disk in memory.
#[derive(Clone, Default)]
struct Simulated(Arc<Mutex<Tree>>);

impl Simulated {
    fn power(&self, left: u64) {
        self.0.lock().unwrap().left = left;
    }

    /// All files together may have so many bytes.
    fn room(&self, room: Option<usize>) {
        self.0.lock().unwrap().room = room;
    }

    fn bytes(&self) -> usize {
        self.paths().iter().map(|path| path.1).sum()
    }

    /// The process is killed: what it wrote is there, synced or not.
    fn kill(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
    }

    /// The power goes.
    fn crash(&self, random: &mut SmallRng) -> Self {
        let old = self.0.lock().unwrap().clone();
        let mut names = old.durable_names;
        // A journal keeps the order of changes to names.
        let kept = random.random_range(0..=old.unsynced.len());
        for (path, content) in old.unsynced.into_iter().take(kept) {
            match content {
                Some(content) => names.insert(path, content),
                None => names.remove(&path),
            };
        }
        let contents = old
            .contents
            .into_iter()
            .map(|content| {
                let Content { now, mut durable, dirty_from } = content;
                let shorter = now.len().min(durable.len());
                let longer = now.len().max(durable.len());
                if longer > dirty_from || now.len() != durable.len() {
                    let cut = random.random_range(shorter..=longer);
                    let len = *[shorter, longer, cut].get(random.random_range(0..3)).unwrap();
                    // Where a longer file's bytes did not arrive, it reads as zeros, or as an older file's.
                    let filler = [0, 0x5a][random.random_range(0..2)];
                    durable.resize(len, filler);
                    let mut at = dirty_from;
                    let all = random.random_range(0..4) == 0;
                    while at < len.min(now.len()) {
                        let end = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(len).min(now.len());
                        if all || random.random() {
                            durable[at..end].copy_from_slice(&now[at..end]);
                        }
                        at = end;
                    }
                }
                Content { now: durable.clone(), dirty_from: durable.len(), durable }
            })
            .collect();
        Self(Arc::new(Mutex::new(Tree {
            names: names.clone(),
            durable_names: names,
            unsynced: Vec::new(),
            contents,
            left: u64::MAX,
            room: None,
        })))
    }

    /// Changes a byte that was durable.
    fn rot(&self, path: &Path, at: usize) {
        let mut tree = self.0.lock().unwrap();
        let content = tree.names[path];
        tree.contents[content].now[at] ^= 0x10;
    }

    fn paths(&self) -> Vec<(PathBuf, usize)> {
        let tree = self.0.lock().unwrap();
        tree.names.iter().map(|(path, &content)| (path.clone(), tree.contents[content].now.len())).collect()
    }
}

impl Disk for Simulated {
    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let tree = self.0.lock().unwrap();
        let mine = tree.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(mine.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut tree = self.0.lock().unwrap();
        tree.spend()?;
        tree.contents.push(Content::default());
        let content = tree.contents.len() - 1;
        tree.set_name(path, Some(content));
        Ok(Arc::new(Opened { disk: self.clone(), content }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let content = *self.0.lock().unwrap().names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Opened { disk: self.clone(), content }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut tree = self.0.lock().unwrap();
        tree.spend()?;
        tree.set_name(path, None);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut tree = self.0.lock().unwrap();
        tree.spend()?;
        let content = *tree.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        tree.set_name(to, Some(content));
        tree.set_name(from, None);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut tree = self.0.lock().unwrap();
        tree.spend()?;
        for (path, content) in std::mem::take(&mut tree.unsynced) {
            if path.parent() != Some(dir) {
                tree.unsynced.push((path, content));
                continue;
            }
            match content {
                Some(content) => tree.durable_names.insert(path, content),
                None => tree.durable_names.remove(&path),
            };
        }
        Ok(())
    }
}

struct Opened {
    disk: Simulated,
    content: usize,
}

impl File for Opened {
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        let mut tree = self.disk.0.lock().unwrap();
        let mut spent = tree.spend();
        let position = position as usize;
        // The power goes in the middle of a write as well.
        let mut bytes = if spent.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        if let Some(room) = tree.room {
            let others: usize = tree.names.values().map(|&content| tree.contents[content].now.len()).sum();
            let mine = tree.contents[self.content].now.len();
            let end_max = mine + room.saturating_sub(others);
            if position + bytes.len() > end_max {
                // As much as there is room for is written.
                bytes = &bytes[..end_max.saturating_sub(position).min(bytes.len())];
                spent = Err(io::ErrorKind::StorageFull.into());
            }
        }
        let content = &mut tree.contents[self.content];
        if content.now.len() < position + bytes.len() {
            content.now.resize(position + bytes.len(), 0);
        }
        content.now[position..position + bytes.len()].copy_from_slice(bytes);
        content.dirty_from = content.dirty_from.min(position);
        spent
    }

    fn read_at(&self, bytes: &mut [u8], position: u64) -> io::Result<()> {
        let tree = self.disk.0.lock().unwrap();
        let from = tree.contents[self.content].now.get(position as usize..).unwrap_or_default();
        bytes.copy_from_slice(from.get(..bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().unwrap().contents[self.content].now.len() as u64)
    }

    fn cut(&self, len: u64) -> io::Result<()> {
        let mut tree = self.disk.0.lock().unwrap();
        tree.spend()?;
        let content = &mut tree.contents[self.content];
        content.now.truncate(len as usize);
        content.dirty_from = content.dirty_from.min(len as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut tree = self.disk.0.lock().unwrap();
        tree.spend()?;
        let content = &mut tree.contents[self.content];
        content.durable.truncate(content.dirty_from);
        content.durable.extend_from_slice(&content.now[content.durable.len()..]);
        content.dirty_from = content.now.len();
        Ok(())
    }
}

const SLOTS: usize = 4;
/// Small, so that a run sees many segments: 8 KiB each.
const RETENTION: Retention = Retention { bytes: 64 << 10, ms: 100_000 };

/// What the log must hold.
#[derive(Default)]
struct Model {
    /// Of each slot.
    acknowledged: [BTreeMap<Offset, Bytes>; SLOTS],
    /// The batch that failed: it may be there, whole.
    pending: Vec<(usize, Offset, Bytes)>,
}

/// All records of `slot` that are kept.
fn all(index: &Index, slot: u16) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    loop {
        let from = records.last().map_or(0, |record| record.offset + 1);
        match index.read(slot, from) {
            Found::Nothing => return records,
            Found::Records(more) => records.extend(more),
            Found::OnDisk(on_disk) => records.extend(on_disk.read().unwrap()),
        }
    }
}

impl Model {
    /// After recovery: every acknowledged record that the retention left is there; what else is there is the whole of
    /// the batch that was being written, or none of it.
    fn check(&mut self, index: &Index) {
        let mut found = BTreeSet::new();
        for slot in 0..SLOTS {
            let records = all(index, slot as u16);
            let (first, next) = index.bounds(slot as u16);
            assert!(records.iter().map(|record| record.offset).eq(first..next), "a gap in slot {slot}");
            assert!(records.is_sorted_by_key(|record| record.time_ms));
            let mine = &mut self.acknowledged[slot];
            mine.retain(|&offset, _| offset >= first);
            let end = mine.last_key_value().map_or(next, |(&offset, _)| offset + 1);
            assert!(end <= next, "slot {slot}: {end} was acknowledged and the log ends at {next}");
            for record in records {
                match mine.get(&record.offset) {
                    Some(value) => assert_eq!(*value, record.value, "slot {slot} offset {}", record.offset),
                    None => {
                        found.insert((slot, record.offset, record.value));
                    }
                }
            }
        }
        let pending: BTreeSet<_> = std::mem::take(&mut self.pending).into_iter().collect();
        assert!(found.is_empty() || found == pending, "part of a batch that was not acknowledged is there");
        for (slot, offset, value) in found {
            self.acknowledged[slot].insert(offset, value);
        }
    }
}

/// Works on the log until the power goes.
fn work(
    appender: &mut Appender,
    index: &mut Index,
    disk: &Simulated,
    model: &mut Model,
    random: &mut SmallRng,
    now: &mut i64,
) {
    loop {
        *now += random.random_range(0..300);
        let batch: Vec<(usize, Bytes)> = (0..random.random_range(1..6))
            .map(|_| {
                let mut value = vec![0; random.random_range(0..1500)];
                random.fill_bytes(&mut value);
                (random.random_range(0..SLOTS), Bytes::from(value))
            })
            .collect();
        let mut next: Vec<Offset> = (0..SLOTS).map(|slot| index.bounds(slot as u16).1).collect();
        model.pending = batch
            .iter()
            .map(|(slot, value)| {
                next[*slot] += 1;
                (*slot, next[*slot] - 1, value.clone())
            })
            .collect();
        let incoming =
            batch.iter().map(|(slot, value)| Incoming { slot: *slot as u16, value: value.clone() }).collect();
        let Ok(durable) = appender.append(incoming, *now) else { return };
        index.commit(appender, &durable);
        for (slot, offset, value) in model.pending.drain(..) {
            model.acknowledged[slot].insert(offset, value);
        }
        if random.random_range(0..8) == 0 {
            if random.random_range(0..8) == 0 {
                *now += RETENTION.ms + 1;
            }
            if appender.begin_if_old(*now).is_err() {
                return;
            }
            index.commit(appender, &[]);
            for path in index.expire(*now, &[]) {
                if disk.remove(&path).and_then(|()| disk.sync_dir(Path::new("log"))).is_err() {
                    return;
                }
            }
        }
        if random.random_range(0..40) == 0 && appender.seal().is_err() {
            return;
        }
    }
}

fn run(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut disk = Simulated::default();
    let mut model = Model::default();
    let mut id = None;
    let mut now = 1_000_000;
    for _ in 0..random.random_range(2..8) {
        // The power may go during recovery, too.
        disk.power(if random.random_range(0..4) == 0 { random.random_range(0..8) } else { u64::MAX });
        match log::open(Arc::new(disk.clone()), Path::new("log"), SLOTS, RETENTION, now) {
            Ok((mut appender, mut index)) => {
                model.check(&index);
                let old = id.get_or_insert_with(|| index.id().to_owned());
                let is_empty = model.acknowledged.iter().all(BTreeMap::is_empty);
                assert!(is_empty || *old == index.id(), "another log");
                *old = index.id().to_owned();
                disk.power(random.random_range(1..400));
                work(&mut appender, &mut index, &disk, &mut model, &mut random, &mut now);
            }
            Err(Error::Unavailable(_)) => {}
            Err(error) => panic!("refused after a mere crash: {error}"),
        }
        disk = if random.random_range(0..3) == 0 { disk.kill() } else { disk.crash(&mut random) };
    }
    disk.power(u64::MAX);
    let (_, index) = log::open(Arc::new(disk.clone()), Path::new("log"), SLOTS, RETENTION, now).unwrap();
    model.check(&index);
}

#[test]
fn what_was_acknowledged_survives_power_loss() {
    for seed in 0..1000 {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn damage_where_it_was_durable_is_refused_and_said_where() {
    for seed in 0..200 {
        let mut random = SmallRng::seed_from_u64(seed);
        let disk = Simulated::default();
        disk.power(u64::MAX);
        let open = |disk: &Simulated| log::open(Arc::new(disk.clone()), Path::new("log"), SLOTS, RETENTION, 1);
        let (mut appender, _) = open(&disk).unwrap();
        for n in 0..30u16 {
            let value = Bytes::from(vec![n as u8; 900]);
            appender.append(vec![Incoming { slot: n % SLOTS as u16, value }], 1).unwrap();
        }
        appender.seal().unwrap();
        open(&disk).unwrap();
        let paths = disk.paths();
        assert!(paths.len() > 2);
        let (path, len) = paths[random.random_range(0..paths.len())].clone();
        // The seal itself is not followed by proof.
        disk.rot(&path, random.random_range(0..len - BATCH_HEAD_BYTES));
        let refused = open(&disk).err().unwrap();
        assert!(
            matches!(&refused, Error::Refused(why) if why.contains("is damaged at byte") && why.contains(".log")),
            "seed {seed}: {refused}"
        );
    }
}

#[test]
fn a_missing_segment_is_refused() {
    let disk = Simulated::default();
    disk.power(u64::MAX);
    let (mut appender, _) = log::open(Arc::new(disk.clone()), Path::new("log"), SLOTS, RETENTION, 1).unwrap();
    for _ in 0..30 {
        appender.append(vec![Incoming { slot: 0, value: Bytes::from(vec![1; 900]) }], 1).unwrap();
    }
    let (path, _) = disk.paths()[1].clone();
    disk.remove(&path).unwrap();
    let refused = log::open(Arc::new(disk), Path::new("log"), SLOTS, RETENTION, 1).err().unwrap();
    assert!(matches!(&refused, Error::Refused(why) if why.contains("segment 2 is missing")), "{refused}");
}

#[test]
fn the_retention_deletes_whole_old_segments_and_offsets_go_on() {
    let disk = Simulated::default();
    disk.power(u64::MAX);
    let open = |now| log::open(Arc::new(disk.clone()), Path::new("log"), SLOTS, RETENTION, now).unwrap();
    let (mut appender, mut index) = open(1000);
    for n in 0..200 {
        let incoming = vec![Incoming { slot: 0, value: Bytes::from(vec![n; 900 - RECORD_HEAD_BYTES]) }];
        let durable = appender.append(incoming, 1000).unwrap();
        index.commit(&mut appender, &durable);
    }
    // By bytes: 200 × 920 are nearly three times what is kept.
    for path in index.expire(1000, &[]) {
        disk.remove(&path).unwrap();
    }
    let (first, next) = index.bounds(0);
    assert!(index.bytes() <= RETENTION.bytes && first > 100 && next == 201, "{first} {next} {}", index.bytes());
    assert_eq!(all(&index, 0).first().map(|record| record.offset), Some(first));
    // By time: nothing that a watched group has not read, then all of it, and the offsets go on after a start.
    let late = 1000 + RETENTION.ms + 1;
    appender.begin_if_old(late).unwrap();
    index.commit(&mut appender, &[]);
    assert!(index.expire(late, &[(0, first)]).is_empty());
    assert!(!index.would_lose(&[(0, next)]) && index.would_lose(&[(0, first)]));
    for path in index.expire(late, &[(0, next)]) {
        disk.remove(&path).unwrap();
    }
    assert_eq!(index.bounds(0), (201, 201));
    drop((appender, index));
    let (_, index) = open(late);
    assert_eq!(index.bounds(0), (201, 201));
}

#[test]
fn a_time_is_found_over_segments() {
    let disk = Simulated::default();
    disk.power(u64::MAX);
    let (mut appender, mut index) = log::open(Arc::new(disk), Path::new("log"), SLOTS, RETENTION, 0).unwrap();
    for n in 0..100i64 {
        let incoming = vec![Incoming { slot: (n % 2) as u16, value: Bytes::from(vec![0; 700]) }];
        let durable = appender.append(incoming, n * 10).unwrap();
        index.commit(&mut appender, &durable);
    }
    for time in 0..1000 {
        let found = index.since(0, time).iter().find_map(|part| part.since(time).unwrap());
        // Slot 0's record `k` has the time 20 k.
        let want = (time + 19) / 20;
        assert_eq!(found, (want < 50).then_some(want as u64 + 1), "at {time}");
    }
}

/// The bus on a simulated disk, the shipped configuration but for its size.
fn bus_on(disk: &Simulated) -> super::Embedded {
    #[derive(serde::Deserialize)]
    struct Shipped {
        bus: crate::Config,
    }
    let shipped: Shipped = toml::from_str(include_str!("../../../config/barrage.toml")).unwrap();
    let mut config = shipped.bus;
    config.partitions = 2;
    // Not a directory: nothing is locked.
    config.embedded.directory = PathBuf::from("simulated/bus");
    super::Embedded::open_on(Arc::new(disk.clone()), &config).unwrap()
}

#[tokio::test]
async fn after_a_failed_write_it_goes_on_by_itself_and_a_start_finds_all_that_was_acknowledged() {
    use crate::{Bus, Event, Start, Topic};
    // Together: each waits for the disk to be tried again.
    futures::future::join_all((0..40).map(|seed| async move {
        let mut random = SmallRng::seed_from_u64(seed);
        let disk = Simulated::default();
        disk.power(u64::MAX);
        let bus = bus_on(&disk);
        let mut consumer = bus.consume(Topic::Rooms, "job").await.unwrap();
        while let Event::Assigned(partition) = consumer.next().await.unwrap() {
            consumer.start(partition, Start::At(1));
            if partition == 1 {
                break;
            }
        }
        let mut acknowledged = Vec::new();
        for n in 0..20u64 {
            let value = Bytes::from(n.to_le_bytes().to_vec());
            acknowledged.push((bus.publish(Topic::Rooms, 0, value.clone()).await.unwrap(), value));
        }
        consumer.commit(0, 20);
        consumer.leave().await;
        disk.power(random.random_range(0..30));
        let (mut failed, mut unknown, mut after) = (0, Vec::new(), 0);
        for n in 20u64.. {
            let value = Bytes::from(n.to_le_bytes().to_vec());
            match bus.publish(Topic::Rooms, 0, value.clone()).await {
                Ok(offset) => {
                    acknowledged.push((offset, value));
                    after += u32::from(failed > 0);
                }
                // Nobody knows what the power left of it, until it is cut off.
                Err(Error::Unknown(_)) => {
                    assert_eq!(failed, 0);
                    failed += 1;
                    unknown.push(value);
                    until(|| bus.ready().is_err_and(|why| why.contains("cannot be written"))).await;
                    let refused = bus.publish(Topic::Rooms, 0, Bytes::new()).await;
                    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
                    // The disk works again.
                    disk.power(u64::MAX);
                    until(|| bus.ready().is_ok()).await;
                }
                Err(error) => panic!("{error}"),
            }
            if after == 3 {
                break;
            }
        }
        assert_eq!(bus.bounds(Topic::Rooms, 0).await.unwrap().1, acknowledged.len() as u64 + 1);
        drop(bus);

        let disk = disk.crash(&mut random);
        let bus = bus_on(&disk);
        assert_eq!(bus.ready(), Ok(()));
        let mut reader = bus.read(Topic::Rooms, 0, Start::At(1)).await.unwrap();
        let mut records = Vec::new();
        while records.len() < acknowledged.len() {
            let next = tokio::time::timeout(std::time::Duration::from_secs(10), reader.next()).await;
            records.extend(next.expect("everything that was acknowledged").unwrap());
        }
        for (record, (offset, value)) in records.iter().zip(&acknowledged) {
            assert_eq!((record.offset, &record.value), (*offset, value));
        }
        let mut consumer = bus.consume(Topic::Rooms, "job").await.unwrap();
        assert_eq!(consumer.committed(0).await.unwrap(), 20);
    }))
    .await;
}

/// Waits for what another thread does.
async fn until(mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "within the deadline");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[test]
fn what_a_full_disk_refused_is_never_there_and_what_it_took_always_is() {
    for seed in 0..300 {
        let mut random = SmallRng::seed_from_u64(seed);
        let disk = Simulated::default();
        disk.power(u64::MAX);
        let open = |disk: &Simulated| log::open(Arc::new(disk.clone()), Path::new("log"), SLOTS, RETENTION, 1);
        let (mut appender, mut index) = open(&disk).unwrap();
        let mut model = Model::default();
        let (mut refused, mut n) = (0, 0u16);
        while n < 200 || refused == 0 {
            n += 1;
            if random.random_range(0..6) == 0 {
                let room = disk.bytes() + random.random_range(0..4000);
                disk.room(if random.random() { Some(room) } else { None });
            }
            let slot = usize::from(n) % SLOTS;
            let value = Bytes::from(vec![n as u8; random.random_range(0..1500)]);
            let offset = index.bounds(slot as u16).1;
            match appender.append(vec![Incoming { slot: slot as u16, value: value.clone() }], 1) {
                Ok(durable) => {
                    index.commit(&mut appender, &durable);
                    model.acknowledged[slot].insert(offset, value);
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "seed {seed}");
                    appender.mend().unwrap();
                    refused += 1;
                }
            }
        }
        disk.room(None);
        let disk = if random.random() { disk.kill() } else { disk.crash(&mut random) };
        model.check(&open(&disk).unwrap().1);
    }
}

#[tokio::test]
async fn a_full_disk_is_refused_and_goes_on_when_there_is_room() {
    use crate::{Bus, Start, Topic};
    let disk = Simulated::default();
    disk.power(u64::MAX);
    let bus = bus_on(&disk);
    let value = Bytes::from(vec![7; 1000]);
    let mut acknowledged = 0;
    for _ in 0..2 {
        disk.room(Some(disk.bytes() + 5000));
        // The answer is honest: the record is not there.
        let refused = loop {
            match bus.publish(Topic::Rooms, 0, value.clone()).await {
                Ok(offset) => acknowledged = offset,
                Err(error) => break error,
            }
        };
        assert!(matches!(&refused, Error::Unavailable(why) if why.contains("cannot be written")), "{refused}");
        until(|| bus.ready().is_err()).await;
        assert!(bus.publish(Topic::Control, 0, value.clone()).await.is_err());
        disk.room(None);
        until(|| bus.ready().is_ok()).await;
        assert_eq!(bus.publish(Topic::Rooms, 0, value.clone()).await.unwrap(), acknowledged + 1);
        acknowledged += 1;
    }
    drop(bus);
    let bus = bus_on(&disk.kill());
    assert_eq!(bus.bounds(Topic::Rooms, 0).await.unwrap(), (1, acknowledged + 1));
    assert_eq!(bus.bounds(Topic::Control, 0).await.unwrap(), (1, 1));
    assert_eq!(bus.read(Topic::Rooms, 0, Start::At(1)).await.unwrap().next().await.unwrap()[0].value, value);
}
