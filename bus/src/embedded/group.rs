//! Who reads: members of groups, and readers of their own.
//!
//! A partition passes from one member to another when the first has taken [`Event::Revoked`] (or is gone): until then
//! its next owner waits, so that there is never more than one.

use super::log::Found;
use super::{Open, Shared, locked};
use crate::{Consumer, Error, Event, Offset, Reader, Record, Start, Topic};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A group on a topic: who is in it and who has what.
pub(super) struct Group {
    shares: Mutex<Shares>,
    changed: watch::Sender<u64>,
}

struct Shares {
    members: Vec<u64>,
    /// Who has each partition now.
    owner: Vec<Option<u64>>,
    /// Who shall have it.
    wanted: Vec<Option<u64>>,
}

impl Shares {
    /// Shares the partitions out evenly, moving as few as it can.
    fn rebalance(&mut self) {
        let Self { members, wanted, .. } = self;
        for wanted in wanted.iter_mut() {
            *wanted = wanted.filter(|member| members.contains(member));
        }
        loop {
            let count = |member: &u64| wanted.iter().filter(|&&wanted| wanted == Some(*member)).count();
            let Some(&least) = members.iter().min_by_key(|member| count(member)) else { return };
            let Some(&most) = members.iter().max_by_key(|member| count(member)) else { return };
            let free = wanted.iter().position(Option::is_none);
            let movable = if count(&most) > count(&least) + 1 {
                wanted.iter().rposition(|&wanted| wanted == Some(most))
            } else {
                None
            };
            match free.or(movable) {
                Some(partition) => wanted[partition] = Some(least),
                None => return,
            }
        }
    }
}

/// Where a partition is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cursor {
    From(Offset),
    Since(i64),
}

impl Cursor {
    fn new(shared: &Shared, topic: Topic, partition: u32, start: Start) -> Result<Self, Error> {
        Ok(match start {
            Start::At(offset) => Self::From(offset),
            Start::Since(time_ms) => Self::Since(time_ms),
            Start::End => {
                let place = shared.place(topic, partition)?;
                Self::From(shared.index(place.log).bounds(place.slot).1)
            }
        })
    }
}

/// What a look at a partition gave.
enum Step {
    Records(Vec<Record>),
    Moved(Cursor),
    Nothing,
}

/// A look at the file, under way on a blocking thread.
struct Looking {
    partition: u32,
    cursor: Cursor,
    task: JoinHandle<Result<Step, Error>>,
}

/// What is there at `cursor`: at once, or by a task.
fn look(shared: &Shared, topic: Topic, partition: u32, cursor: Cursor) -> Result<Result<Step, Looking>, Error> {
    let place = shared.place(topic, partition)?;
    let index = shared.index(place.log);
    let task = match cursor {
        Cursor::From(offset) => match index.read(place.slot, offset) {
            Found::Records(records) => return Ok(Ok(Step::Records(records))),
            Found::Nothing => return Ok(Ok(Step::Nothing)),
            Found::OnDisk(on_disk) => tokio::task::spawn_blocking(move || on_disk.read().map(Step::Records)),
        },
        Cursor::Since(time_ms) => {
            let next = index.bounds(place.slot).1;
            let parts = index.since(place.slot, time_ms);
            if parts.is_empty() {
                return Ok(Ok(Step::Moved(Cursor::From(next))));
            }
            tokio::task::spawn_blocking(move || {
                for part in parts {
                    if let Some(offset) = part.since(time_ms)? {
                        return Ok(Step::Moved(Cursor::From(offset)));
                    }
                }
                Ok(Step::Moved(Cursor::From(next)))
            })
        }
    };
    Ok(Err(Looking { partition, cursor, task }))
}

/// Waits for the task.
async fn looked(looking: &mut Looking) -> Result<Step, Error> {
    (&mut looking.task).await.unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
}

fn after(records: &[Record]) -> Option<Cursor> {
    records.last().map(|record| Cursor::From(record.offset + 1))
}

/// One member of a group.
pub(super) struct Member {
    open: Arc<Open>,
    topic: Topic,
    name: String,
    group: Arc<Group>,
    id: u64,
    owned: BTreeMap<u32, Owned>,
    /// The partition that was read last: the others have their turn first.
    last: u32,
    looking: Option<Looking>,
    committed: watch::Receiver<u64>,
    changed: watch::Receiver<u64>,
}

#[derive(Default)]
struct Owned {
    cursor: Option<Cursor>,
    paused: bool,
}

impl Member {
    pub(super) fn join(open: &Arc<Open>, topic: Topic, name: &str) -> Result<Self, Error> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        if !proto::channel::is_id(name) {
            return Err(Error::Refused(format!("{name:?} is no group's name: want 1-64 of A-Z a-z 0-9 _ . -")));
        }
        let shared = &open.shared;
        let partitions = shared.partitions(topic);
        let mut groups = locked(&shared.groups);
        let group = groups.entry((topic, name.to_owned())).or_insert_with(|| {
            Arc::new(Group {
                shares: Mutex::new(Shares {
                    members: Vec::new(),
                    owner: vec![None; partitions as usize],
                    wanted: vec![None; partitions as usize],
                }),
                changed: watch::Sender::new(0),
            })
        });
        let group = group.clone();
        let mut shares = locked(&group.shares);
        if shares.members.is_empty() {
            for partition in 0..partitions {
                check(shared, topic, name, partition)?;
            }
        }
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        shares.members.push(id);
        shares.rebalance();
        drop(shares);
        group.changed.send_modify(|count| *count += 1);
        Ok(Self {
            open: open.clone(),
            topic,
            name: name.to_owned(),
            id,
            owned: BTreeMap::new(),
            last: 0,
            looking: None,
            committed: shared.committed[topic as usize].subscribe(),
            changed: group.changed.subscribe(),
            group: group.clone(),
        })
    }

    /// The next partition that is to be given up or taken.
    fn share(&mut self) -> Option<Event> {
        let mut shares = locked(&self.group.shares);
        let me = Some(self.id);
        if let Some(&partition) = self.owned.keys().find(|&&p| shares.wanted[p as usize] != me) {
            shares.owner[partition as usize] = None;
            drop(shares);
            self.owned.remove(&partition);
            self.group.changed.send_modify(|count| *count += 1);
            return Some(Event::Revoked(partition));
        }
        let free = (0..shares.wanted.len()).find(|&p| shares.wanted[p] == me && shares.owner[p].is_none())?;
        shares.owner[free] = me;
        self.owned.insert(free as u32, Owned::default());
        Some(Event::Assigned(free as u32))
    }

    /// Records that are in memory; else begins to look for some on disk.
    fn take(&mut self) -> Result<Option<Event>, Error> {
        let behind: Vec<u32> = self.owned.range(..=self.last).map(|(&partition, _)| partition).collect();
        let ahead: Vec<u32> = self.owned.range(self.last + 1..).map(|(&partition, _)| partition).collect();
        for partition in ahead.into_iter().chain(behind) {
            let Some(owned) = self.owned.get_mut(&partition) else { continue };
            while let (Some(cursor), false) = (owned.cursor, owned.paused) {
                match look(&self.open.shared, self.topic, partition, cursor)? {
                    Ok(Step::Records(records)) => {
                        owned.cursor = after(&records);
                        self.last = partition;
                        return Ok(Some(Event::Records(partition, records)));
                    }
                    Ok(Step::Moved(cursor)) => owned.cursor = Some(cursor),
                    Ok(Step::Nothing) => break,
                    Err(looking) => {
                        self.looking = Some(looking);
                        return Ok(None);
                    }
                }
            }
        }
        Ok(None)
    }

    /// What a look at the disk gave, unless the partition was meanwhile lost, paused or begun anew.
    fn found(&mut self, looking: &Looking, step: Step) -> Option<Event> {
        let owned = self.owned.get_mut(&looking.partition)?;
        if owned.paused || owned.cursor != Some(looking.cursor) {
            return None;
        }
        match step {
            Step::Records(records) => {
                owned.cursor = after(&records);
                self.last = looking.partition;
                Some(Event::Records(looking.partition, records))
            }
            Step::Moved(cursor) => {
                owned.cursor = Some(cursor);
                None
            }
            Step::Nothing => None,
        }
    }
}

/// Whether the group's checkpoint fits the log.
fn check(shared: &Shared, topic: Topic, group: &str, partition: u32) -> Result<(), Error> {
    let key = (group.to_owned(), topic.name(), partition);
    let Some((log, offset)) = shared.checkpoints.get(&key) else { return Ok(()) };
    let place = shared.place(topic, partition)?;
    let now = shared.log(topic);
    let (first, next) = shared.index(place.log).bounds(place.slot);
    let Err(error) = crate::fits(topic, group, partition, (&log, offset), (&now, first, next)) else { return Ok(()) };
    if !shared.accept_new_log {
        return Err(error);
    }
    tracing::warn!(%error, "accepted: the checkpoint is forgotten");
    shared.checkpoints.forget(&key);
    Ok(())
}

#[async_trait]
impl Consumer for Member {
    async fn next(&mut self) -> Result<Event, Error> {
        loop {
            // Seen before it is looked at, so that no change between the two is slept over.
            self.committed.borrow_and_update();
            self.changed.borrow_and_update();
            if let Some(event) = self.share() {
                return Ok(event);
            }
            if let Some(looking) = &mut self.looking {
                let step = tokio::select! {
                    step = looked(looking) => step,
                    _ = self.changed.changed() => continue,
                };
                if let Some(looking) = self.looking.take()
                    && let Some(event) = self.found(&looking, step?)
                {
                    return Ok(event);
                }
                continue;
            }
            if let Some(event) = self.take()? {
                return Ok(event);
            }
            if self.looking.is_none() {
                // Neither ends: what they wait for is held by `open` and `group`.
                tokio::select! {
                    _ = self.committed.changed() => {}
                    _ = self.changed.changed() => {}
                }
            }
        }
    }

    fn start(&mut self, partition: u32, from: Start) {
        let Ok(cursor) = Cursor::new(&self.open.shared, self.topic, partition, from) else { return };
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.cursor = Some(cursor);
            // An older look that began at the same place must not count for this one.
            if let Some(looking) = self.looking.take_if(|looking| looking.partition == partition) {
                looking.task.abort();
            }
        }
    }

    fn pause(&mut self, partition: u32, paused: bool) {
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.paused = paused;
        }
    }

    fn commit(&mut self, partition: u32, offset: Offset) {
        if self.owned.contains_key(&partition) {
            let key = (self.name.clone(), self.topic.name(), partition);
            let shared = &self.open.shared;
            shared.checkpoints.set(key, shared.log(self.topic), offset);
        }
    }

    async fn committed(&mut self, partition: u32) -> Result<Offset, Error> {
        let key = (self.name.clone(), self.topic.name(), partition);
        let shared = &self.open.shared;
        let log = shared.log(self.topic);
        Ok(shared.checkpoints.get(&key).filter(|checkpoint| checkpoint.0 == log).map_or(0, |checkpoint| checkpoint.1))
    }

    async fn leave(self: Box<Self>) {
        let open = self.open.clone();
        // The partitions are free at once; what was committed is seen by the next owner even before it is written.
        drop(self);
        open.shared.checkpoints.flush().await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut shares = locked(&self.group.shares);
        shares.members.retain(|&member| member != self.id);
        for owner in &mut shares.owner {
            *owner = owner.filter(|&owner| owner != self.id);
        }
        shares.rebalance();
        drop(shares);
        self.group.changed.send_modify(|count| *count += 1);
    }
}

/// A reader outside of any group.
pub(super) struct Lone {
    open: Arc<Open>,
    topic: Topic,
    partition: u32,
    cursor: Cursor,
    looking: Option<Looking>,
    committed: watch::Receiver<u64>,
}

impl Lone {
    pub(super) fn new(open: &Arc<Open>, topic: Topic, partition: u32, start: Start) -> Result<Self, Error> {
        let shared = &open.shared;
        shared.place(topic, partition)?;
        let cursor = Cursor::new(shared, topic, partition, start)?;
        let committed = shared.committed[topic as usize].subscribe();
        Ok(Self { open: open.clone(), topic, partition, cursor, looking: None, committed })
    }
}

#[async_trait]
impl Reader for Lone {
    async fn next(&mut self) -> Result<Vec<Record>, Error> {
        loop {
            self.committed.borrow_and_update();
            let step = if let Some(looking) = &mut self.looking {
                let step = looked(looking).await;
                self.looking = None;
                step?
            } else {
                match look(&self.open.shared, self.topic, self.partition, self.cursor)? {
                    Ok(step) => step,
                    Err(looking) => {
                        self.looking = Some(looking);
                        continue;
                    }
                }
            };
            match step {
                Step::Records(records) => {
                    if let Some(cursor) = after(&records) {
                        self.cursor = cursor;
                        return Ok(records);
                    }
                }
                Step::Moved(cursor) => self.cursor = cursor,
                // Not ended: `open` holds the sender.
                Step::Nothing => {
                    let _ = self.committed.changed().await;
                }
            }
        }
    }
}
