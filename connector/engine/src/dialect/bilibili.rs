//! Bilibili live's requests (compat.md): after the authentication there is the heartbeat, and nothing else.

use proto::{
    bilibili,
    packet::{Packet, operation},
};

use super::super::{Engine, limits::Verdict, session::Wire};
use machine::Key;

impl Engine {
    /// A packet of an authenticated session.
    pub(super) fn bilibili(&mut self, key: Key, packet: Packet<'_>) {
        // Who asks too often is answered until it is abuse: there is no way to say no.
        if self.draw(key) != Verdict::Abuse && packet.operation == operation::HEARTBEAT {
            let mut reply = Vec::new();
            let web = self.session(key).is_some_and(|session| matches!(session.wire, Wire::WebSocket(_)));
            let echo = if web { packet.body } else { &[] };
            bilibili::heartbeat_reply(packet.sequence, self.online_here(key), echo, &mut reply);
            self.turn(key, Some(&reply));
        }
    }
}
