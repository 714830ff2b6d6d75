//! goim's requests (compat.md). Answered in the order in which they came.

use bytes::Bytes;
use proto::{
    channel::matches,
    client::{self, ErrorCode},
    cluster::{self, gate_request},
    error::{error, row},
    goim,
    packet::{Packet, operation},
};

use super::super::{Engine, limits::Verdict, requests::Continuation, room::Join, session::Ending};
use machine::Key;

/// Operations that one session may accept: goim has no bound. Over it: closed.
pub(super) const ACCEPTS_MAX: usize = 256;

impl Engine {
    /// A packet of an authenticated session.
    pub(super) fn goim(&mut self, key: Key, packet: Packet<'_>) {
        let verdict = self.draw(key);
        if verdict == Verdict::Abuse {
            return;
        }
        let (sequence, mut reply) = (packet.sequence, Vec::new());
        match packet.operation {
            operation::HEARTBEAT => goim::heartbeat_reply(sequence, self.online_here(key), &mut reply),
            operation::CHANGE_ROOM => return self.change_room(key, packet, verdict),
            operation::SUBSCRIBE | operation::UNSUBSCRIBE => {
                if let Err(reason) = self.accept(key, packet.operation == operation::SUBSCRIBE, packet.body) {
                    return self.end(key, Ending::new(ErrorCode::BadRequest, reason));
                }
                goim::reply(packet.operation + 1, sequence, &[], &mut reply);
            }
            _ => return self.send(key, packet, verdict),
        }
        self.turn(key, Some(&reply));
    }

    fn accept(&mut self, key: Key, more: bool, body: &[u8]) -> Result<(), String> {
        let operations = goim::operations(body).map_err(|error| error.to_string())?;
        let Some(packets) = self.session(key).and_then(|session| session.packets.as_deref_mut()) else {
            return Ok(());
        };
        let mut accepts: Vec<i32> = packets.accepts.iter().copied().filter(|it| !operations.contains(it)).collect();
        if more {
            accepts.extend(operations);
            if accepts.len() > ACCEPTS_MAX {
                return Err(format!("a session may accept {ACCEPTS_MAX} operations"));
            }
        }
        let accepts = self.sessions.accepts.take(accepts);
        if let Some(packets) = self.session(key).and_then(|session| session.packets.as_deref_mut()) {
            let before = std::mem::replace(&mut packets.accepts, accepts);
            self.sessions.accepts.give_back(before);
        }
        Ok(())
    }

    /// Leaves the room it is in at once, whatever becomes of the other.
    fn change_room(&mut self, key: Key, packet: Packet<'_>, verdict: Verdict) {
        let turn = self.turn(key, None);
        let Some(packets) = self.session(key).and_then(|session| session.packets.as_deref_mut()) else { return };
        if let Some(left) = packets.room.take() {
            self.leave(key, &left);
        }
        let room_key = String::from_utf8_lossy(packet.body);
        if room_key.is_empty() {
            return self.entered(key, turn, packet.sequence, false);
        }
        let asked = match (goim::channel(&room_key), verdict) {
            (Err(bad), _) => return self.end(key, Ending::new(ErrorCode::BadRequest, bad.to_string())),
            (_, Verdict::Over(_) | Verdict::Abuse) => Err(error(ErrorCode::TooFast, row(ErrorCode::TooFast).meaning)),
            (Ok(channel), Verdict::Within) => {
                let room = self.rooms.name_of(&channel);
                let Some(packets) = self.session(key).and_then(|session| session.packets.as_deref_mut()) else {
                    return;
                };
                (packets.moving, packets.room) = (true, Some(room));
                let join = Join::Packet { turn, sequence: packet.sequence, first: false };
                // The platform may have put it there before.
                if self.is_in(key, &channel) {
                    return self.enter(key, &channel, join);
                }
                self.ask_join(key, &channel, join)
            }
        };
        if let Err(error) = asked {
            self.not_moved(key, turn, packet.sequence, &error);
        }
    }

    /// The room could not be changed to: an empty key in the answer says that it is in none.
    pub(in super::super) fn not_moved(&mut self, key: Key, turn: u64, sequence: u32, error: &client::Error) {
        self.count_error(error);
        if let Some(packets) = self.session(key).and_then(|session| session.packets.as_deref_mut()) {
            packets.room = None;
        }
        self.entered(key, turn, sequence, false);
    }

    /// Operation 4, and any that is not known here: logic's to handle, as a message to the room.
    fn send(&mut self, key: Key, packet: Packet<'_>, verdict: Verdict) {
        let turn = self.turn(key, None);
        let (operation, sequence) = (packet.operation, packet.sequence);
        let id = self.session_id(key);
        let most = self.config.payload_bytes_max;
        let Some(session) = self.session(key) else { return };
        let (Some(identity), Some(packets)) = (session.identity.as_ref(), session.packets.as_deref()) else {
            return;
        };
        let allowed = |channel: &str| identity.grant.publish.iter().any(|pattern| matches(pattern, channel));
        let refused = match (verdict, packets.room.as_deref()) {
            (Verdict::Over(_) | Verdict::Abuse, _) => ErrorCode::TooFast,
            (_, None) => ErrorCode::NotSubscribed,
            (_, Some(channel)) if !allowed(channel) => ErrorCode::Forbidden,
            _ if packet.body.len() > most as usize => ErrorCode::TooLarge,
            (_, Some(channel)) => {
                let ask = cluster::Publish {
                    uid: identity.uid().to_owned(),
                    name: identity.name().to_owned(),
                    guest: identity.guest,
                    session: id,
                    channel: channel.to_owned(),
                    client_message_id: String::new(),
                    r#type: String::new(),
                    payload: Bytes::copy_from_slice(packet.body),
                    style: None,
                    dialect: cluster::Dialect::Goim.into(),
                    operation,
                };
                let what = Continuation::Send { turn, operation, sequence };
                self.ask_gate(key, gate_request::Ask::Publish(ask), what);
                return;
            }
        };
        self.sent(key, turn, operation, sequence, Some(&error(refused, row(refused).meaning)));
    }

    /// goim echoes the operation with an empty body, whatever became of it; here a body says what went wrong.
    pub(in super::super) fn sent(
        &mut self,
        key: Key,
        turn: u64,
        operation: i32,
        sequence: u32,
        refused: Option<&client::Error>,
    ) {
        let mut body = Vec::new();
        if let Some(error) = refused {
            self.count_error(error);
            let code = ErrorCode::try_from(error.code).unwrap_or(ErrorCode::Internal);
            let said = serde_json::json!({ "code": error.code, "name": row(code).name, "message": error.message });
            body = said.to_string().into_bytes();
        }
        let mut reply = Vec::new();
        goim::reply(operation, sequence, &body, &mut reply);
        self.answer(key, turn, &reply);
    }
}
