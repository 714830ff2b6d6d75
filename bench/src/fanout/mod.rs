//! `barrage bench fanout`: viewers in rooms, messages to them at a steady rate.
//!
//! ```text
//!   (stand) ─▶ audience enters ─▶ publish (HTTP, or as the connectors' owner) ─▶ rest ─▶ sums ─▶ (limit) ─▶ report
//! ```
//!
//! All viewers are in their room before the first message is sent; the run ends by itself when everything that was
//! accepted has come, or when nothing comes any more.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) mod audience;
pub(crate) mod options;
pub(crate) mod places;
pub(crate) mod probe;
pub(crate) mod report;
pub(crate) mod series;
pub(crate) mod viewers;

pub use options::{Fanout, RoomSize, Via};

use self::audience::Audience;
use self::places::Places;
use self::probe::Probed;
use self::report::{Report, Run};
use self::series::Series;
use self::viewers::{Cast, Seen};
use crate::admission::{Admission, SESSION_BYTES};
use crate::clock::{now_ns, process_cpu};
use crate::environment::Environment;
use crate::error::Error;
use crate::figures::grouped;
use crate::limit::{FAIR_BYTES, Limit, LimitRow};
use crate::output::Printing;
use crate::owner::{self, Owner};
use crate::processor::{Cpus, pin, sides};
use crate::progress::Progress;
use crate::publish::{self, Published};
use crate::schedule::Schedule;
use crate::stand::{Spent, Stand};
use crate::tally::bit;

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
/// How long each way and size of `limit` is measured beside a run, seconds.
const LIMIT_SECONDS: f64 = 0.8;
/// The same beside a run in which nothing batches, which is held against little else, seconds.
const RARE_LIMIT_SECONDS: f64 = 2.0;
/// Descriptors a process should keep of its limit for `limit`'s two for each connection.
const LIMIT_SESSIONS_MAX: u32 = 5000;

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
                let plan = owner::DeliveryPlan {
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
                let plan = publish::PublishPlan {
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

    fn stand(&self, cpus: Option<Cpus>) -> Result<Stand, Error> {
        let plan = crate::stand::ServerPlan {
            binary: self.server_binary.clone(),
            cpus,
            cores: self.server_cores,
            set: self.set.clone(),
        };
        Stand::start(&plan).map_err(|error| Error::Server(error.to_string()))
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
