//! The topic that a frame between job and connector names, and the one that carries a channel.

use crate::channel::Channel;
use crate::cluster::Topic;

/// The topic of this number in a frame; a peer of before the topics were named (0) speaks of rooms. `None`: a newer peer
/// speaks of a topic that this program does not know.
///
/// ```
/// use proto::cluster::Topic;
/// assert_eq!(proto::topic::of(0), Some(Topic::Rooms));
/// assert_eq!(proto::topic::of(Topic::Pushes.into()), Some(Topic::Pushes));
/// assert_eq!(proto::topic::of(99), None);
/// ```
#[must_use]
pub fn of(number: i32) -> Option<Topic> {
    match Topic::try_from(number) {
        Ok(Topic::Unspecified) => Some(Topic::Rooms),
        known => known.ok(),
    }
}

/// The topic that carries a channel. (What is no channel's name is nobody's, and looked for among the rooms in vain.)
///
/// ```
/// use proto::cluster::Topic;
/// assert_eq!(proto::topic::of_channel("room:1"), Topic::Rooms);
/// assert_eq!(proto::topic::of_channel("user:42"), Topic::Pushes);
/// ```
#[must_use]
pub fn of_channel(channel: &str) -> Topic {
    match Channel::parse(channel) {
        Ok(Channel::User(_) | Channel::All) => Topic::Pushes,
        Ok(Channel::Room(_)) | Err(_) => Topic::Rooms,
    }
}
