//! What goim's and Bilibili's sessions have in common: packets, authentication by operation 7, answers in the order of
//! the requests.

use bytes::Bytes;
use proto::{
    client::{self, ErrorCode},
    cluster::{self, gate_request},
    packet::{Packet, operation},
    sniff::{self, Auth},
};

use super::super::{
    Engine,
    requests::Continuation,
    room::Join,
    session::{Dialect, Ending, Packets, Phase, Wire},
};
use super::goim::ACCEPTS_MAX;
use machine::Key;

/// Letters of an incarnation, with which session IDs begin.
const INCARNATION_LENGTH: usize = 13;

/// Whether a key has the shape of a session ID (`<incarnation>.<core>.<slot>.<generation>`). That is the key of a session
/// that chose none: who could choose it would take that session's place.
fn is_session_id(key: &str) -> bool {
    key.split_once('.').is_some_and(|(incarnation, numbers)| {
        incarnation.len() == INCARNATION_LENGTH
            && numbers.split('.').count() == 3
            && numbers.bytes().all(|b| b == b'.' || b.is_ascii_hexdigit())
    })
}

impl Engine {
    /// A packet came.
    pub(in super::super) fn packet(&mut self, key: Key, packet: Packet<'_>) {
        let Some(session) = self.session(key) else { return };
        match (session.phase, session.dialect) {
            (Phase::Opening, _) if packet.operation == operation::AUTH => self.authenticate(key, packet),
            // goim ignores what comes before the authentication, Bilibili closes; who it is, only the body would tell.
            // A client of Bilibili's that does so is not one: it has 5 s, as everyone.
            (Phase::Opening, _) => {}
            (Phase::Live, Dialect::Goim) => self.goim(key, packet),
            (Phase::Live, Dialect::Bilibili(_)) => self.bilibili(key, packet),
            _ => {}
        }
    }

    fn authenticate(&mut self, key: Key, packet: Packet<'_>) {
        let auth = match sniff::auth(packet.body) {
            Ok(auth) => auth,
            Err(error) => return self.end(key, Ending::new(ErrorCode::BadRequest, error.to_string())),
        };
        let (dialect, what, claimed_uid, token, device, goim_key, accepts, channel) = match &auth {
            Auth::Goim(auth) => {
                let channel = match auth.room_id.as_str() {
                    "" => None,
                    room => match proto::goim::channel(room) {
                        Ok(channel) => Some(channel),
                        Err(error) => return self.end(key, Ending::new(ErrorCode::BadRequest, error.to_string())),
                    },
                };
                let goim_key = auth.session_key().unwrap_or_default();
                if !goim_key.is_empty() && !proto::channel::is_id(goim_key) {
                    let reason = "a session key is 1-64 of A-Z a-z 0-9 _ . -";
                    return self.end(key, Ending::new(ErrorCode::BadRequest, reason));
                }
                if is_session_id(goim_key) {
                    let reason = "a session key may not be a session's ID: that is the key of who chose none";
                    return self.end(key, Ending::new(ErrorCode::BadRequest, reason));
                }
                if auth.accepts.len() > ACCEPTS_MAX {
                    let reason = format!("a session may accept {ACCEPTS_MAX} operations");
                    return self.end(key, Ending::new(ErrorCode::BadRequest, reason));
                }
                let dialect = (Dialect::Goim, cluster::Dialect::Goim);
                let accepts = auth.accepts.clone();
                (dialect.0, dialect.1, &auth.mid, auth.credential(), &auth.platform, goim_key, accepts, channel)
            }
            Auth::Bilibili(auth) => {
                let dialect = (Dialect::Bilibili(auth.version), cluster::Dialect::Bilibili);
                let channel = Some(auth.channel());
                (dialect.0, dialect.1, &auth.uid, auth.credential(), &auth.platform, "", Vec::new(), channel)
            }
        };
        let id = self.session_id(key);
        let packets = Packets {
            key: goim_key.into(),
            accepts: self.sessions.accepts.take(accepts),
            room: channel.as_deref().map(|channel| self.rooms.name_of(channel)),
            first_turn: 0,
            moving: false,
        };
        let Some(session) = self.session(key) else { return };
        session.dialect = dialect;
        session.phase = Phase::Authenticating;
        session.packets = Some(Box::new(packets));
        let ask = cluster::Authenticate {
            session: id,
            token: token.unwrap_or_default().to_owned(),
            device: device.clone(),
            name: String::new(),
            dialect: what.into(),
            claimed_uid: claimed_uid.clone(),
            address: session.address().to_string(),
            channel: channel.clone().unwrap_or_default(),
            refreshes_uid: String::new(),
            joins: Vec::new(),
        };
        let turn = self.turn(key, None);
        let what = Continuation::Auth { turn, sequence: packet.sequence, channel };
        self.ask_gate(key, gate_request::Ask::Authenticate(ask), what);
    }

    /// Logic has let it in, and into its room.
    pub(in super::super) fn authenticated(
        &mut self,
        key: Key,
        admitted: cluster::Admitted,
        turn: u64,
        sequence: u32,
        channel: Option<String>,
    ) {
        if !self.admit(key, &admitted) {
            return;
        }
        match channel {
            None => self.entered(key, turn, sequence, true),
            Some(channel) => {
                if let Err(error) = self.draw_new_room(key, &channel) {
                    let code = ErrorCode::try_from(error.code).unwrap_or(ErrorCode::Internal);
                    return self.end(key, Ending::new(code, error.message));
                }
                if let Some(packets) = self.session(key).and_then(|session| session.packets.as_deref_mut()) {
                    packets.moving = true;
                }
                self.enter(key, &channel, Join::Packet { turn, sequence, first: true });
            }
        }
    }

    /// It is in its room, or wanted none.
    pub(in super::super) fn entered(&mut self, key: Key, turn: u64, sequence: u32, first: bool) {
        let Some(session) = self.session(key) else { return };
        let Some(packets) = session.packets.as_deref_mut() else { return };
        packets.moving = false;
        let mut reply = Vec::new();
        match (first, session.dialect) {
            (true, Dialect::Bilibili(_)) => {
                proto::bilibili::auth_reply(sequence, proto::bilibili::CODE_OK, &mut reply);
            }
            (true, _) => proto::goim::auth_reply(sequence, &mut reply),
            (false, _) => {
                let room = packets.room.as_deref().and_then(proto::goim::room_key).unwrap_or_default();
                proto::goim::reply(operation::CHANGE_ROOM_REPLY, sequence, room.as_bytes(), &mut reply);
            }
        }
        self.answer(key, turn, &reply);
        self.maybe_readable(key);
    }

    /// Logic has not let it in.
    pub(in super::super) fn unauthenticated(
        &mut self,
        key: Key,
        turn: u64,
        sequence: u32,
        code: ErrorCode,
        reason: &str,
    ) {
        let dialect = self.session(key).map(|session| session.dialect);
        // What the client can do nothing about is not its token's fault.
        let fault = proto::error::row(code).fault;
        if matches!(dialect, Some(Dialect::Bilibili(_))) && fault == client::Fault::Client {
            let mut reply = Vec::new();
            proto::bilibili::auth_reply(sequence, proto::bilibili::CODE_BAD_TOKEN, &mut reply);
            self.answer(key, turn, &reply);
            return self.close_later(key, code);
        }
        self.end(key, Ending::new(code, reason));
    }

    /// Closes a session that was told why, after a time that grows with each refusal of its address: Bilibili's client
    /// libraries connect again at once.
    fn close_later(&mut self, key: Key, code: ErrorCode) {
        let now_ms = self.now.mono_ms;
        let Some(address) = self.session(key).map(|session| session.address()) else { return };
        let until_ms = now_ms + self.limits.refused(now_ms, address);
        let Some(session) = self.session(key) else { return };
        session.phase = Phase::Refused;
        let busy = session.busy_mut();
        (busy.deadline_ms, busy.refused) = (until_ms, code);
        self.arm(key, until_ms);
    }

    /// The next turn in the order of answers, with its answer if there is one already.
    pub(in super::super) fn turn(&mut self, key: Key, answer: Option<&[u8]>) -> u64 {
        let Some(session) = self.session(key) else { return 0 };
        let Some(first_turn) = session.packets.as_ref().map(|packets| packets.first_turn) else { return 0 };
        let turns = &mut session.busy_mut().turns;
        let turn = first_turn + turns.len() as u64;
        turns.push_back(None);
        if let Some(answer) = answer {
            self.answer(key, turn, answer);
        }
        turn
    }

    /// The answer of a turn: goes out when all before it have.
    pub(in super::super) fn answer(&mut self, key: Key, turn: u64, packet: &[u8]) {
        let Some(session) = self.session(key) else { return };
        let web = matches!(session.wire, Wire::WebSocket(_));
        let frame = self.encoder.packets(web, packet);
        let Some(session) = self.session(key) else { return };
        let Some(first_turn) = session.packets.as_ref().map(|packets| packets.first_turn) else { return };
        let turns = &mut session.busy_mut().turns;
        if let Some(place) = turn.checked_sub(first_turn).and_then(|at| turns.get_mut(at as usize)) {
            *place = Some(frame);
        }
        let mut due: Vec<Bytes> = Vec::new();
        while matches!(turns.front(), Some(Some(_))) {
            due.extend(turns.pop_front().flatten());
        }
        if let Some(packets) = session.packets.as_deref_mut() {
            packets.first_turn += due.len() as u64;
        }
        due.into_iter().for_each(|frame| self.own(key, frame));
    }

    /// Online in the session's own room.
    pub(super) fn online_here(&mut self, key: Key) -> u64 {
        let room = self.session(key).and_then(|session| session.packets.as_ref()?.room.clone());
        room.and_then(|room| self.rooms.find(&room)).map_or(0, |index| self.online_in(index))
    }
}
