//! What is asked of logic, and what becomes of its answers. Requests of one session go out in the order in which they
//! came (rule 16); answers may overtake each other.

use proto::{
    channel::matches,
    client::{self, ErrorCode, server_frame::Body},
    cluster::{self, gate_reply::Answer, gate_request},
    error::{error, row},
};

use super::{
    Engine, RouteChange,
    event::CoreRequest,
    identity::{Grant, Identity},
    limits::{NEW_ROOMS_PERIOD_MS, Verdict},
    requests::{Continuation, Pending},
    room::Join,
    session::{Dialect, Ending, Joining, Packets, Phase, Removal},
};
use machine::Key;

/// Routes that are told anew in one turn: one call of those that write them.
const ROUTES_TOLD_MAX: usize = 500;
/// Slots that are looked at for them.
const ROUTES_LOOKS_MAX: usize = 4096;

impl Engine {
    /// Asks logic for a session, and returns the request's number.
    pub(super) fn ask_gate(&mut self, key: Key, ask: gate_request::Ask, then: Continuation) -> Option<u64> {
        self.session(key)?.busy_mut().in_flight += 1;
        Some(self.requests.ask_logic(key, ask, then))
    }

    /// The session's ID in the cluster.
    pub(super) fn session_id(&self, key: Key) -> String {
        format!("{}.{:x}.{:x}.{:x}", self.incarnation, self.core, key.slot, key.generation)
    }

    /// Logic has answered.
    pub(super) fn answered(&mut self, id: u64, answer: Answer) {
        let Some(Pending { key, then }) = self.requests.answered(id) else { return };
        let Some(session) = self.session(key) else { return };
        session.busy_mut().in_flight -= 1;
        if session.is_closing() {
            return;
        }
        let out = self.end_joining(key, id);
        match (then, answer) {
            (Continuation::Connect(request), Answer::Admitted(admitted)) => self.connected(key, request, admitted),
            (Continuation::Auth { turn, sequence, channel }, Answer::Admitted(admitted)) => {
                self.authenticated(key, admitted, turn, sequence, channel);
            }
            (Continuation::Refresh(request), Answer::Admitted(admitted)) => self.refreshed(key, request, admitted),
            (Continuation::Join(channel, join), Answer::Joined(_)) => match out {
                None => self.enter(key, &channel, join),
                Some(removal) => self.not_entered(key, join, removal.error()),
            },
            (Continuation::Publish(request), Answer::Published(published)) => {
                self.reply(key, request, Body::Published(client::Published { id: published.id }));
            }
            (Continuation::Send { turn, operation, sequence }, Answer::Published(_)) => {
                self.sent(key, turn, operation, sequence, None);
            }
            (then, Answer::Error(error)) => self.denied(key, then, error),
            (then, _) => {
                let answer = error(ErrorCode::Internal, "logic answered another question");
                self.denied(key, then, answer);
            }
        }
        self.maybe_readable(key);
        self.settle(key);
    }

    fn denied(&mut self, key: Key, then: Continuation, error: client::Error) {
        let code = ErrorCode::try_from(error.code).unwrap_or(ErrorCode::Internal);
        match then {
            Continuation::Connect(request) => {
                self.refuse_error(key, request, error.clone());
                self.end(key, Ending::new(code, error.message));
            }
            Continuation::Auth { turn, sequence, .. } => {
                self.unauthenticated(key, turn, sequence, code, &error.message)
            }
            Continuation::Refresh(request) | Continuation::Publish(request) => self.refuse_error(key, request, error),
            Continuation::Join(_, join) => self.not_entered(key, join, error),
            Continuation::Send { turn, operation, sequence } => self.sent(key, turn, operation, sequence, Some(&error)),
        }
    }

    /// A session is admitted: from here on it has a name, and counts. `false`: it ends.
    pub(super) fn admit(&mut self, key: Key, admitted: &cluster::Admitted) -> bool {
        let grant = Grant { subscribe: admitted.subscribe.clone(), publish: admitted.publish.clone() };
        let grant = self.sessions.grants.take(grant);
        let Some(identity) = Identity::new(admitted, grant.clone()) else {
            self.sessions.grants.give_back(grant);
            self.end(key, Ending::new(ErrorCode::Internal, "logic gave the session an ID that is none"));
            return false;
        };
        drop(grant);
        let Some(session) = self.session(key) else { return false };
        session.phase = Phase::Live;
        let (packets, address) = (session.packets.take(), session.address());
        self.change(key, &identity, packets.as_deref(), false);
        if let Some(session) = self.session(key) {
            (session.identity, session.packets) = (Some(identity), packets);
        }
        self.sessions.admit();
        self.counters.admitted += 1;
        self.limits.admit(address);
        self.rearm(key);
        true
    }

    /// Tells again where the sessions from a slot on are, as many as go into one turn.
    pub(super) fn tell_routes(&mut self, from: u32) {
        let (from, looks) = (from as usize, self.sessions.slots().len().saturating_sub(from as usize));
        let (mut next, until) = (from, from + looks.min(ROUTES_LOOKS_MAX));
        let told = self.requests.route_changes() + ROUTES_TOLD_MAX;
        while next < until && self.requests.route_changes() < told {
            let key = Key { slot: next as u32, generation: self.sessions.slots()[next].generation };
            next += 1;
            // Taken out for as long as it is told.
            let Some(session) = self.session(key) else { continue };
            let Some(identity) = session.identity.take() else { continue };
            let packets = session.packets.take();
            self.change(key, &identity, packets.as_deref(), false);
            if let Some(session) = self.session(key) {
                (session.identity, session.packets) = (Some(identity), packets);
            }
        }
        // With the changes of before and after in one list, so that they keep their order.
        let next = (next < self.sessions.slots().len()).then_some(next as u32);
        self.requests.push(CoreRequest::Told { next });
    }

    /// Notes that a session can be found, or is `gone`, by all that it is found by: its user, and goim's by its key.
    pub(super) fn change(&mut self, key: Key, identity: &Identity, packets: Option<&Packets>, gone: bool) {
        let session = self.session_id(key);
        let goim = self.session(key).is_some_and(|session| session.dialect == Dialect::Goim);
        let goim_key = packets.filter(|_| goim).map(|packets| match &*packets.key {
            "" => &session,
            key => key,
        });
        let change = |by_key, name| RouteChange { gone, by_key, name, session: &session, device: identity.device() };
        if let Some(key) = goim_key {
            self.requests.change_route(change(true, key));
        }
        if !identity.uid().is_empty() {
            self.requests.change_route(change(false, identity.uid()));
        }
    }

    /// Asks logic whether a session may come into a room, if nothing here forbids it.
    ///
    /// # Errors
    /// What the client is to be told.
    pub(super) fn ask_join(&mut self, key: Key, channel: &str, join: Join) -> Result<(), client::Error> {
        let config = self.config.clone();
        let Some(session) = self.session(key) else { return Ok(()) };
        let Some(identity) = session.identity.as_ref() else {
            return Err(error(ErrorCode::Unauthenticated, "connect first"));
        };
        if !identity.grant.subscribe.iter().any(|pattern| matches(pattern, channel)) {
            return Err(error(ErrorCode::Forbidden, format!("the token does not allow subscribing to {channel}")));
        }
        if session.busy().joining.iter().any(|joining| joining.channel == channel && joining.out.is_none()) {
            return Err(error(ErrorCode::InProgress, "a subscription to this channel is under way"));
        }
        if session.places.len() + session.busy().joining.len() >= config.rooms_per_session as usize {
            return Err(error(
                ErrorCode::TooManyRooms,
                format!("a session may be in {} rooms", config.rooms_per_session),
            ));
        }
        let uid = identity.uid().to_owned();
        let allowed = session.busy().allowed.iter().any(|allowed| allowed == channel);
        self.draw_new_room(key, channel)?;
        if allowed {
            self.enter(key, channel, join);
            return Ok(());
        }
        let ask = cluster::Join { uid, channel: channel.to_owned() };
        let then = Continuation::Join(channel.to_owned(), join);
        if let Some(id) = self.ask_gate(key, gate_request::Ask::Join(ask), then) {
            self.begin_joining(key, channel, id);
        }
        Ok(())
    }

    /// Counts a room that this core does not have against the session and its address (rule 38).
    ///
    /// # Errors
    /// What the client is to be told.
    pub(super) fn draw_new_room(&mut self, key: Key, channel: &str) -> Result<(), client::Error> {
        if self.rooms.find(channel).is_some() {
            return Ok(());
        }
        if self.endings.is_draining() {
            return Err(error(ErrorCode::Draining, row(ErrorCode::Draining).meaning));
        }
        let (now_ms, rate) = (self.now.mono_ms, self.config.new_rooms_per_session);
        let Some(session) = self.session(key) else { return Ok(()) };
        let address = session.address();
        let own = session.busy_mut().new_rooms.draw(now_ms, rate, NEW_ROOMS_PERIOD_MS) == Verdict::Within;
        if own && self.limits.new_room(&self.config, now_ms, address) {
            return Ok(());
        }
        let mut error = error(ErrorCode::TooFast, "too many rooms that nobody was in");
        error.retry_after_ms = (NEW_ROOMS_PERIOD_MS / u64::from(rate.max(1))) as u32;
        Err(error)
    }

    /// A session is on its way into a room.
    pub(super) fn begin_joining(&mut self, key: Key, channel: &str, ticket: u64) {
        if let Some(session) = self.session(key) {
            session.busy_mut().joining.push(Joining { ticket, channel: channel.to_owned(), out: None });
        }
    }

    /// It is there, or will not be. Returns why it was taken out meanwhile, if it was.
    pub(super) fn end_joining(&mut self, key: Key, ticket: u64) -> Option<Removal> {
        let session = self.session(key)?;
        let at = session.busy().joining.iter().position(|joining| joining.ticket == ticket)?;
        session.busy_mut().joining.swap_remove(at).out
    }

    /// A session was not let into a room, or the room cannot be had.
    pub(super) fn not_entered(&mut self, key: Key, join: Join, error: client::Error) {
        match join {
            Join::Subscribe { request: 0, .. } => {}
            Join::Subscribe { request, .. } => self.refuse_error(key, request, error),
            Join::Packet { first: true, .. } => {
                let code = ErrorCode::try_from(error.code).unwrap_or(ErrorCode::Internal);
                self.end(key, Ending::new(code, error.message));
            }
            Join::Packet { turn, sequence, .. } => self.not_moved(key, turn, sequence, &error),
        }
        self.maybe_readable(key);
    }
}
