//! What a topic does with the records of a partition that this job owns: the seam between [`super::Owner`] and the
//! topics.

use std::collections::BTreeMap;
use std::sync::Arc;

use bus::{Offset, Start};
use bytes::Bytes;
use proto::cluster::from_owner::Frame;
use proto::{cluster, record};
use routes::By;

use crate::item::EncodedItem;
use crate::out::Out;

/// The stream of a connector, numbered by its attaching: the same connector's next stream is another.
pub(crate) type StreamId = u64;

/// One partition's records, from one claim on. Each claim makes a new one. No bus, stream or clock.
pub(crate) trait Stage: Send + Sized + 'static {
    /// What the stages of all partitions share.
    type Config: Send + Sync + 'static;

    /// As frames between job and connectors name the topic.
    const TOPIC: cluster::Topic;
    /// The same in the bus.
    const BUS_TOPIC: bus::Topic;
    /// Ownership is decided by claims, and channels are held. Without, by the group alone, and no connector is told.
    const CLAIMS: bool;

    /// A stage that has read nothing.
    fn new(config: Arc<Self::Config>, takeover: Takeover) -> Self;

    /// Where a new owner begins to read.
    fn start(&self, now_ms: i64) -> Start;

    /// Everything after this offset will be read. Said once, before the first record.
    fn begin(&mut self, _from: Offset) {}

    /// The next record that is of this log and can be decoded; claims are none.
    ///
    /// # Errors
    /// Why it does not belong here: it becomes a dead letter.
    fn record(&mut self, out: &mut Outgoing, fit: Fit) -> Result<(), String>;

    /// The records that were there have been given.
    fn end_of_batch(&mut self, _out: &mut Outgoing) {}

    /// The answer to the last [`Action::LookUp`]. `None`: Routes did not answer.
    fn looked_up(&mut self, _out: &mut Outgoing, _now_ms: i64, _found: Option<LookedUp>) {}

    /// What was asked for by the last [`Action::HandOver`] is done.
    fn handed_over(&mut self, _out: &mut Outgoing) {}

    /// A moment has passed.
    fn tick(&mut self, _out: &mut Outgoing, _now_ms: i64) {}

    /// Everything up to here is done, of what was read up to `progress`: the next owner goes on behind it.
    fn done(&self, progress: Offset) -> Offset {
        progress
    }

    /// Takes no more records now: reading pauses until it does again.
    fn is_full(&self) -> bool {
        false
    }

    /// A connector may hold this channel in this partition.
    fn is_ours(&self, _channel: &str) -> bool {
        false
    }

    /// From here on every record after `position` goes to the holder.
    fn follow(&mut self, _to: StreamId, _channel: &str, _position: Offset) {}

    /// What someone at `place` lacks of what has been read.
    fn answer(&mut self, _channel: &str, _place: HolderPosition) -> Answer {
        Answer::default()
    }

    /// The holder is to be where the owner is, by an answer that follows: tells it what it was not told before.
    fn held(&mut self, _out: &mut Outgoing, _to: StreamId, _channel: &str, _progress: Offset) {}

    /// The connector has nobody left in the channel.
    fn release(&mut self, _connector: StreamId, _channel: &str) {}

    /// The connector has gone, or re-holds everything.
    fn let_go(&mut self, _connector: StreamId) {}

    /// Some seconds have passed: lets go of what nobody needs. `wanted`: whether a hold of the channel waits.
    fn sweep(&mut self, _now_ms: i64, _wanted: &dyn Fn(&str) -> bool) {}

    /// Adds what it has to the topic's metrics.
    fn measure(&mut self, _measures: &mut Measures) {}

    /// Shows them.
    fn show(_config: &Self::Config, _measures: &Measures) {}
}

/// How a partition came to this owner.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Takeover {
    pub(crate) partition: u32,
    /// Handled by an earlier owner up to here, as far as is known.
    pub(crate) committed: Offset,
    /// When the partition was assigned, milliseconds since 1970.
    pub(crate) assigned_ms: i64,
}

/// A record that belongs to the topic, with what the owner knows of it.
pub(crate) struct Fit {
    pub(crate) offset: Offset,
    /// When the log took it, milliseconds since 1970.
    pub(crate) time_ms: i64,
    /// When it was read, microseconds since 1970.
    pub(crate) now_us: i64,
    /// No earlier owner has handled it.
    pub(crate) first_time: bool,
    /// The owner has read up to its claim.
    pub(crate) live: bool,
    pub(crate) record: record::Record,
}

/// What the owner, or its stage, wants done.
#[derive(Debug)]
pub(crate) enum Action {
    /// Queue this for a connector.
    Send(StreamId, Out),
    /// Read the partition from here; what has been read and not yet been given is void.
    Read(Start),
    /// Put the record aside as a dead letter, and go on.
    DeadLetter {
        /// Its place.
        offset: Offset,
        /// Why it cannot be read.
        reason: String,
        /// As it was read.
        record: Bytes,
    },
    /// Stop reading: the record at this offset wants a newer reader.
    Pause(Offset),
    /// Another owns the partition.
    Lost,
    /// Look these names up in Routes; answered by [`Stage::looked_up`].
    LookUp(Vec<By>),
    /// Commit up to this offset and, when that cannot be lost any more, do these: at most once, whoever owns the partition
    /// next. Answered by [`Stage::handed_over`].
    HandOver(Offset, Vec<Action>),
    /// To the connector of this incarnation, outside of any partition's order.
    Push(String, Frame),
    /// To every connector, with its share of the pace.
    PushAll(cluster::PushOut),
    /// To the session of this ID alone.
    Refuse(String, proto::client::Refused),
}

/// Where a connector is in the partition.
#[derive(Default)]
pub(super) struct Connector {
    /// It has not said `HoldsDone`.
    pub(super) collecting: bool,
    /// Something went to it since it was last told how far the partition is.
    pub(super) fed: bool,
    pub(super) through: Offset,
}

/// What Routes said.
#[derive(Debug)]
pub(crate) struct LookedUp {
    /// The sessions under each name.
    pub(crate) sessions: Vec<Vec<String>>,
    /// Every connector that is attached had put all its sessions: a name without one is nobody's.
    pub(crate) whole: bool,
}

/// What an owner and its stage want done, in order.
#[derive(Default)]
pub(crate) struct Outgoing {
    pub(super) connectors: BTreeMap<StreamId, Connector>,
    pub(super) actions: Vec<Action>,
}

impl Outgoing {
    /// Queues something for a connector.
    pub(crate) fn send(&mut self, to: StreamId, out: Out) {
        if let (Out::Item(_), Some(connector)) = (&out, self.connectors.get_mut(&to)) {
            connector.fed = true;
        }
        self.act(Action::Send(to, out));
    }

    /// Takes what is to be done.
    pub(crate) fn take(self) -> Vec<Action> {
        self.actions
    }

    /// Anything else.
    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }
}

/// What a hold says of its holder's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HolderPosition {
    /// It has nothing and wants this many recent messages.
    Nothing { recent: usize },
    /// It has everything up to `offset`.
    At {
        offset: Offset,
        /// Its last message's, if it came under this owner's epoch.
        ordinal: Option<u64>,
    },
    /// It has a position in another log.
    Elsewhere,
}

/// What a holder gets to be where the owner is.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) missed: Option<cluster::Missed>,
    pub(crate) recent: Vec<EncodedItem>,
    /// What lies before `recent`; of a holder that has nothing.
    pub(crate) before: Option<cluster::Before>,
}

/// What a topic's metrics show, over all partitions.
#[derive(Debug, Default)]
pub(crate) struct Measures {
    /// Owned.
    pub(crate) partitions: usize,
    pub(crate) paused: usize,
    /// Rooms known.
    pub(crate) rooms: usize,
    /// Bytes waiting for connectors.
    pub(crate) queued_bytes: usize,
    /// Records that are not read; `None`: not asked for now.
    pub(crate) lag: Option<u64>,
}
