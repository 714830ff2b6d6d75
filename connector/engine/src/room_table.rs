//! The rooms of a core, by index and by name, and the lists of those that something is to be done for once a second.
//!
//! Invariant: a room is in each list at most once ([`Room::changed`], [`Room::dirty`]).

use std::{
    ops::{Index, IndexMut},
    sync::Arc,
};

use rustc_hash::FxHashMap;
use slab::Slab;

use super::{idle::IdleRooms, room::Room};

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    rooms: Slab<Room>,
    names: FxHashMap<Arc<str>, usize>,
    /// Rooms whose number of sessions is to be told.
    changed: Vec<usize>,
    /// Rooms that may have memory to give back.
    dirty: Vec<usize>,
    /// What rooms keep, and which are idle.
    idle: IdleRooms,
}

impl Rooms {
    /// The index of a room of this core.
    pub(super) fn find(&self, channel: &str) -> Option<usize> {
        self.names.get(channel).copied()
    }

    /// A channel's name: the room's own, where there is one.
    pub(super) fn name_of(&self, channel: &str) -> Arc<str> {
        self.names.get_key_value(channel).map_or_else(|| channel.into(), |(name, _)| name.clone())
    }

    /// Makes a room, which its owner is asked for by a request of this number.
    pub(super) fn open(&mut self, channel: &str, ticket: u64) -> usize {
        let name: Arc<str> = channel.into();
        let index = self.rooms.insert(Room::new(name.clone(), ticket));
        self.names.insert(name, index);
        index
    }

    /// Gives a room back.
    pub(super) fn close(&mut self, index: usize) {
        let room = self.rooms.remove(index);
        self.idle.gone(&room);
        self.changed.retain(|changed| *changed != index);
        self.names.remove(&*room.name);
    }

    /// The room of this index, if there is one.
    pub(super) fn get(&self, index: usize) -> Option<&Room> {
        self.rooms.get(index)
    }

    /// The room of this index, if there is one.
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Room> {
        self.rooms.get_mut(index)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.rooms.len()
    }

    /// All rooms, with their indices.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Room)> {
        self.rooms.iter()
    }

    /// What a room keeps changes: it is weighed anew when that is over.
    pub(super) fn mark_dirty(&mut self, index: usize) {
        if !std::mem::replace(&mut self.rooms[index].dirty, true) {
            self.dirty.push(index);
        }
    }

    /// The number of a room's sessions changes: it is to be told.
    pub(super) fn mark_changed(&mut self, index: usize) {
        if let Some(room) = self.rooms.get_mut(index)
            && !std::mem::replace(&mut room.changed, true)
        {
            self.changed.push(index);
        }
    }

    /// Takes the rooms whose number of sessions has changed.
    pub(super) fn changed(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.changed)
    }

    /// A second has passed: gives back what dirty rooms did not need, and notes which have become idle.
    pub(super) fn settle(&mut self) {
        let Self { rooms, dirty, idle, .. } = self;
        idle.settle(rooms, dirty);
    }

    /// Has idle rooms give back memory as long as all rooms keep more than `bytes_max`.
    pub(super) fn shrink_idle(&mut self, bytes_max: usize) {
        let Self { rooms, dirty, idle, .. } = self;
        idle.shrink(rooms, dirty, bytes_max);
    }

    /// Whether all rooms keep more than `bytes_max`, and some could give back memory.
    pub(super) fn is_over(&self, bytes_max: usize) -> bool {
        self.idle.is_over(bytes_max)
    }

    /// What the rooms keep, as last weighed, bytes.
    pub(super) fn kept(&self) -> usize {
        self.idle.kept()
    }
}

impl Index<usize> for Rooms {
    type Output = Room;

    fn index(&self, index: usize) -> &Room {
        &self.rooms[index]
    }
}

impl IndexMut<usize> for Rooms {
    fn index_mut(&mut self, index: usize) -> &mut Room {
        &mut self.rooms[index]
    }
}
