//! What the engine is told by the control thread ([`Input`]) and what it asks of it ([`CoreRequest`]).
//!
//! The control thread is the process's one holder of channels: it knows owners, epochs and positions, holds anew after a
//! new owner or a reset, and tells every core that has the channel. The engine knows channels, logs and offsets only.

use std::sync::Arc;

use bytes::Bytes;
use proto::{client, cluster};

use super::RouteChanges;
use machine::Key;

/// From the control thread to one core.
#[derive(Debug)]
pub enum Input {
    /// Live messages, in order; those of a channel that this core does not hold are ignored.
    Deliver(Vec<Arc<cluster::Item>>),
    /// A channel is held from here on: the answer to [`CoreRequest::Hold`], or news after the control thread held it anew.
    Held(Held),
    /// The queue to this core was full: messages of the channel were dropped before it.
    Missed {
        /// The channel that lost messages.
        channel: String,
        /// How many messages were lost: the dropped ones for an unknown reason, and the gaps that they told for their own.
        reasons: client::GapReasons,
    },
    /// The answer to [`CoreRequest::Gate`]; an error where logic could not be reached.
    Reply {
        /// The number of the request.
        id: u64,
        /// What logic said.
        answer: cluster::gate_reply::Answer,
    },
    /// To these sessions, at most once.
    Push(Vec<Key>, Arc<Push>),
    /// To every session of this core, at this many a second (0: as fast as it goes).
    PushAll(Arc<Push>, u32),
    /// The platform does something to these sessions.
    Command(Vec<Key>, Arc<cluster::command_out::Act>),
    /// Sessions in channels over the whole cluster.
    Online(Vec<(String, u64)>),
    /// Routes have lost what they knew: tell those of the sessions from this slot on anew, some at a time, as
    /// [`CoreRequest::Routes`]. Answered by [`CoreRequest::Told`].
    Routes {
        /// The first slot.
        from: u32,
    },
    /// Go away: stop accepting, tell everyone, close all in paced steps within this many milliseconds.
    Drain {
        /// From now, milliseconds.
        within_ms: u64,
    },
}

/// A held channel.
#[derive(Debug, Clone)]
pub struct Held {
    /// The channel.
    pub channel: String,
    /// As the core asked: the answer to an asking before a release is none to that after it.
    pub ticket: u64,
    /// The log that offsets are of.
    pub log: Arc<str>,
    /// Everything up to here is in `recent`, was delivered, or is told as missed.
    pub offset: u64,
    /// Lies before `recent`: how many for which reason, and whether that is exact.
    pub missed: Option<(client::GapReasons, bool)>,
    /// Oldest first.
    pub recent: Vec<Arc<cluster::Item>>,
    /// What lies before `recent`, where its owner said so to a core that had nothing.
    pub before: Option<cluster::Before>,
}

/// A message outside of any ring.
#[derive(Debug)]
pub struct Push {
    /// `barrage.client.v1.Message`, encoded.
    pub message: Bytes,
    /// What goim's push carried, where it differs from the payload.
    pub raw: Bytes,
    /// goim's operation; 0: by the type.
    pub operation: i32,
}

/// From one core to the control thread.
#[derive(Debug)]
pub enum CoreRequest {
    /// A request to logic. Answered by [`Input::Reply`], always.
    Gate {
        /// The engine's own number.
        id: u64,
        /// Requests of one session go to one logic, in order: which one, by this.
        session: Key,
        /// The request.
        ask: cluster::gate_request::Ask,
    },
    /// This core takes up a channel, with all that its owner has recent: that serves everyone who comes. Answered by [`Input::Held`] as soon as its owner has answered.
    Hold {
        /// The channel.
        channel: String,
        /// The engine's own number, that each [`Held`] of the channel carries until it is released.
        ticket: u64,
    },
    /// This core has nobody left in the channel (and waited some seconds: rule 38).
    Release {
        /// The channel.
        channel: String,
    },
    /// Changes of session routes.
    Routes(RouteChanges),
    /// The answer to [`Input::Routes`]: what was asked for is told.
    Told {
        /// Where it goes on; `None`: that was all.
        next: Option<u32>,
    },
    /// Sessions of this core in each channel that changed since the last time.
    Counts(Vec<(String, u64)>),
    /// Sessions of this core, and new and gone client addresses since the last time.
    Sessions {
        /// Sessions now.
        sessions: u64,
        /// Addresses that have a first session.
        came: Vec<std::net::IpAddr>,
        /// Addresses that have lost their last session.
        went: Vec<std::net::IpAddr>,
    },
    /// A page of an origin that is not listed was refused: to be logged.
    OriginRefused {
        /// Its first 200 characters.
        origin: String,
        /// Pages refused since the last one was told, this one included.
        count: u64,
    },
}

/// What a reply says where logic could not be reached.
#[must_use]
pub fn logic_unreachable() -> cluster::gate_reply::Answer {
    cluster::gate_reply::Answer::Error(proto::error::error(
        client::ErrorCode::Unavailable,
        "no logic can be reached: try again",
    ))
}
