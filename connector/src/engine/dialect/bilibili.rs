//! Bilibili live's requests (compat.md): after the authentication there is the heartbeat, and nothing else.

use proto::{
    bilibili,
    packet::{Packet, operation},
};

use super::super::{Engine, limits::Verdict};
use crate::driver::Key;

impl Engine {
    /// A packet of an authenticated session.
    pub(super) fn bilibili(&mut self, key: Key, packet: Packet<'_>) {
        if self.draw(key) == Verdict::Within && packet.operation == operation::HEARTBEAT {
            let mut reply = Vec::new();
            bilibili::heartbeat_reply(packet.sequence, self.online_here(key), &mut reply);
            self.turn(key, Some(&reply));
        }
    }
}
