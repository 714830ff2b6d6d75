//! Where a session is: its place in each of its rooms. One room, for nearly all, so one costs no allocation.
//!
//! A place is two indices, and says nothing of what the session has been sent: that is the member's
//! ([`super::room`]).

use std::ops::{Deref, DerefMut};

/// A session in a room.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    room: u32,
    member: u32,
}

impl Place {
    /// In this room, as this member of the feed of the session's encoding.
    pub(super) fn new(room: usize, member: usize) -> Self {
        Self { room: room as u32, member: member as u32 }
    }

    /// Index of the room.
    pub(super) fn room(self) -> usize {
        self.room as usize
    }

    /// Index among the members of the feed of the session's encoding.
    pub(super) fn member(self) -> usize {
        self.member as usize
    }

    /// Another member has left, and this one has taken its index.
    pub(super) fn move_to(&mut self, member: usize) {
        self.member = member as u32;
    }
}

/// The rooms of a session: one, for nearly all.
#[derive(Debug, Default)]
pub(super) enum Places {
    /// In none.
    #[default]
    None,
    /// In one.
    One(Place),
    /// In more, or it was.
    Many(Box<Several>),
}

/// Boxed, so that one place costs no more than itself.
#[derive(Debug)]
pub(super) struct Several(Vec<Place>);

impl Places {
    /// One more.
    pub(super) fn push(&mut self, place: Place) {
        match self {
            Self::None => *self = Self::One(place),
            Self::One(first) => *self = Self::Many(Box::new(Several(vec![*first, place]))),
            Self::Many(several) => several.0.push(place),
        }
    }

    /// Takes out the one at this index; the last one takes its place.
    ///
    /// # Panics
    /// Where there is none.
    pub(super) fn swap_remove(&mut self, at: usize) -> Place {
        let place = self[at];
        match self {
            Self::Many(several) => {
                several.0.swap_remove(at);
                if let [left] = several.0[..] {
                    *self = Self::One(left);
                }
            }
            _ => *self = Self::None,
        }
        place
    }
}

impl Deref for Places {
    type Target = [Place];

    fn deref(&self) -> &[Place] {
        match self {
            Self::None => &[],
            Self::One(place) => std::slice::from_ref(place),
            Self::Many(several) => &several.0,
        }
    }
}

impl DerefMut for Places {
    fn deref_mut(&mut self) -> &mut [Place] {
        match self {
            Self::None => &mut [],
            Self::One(place) => std::slice::from_mut(place),
            Self::Many(several) => &mut several.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_a_list_however_many_there_are() {
        let mut places = Places::default();
        let rooms = |places: &Places| places.iter().map(|place| place.room()).collect::<Vec<_>>();
        for room in 0..4 {
            assert_eq!(places.len(), room);
            places.push(Place::new(room, 7));
        }
        assert_eq!(places.swap_remove(1).room(), 1);
        assert_eq!(rooms(&places), [0, 3, 2]);
        places[2].move_to(9);
        assert_eq!(places.swap_remove(0).member(), 7);
        assert_eq!((rooms(&places), places[0].member()), (vec![2, 3], 9));
        assert_eq!(places.swap_remove(1).room(), 3);
        assert!(matches!(places, Places::One(_)) && rooms(&places) == [2]);
        assert_eq!(places.swap_remove(0).room(), 2);
        assert!(places.is_empty());
    }
}
