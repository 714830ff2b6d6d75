//! The `[connector]` section of the configuration. What each key means is said in `config/barrage.toml`, which is the
//! defaults.

use std::net::SocketAddr;
use std::sync::Arc;

use proto::config::{Invalid, require};
use proto::operation::Operations;
use serde::{Deserialize, Serialize};

use crate::driver::{Driver, Kind, SocketOptions};
use engine::config::Net;
use engine::{Compressed, EngineConfig};

/// Most cores: a session's ID and the engine have 16 bits for a core's number, and no machine has so many.
pub const CORES_MAX: usize = 1024;

/// What a connector is and what it allows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where clients connect, with any dialect.
    pub listen: Vec<SocketAddr>,
    /// What clients are told to connect to, `host:port`; empty: `listen`.
    pub advertised: Vec<String>,
    /// Where jobs connect.
    pub grpc: SocketAddr,
    /// What jobs are told to connect to, `host:port`; empty: `grpc`.
    pub grpc_advertised: String,
    /// Which loop runs a core.
    pub driver: Kind,
    /// Threads that serve clients; 0: one for each processor.
    pub cores: usize,
    /// Who may say by a PROXY header for whom it connects: addresses and networks.
    pub proxy_from: Vec<String>,
    /// Whether WebSockets that offer permessage-deflate get it.
    pub compression: bool,
    /// Web origins that may connect.
    pub origins: Vec<String>,
    /// The goim operation of each message type.
    pub operations: Operations,
    /// How long clients have to go when the connector is told to end, seconds.
    pub drain_s: u64,
    /// What one client may do.
    pub limits: Limits,
    /// What is kept for slow readers, and how much work goes in one piece.
    pub buffers: Buffers,
}

/// What one client may do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Connections of the whole process; 0: as many as it gets descriptors.
    pub connections: u32,
    /// Connections of one address; 0: any number.
    pub connections_per_address: u32,
    /// Whether that counts for loopback addresses, too.
    pub limit_loopback: bool,
    /// From connecting to the end of authentication, seconds.
    pub auth_s: u32,
    /// What native clients are told; twice this in silence closes. Seconds.
    pub heartbeat_s: u32,
    /// Requests a second of one session.
    pub requests_per_s: u32,
    /// Requests of one session that logic has not answered.
    pub requests_in_flight: u32,
    /// Payload of a client's message, bytes.
    pub payload_bytes: u32,
    /// Rooms that a session may be in.
    pub rooms_per_session: u32,
    /// Rooms that nobody here was in, a minute, by one session.
    pub new_rooms_per_session: u32,
    /// The same by one address; 0: any number.
    pub new_rooms_per_address: u32,
    /// How long after its lapse a token is good, seconds.
    pub token_leeway_s: u32,
}

/// What is kept for slow readers, and how much work goes in one piece.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Buffers {
    /// Of one room in one encoding on one core, bytes.
    pub ring_bytes: u32,
    /// Of recent messages in all rooms, bytes.
    pub recent_bytes: u64,
    /// Of what clients that send compressed messages may refer back to, all together, bytes.
    pub window_bytes: u64,
    /// Of one session's own output, bytes.
    pub private_bytes: u32,
    /// A session that takes nothing for so long is closed, seconds.
    pub slow_close_s: u32,
    /// What the kernel keeps for all clients together that take nothing, bytes.
    pub stuck_bytes: u64,
    /// How long a room that everyone has left is kept, seconds.
    pub room_linger_s: u32,
    /// Sends before others have their turn.
    pub round_sends: u32,
    /// Longest pacing delay of a busy room between two fan-out passes, milliseconds.
    pub pacing_ms: u32,
    /// Draining clients come back after a random time up to this, milliseconds.
    pub drain_delay_ms: u32,
    /// SO_SNDBUF of a client's socket, bytes.
    pub send_bytes: u32,
    /// SO_RCVBUF of a client's socket, bytes.
    pub receive_bytes: u32,
    /// TCP_NOTSENT_LOWAT of a client's socket, bytes.
    pub not_sent_bytes: u32,
}

/// `host:port` without the port; an IPv6 address keeps its brackets.
fn host_name(place: &str) -> &str {
    place.rsplit_once(':').map_or(place, |(name, _)| name)
}

impl Config {
    /// Whether all of it can work.
    ///
    /// # Errors
    /// [`Invalid`]: the first key that cannot.
    pub fn check(&self) -> Result<(), Invalid> {
        require(!self.listen.is_empty(), "connector.listen", "[]", "at least one address, as 127.0.0.1:3101")?;
        for (at, address) in self.listen.iter().enumerate() {
            let twice = address.port() != 0 && self.listen[..at].contains(address);
            require(!twice, "connector.listen", address, "each address once")?;
        }
        for advertised in &self.advertised {
            require(is_host_port(advertised), "connector.advertised", advertised, HOST_PORT)?;
        }
        let grpc = &self.grpc_advertised;
        require(grpc.is_empty() || is_host_port(grpc), "connector.grpc_advertised", grpc, HOST_PORT)?;
        let reachable = !grpc.is_empty() || !self.grpc.ip().is_unspecified();
        require(reachable, "connector.grpc_advertised", "\"\"", "host:port, as connector.grpc is every address")?;
        let told = !self.advertised.is_empty() || self.listen.iter().all(|address| !address.ip().is_unspecified());
        require(told, "connector.advertised", "[]", "host:port, as connector.listen has every address")?;
        require(self.cores <= CORES_MAX, "connector.cores", self.cores, "0 to 1024")?;
        for net in &self.proxy_from {
            require(net.parse::<Net>().is_ok(), "connector.proxy_from", net, "10.0.0.1, 10.0.0.0/8 or fd00::/8")?;
        }
        require(self.driver.is_built(), "connector.driver", self.driver, {
            "auto, uring or monoio (glommio: a binary built with --features connector/glommio)"
        })?;
        for origin in &self.origins {
            let right = origin == "*" || (origin.contains("://") && !origin.ends_with('/'));
            require(right, "connector.origins", origin, "https://host or https://host:port, without a path, or *")?;
        }
        require(self.operations.are_right(), "connector.operations", format!("{:?}", self.operations), {
            "a type is 1-32 of A-Z a-z 0-9 _ . - and no operation stands twice"
        })?;
        require((1..=3600).contains(&self.drain_s), "connector.drain_s", self.drain_s, "1 to 3600")?;
        self.limits.check()?;
        self.buffers.check()
    }

    /// Tries the driver. Returns which it comes to, and why.
    ///
    /// # Errors
    /// [`Invalid`]: the system refuses just the one that is asked for.
    pub(crate) fn driver(&self) -> Result<(Driver, String), Invalid> {
        self.driver.choose().map_err(|refused| Invalid {
            key: "connector.driver",
            value: format!("{} ({refused})", self.driver),
            want: "auto or monoio, or a system that permits it (kernel.io_uring_disabled, seccomp, Linux 6.1 or newer)",
        })
    }

    /// What the kernel keeps for one connection.
    pub(crate) fn socket_options(&self) -> SocketOptions {
        SocketOptions {
            send_buffer_bytes: self.buffers.send_bytes,
            receive_buffer_bytes: self.buffers.receive_bytes,
            not_sent_bytes: self.buffers.not_sent_bytes,
        }
    }

    /// What the engine of one of `cores` cores is told. The kernel shares connections out among the cores by their
    /// ports, not evenly, and one that has far fewer than the others is handed new ones: each may have half as many again
    /// as its part. While a core fills up so, an address can come to its end there before it has all that it may.
    pub(crate) fn engine(&self, cores: usize) -> EngineConfig {
        let part = |all: u32| match cores {
            1 => all,
            cores => (u64::from(all) * 3).div_ceil(2 * cores as u64) as u32,
        };
        let Limits { connections, connections_per_address, .. } = self.limits;
        EngineConfig {
            proxies: self.proxy_from.iter().filter_map(|net| net.parse().ok()).collect(),
            operations: self.operations.clone(),
            compression: self.compression,
            window_bytes_max: usize::try_from(self.buffers.window_bytes).unwrap_or(usize::MAX) / cores,
            compressed: Arc::new(Compressed::new(cores)),
            origins: self.origins.clone(),
            names: self.advertised.iter().map(|place| host_name(place).to_owned()).collect(),
            sessions_max: if connections == 0 { u32::MAX } else { part(connections) },
            connections_per_address: part(connections_per_address),
            limit_loopback: self.limits.limit_loopback,
            auth_deadline_ms: u64::from(self.limits.auth_s) * 1000,
            heartbeat_s: self.limits.heartbeat_s,
            requests_per_s: self.limits.requests_per_s,
            requests_in_flight: self.limits.requests_in_flight,
            payload_bytes_max: self.limits.payload_bytes,
            rooms_per_session: self.limits.rooms_per_session,
            new_rooms_per_session: self.limits.new_rooms_per_session,
            new_rooms_per_address: part(self.limits.new_rooms_per_address),
            ring_bytes_max: self.buffers.ring_bytes,
            recent_bytes_max: usize::try_from(self.buffers.recent_bytes).unwrap_or(usize::MAX) / cores,
            private_bytes_max: self.buffers.private_bytes,
            slow_close_s: self.buffers.slow_close_s,
            // The kernel doubles what it is told (socket(7)).
            socket_bytes: self.buffers.send_bytes * 2,
            stuck_bytes_max: self.buffers.stuck_bytes / cores as u64,
            token_leeway_s: self.limits.token_leeway_s,
            room_linger_s: self.buffers.room_linger_s,
            round_sends: self.buffers.round_sends,
            pacing_ms_max: self.buffers.pacing_ms,
            late_bytes: LATE_BYTES,
            sends_per_ms: SENDS_PER_MS,
            drain_delay_max_ms: self.buffers.drain_delay_ms,
        }
    }
}

/// What a core of today sends in a millisecond over loopback, where each takes 5 to 6 µs (`barrage bench limit`). Only what
/// a fan-out pass took is reckoned by it.
const SENDS_PER_MS: u32 = 180;
/// See [`EngineConfig::late_bytes`]: half of a socket's send buffer.
const LATE_BYTES: u32 = 32 * 1024;

const HOST_PORT: &str = "host:port";

fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Checks that each key lies in its range.
macro_rules! ranges {
    ($section:literal: $($value:expr, $key:literal, $low:literal..=$high:literal;)+) => {
        $(require(
            ($low..=$high).contains(&$value),
            concat!("connector.", $section, ".", $key),
            $value,
            concat!(stringify!($low), " to ", stringify!($high)),
        )?;)+
    };
}

impl Limits {
    fn check(&self) -> Result<(), Invalid> {
        ranges! { "limits":
            self.auth_s, "auth_s", 1..=300;
            self.heartbeat_s, "heartbeat_s", 1..=3600;
            self.requests_per_s, "requests_per_s", 1..=100_000;
            self.requests_in_flight, "requests_in_flight", 1..=1000;
            self.payload_bytes, "payload_bytes", 1..=4096;
            self.rooms_per_session, "rooms_per_session", 1..=10_000;
            self.new_rooms_per_session, "new_rooms_per_session", 1..=100_000;
            self.token_leeway_s, "token_leeway_s", 0..=3600;
        }
        Ok(())
    }
}

impl Buffers {
    fn check(&self) -> Result<(), Invalid> {
        ranges! { "buffers":
            self.ring_bytes, "ring_bytes", 262_144..=1_073_741_824;
            self.recent_bytes, "recent_bytes", 1_048_576..=1_099_511_627_776;
            self.window_bytes, "window_bytes", 0..=1_099_511_627_776;
            self.private_bytes, "private_bytes", 262_144..=67_108_864;
            self.slow_close_s, "slow_close_s", 1..=3600;
            self.stuck_bytes, "stuck_bytes", 16_777_216..=1_099_511_627_776;
            self.room_linger_s, "room_linger_s", 0..=3600;
            self.round_sends, "round_sends", 16..=65_536;
            self.pacing_ms, "pacing_ms", 0..=1000;
            self.drain_delay_ms, "drain_delay_ms", 0..=600_000;
            self.send_bytes, "send_bytes", 4096..=4_194_304;
            self.receive_bytes, "receive_bytes", 4096..=4_194_304;
            self.not_sent_bytes, "not_sent_bytes", 4096..=4_194_304;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The shipped section.
    pub(crate) fn shipped() -> Config {
        #[derive(Deserialize)]
        struct File {
            connector: Config,
        }
        let file = include_str!("../../config/barrage.toml");
        toml::from_str::<File>(file).expect("the shipped file is right").connector
    }

    #[test]
    fn the_shipped_defaults_are_right() {
        let config = shipped();
        config.check().unwrap();
        assert_eq!(config.listen, ["127.0.0.1:3101".parse().unwrap(), "127.0.0.1:3102".parse().unwrap()]);
        assert_eq!(config.grpc, "127.0.0.1:3109".parse().unwrap());
        assert_eq!(config.limits.auth_s, 5);
    }

    #[test]
    fn a_driver_that_is_not_in_the_binary_is_refused() {
        for name in ["auto", "uring", "monoio", "glommio"] {
            let mut config = shipped();
            config.driver = name.parse().unwrap();
            match config.check() {
                Ok(()) => assert!(name != "glommio" || cfg!(feature = "glommio")),
                Err(refused) => {
                    assert_eq!((refused.key, &*refused.value), ("connector.driver", "glommio"));
                    assert!(refused.want.contains("--features connector/glommio") && cfg!(not(feature = "glommio")));
                }
            }
        }
    }

    #[test]
    fn what_cannot_work_is_named() {
        type Change = fn(&mut Config);
        let broken: [(&str, Change); 8] = [
            ("connector.listen", |config| config.listen.clear()),
            ("connector.listen", |config| config.listen.push(config.listen[0])),
            ("connector.advertised", |config| config.advertised.push("live.example".into())),
            ("connector.advertised", |config| config.listen[0] = "0.0.0.0:3101".parse().unwrap()),
            ("connector.grpc_advertised", |config| config.grpc = "[::]:3109".parse().unwrap()),
            ("connector.proxy_from", |config| config.proxy_from.push("10.0.0.0/33".into())),
            ("connector.origins", |config| config.origins.push("https://live.example/".into())),
            ("connector.limits.heartbeat_s", |config| config.limits.heartbeat_s = 0),
        ];
        for (key, change) in broken {
            let mut config = shipped();
            change(&mut config);
            assert_eq!(config.check().unwrap_err().key, key);
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let text = toml::to_string(&shipped()).unwrap();
        assert!(toml::from_str::<Config>(&text).is_ok());
        assert!(toml::from_str::<Config>(&format!("lissten = []\n{text}")).is_err());
    }

    #[test]
    fn a_cores_part_of_a_limit_leaves_room_for_uneven_shares() {
        let config = shipped();
        assert_eq!(config.engine(1).connections_per_address, config.limits.connections_per_address);
        assert_eq!(config.engine(4).connections_per_address, (config.limits.connections_per_address * 3).div_ceil(8));
        assert_eq!(config.engine(4).sessions_max, u32::MAX);
    }
}
