//! What an owner sends to a connector about its partition. The outbox numbers it and makes frames of it.

use bus::Offset;
use proto::cluster;

use crate::item::EncodedItem;

/// What goes to a connector about the partition, in order.
#[derive(Debug, Clone)]
pub(crate) enum Out {
    Own(cluster::Own),
    Item(EncodedItem),
    Held(Box<cluster::Held>, Vec<EncodedItem>),
    /// Everything that the connector holds is complete up to here.
    Through(Offset),
    Disown,
}
