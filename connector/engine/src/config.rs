//! What bounds the engine. A plain structure: the configuration file's section `connector` fills it.

use std::{net::IpAddr, sync::Arc};

use super::{compressed::Compressed, fault::Fault};

/// Limits and names. Milliseconds, seconds and bytes are in the fields' names.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Who may send a PROXY header: the proxies in front.
    pub proxies: Vec<Net>,
    /// The operations of message types, for goim's viewers.
    pub operations: proto::operation::Operations,
    /// Whether WebSockets that offer permessage-deflate get it.
    pub compression: bool,
    /// What the windows of clients that compress what they send take together on this core, bytes
    /// ([`proto::deflate::Window`]). Over it: an offer that needs one is declined.
    pub window_bytes_max: usize,
    /// What is compressed once for all cores.
    pub compressed: Arc<Compressed>,
    /// Web origins that may open a WebSocket (`https://live.example`); `*` allows every one. A handshake without
    /// `Origin` comes from no browser and is let in.
    pub origins: Vec<String>,
    /// Names that clients connect to, without ports: who sends one as both `Host` and `Origin` is no page of another
    /// site. Addresses and `localhost` are such names without being listed.
    pub names: Vec<String>,
    /// Sessions of this core, whatever their state. Over it: not accepted.
    pub sessions_max: u32,
    /// Connections of one address to this core; 0: any number.
    pub connections_per_address: u32,
    /// Count loopback addresses, too.
    pub limit_loopback: bool,
    /// From accepting to the end of authentication; then closed.
    pub auth_deadline_ms: u64,
    /// What native clients are told; twice this in silence closes.
    pub heartbeat_s: u32,
    /// Requests a second of one session. Over it: refused; `limits::DEBT_SECONDS` of it: closed.
    pub requests_per_s: u32,
    /// Requests that a session may have under way with logic. Over it: not read from until one is answered.
    pub requests_in_flight: u32,
    /// Payload of a client's message, bytes. Over it: refused.
    pub payload_bytes_max: u32,
    /// Rooms of one session. Over it: refused.
    pub rooms_per_session: u32,
    /// Rooms that this core did not have, a minute, by one session. Over it: refused.
    pub new_rooms_per_session: u32,
    /// The same by one address; 0: any number.
    pub new_rooms_per_address: u32,
    /// What one ring keeps for slow readers, bytes. Over it: they are skipped forward.
    pub ring_bytes_max: u32,
    /// What the rooms of this core keep of recent messages, bytes. Over it: those that have been quiet for longest keep a
    /// few.
    pub recent_bytes_max: usize,
    /// Private output that waits for one session, bytes. Half of it: not read from; all of it: closed.
    pub private_bytes_max: u32,
    /// A session that takes no byte for so long while there is something for it is closed.
    pub slow_close_s: u32,
    /// What the kernel may keep for one client that takes nothing, bytes.
    pub socket_bytes: u32,
    /// The same for all of them together on this core. Over it: who has taken nothing for longest is closed.
    pub stuck_bytes_max: u64,
    /// How long a token is still good after it lapsed: clocks differ.
    pub token_leeway_s: u32,
    /// How long a room without sessions is kept (rule 38).
    pub room_linger_s: u32,
    /// Sends of one round at most (rule 27).
    pub round_sends: u32,
    /// Longest pacing delay between two passes over a room, milliseconds. A delay is as long as the pass before it, so that
    /// a busy room's messages gather and cost fewer sends. 0: none.
    pub pacing_ms_max: u32,
    /// Bytes that gather in a pass which is not late however long it takes: a send of so many costs little more than a
    /// small one, so there is nothing to gain by dropping.
    pub late_bytes: u32,
    /// What a pass takes is reckoned by: sends that a core makes in a millisecond.
    pub sends_per_ms: u32,
    /// A draining node tells native clients to come back elsewhere after a random time up to this.
    pub drain_delay_max_ms: u32,
    /// A fault of the simulation's own, to show that it is found.
    #[cfg(test)]
    pub fault: Option<Fault>,
}

impl EngineConfig {
    /// Small, for tests: the limits can be reached.
    #[cfg(test)]
    #[must_use]
    pub fn small() -> Self {
        Self {
            proxies: Vec::new(),
            operations: proto::operation::Operations::default(),
            compression: true,
            window_bytes_max: 100_000,
            compressed: Arc::new(Compressed::new(2)),
            origins: Vec::new(),
            names: Vec::new(),
            sessions_max: 10_000,
            connections_per_address: 0,
            limit_loopback: false,
            auth_deadline_ms: 5000,
            heartbeat_s: 30,
            requests_per_s: 20,
            requests_in_flight: 8,
            payload_bytes_max: 4096,
            rooms_per_session: 8,
            new_rooms_per_session: 100,
            new_rooms_per_address: 0,
            ring_bytes_max: 64 * 1024,
            recent_bytes_max: 1 << 20,
            private_bytes_max: 64 * 1024,
            slow_close_s: 20,
            socket_bytes: 1,
            stuck_bytes_max: 10_000,
            token_leeway_s: 5,
            room_linger_s: 3,
            round_sends: 256,
            pacing_ms_max: 0,
            late_bytes: 2048,
            sends_per_ms: 1,
            drain_delay_max_ms: 5000,
            fault: None,
        }
    }

    /// The planted fault; none in a build that serves.
    pub(super) fn planted(&self) -> Option<Fault> {
        #[cfg(test)]
        return self.fault;
        #[cfg(not(test))]
        None
    }
}

/// A network in CIDR notation; a single address is one with all its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Net {
    address: IpAddr,
    bits: u8,
}

/// Not a network. The operator's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an address or a network: want `10.0.0.1`, `10.0.0.0/8` or `fd00::/8`")]
pub struct BadNet;

impl std::str::FromStr for Net {
    type Err = BadNet;

    fn from_str(text: &str) -> Result<Self, BadNet> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| BadNet)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| BadNet))?;
        if bits > most { Err(BadNet) } else { Ok(Self { address, bits }) }
    }
}

impl Net {
    /// Whether `address` lies within; an IPv4 address that came over IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let apart = match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(address)) => u128::from(u32::from(net) ^ u32::from(address)) << 96,
            (IpAddr::V6(net), IpAddr::V6(address)) => u128::from(net) ^ u128::from(address),
            _ => return false,
        };
        apart.leading_zeros() >= u32::from(self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_addresses() {
        let holds = |net: &str, address: &str| net.parse::<Net>().unwrap().contains(address.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.9.8.7") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("127.0.0.1", "127.0.0.1") && !holds("127.0.0.1", "127.0.0.2"));
        assert!(holds("127.0.0.1", "::ffff:127.0.0.1") && holds("0.0.0.0/0", "9.9.9.9"));
        assert!(holds("fd00::/8", "fd12::1") && !holds("fd00::/8", "fe80::1") && !holds("fd00::/8", "10.0.0.1"));
        assert!("10.0.0.0/33".parse::<Net>().is_err() && "ten".parse::<Net>().is_err());
    }
}
