//! `barrage bench fanout`: viewers in rooms, messages to them at a steady rate.
//!
//! ```text
//!   (stand) ─▶ audience enters ─▶ publish (HTTP, or as the connectors' owner) ─▶ rest ─▶ sums ─▶ (limit) ─▶ report
//! ```
//!
//! All viewers are in their room before the first message is sent; the run ends by itself when everything that was
//! accepted has come, or when nothing comes any more.

use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::admission::{Admission, SESSION_BYTES};
use crate::audience::Audience;
use crate::clock::{now_ns, process_cpu};
use crate::credential::{ApiKey, Token};
use crate::dialect::Dialect;
use crate::environment::Environment;
use crate::error::Error;
use crate::figures::grouped;
use crate::limit::{FAIR_BYTES, FAIR_WRITES_PER_CPU_S, Limit, LimitRow};
use crate::note::NOTE_BYTES;
use crate::output::{Output, Printing};
use crate::owner::{self, Owner};
use crate::places::Places;
use crate::probe::{self, Probed};
use crate::processor::{Cpus, pin, sides};
use crate::progress::Progress;
use crate::publish::{self, Published};
use crate::report::Report;
use crate::schedule::{Class, Schedule};
use crate::series::Series;
use crate::stand::{Spent, Stand};
use crate::tally::{Account, Ledger, bit};
use crate::viewers::{Cast, Seen};

/// Most viewers: as many sockets as some GiB of kernel memory hold.
const VIEWERS_MAX: u32 = 1_000_000;
/// Most rooms: five digits of their names.
const ROOMS_MAX: u32 = 100_000;
/// Most bytes of all ledgers together: over it the run is too long for its viewers.
const LEDGER_BYTES_MAX: u64 = 4 << 30;
/// Open files beside the sockets.
const OTHER_FILES: u64 = 64;
/// Between the last viewer's entry and the first message: what the entries set off has come to rest.
const SETTLING: Duration = Duration::from_millis(1200);
/// How old a server's counters may be while its cores are awake, with a margin.
const TOLD_EVERY: Duration = Duration::from_millis(50);
/// Nothing new for as long after the last message was answered: nothing more will come.
const QUIET: Duration = Duration::from_secs(3);
/// How often the progress is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Within which each worker has told how it stands.
const TELLING: Duration = Duration::from_millis(100);
/// Most servers that share the viewers.
const SERVERS_MAX: usize = 1000;
/// The longest payload that the API takes, bytes.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Deliveries a second that are checked one by one where it is not said: a tenth of a processor.
const CHECKED_PER_S: f64 = 200_000.0;
/// The same of Bilibili's, which are JSON, and may be compressed: 200,000 took two thirds of a processor, and the client was
/// what was measured.
const CHECKED_BILIBILI_PER_S: f64 = 25_000.0;
/// How long each way and size of `limit` is measured beside a run, seconds.
const LIMIT_SECONDS: f64 = 0.8;
/// The same beside a run in which nothing batches, which is held against little else, seconds.
const RARE_LIMIT_SECONDS: f64 = 2.0;
/// Descriptors a process should keep of its limit for `limit`'s two for each connection.
const LIMIT_SESSIONS_MAX: u32 = 5000;

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
    pub(crate) fn run(&self, commit: &str) -> Result<(), Error> {
        let runs = (0..self.runs.max(1)).map(|_| self.measure(commit)).collect::<Result<Vec<_>, _>>()?;
        let series = Series::new(runs);
        let last = series.runs.last().expect("there is at least one run");
        let mut latencies = vec![("delivered", &last.distribution)];
        if last.classes.len() > 1 {
            latencies.extend(last.classes.iter().map(|class| (class.name.as_str(), &class.distribution)));
        }
        let title = "fanout: latency from the intended time";
        match &series.runs[..] {
            [one] => self.output.tell(one, title, &latencies)?,
            _ => self.output.tell(&series, title, &latencies)?,
        }
        let faults: Vec<String> = series.runs.iter().filter_map(Report::fault).collect();
        if faults.is_empty() { Ok(()) } else { Err(Error::Fault(faults.join("; "))) }
    }

    /// Measures one run; blocks until it is over.
    ///
    /// # Errors
    /// [`Error`], but never [`Error::Fault`]: that is [`Report::fault`]'s to say.
    pub fn measure(&self, commit: &str) -> Result<Report, Error> {
        let (server, clients) = match sides().filter(|_| self.stand) {
            Some((server, clients)) => {
                (Some(self.server_cpus.clone().unwrap_or(server)), Some(self.client_cpus.clone().unwrap_or(clients)))
            }
            None => (self.server_cpus.clone(), self.client_cpus.clone()),
        };
        // Where a thread runs is inherited by those that it starts: the caller's stays as it is.
        thread::scope(|scope| {
            let measuring = scope.spawn(|| {
                clients.as_ref().map_or(Ok(()), pin)?;
                let environment = Environment { server_cpus: server.clone(), ..Environment::here(commit) };
                self.measured(environment, server, clients.clone())
            });
            measuring.join().map_err(|_| panicked())?
        })
    }

    fn measured(&self, environment: Environment, server: Option<Cpus>, clients: Option<Cpus>) -> Result<Report, Error> {
        let schedule = Arc::new(self.check()?);
        if self.stand {
            Admission::of_this_machine().server(schedule.sessions().into())?;
        }
        let stand = self.stand.then(|| self.stand(server.clone())).transpose()?;
        let places = Places::new(self, stand.as_ref())?;
        let cast = Cast {
            one_in: self.one_in(&schedule),
            schedule: (*schedule).clone(),
            dialect: self.dialect,
            tcp: self.tcp,
            compress: self.compress,
            servers: places.clients.clone(),
            token: self.token.token.clone(),
        };
        let accepted = Arc::new(AtomicU64::new(0));
        let bytes = self.payload_bytes(&schedule)?;
        let mut owners = Vec::new();
        if self.via == Via::Connector {
            for grpc in &places.grpc {
                let plan = owner::Plan {
                    schedule: schedule.clone(),
                    grpc: grpc.clone(),
                    secret: places.secret.clone(),
                    partitions: self.partitions,
                    bytes,
                };
                // All get the same: the first one's is the progress.
                let count = if owners.is_empty() { accepted.clone() } else { Arc::default() };
                owners.push(Owner::attach(plan, count).map_err(Error::Server)?);
            }
        }
        let progress = Progress::new();
        let memory_bytes = u64::from(schedule.sessions()) * SESSION_BYTES + self.ledger_bytes(&schedule);
        let other_files = u64::from(self.publishers) + OTHER_FILES;
        let mut audience = Audience::start(&cast, self.workers, memory_bytes, other_files)?;
        let stop = AtomicBool::new(false);
        let run = thread::scope(|scope| {
            // However this is left, the probes go.
            let _stop = Stop(&stop);
            enter(&mut audience, schedule.sessions().into(), &progress)?;
            thread::sleep(SETTLING);
            let probe = |ask: fn(&Cast, &AtomicBool) -> Probed| {
                let (cast, stop) = (&cast, &stop);
                let builder = thread::Builder::new().name("probe".into());
                builder.spawn_scoped(scope, move || ask(cast, stop))
            };
            let probes = if self.probe { Some((probe(probe::heartbeats)?, probe(probe::joins)?)) } else { None };

            let cpu = |audience: &mut Audience| Ok::<_, Error>(process_cpu() + audience.look(TELLING)?.cpu);
            let begin_ns = now_ns() + LOOK.as_nanos() as u64;
            let measured_ns = begin_ns + schedule.warming_ns;
            let mut before = None;
            // Until all is published; on its way it sees how the server stands when the measurement begins.
            let mut watch = |audience: &mut Audience, done: &dyn Fn() -> bool| -> Result<(), Error> {
                while before.is_none() || !done() {
                    let left = Duration::from_nanos(measured_ns.saturating_sub(now_ns()));
                    if left.is_zero() && before.is_none() {
                        before = Some((places.meter.read(), cpu(audience)?, Instant::now()));
                    }
                    let seen = audience.look(if before.is_none() { left.min(LOOK) } else { LOOK })?;
                    progress.show(|| state(&seen, &accepted, &schedule));
                }
                Ok(())
            };
            let published = if owners.is_empty() {
                let plan = publish::Plan {
                    schedule: schedule.clone(),
                    api: publish::Api {
                        dialect: self.dialect,
                        host: places.http.clone(),
                        api_key: self.api_key.api_key.clone(),
                    },
                    bytes,
                    begin_ns,
                };
                let counted = accepted.clone();
                let publishing = thread::Builder::new()
                    .name("publisher".into())
                    .spawn_scoped(scope, move || publish::run(plan, counted))?;
                watch(&mut audience, &|| publishing.is_finished())?;
                publishing.join().map_err(|_| panicked())??
            } else {
                owners.iter_mut().for_each(|owner| owner.start(begin_ns));
                watch(&mut audience, &|| owners.iter().all(Owner::is_done))?;
                let published: Option<Vec<Published>> = owners.iter_mut().map(Owner::published).collect();
                let published = published.ok_or_else(panicked)?;
                published.into_iter().reduce(Published::both).ok_or_else(panicked)?
            };
            rest(&mut audience, &cast, &published, |seen| progress.show(|| state(seen, &accepted, &schedule)))?;
            let (before, cpu_before, begun) = before.expect("it was watched until then");
            let client_cpus = (cpu(&mut audience)? - cpu_before).div_duration_f64(begun.elapsed());
            if !places.meter.admin.is_empty() {
                // Else the last writes would be missing from the counters, but not from the processor time.
                thread::sleep(TOLD_EVERY);
                places.clients.iter().for_each(|(_, address)| drop(TcpStream::connect_timeout(address, TOLD_EVERY)));
                thread::sleep(LOOK);
            }
            let spent = places.meter.read().since(&before);
            stop.store(true, Ordering::Relaxed);
            let account = audience.end(&published.accepted)?;
            let probes = probes.map(|(heartbeats, joins)| {
                Ok::<_, std::io::Error>((
                    heartbeats.join().map_err(|_| panicked())?,
                    joins.join().map_err(|_| panicked())?,
                ))
            });
            Ok::<_, Error>(Run {
                begin_ns,
                measured_ns,
                published,
                account,
                spent,
                client_cpus,
                probes: probes.transpose()?,
            })
        })?;
        progress.clear();
        drop((owners, stand));
        let limit = self.limit(&run.spent, schedule.sessions(), server, clients)?;
        Ok(Report::new(self, environment, &schedule, &run, limit))
    }

    /// What the options make; what cannot work is refused.
    fn check(&self) -> Result<Schedule, Error> {
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
    fn one_in(&self, schedule: &Schedule) -> u32 {
        let deliveries =
            schedule.classes().map(|class| class.rate * f64::from(class.sessions) / f64::from(class.rooms));
        let checked_per_s = match self.dialect {
            Dialect::Native | Dialect::Goim => CHECKED_PER_S,
            Dialect::Bilibili | Dialect::BilibiliZlib | Dialect::BilibiliBrotli => CHECKED_BILIBILI_PER_S,
        };
        self.check.unwrap_or((deliveries.sum::<f64>() / checked_per_s).ceil().max(1.0) as u32)
    }

    /// Of all ledgers.
    fn ledger_bytes(&self, schedule: &Schedule) -> u64 {
        let one_in = self.one_in(schedule);
        let checked = (0..schedule.sessions()).filter(|session| schedule.is_checked(*session, one_in));
        checked.map(|session| Ledger::bytes(schedule.room_of_session(session), schedule)).sum()
    }

    /// Bytes of a payload; `None`: as long as what is said.
    fn payload_bytes(&self, schedule: &Schedule) -> Result<Option<usize>, Error> {
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

    fn stand(&self, cpus: Option<Cpus>) -> Result<Stand, Error> {
        let plan = crate::stand::Plan {
            binary: self.server_binary.clone(),
            cpus,
            cores: self.server_cores,
            set: self.set.clone(),
        };
        Stand::start(&plan).map_err(|error| Error::Server(error.to_string()))
    }

    /// Whether the machine could write each message to each viewer by itself: then nothing is to be batched.
    fn is_rare(&self) -> bool {
        let one_room = self.room_sizes.is_empty() && self.rooms == 1;
        one_room && self.deliveries.is_none() && self.rate * f64::from(self.viewers) < FAIR_WRITES_PER_CPU_S
    }

    /// What the machine makes of writes as long as the server's were, to as many `sessions` as far as a process has
    /// descriptors, and of short ones, each by plain calls and by io_uring.
    fn limit(
        &self,
        spent: &Spent,
        sessions: u32,
        server: Option<Cpus>,
        clients: Option<Cpus>,
    ) -> Result<Option<Vec<LimitRow>>, Error> {
        let writes = spent.connector("writes").filter(|writes| *writes > 0);
        let Some((bytes, writes)) = spent.connector("sent_bytes").zip(writes).filter(|_| self.stand && !self.no_limit)
        else {
            return Ok(None);
        };
        let (rare, written) = (self.is_rare(), (bytes / writes).max(1) as usize);
        let limit = |sizes, pace| Limit {
            sessions: sessions.min(LIMIT_SESSIONS_MAX),
            sizes,
            seconds: if rare { RARE_LIMIT_SECONDS } else { LIMIT_SECONDS },
            pace,
            no_uring: false,
            server_cpus: server.clone(),
            client_cpus: clients.clone(),
            output: Printing::default(),
        };
        let mut sizes = vec![FAIR_BYTES];
        sizes.extend(Some(written).filter(|size| size.abs_diff(FAIR_BYTES) > FAIR_BYTES / 10));
        let mut rows = limit(sizes, 0.0).measure("")?.rows;
        if rare {
            // Nothing batches, and between messages everyone sleeps: the machine does the same, a round a message.
            rows.extend(limit(vec![written], self.rate).measure("")?.rows);
        }
        Ok(Some(rows))
    }
}

/// Waits until all viewers are in.
fn enter(audience: &mut Audience, sessions: u64, progress: &Progress) -> Result<(), Error> {
    loop {
        let entered = audience.look(LOOK).inspect_err(|_| progress.clear())?.entered;
        if entered >= sessions {
            return Ok(());
        }
        progress.show(|| format!("{} of {} viewers are in", grouped(entered), grouped(sessions)));
    }
}

/// For the progress.
fn state(seen: &Seen, accepted: &AtomicU64, schedule: &Schedule) -> String {
    format!(
        "{} of {} messages accepted, {} delivered to checked sessions, {} MB to all, {} closed",
        grouped(accepted.load(Ordering::Relaxed)),
        grouped(schedule.messages().into()),
        grouped(seen.delivered),
        grouped(seen.bytes / 1_000_000),
        grouped(seen.closed)
    )
}

/// Waits until everything has come, or nothing comes any more.
fn rest(audience: &mut Audience, cast: &Cast, published: &Published, show: impl Fn(&Seen)) -> Result<(), Error> {
    audience.rest()?;
    let schedule = &cast.schedule;
    let mut of_room = vec![0_u64; schedule.rooms() as usize];
    for number in (0..schedule.messages()).filter(|number| bit(&published.accepted, *number as usize)) {
        of_room[schedule.room_of(number) as usize] += 1;
    }
    let checked = (0..schedule.sessions()).filter(|session| schedule.is_checked(*session, cast.one_in));
    let expected: u64 = checked.map(|session| of_room[schedule.room_of_session(session) as usize]).sum();
    let mut last = ((0, 0), Instant::now());
    loop {
        let seen = audience.look(LOOK)?;
        show(&seen);
        let now = (seen.delivered, seen.bytes);
        if now != last.0 {
            last = (now, Instant::now());
        }
        // What was not accepted may have come too, so the count may be reached too early: then a look more does no
        // harm, and the ledgers are read exactly. The others' bytes come soon after, if they come.
        if last.1.elapsed() >= if now.0 < expected { QUIET } else { LOOK * 4 } {
            return Ok(());
        }
    }
}

/// Everything about one run.
pub(crate) struct Run {
    pub(crate) begin_ns: u64,
    /// When the measurement began.
    pub(crate) measured_ns: u64,
    pub(crate) published: Published,
    pub(crate) account: Account,
    pub(crate) spent: Spent,
    pub(crate) client_cpus: f64,
    /// Of heartbeats and of joins.
    pub(crate) probes: Option<(Probed, Probed)>,
}

/// Stops the probes when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn panicked() -> std::io::Error {
    std::io::Error::other("a thread of the bench panicked")
}
