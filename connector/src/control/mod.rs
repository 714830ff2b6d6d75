//! The control thread: the bridge between the cores and the cluster, on one thread with a runtime of its own.
//!
//! ```text
//!   cores ─asks─▶ gate ─requests─▶ logics     (ordered, batched; one stream a logic)
//!     ▲           holder ─holds──▶ jobs       (one stream a job, dialled by it)
//!     │           registry ──────▶ Routes     (lease, sessions, numbers)
//!     └─inputs─ ports ◀── replies, deliveries, pushes, online numbers
//! ```
//!
//! [`gate`], [`holder`], [`ports`] and [`registry`] are state machines without I/O; [`logics`], [`delivery`] and
//! [`leases`] move bytes for them. One lock guards all state; it is never held over a wait, and as everything runs on
//! this thread, it is never contended.
//!
//! Nothing here ever waits for a core: what a core's queue has no room for is dropped and counted, or kept (`ports`).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::cluster::{
    FromOwner, GateReply, GateRequest, HolderHello, command_out, from_holder, from_owner, gate_reply, gate_request,
};
use proto::ready::Function;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::core::StampedInput;
use crate::driver::Port;
use engine::event::{CoreRequest, Input, Push, logic_unreachable};
use machine::Key;

mod delivery;
mod gate;
mod holder;
mod leases;
mod logics;
mod metrics;
mod outbox;
mod ports;
mod registry;
#[cfg(test)]
mod simulation;
mod thread;

pub(crate) use ports::INPUTS_MAX;
pub(crate) use thread::{ControlHandle, ControlPlan, spawn};

use self::gate::{Asker, Gate, LogicId, StreamEnd};
use self::holder::{Action, Holder, StreamId};
use self::outbox::Outbox;
use self::ports::Ports;
use self::registry::Registry;

/// Batches of cores' asks that wait for the control thread, each of up to 64. Over it the cores keep their own.
pub(crate) const ASK_BATCHES_MAX: usize = 64;
/// Asks that are handled before others have their turn.
const ASKS_A_TURN: usize = 256;
/// A job is told what has come after this: it keeps that in its queue for as long, and a write for each frame was a tenth of
/// what this thread did.
const ACK_AFTER: Duration = Duration::from_millis(5);
/// Rooms without an owner for so long are an outage: a partition moves within a second or two, and Kafka's group, which is
/// asked where no other job is left, takes up to seven.
const OWNERLESS_MAX: Duration = Duration::from_secs(10);
/// How often what a core had no room for is offered again.
const RETRY_EVERY: Duration = Duration::from_millis(5);

/// Everything that the control thread's tasks share.
struct Control {
    state: Mutex<ControlState>,
    metrics: metrics::Control,
    /// Who we are, as in our lease: the first frame on every job's stream.
    hello: HolderHello,
    /// There is something to write to Routes.
    write: Notify,
    /// The lease has changed.
    renew_now: Notify,
    /// A core is behind.
    behind: Notify,
    /// A core was told something, and is to be woken.
    told: Arc<Notify>,
    /// Something is to be acknowledged.
    unacknowledged: Notify,
    draining: AtomicBool,
    /// The last renewal went well.
    leased: AtomicBool,
    /// One renewal went well.
    known: AtomicBool,
    /// Rooms of this node have had no owner for longer than [`OWNERLESS_MAX`].
    ownerless: AtomicBool,
}

struct ControlState {
    gate: Gate,
    holder: Holder,
    ports: Ports<Port<StampedInput>>,
    registry: Registry,
    logics: FxHashMap<LogicId, LogicStream>,
    owners: FxHashMap<StreamId, OwnerStream>,
    last_stream: u64,
}

/// A logic's stream.
struct LogicStream {
    node: String,
    requests: mpsc::Sender<GateRequest>,
}

/// A job's stream.
struct OwnerStream {
    /// The job's incarnation. `None`: it is of an older release, and did not say.
    job: Option<String>,
    outbox: Arc<Outbox>,
    /// Cancelled when the stream is to end.
    broken: CancellationToken,
}

impl Control {
    fn new(ports: Vec<Port<StampedInput>>, hello: HolderHello, metrics: metrics::Control) -> Self {
        let (registry, told) = (Registry::new(ports.len()), Arc::new(Notify::new()));
        Self {
            state: Mutex::new(ControlState {
                gate: Gate::default(),
                holder: Holder::default(),
                ports: Ports::new(ports, told.clone(), metrics.clone()),
                registry,
                logics: FxHashMap::default(),
                owners: FxHashMap::default(),
                last_stream: 0,
            }),
            metrics,
            hello,
            write: Notify::new(),
            renew_now: Notify::new(),
            behind: Notify::new(),
            told,
            unacknowledged: Notify::new(),
            draining: AtomicBool::new(false),
            leased: AtomicBool::new(false),
            known: AtomicBool::new(false),
            ownerless: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ControlState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what the cores ask, until they have all ended.
    async fn serve_cores(&self, mut asks: mpsc::Receiver<(usize, Vec<CoreRequest>)>) {
        let mut handled = 0;
        while let Some((core, asks)) = asks.recv().await {
            handled += asks.len();
            asks.into_iter().for_each(|ask| self.asked(core, ask));
            if handled >= ASKS_A_TURN {
                handled = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    fn asked(&self, core: usize, ask: CoreRequest) {
        match ask {
            CoreRequest::Gate { id, session, ask } => self.ask_logic(Asker::Core(core, id), Some((core, session)), ask),
            CoreRequest::Hold { channel, ticket } => {
                let mut state = self.lock();
                state.holder.hold(core, &channel, ticket);
                self.act(&mut state);
            }
            CoreRequest::Release { channel } => {
                let mut state = self.lock();
                state.holder.release(core, &channel);
                self.act(&mut state);
            }
            CoreRequest::Routes(changes) => {
                self.lock().registry.change(&changes);
                self.write.notify_one();
            }
            CoreRequest::Told { next } => {
                self.lock().registry.told(core, next);
                self.write.notify_one();
            }
            CoreRequest::Counts(counts) => {
                self.lock().registry.count(core, counts);
                self.write.notify_one();
            }
            CoreRequest::Sessions { sessions, came, went } => {
                self.lock().registry.sessions(core, sessions, &came, &went)
            }
            CoreRequest::OriginRefused { origin, count } => {
                tracing::warn!(origin, count, "a page was refused: connector.origins does not list its origin");
            }
        }
    }

    /// Asks a logic, or answers at once that there is none.
    fn ask_logic(&self, by: Asker, session: Option<(usize, Key)>, ask: gate_request::Ask) {
        let mut state = self.lock();
        state.gate.ask(by, session, ask);
        self.metrics.gate_requests.inc();
        self.act_for_gate(&mut state);
    }

    /// A logic's stream stands.
    fn logic_up(&self, node: &str, requests: mpsc::Sender<GateRequest>) -> LogicId {
        let mut state = self.lock();
        state.last_stream += 1;
        let id = state.last_stream;
        state.logics.insert(id, LogicStream { node: node.to_owned(), requests });
        state.gate.up(id);
        self.act_for_gate(&mut state);
        id
    }

    /// A logic's stream ended.
    fn logic_down(&self, id: LogicId, end: StreamEnd) {
        let mut state = self.lock();
        state.logics.remove(&id);
        state.gate.down(id, end);
        self.act_for_gate(&mut state);
        if state.gate.logics() == 0 && !self.draining.load(Ordering::Relaxed) {
            tracing::warn!("no logic is left: new clients are refused, and clients of this node can publish nothing");
        }
    }

    /// Logic answered.
    fn replies(&self, logic: LogicId, replies: Vec<GateReply>) {
        let mut state = self.lock();
        state.gate.heard(logic);
        for reply in replies {
            let answer = reply.answer.unwrap_or_else(logic_unreachable);
            if let Some(Asker::Core(core, id)) = state.gate.answered(logic, reply.id) {
                state.ports.must(core, Input::Reply { id, answer });
            }
        }
        self.act_for_gate(&mut state);
    }

    /// Leaves logics that do not answer. Never ends.
    async fn watch_logics(&self) {
        let mut looks = tokio::time::interval(gate::LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let mut state = self.lock();
            state.gate.look(Instant::now());
            self.act_for_gate(&mut state);
        }
    }

    /// Does what the gate wants done.
    fn act_for_gate(&self, state: &mut ControlState) {
        let mut actions = VecDeque::from(state.gate.actions());
        while let Some(action) = actions.pop_front() {
            match action {
                gate::Action::Send(logic, request) => {
                    let id = request.id;
                    // A stream that has just ended has its requests asked elsewhere, as soon as that is known here.
                    if let Some(stream) = state.logics.get(&logic)
                        && let Err(mpsc::error::TrySendError::Full(_)) = stream.requests.try_send(request)
                    {
                        state.gate.not_sent(logic, id);
                        actions.extend(state.gate.actions());
                    }
                }
                gate::Action::Answer(by, answer) => self.answer(state, by, answer),
                gate::Action::Silent(logic) => {
                    let node = state.logics.get(&logic).map(|stream| &stream.node);
                    tracing::warn!(node, "a logic does not answer: what it was asked is asked of others");
                }
                gate::Action::Heard(logic) => {
                    let node = state.logics.get(&logic).map(|stream| &stream.node);
                    tracing::info!(node, "a logic answers again");
                }
            }
        }
        self.metrics.logics.set(state.gate.logics() as i64);
        self.metrics.silent_logics.set(state.gate.silent() as i64);
        self.metrics.gate_in_flight.set(state.gate.in_flight() as i64);
        self.note_behind(state);
    }

    /// Answers a request in a logic's place.
    fn answer(&self, state: &mut ControlState, by: Asker, answer: gate_reply::Answer) {
        self.metrics.gate_unreachable.inc();
        if let Asker::Core(core, id) = by {
            state.ports.must(core, Input::Reply { id, answer });
        }
    }

    /// A job's stream stands. The token is cancelled when it is to end. An older stream of the same job is ended: the job
    /// has lost it, and its end has not come here yet.
    fn attach(&self, job: Option<String>) -> (StreamId, Arc<Outbox>, CancellationToken) {
        let mut state = self.lock();
        let older = |(id, stream): (&StreamId, &OwnerStream)| (job.is_some() && stream.job == job).then_some(*id);
        for id in state.owners.iter().filter_map(older).collect::<Vec<_>>() {
            if let Some(older) = state.owners.remove(&id) {
                older.outbox.end(Some(tonic::Status::aborted("the same job has attached anew")));
                older.broken.cancel();
            }
            state.holder.detached(id);
        }
        state.last_stream += 1;
        let (id, outbox, broken) = (state.last_stream, Arc::new(Outbox::default()), CancellationToken::new());
        state.owners.insert(id, OwnerStream { job, outbox: outbox.clone(), broken: broken.clone() });
        self.metrics.owners.set(state.owners.len() as i64);
        outbox.send(from_holder::Frame::Hello(self.hello.clone()));
        (id, outbox, broken)
    }

    /// A job's stream ended.
    fn detach(&self, id: StreamId) {
        let mut state = self.lock();
        state.owners.remove(&id);
        state.holder.detached(id);
        self.metrics.owners.set(state.owners.len() as i64);
    }

    /// A job sent a frame.
    fn frame(&self, from: StreamId, frame: FromOwner) {
        let mut state = self.lock();
        if !state.owners.contains_key(&from) {
            // Another stream has taken its place.
            return;
        }
        match frame.frame {
            Some(from_owner::Frame::Push(push)) => self.push(&mut state, push),
            Some(from_owner::Frame::Command(command)) => {
                let Some(act) = command.act else { return };
                self.command(&mut state, &command.sessions, act);
            }
            frame => {
                if let Some(from_owner::Frame::Deliver(deliver)) = &frame {
                    self.metrics.delivered.inc_by(deliver.items.len() as u64);
                    self.metrics.came(deliver.queued_us);
                }
                state.holder.frame(from, FromOwner { frame });
                self.act(&mut state);
            }
        }
        self.note_behind(&state);
    }

    fn push(&self, state: &mut ControlState, push: proto::cluster::PushOut) {
        let all = Arc::new(Push { message: push.message, raw: push.raw, operation: push.operation });
        if !push.all {
            for (core, keys) in self.by_core(&push.sessions) {
                state.ports.may(core, Input::Push(keys, all.clone()));
            }
            return;
        }
        let sessions = state.registry.session_count().max(1);
        for core in 0..state.ports.len() {
            // Its share of the pace; at least one, or it would never end.
            let share = u64::from(push.sessions_per_s) * state.registry.sessions_of(core) / sessions;
            let per_s = if push.sessions_per_s == 0 { 0 } else { share.max(1) as u32 };
            state.ports.may(core, Input::PushAll(all.clone(), per_s));
        }
    }

    fn command(&self, state: &mut ControlState, sessions: &[String], act: command_out::Act) {
        let act = Arc::new(act);
        for (core, keys) in self.by_core(sessions) {
            state.ports.must(core, Input::Command(keys, act.clone()));
        }
    }

    /// The keys of those sessions that are of this start, by core.
    fn by_core(&self, sessions: &[String]) -> FxHashMap<usize, Vec<Key>> {
        let mut by_core: FxHashMap<usize, Vec<Key>> = FxHashMap::default();
        for (core, key) in sessions.iter().filter_map(|session| session_key(session, &self.hello.incarnation)) {
            by_core.entry(core).or_default().push(key);
        }
        by_core
    }

    /// Does what the holder wants done.
    fn act(&self, state: &mut ControlState) {
        for action in state.holder.actions() {
            match action {
                Action::Send(stream, frame) => {
                    if let Some(owner) = state.owners.get(&stream) {
                        owner.outbox.send(frame);
                    }
                }
                Action::Ack(stream, ack) => {
                    if let Some(owner) = state.owners.get(&stream) {
                        owner.outbox.ack(ack);
                        self.unacknowledged.notify_one();
                    }
                }
                Action::Held(core, held) => state.ports.held(core, held),
                Action::Deliver(core, items) => state.ports.deliver(core, items),
                Action::Break(stream, reason) => {
                    tracing::warn!(reason, "a job's stream is ended");
                    if let Some(owner) = state.owners.get(&stream) {
                        owner.outbox.end(Some(tonic::Status::failed_precondition(reason)));
                        owner.broken.cancel();
                    }
                }
            }
        }
        self.note_behind(state);
    }

    fn note_behind(&self, state: &ControlState) {
        if state.ports.is_behind() {
            self.behind.notify_one();
        }
    }

    /// Wakes the cores that were told something, after everything that was at hand: one that is woken may take this
    /// thread's place on the processor at once. Never ends.
    async fn wake_cores(&self) {
        loop {
            self.told.notified().await;
            self.lock().ports.wake();
        }
    }

    /// Offers again what cores had no room for. Never ends.
    async fn retry(&self) {
        loop {
            self.behind.notified().await;
            while self.lock().ports.retry() {
                tokio::time::sleep(RETRY_EVERY).await;
            }
        }
    }

    /// Acknowledges what has come, a while later and all at once. Never ends.
    async fn acknowledge(&self) {
        loop {
            self.unacknowledged.notified().await;
            tokio::time::sleep(ACK_AFTER).await;
            self.lock().owners.values().for_each(|owner| owner.outbox.acknowledge());
        }
    }

    /// Once a second: ends streams of jobs that take nothing, and sets the gauges that are not worth keeping at every
    /// change. Never ends.
    async fn measure(&self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let mut unowned_since = None;
        loop {
            ticks.tick().await;
            let mut state = self.lock();
            state.gate.shrink();
            for owner in state.owners.values().filter(|owner| owner.outbox.is_stalled()) {
                tracing::warn!(job = owner.job, "a job takes nothing from its stream: it is ended");
                owner.outbox.end(Some(tonic::Status::aborted("nothing was taken from this stream")));
                owner.broken.cancel();
            }
            let (channels, asking) = state.holder.sizes();
            let unowned = state.holder.unowned();
            drop(state);
            self.watch_owners(unowned, &mut unowned_since);
            self.metrics.channels.set(channels as i64);
            self.metrics.holds.set(asking as i64);
        }
    }

    /// What works of what this node does.
    fn ready(&self) -> Vec<Function> {
        let state = |works: bool, reason: &str| if works { Ok(()) } else { Err(reason.to_owned()) };
        let (leased, known) = (self.leased.load(Ordering::Relaxed), self.known.load(Ordering::Relaxed));
        let logics = self.lock().gate.logics() > 0;
        vec![
            Function::vital("clients", state(!self.draining.load(Ordering::Relaxed), "draining")),
            // Without a lease from its start on, no job knows this node. Later the streams stand without it.
            Function::vital("joined", state(known, "the lease was never taken: routes cannot be reached")),
            Function::vital("logic", state(logics, "no logic can be reached")),
            Function::vital(
                "rooms",
                state(!self.ownerless.load(Ordering::Relaxed), "rooms have no owner: no job delivers them"),
            ),
            Function::other("pushes", state(leased, "the lease is not renewed: routes cannot be reached")),
        ]
    }

    /// Notes for how long rooms of this node have had no owner; says it once when that begins to matter, and when it ends.
    fn watch_owners(&self, unowned: usize, since: &mut Option<Instant>) {
        self.metrics.unowned_partitions.set(unowned as i64);
        if unowned == 0 {
            *since = None;
            if self.ownerless.swap(false, Ordering::Relaxed) {
                tracing::info!("every partition that this node has rooms of has an owner again");
            }
        } else if since.get_or_insert_with(Instant::now).elapsed() >= OWNERLESS_MAX
            && !self.ownerless.swap(true, Ordering::Relaxed)
        {
            tracing::error!(
                partitions = unowned,
                "rooms of this node have no owner: no job delivers their messages. Is a job running, and does it reach this node?"
            );
        }
    }
}

/// Core and key of a session ID of this start: `<incarnation>.<core>.<slot>.<generation>`, numbers in hex.
fn session_key(session: &str, incarnation: &str) -> Option<(usize, Key)> {
    let mut numbers = session.strip_prefix(incarnation)?.strip_prefix('.')?.split('.');
    let mut number = || u32::from_str_radix(numbers.next()?, 16).ok();
    let (core, slot, generation) = (number()?, number()?, number()?);
    numbers.next().is_none().then_some((core as usize, Key { slot, generation }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_found_by_its_id() {
        let key = Some((10, Key { slot: 0x1f, generation: 3 }));
        assert_eq!(session_key("abc.a.1f.3", "abc"), key);
        for other in ["abd.a.1f.3", "abc.a.1f", "abc.a.1f.3.4", "abc.a.xyz.3", "abca.1f.3", ""] {
            assert_eq!(session_key(other, "abc"), None, "{other}");
        }
    }
}
