//! What a fan-out is told: its options, and what of them cannot work.

use std::path::PathBuf;

use serde::Serialize;

use crate::credential::{ApiKey, Token};
use crate::dialect::Dialect;
use crate::error::Error;
use crate::limit::FAIR_WRITES_PER_CPU_S;
use crate::note::NOTE_BYTES;
use crate::output::Output;
use crate::owner;
use crate::processor::Cpus;
use crate::schedule::{Class, Schedule};
use crate::tally::Ledger;

/// Most viewers: as many sockets as some GiB of kernel memory hold.
const VIEWERS_MAX: u32 = 1_000_000;
/// Most rooms: five digits of their names.
const ROOMS_MAX: u32 = 100_000;
/// Most bytes of all ledgers together: over it the run is too long for its viewers.
const LEDGER_BYTES_MAX: u64 = 4 << 30;
/// Most servers that share the viewers.
const SERVERS_MAX: usize = 1000;
/// The longest payload that the API takes, bytes.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Deliveries a second that are checked one by one where it is not said: a tenth of a processor.
const CHECKED_PER_S: f64 = 200_000.0;
/// The same of Bilibili's, which are JSON, and may be compressed: 200,000 took two thirds of a processor, and the client was
/// what was measured.
const CHECKED_BILIBILI_PER_S: f64 = 25_000.0;

/// Which way messages go in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Through the whole pipeline, from the HTTP API.
    Http,
    /// Straight into a connector, as a job delivers.
    Connector,
}

/// Viewers in rooms, messages at a steady rate: deliveries a second, what is lost, how late they are.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct Fanout {
    /// Sessions, spread evenly over the rooms.
    #[arg(long, default_value_t = 1000)]
    pub viewers: u32,
    /// Messages a second, over all rooms.
    #[arg(long, default_value_t = 50.0)]
    pub rate: f64,
    /// Deliveries a second, instead of --rate: messages times the viewers of a room.
    #[arg(long, conflicts_with = "rates")]
    pub deliveries: Option<f64>,
    /// Rooms. They are new ones of this run.
    #[arg(long, default_value_t = 1)]
    pub rooms: u32,
    /// Rooms of unequal sizes, instead of --viewers and --rooms: `10000,500x10` is one of 10,000 and 500 of 10.
    #[arg(long, value_delimiter = ',', value_name = "[ROOMSx]SESSIONS", conflicts_with_all = ["rooms", "viewers"])]
    pub room_sizes: Vec<RoomSize>,
    /// Messages a second for each of --room-sizes, over all its rooms; else --rate is spread evenly over the rooms.
    #[arg(long, value_delimiter = ',', requires = "room_sizes")]
    pub rates: Vec<f64>,
    /// Bytes of a payload, at least 32: what somebody says, drawn out or cut off.
    #[arg(long, default_value_t = 64)]
    pub bytes: usize,
    /// Bytes of a message on the wire, instead of --bytes: native on WebSocket or TCP, goim without a batch's header.
    #[arg(long, conflicts_with = "bytes")]
    pub wire_bytes: Option<usize>,
    /// Messages as people write them, as long as each is; straight into a connector also of as many senders.
    #[arg(long, conflicts_with_all = ["bytes", "wire_bytes"])]
    pub chat: bool,
    /// How long messages are sent and measured.
    #[arg(long, default_value_t = 10)]
    pub seconds: u32,
    /// Messages that each room gets before, in 3 s at most: they must come, too, but what the server takes for them, and how
    /// late they are, is not measured. Linux acknowledges a connection's first 16 segments one by one, which the sender's
    /// processor pays for on loopback.
    #[arg(long, default_value_t = 20, value_name = "MESSAGES")]
    pub warm_up: u32,
    /// What the viewers speak; goim's messages are published by goim's call, all others' by our own.
    #[arg(long, value_enum, default_value = "native")]
    pub dialect: Dialect,
    /// The viewers connect by bare TCP, not by WebSocket.
    #[arg(long)]
    pub tcp: bool,
    /// The viewers offer permessage-deflate (RFC 7692), and the server must take it; of Bilibili's, whose compression is
    /// its own, there are dialects.
    #[arg(long, conflicts_with = "tcp")]
    pub compress: bool,
    /// Which way messages go in.
    #[arg(long, value_enum, default_value = "http")]
    pub via: Via,
    /// Where the viewers connect; several places share those of each room evenly.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:3102", value_name = "HOST:PORT,...")]
    pub connect: Vec<String>,
    /// Where the HTTP API answers.
    #[arg(long, default_value = "http://127.0.0.1:3111", value_name = "URL")]
    pub http: String,
    /// Where the connector takes jobs, for --via connector; several as those of --connect. Until its next start its own
    /// jobs then own none of the partitions of this run's rooms.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:3109", value_name = "HOST:PORT,...")]
    pub grpc: Vec<String>,
    /// The server's cluster.secret, for --via connector.
    #[arg(long, env = "BARRAGE_CLUSTER__SECRET", hide_env_values = true, default_value = "")]
    #[serde(skip)]
    pub secret: String,
    /// The server's bus.partitions, for --via connector.
    #[arg(long, default_value_t = 64)]
    pub partitions: u32,
    /// Where the server's metrics are, for writes and bytes.
    #[arg(long, value_delimiter = ',', value_name = "URL,...")]
    pub admin: Vec<String>,
    /// The server's processes on this machine, for their processor time.
    #[arg(long, value_delimiter = ',', value_name = "PID,...")]
    pub server_pid: Vec<u32>,
    /// Starts a server of its own for each run, `barrage run` in an empty directory, and measures `limit` after it.
    #[arg(long, conflicts_with_all = ["connect", "http", "grpc", "admin", "server_pid", "partitions"])]
    pub stand: bool,
    /// Another build of it.
    #[arg(long, value_name = "FILE", requires = "stand")]
    #[serde(skip)]
    pub server_binary: Option<PathBuf>,
    /// Its event-loop threads.
    #[arg(long, default_value_t = 1)]
    pub server_cores: u32,
    /// More of its configuration, as for `barrage run --set`.
    #[arg(long, value_name = "KEY=VALUE", requires = "stand")]
    pub set: Vec<String>,
    /// The processors that it runs on; the first one, if not said.
    #[arg(long, value_name = "CPUS")]
    pub server_cpus: Option<Cpus>,
    /// The processors that this runs on; with --stand all others, if not said.
    #[arg(long, value_name = "CPUS")]
    pub client_cpus: Option<Cpus>,
    /// Without `limit` after it.
    #[arg(long)]
    pub no_limit: bool,
    /// Checks one session of each room in so many message by message, and the others by their bytes. If it is not said,
    /// as many as make 200,000 deliveries a second (25,000 of Bilibili's, which are JSON).
    #[arg(long, value_name = "N")]
    pub check: Option<u32>,
    /// Two more sessions in the first room ask all the time: how long do a heartbeat and joining take?
    #[arg(long)]
    pub probe: bool,
    /// HTTP connections that publish; what one of them sends is checked to come in its order.
    #[arg(long, default_value_t = 16)]
    pub publishers: u32,
    /// Worker processes that receive, with one thread each; one is a thread of this process, if it may have the
    /// descriptors. 0: as many as descriptors require.
    #[arg(long, default_value_t = 0)]
    pub workers: u32,
    /// So many runs; the median of each number is told beside them.
    #[arg(long, default_value_t = 1)]
    pub runs: u32,
    /// Who the sessions are.
    #[command(flatten)]
    #[serde(skip)]
    pub token: Token,
    /// Who publishes.
    #[command(flatten)]
    #[serde(skip)]
    pub api_key: ApiKey,
    /// Where the result goes.
    #[command(flatten)]
    #[serde(skip)]
    pub output: Output,
}

/// Some rooms of one size: `SESSIONS`, or `ROOMSxSESSIONS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RoomSize {
    /// Rooms.
    pub rooms: u32,
    /// Of each.
    pub sessions: u32,
}

impl std::str::FromStr for RoomSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rooms, sessions) = text.split_once('x').unwrap_or(("1", text));
        match (rooms.parse(), sessions.parse()) {
            (Ok(rooms @ 1..), Ok(sessions @ 1..)) => Ok(Self { rooms, sessions }),
            _ => Err("want SESSIONS or ROOMSxSESSIONS, like 500x10".into()),
        }
    }
}

impl Fanout {
    /// What the options make; what cannot work is refused.
    pub(super) fn check(&self) -> Result<Schedule, Error> {
        let refuse = |right: bool, option, value: &dyn ToString, want: &str| {
            if right { Ok(()) } else { Err(Error::Option { option, value: value.to_string(), want: want.to_owned() }) }
        };
        let sizes = NOTE_BYTES..=PAYLOAD_BYTES_MAX;
        refuse(sizes.contains(&self.bytes), "bytes", &self.bytes, "32 to 65,536")?;
        refuse((1..=86_400).contains(&self.seconds), "seconds", &self.seconds, "1 to 86,400")?;
        refuse((1..=1024).contains(&self.publishers), "publishers", &self.publishers, "1 to 1,024")?;
        let places = self.connect.len();
        refuse((1..=SERVERS_MAX).contains(&places), "connect", &places, "1 to 1,000 places")?;
        let owned = self.via == Via::Http || self.stand || self.grpc.len() == places;
        refuse(owned, "grpc", &self.grpc.join(","), "as many as --connect, of the same connectors")?;
        refuse((1..=65_536).contains(&self.partitions), "partitions", &self.partitions, "1 to 65,536")?;
        refuse(self.check != Some(0), "check", &0, "at least 1")?;
        let deflates = matches!(self.dialect, Dialect::Native | Dialect::Goim);
        refuse(!self.compress || deflates, "compress", &true, "--dialect native or goim")?;
        let classes = if self.room_sizes.is_empty() {
            refuse((1..=VIEWERS_MAX).contains(&self.viewers), "viewers", &self.viewers, "1 to 1,000,000")?;
            refuse((1..=self.viewers).contains(&self.rooms), "rooms", &self.rooms, "1 to as many as viewers")?;
            vec![Class { rooms: self.rooms, sessions: self.viewers, rate: self.messages_per_s() }]
        } else {
            let rates = self.rates.len();
            refuse(rates == 0 || rates == self.room_sizes.len(), "rates", &rates, "one for each of --room-sizes")?;
            let rooms: f64 = self.room_sizes.iter().map(|size| f64::from(size.rooms)).sum();
            let sessions: f64 =
                self.room_sizes.iter().map(|size| f64::from(size.rooms) * f64::from(size.sessions)).sum();
            refuse(sessions <= f64::from(VIEWERS_MAX), "room-sizes", &sessions, "1,000,000 sessions at most")?;
            let rate = self.deliveries.map_or(self.rate, |deliveries| deliveries * rooms / sessions);
            let class = |(at, size): (usize, &RoomSize)| Class {
                rooms: size.rooms,
                sessions: size.rooms * size.sessions,
                rate: self.rates.get(at).copied().unwrap_or(rate * f64::from(size.rooms) / rooms),
            };
            self.room_sizes.iter().enumerate().map(class).collect()
        };
        let rooms: u64 = classes.iter().map(|class| u64::from(class.rooms)).sum();
        refuse(rooms <= ROOMS_MAX.into(), "rooms", &rooms, "100,000 at most")?;
        let messages: f64 = classes.iter().map(|class| class.rate * f64::from(self.seconds)).sum();
        let sound = classes.iter().all(|class| class.rate.is_finite() && class.rate >= 0.0);
        let right = sound && messages >= 1.0 && messages <= f64::from(u32::MAX / 2);
        refuse(right, "rate", &self.rate, "at least one message, and at most 2,000,000,000, in --seconds")?;
        let publishers = if self.via == Via::Connector { 1 } else { self.publishers };
        let servers = if self.stand { 1 } else { places as u32 };
        let schedule =
            Schedule::new(rand::random(), publishers, servers, (self.warm_up, self.seconds.into()), &classes);
        refuse(self.workers <= schedule.sessions(), "workers", &self.workers, "at most as many as viewers")?;
        refuse(
            self.ledger_bytes(&schedule) <= LEDGER_BYTES_MAX,
            "seconds",
            &self.seconds,
            "fewer, or a higher --check: what has come to each checked viewer is remembered, and would take more than 4 GiB",
        )?;
        Ok(schedule)
    }

    /// To rooms of one size.
    pub(crate) fn messages_per_s(&self) -> f64 {
        match self.deliveries {
            Some(deliveries) => deliveries * f64::from(self.rooms) / f64::from(self.viewers),
            None => self.rate,
        }
    }

    /// One session in how many is checked.
    pub(super) fn one_in(&self, schedule: &Schedule) -> u32 {
        let deliveries =
            schedule.classes().map(|class| class.rate * f64::from(class.sessions) / f64::from(class.rooms));
        let checked_per_s = match self.dialect {
            Dialect::Native | Dialect::Goim => CHECKED_PER_S,
            Dialect::Bilibili | Dialect::BilibiliZlib | Dialect::BilibiliBrotli => CHECKED_BILIBILI_PER_S,
        };
        self.check.unwrap_or((deliveries.sum::<f64>() / checked_per_s).ceil().max(1.0) as u32)
    }

    /// Of all ledgers.
    pub(super) fn ledger_bytes(&self, schedule: &Schedule) -> u64 {
        let one_in = self.one_in(schedule);
        let checked = (0..schedule.sessions()).filter(|session| schedule.is_checked(*session, one_in));
        checked.map(|session| Ledger::bytes(schedule.room_of_session(session), schedule)).sum()
    }

    /// Bytes of a payload; `None`: as long as what is said.
    pub(super) fn payload_bytes(&self, schedule: &Schedule) -> Result<Option<usize>, Error> {
        let Some(wire_bytes) = self.wire_bytes else { return Ok((!self.chat).then_some(self.bytes)) };
        let bytes = match self.dialect {
            Dialect::Native => {
                // ServerFrame's field 16 and the frame's own length (RFC 6455 section 5.2, or our four bytes).
                let framed = |payload: usize| {
                    let message = owner::message_bytes(schedule, payload);
                    let frame = message + 2 + prost::length_delimiter_len(message);
                    frame
                        + if self.tcp {
                            4
                        } else if frame < 126 {
                            2
                        } else {
                            4
                        }
                };
                (NOTE_BYTES..=wire_bytes.max(NOTE_BYTES)).rev().find(|payload| framed(*payload) <= wire_bytes)
            }
            Dialect::Goim => wire_bytes.checked_sub(proto::packet::HEADER_BYTES).filter(|bytes| *bytes >= NOTE_BYTES),
            _ => None,
        };
        bytes.map(Some).ok_or_else(|| Error::Option {
            option: "wire-bytes",
            value: wire_bytes.to_string(),
            want: "enough for what stands around a payload of 32 bytes; of Bilibili's only --bytes".into(),
        })
    }

    /// Whether the machine could write each message to each viewer by itself: then nothing is to be batched.
    pub(super) fn is_rare(&self) -> bool {
        let one_room = self.room_sizes.is_empty() && self.rooms == 1;
        one_room && self.deliveries.is_none() && self.rate * f64::from(self.viewers) < FAIR_WRITES_PER_CPU_S
    }
}
