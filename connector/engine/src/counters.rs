//! What the engine counts. Plain numbers: the driver publishes them.

use proto::error::TABLE;

use super::ring::Count;
use machine::{Sending, Sent};

/// What happened since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Connections that were not: too many, of one address or in all, or draining.
    pub refused: u64,
    /// Sessions that logic admitted.
    pub admitted: u64,
    /// Connections that their peer closed, or that broke.
    pub left: u64,
    /// Sessions that were closed from here, by the index of the code in [`TABLE`].
    pub closed: [u64; TABLE.len()],
    /// Requests of clients, heartbeats among them.
    pub requests: u64,
    /// Offers of permessage-deflate that were not taken.
    pub compression_declined: u64,
    /// Requests that were refused, by the index of the code in [`TABLE`].
    pub errors: [u64; TABLE.len()],
    /// Messages that came for rooms of this core.
    pub delivered: u64,
    /// Messages of rooms that went out whole, each session counted.
    pub deliveries: u64,
    /// Messages that readers were skipped over, each session counted.
    pub skipped: u64,
    /// Messages that were not sent because this core could not keep up, each session counted.
    pub shed: u64,
    /// Messages that this core has not got, each room counted.
    pub missed: u64,
    /// Pushes that were put into sessions' output.
    pub pushed: u64,
    /// Pushes that were dropped: to a session that takes no more, or that did not accept them, or too many to all.
    pub push_drops: u64,
    /// Sends that were made, one by one or in batches ([`machine::Outlet`]).
    pub writes: u64,
    /// Bytes that they took.
    pub bytes_out: u64,
    /// Bytes that came.
    pub bytes_in: u64,
    /// Sends that took less than they were given.
    pub short_writes: u64,
}

impl Counters {
    /// A send: how many bytes the kernel took.
    pub(super) fn wrote(&mut self, &Sending { bytes, sent, .. }: &Sending<'_>) -> usize {
        // Gone: `closed` follows, and until then it is as good as full.
        let took = match sent {
            Sent::Took(took) => took.min(bytes.len()),
            Sent::Gone => 0,
        };
        self.writes += 1;
        self.bytes_out += took as u64;
        self.short_writes += u64::from(took < bytes.len());
        took
    }

    /// So much of a room was sent whole to a session.
    pub(super) fn came(&mut self, count: Count) {
        self.deliveries += count.all - count.missing;
    }
}

/// How much there is now, at no cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Connections, whatever their state.
    pub connections: usize,
    /// Those that are admitted.
    pub sessions: usize,
    /// Rooms, lingering ones among them.
    pub rooms: usize,
}

/// What the engine holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Connections, whatever their state.
    pub connections: usize,
    /// Those that are admitted.
    pub sessions: usize,
    /// Bytes of their buffers.
    pub buffers: usize,
    /// Rooms, lingering ones among them.
    pub rooms: usize,
    /// Sessions in rooms, one in two rooms counted twice.
    pub members: usize,
    /// Bytes of the rooms' logs and rings.
    pub room_bytes: usize,
    /// The same as last weighed, for the bound on all rooms.
    pub recent_bytes: usize,
    /// Requests that logic has not answered.
    pub asked: usize,
    /// Entries of the queues of work.
    pub queued: usize,
    /// Entries of the wheel.
    pub timers: usize,
    /// Bytes that are reserved for what clients may refer back to in compressed messages.
    pub windows: usize,
    /// Client addresses.
    pub addresses: usize,
    /// Different values of what sessions have in common.
    pub shared: usize,
}
