//! What a core asks of the control thread, in order, and the requests to logic that have no answer yet.
//!
//! Invariant: a number is of one request. The answer to a request that is no longer pending is ignored.

use std::collections::VecDeque;

use proto::cluster::gate_request;
use rustc_hash::FxHashMap;

use super::{
    KEPT,
    event::CoreRequest,
    room::Join,
    route_changes::{RouteChange, RouteChanges},
};
use machine::Key;

/// How a request goes on when logic's answer comes.
#[derive(Debug)]
pub(super) enum Continuation {
    /// Native: `Connect` of this request number.
    Connect(u32),
    /// goim's and Bilibili's authentication.
    Auth {
        /// Its turn and sequence number.
        turn: u64,
        sequence: u32,
        /// Joined at once.
        channel: Option<String>,
    },
    /// Native: a new token.
    Refresh(u32),
    /// Into a room.
    Join(String, Join),
    /// Native: a message.
    Publish(u32),
    /// goim: a message, to be answered under this operation.
    Send {
        /// Its turn, operation and sequence number.
        turn: u64,
        operation: i32,
        sequence: u32,
    },
}

/// A request that logic has not answered.
#[derive(Debug)]
pub(super) struct Pending {
    /// The session that it is for.
    pub(super) key: Key,
    /// How it goes on when the answer comes.
    pub(super) then: Continuation,
}

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// The last number that was given.
    last: u64,
    pending: FxHashMap<u64, Pending>,
    /// What the control thread has not taken.
    out: VecDeque<CoreRequest>,
    /// Goes out before `out`: a session is found before anything is asked for it.
    routes: RouteChanges,
}

impl Requests {
    /// A number that no request has had.
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Asks the control thread for something.
    pub(super) fn push(&mut self, ask: CoreRequest) {
        self.out.push_back(ask);
    }

    /// Asks logic for a session, and returns the request's number.
    pub(super) fn ask_logic(&mut self, key: Key, ask: gate_request::Ask, then: Continuation) -> u64 {
        let id = self.number();
        self.pending.insert(id, Pending { key, then });
        self.out.push_back(CoreRequest::Gate { id, session: key, ask });
        id
    }

    /// Takes the request of this number: it is answered.
    pub(super) fn answered(&mut self, id: u64) -> Option<Pending> {
        self.pending.remove(&id)
    }

    /// The last request that the control thread has not taken.
    pub(super) fn last_mut(&mut self) -> Option<&mut CoreRequest> {
        self.out.back_mut()
    }

    /// Has the control thread write a change of session routes.
    pub(super) fn change_route(&mut self, change: RouteChange<'_>) {
        self.routes.push(change);
    }

    /// Changes of session routes that the control thread has not taken.
    pub(super) fn route_changes(&self) -> usize {
        self.routes.len()
    }

    /// The next thing for the control thread.
    pub(super) fn next(&mut self) -> Option<CoreRequest> {
        if !self.routes.is_empty() {
            return Some(CoreRequest::Routes(std::mem::take(&mut self.routes)));
        }
        self.out.pop_front()
    }

    /// Requests that logic has not answered.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Gives back what a storm of requests has left in tables and queues that are nearly empty now.
    pub(super) fn shrink(&mut self) {
        if self.pending.capacity() > KEPT && self.pending.len() < self.pending.capacity() / 4 {
            self.pending.shrink_to(KEPT);
        }
        if self.out.capacity() > KEPT && self.out.len() < self.out.capacity() / 4 {
            self.out.shrink_to(KEPT);
        }
    }
}
