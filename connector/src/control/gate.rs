//! Which logic is asked what: a session's requests go to one logic, in order, while that answers. A state machine without
//! streams or a clock: `logics` has the streams.
//!
//! A session's logic is chosen by rendezvous hashing among those that answer, so that nothing is kept for a session that
//! asks nothing. While a session has a request under way, its next one follows on the same stream.
//!
//! A logic from which nothing is heard is sent a *probe*, which it answers at once. One that does not answer that for
//! [`SILENT_AFTER`] is *silent*. Its requests are asked again at another logic, if there is one, and it gets no more of
//! them until it is heard again. The same is done when its stream ends.
//!
//! A publish is asked again only where that cannot double it: where it has a client message ID, or where the logic ended
//! its stream in order, since it has then answered all that it took. Any other publish is answered as "not known".
//!
//! Invariants, each the name of a test:
//! - `a_session_stays_with_its_logic_while_that_answers`;
//! - `every_request_is_answered_once`: by a logic, or by this table;
//! - `a_sender_s_messages_keep_their_order_whatever_logics_do`: what moves to another logic moves all at once, and in its
//!   order. The silent logic may still publish what it took. Each of those is then a repeat, because its repetition is in
//!   the log behind the same ones.

use std::hash::{Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use proto::cluster::gate_reply::Answer;
use proto::cluster::{GateRequest, gate_request};
use proto::error::outcome_unknown;
use rustc_hash::{FxHashMap, FxHasher};

use engine::event::logic_unreachable;
use machine::Key;

/// Requests under way on one stream; over it a request is answered as if no logic could be reached. Some 1 KiB each.
pub(super) const IN_FLIGHT_MAX: usize = 16 * 1024;

/// Requests under way for which room is kept.
const KEPT: usize = 1024;

/// How often [`Gate::look`] is to be called.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A logic that answers no probe for so long is silent. A logic answers one in milliseconds, also while the bus is away;
/// a new client is closed after five seconds.
const SILENT_AFTER: Duration = Duration::from_millis(900);
/// After a longer time between two looks this process stood still itself, and the time does not count.
const BLIND_MAX: Duration = Duration::from_millis(400);
const _: () =
    assert!(LOOK_EVERY.as_millis() * 2 < BLIND_MAX.as_millis() && BLIND_MAX.as_millis() * 2 < SILENT_AFTER.as_millis());
/// Logics that one request is asked of, one after the other: a request that makes its logic end does not end them all.
const LOGICS_ASKED_MAX: u8 = 3;

/// A stream to a logic, numbered as it came up.
pub(super) type LogicId = u64;

/// The sender of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// The engine of this core, by this number of its own.
    Core(usize, u64),
    /// The control thread itself, which does not wait for the answer.
    Control,
}

/// How a logic's stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// By the logic, in order: what it has not answered it has not taken.
    Ended,
    /// Otherwise: what it has not answered it may have taken.
    Broken,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub(super) enum Action {
    /// On this stream, in order.
    Send(LogicId, GateRequest),
    /// No logic answers this request any more.
    Answer(Asker, Answer),
    /// A logic has fallen silent.
    Silent(LogicId),
    /// A silent logic was heard again.
    Heard(LogicId),
}

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Streams that stand.
    logics: FxHashMap<LogicId, LogicStream>,
    pending: FxHashMap<u64, PendingRequest>,
    /// Sessions with requests under way: where, and how many.
    sessions: FxHashMap<(usize, Key), (LogicId, usize)>,
    last_id: u64,
    looked: Option<Instant>,
    actions: Vec<Action>,
}

#[derive(Debug, Default)]
struct LogicStream {
    /// Requests that it has not answered.
    in_flight: usize,
    /// Something came since the last look.
    heard: bool,
    /// The oldest probe that nothing was heard after, and since when its answer is waited for.
    probed: Option<Instant>,
    silent: bool,
}

#[derive(Debug)]
struct PendingRequest {
    by: Asker,
    session: Option<(usize, Key)>,
    logic: LogicId,
    /// Logics that were asked and may have taken it.
    asked: u8,
    /// To ask another.
    ask: gate_request::Ask,
}

impl Gate {
    /// Takes what is to be done.
    pub(super) fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// A stream stands.
    pub(super) fn up(&mut self, logic: LogicId) {
        self.logics.insert(logic, LogicStream::default());
        self.leave_silent_logics();
    }

    /// A stream ended.
    pub(super) fn down(&mut self, logic: LogicId, end: StreamEnd) {
        self.logics.remove(&logic);
        self.ask_others(logic, end);
    }

    /// A request: sent to a logic, or answered where none can be reached.
    pub(super) fn ask(&mut self, by: Asker, session: Option<(usize, Key)>, ask: gate_request::Ask) {
        self.last_id += 1;
        self.send(self.last_id, PendingRequest { by, session, logic: 0, asked: 0, ask });
    }

    /// A request did not get as far as its logic, which takes no more.
    pub(super) fn not_sent(&mut self, logic: LogicId, id: u64) {
        let Some(mut pending) = self.remove(logic, id) else { return };
        pending.asked -= 1;
        self.refuse(pending);
    }

    /// Something came from a logic.
    pub(super) fn heard(&mut self, logic: LogicId) {
        let Some(stream) = self.logics.get_mut(&logic) else { return };
        (stream.heard, stream.probed) = (true, None);
        if std::mem::take(&mut stream.silent) {
            self.actions.push(Action::Heard(logic));
            self.leave_silent_logics();
        }
    }

    /// An answer came. `None`: to nothing that this logic was asked last.
    pub(super) fn answered(&mut self, logic: LogicId, id: u64) -> Option<Asker> {
        self.remove(logic, id).map(|pending| pending.by)
    }

    fn remove(&mut self, logic: LogicId, id: u64) -> Option<PendingRequest> {
        if self.pending.get(&id).is_none_or(|pending| pending.logic != logic) {
            return None;
        }
        let pending = self.pending.remove(&id)?;
        if let Some(stream) = self.logics.get_mut(&logic) {
            stream.in_flight -= 1;
        }
        if let Some(session) = pending.session
            && let Some((_, requests)) = self.sessions.get_mut(&session)
        {
            *requests -= 1;
            if *requests == 0 {
                self.sessions.remove(&session);
            }
        }
        Some(pending)
    }

    /// A moment has passed: sends probes, and leaves those that have answered none for too long.
    pub(super) fn look(&mut self, now: Instant) {
        let blind = self.looked.is_some_and(|looked| now - looked > BLIND_MAX);
        self.looked = Some(now);
        let mut left = false;
        for (&logic, stream) in &mut self.logics {
            match stream.probed {
                Some(_) if blind => stream.probed = Some(now),
                Some(since) if !stream.silent && now - since >= SILENT_AFTER => {
                    stream.silent = true;
                    left = true;
                    self.actions.push(Action::Silent(logic));
                }
                Some(_) => {}
                None if stream.in_flight > 0 && !stream.heard => {
                    stream.probed = Some(now);
                    self.last_id += 1;
                    // Without an ask it is answered at once by any release, with an error.
                    self.actions.push(Action::Send(logic, GateRequest { id: self.last_id, ask: None }));
                }
                None => {}
            }
            stream.heard = false;
        }
        if left {
            self.leave_silent_logics();
        }
    }

    /// Gives back what a storm of requests has left.
    pub(super) fn shrink(&mut self) {
        if self.pending.capacity() > KEPT && self.pending.len() < self.pending.capacity() / 4 {
            self.pending.shrink_to(KEPT);
            self.sessions.shrink_to(KEPT);
        }
    }

    /// Streams that stand.
    pub(super) fn logics(&self) -> usize {
        self.logics.len()
    }

    /// Those of them whose logic is silent.
    pub(super) fn silent(&self) -> usize {
        self.logics.values().filter(|stream| stream.silent).count()
    }

    /// Requests under way.
    pub(super) fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Asks others what silent logics have not answered, if there are others.
    fn leave_silent_logics(&mut self) {
        if self.silent() == self.logics.len() {
            return;
        }
        let silent = self.logics.iter().filter(|(_, stream)| stream.silent && stream.in_flight > 0);
        for logic in silent.map(|(&logic, _)| logic).collect::<Vec<_>>() {
            self.ask_others(logic, StreamEnd::Broken);
        }
    }

    /// Asks other logics what one of them has not answered, in its order; or answers it.
    fn ask_others(&mut self, logic: LogicId, end: StreamEnd) {
        self.sessions.retain(|_, (of, _)| *of != logic);
        if let Some(stream) = self.logics.get_mut(&logic) {
            stream.in_flight = 0;
        }
        let mut left: Vec<_> = self.pending.extract_if(|_, pending| pending.logic == logic).collect();
        left.sort_unstable_by_key(|(id, _)| *id);
        for (id, mut pending) in left {
            pending.asked -= u8::from(end == StreamEnd::Ended);
            self.send(id, pending);
        }
    }

    /// Sends a request to a logic, if there is one and that cannot double it; else answers it.
    fn send(&mut self, id: u64, mut pending: PendingRequest) {
        let once = match &pending.ask {
            gate_request::Ask::Publish(publish) => pending.asked == 0 || !publish.client_message_id.is_empty(),
            _ => true,
        };
        let logic = (once && pending.asked < LOGICS_ASKED_MAX).then(|| self.choose(pending.session)).flatten();
        let stream = logic.and_then(|logic| Some((logic, self.logics.get_mut(&logic)?)));
        let Some((logic, stream)) = stream.filter(|(_, stream)| stream.in_flight < IN_FLIGHT_MAX) else {
            self.refuse(pending);
            return;
        };
        stream.in_flight += 1;
        (pending.logic, pending.asked) = (logic, pending.asked + 1);
        if let Some(session) = pending.session {
            self.sessions.entry(session).or_insert((logic, 0)).1 += 1;
        }
        self.actions.push(Action::Send(logic, GateRequest { id, ask: Some(pending.ask.clone()) }));
        self.pending.insert(id, pending);
    }

    /// Answers a request that no logic is asked any more.
    fn refuse(&mut self, pending: PendingRequest) {
        let answer = match &pending.ask {
            gate_request::Ask::Publish(publish) if pending.asked > 0 => {
                Answer::Error(outcome_unknown(&publish.client_message_id))
            }
            _ => logic_unreachable(),
        };
        self.actions.push(Action::Answer(pending.by, answer));
    }

    /// The logic for a session's next request; a silent one only where all are.
    fn choose(&self, session: Option<(usize, Key)>) -> Option<LogicId> {
        if let Some(&(logic, _)) = session.and_then(|session| self.sessions.get(&session)) {
            return Some(logic);
        }
        let logics = self.logics.iter().map(|(&logic, stream)| (!stream.silent, weight(logic, session), logic));
        logics.max().map(|(_, _, logic)| logic)
    }
}

fn weight(logic: LogicId, session: Option<(usize, Key)>) -> u64 {
    let mut hasher = FxHasher::default();
    (session, logic).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proto::cluster::{Join, Publish};

    use super::*;

    fn key(slot: u32) -> Option<(usize, Key)> {
        Some((0, Key { slot, generation: 1 }))
    }

    fn join() -> gate_request::Ask {
        gate_request::Ask::Join(Join::default())
    }

    fn publish(client_message_id: &str) -> gate_request::Ask {
        gate_request::Ask::Publish(Publish { client_message_id: client_message_id.into(), ..Publish::default() })
    }

    /// Asks, and returns where it went and by which number.
    fn ask(gate: &mut Gate, by: u64, slot: u32, ask: gate_request::Ask) -> Option<(LogicId, u64)> {
        gate.ask(Asker::Core(0, by), key(slot), ask);
        match gate.actions().pop() {
            Some(Action::Send(logic, request)) => Some((logic, request.id)),
            _ => None,
        }
    }

    /// What is done: `by>logic` is a request that is sent, `by=code` one that is answered.
    fn done(gate: &mut Gate) -> Vec<String> {
        let name = |action| match action {
            Action::Send(logic, GateRequest { ask: None, .. }) => format!("probe>{logic}"),
            Action::Send(logic, GateRequest { id, .. }) => match gate.pending[&id].by {
                Asker::Core(_, by) => format!("{by}>{logic}"),
                Asker::Control => format!("control>{logic}"),
            },
            Action::Answer(Asker::Core(_, by), Answer::Error(error)) => format!("{by}={:?}", error.code()),
            Action::Answer(by, answer) => format!("{by:?}={answer:?}"),
            Action::Silent(logic) => format!("silent {logic}"),
            Action::Heard(logic) => format!("heard {logic}"),
        };
        std::mem::take(&mut gate.actions).into_iter().map(name).collect()
    }

    /// Lets time pass, look by look.
    fn pass(gate: &mut Gate, now: &mut Instant, time: Duration) {
        let until = *now + time;
        while *now < until {
            *now += LOOK_EVERY;
            gate.look(*now);
        }
    }

    #[test]
    fn a_session_stays_with_its_logic_while_that_answers() {
        let mut gate = Gate::default();
        assert_eq!(ask(&mut gate, 1, 1, join()), None);
        gate.up(1);
        gate.up(2);
        let mut used = [0; 3];
        for slot in 0..1000 {
            let (logic, first) = ask(&mut gate, 1, slot, join()).unwrap();
            assert_eq!(ask(&mut gate, 2, slot, join()).unwrap().0, logic);
            gate.answered(logic, first).unwrap();
            used[logic as usize] += 1;
            // One more is under way: a new stream, even one that would be chosen, does not get the next.
            gate.up(3);
            assert_eq!(ask(&mut gate, 3, slot, join()).unwrap().0, logic);
            gate.down(3, StreamEnd::Broken);
        }
        assert!(used[1] > 300 && used[2] > 300, "{used:?}");
    }

    #[test]
    fn every_request_is_answered_once() {
        let mut gate = Gate::default();
        gate.up(1);
        let ids: Vec<_> = (0..3).map(|by| ask(&mut gate, by, 1, join()).unwrap().1).collect();
        assert_eq!(gate.answered(2, ids[0]), None, "by another logic");
        assert_eq!(gate.answered(1, ids[0]), Some(Asker::Core(0, 0)));
        assert_eq!(gate.answered(1, ids[0]), None, "twice");
        gate.down(1, StreamEnd::Broken);
        assert_eq!(done(&mut gate), ["1=Unavailable", "2=Unavailable"]);
        assert_eq!(gate.answered(1, ids[1]), None);
        assert_eq!((gate.in_flight(), gate.sessions.len()), (0, 0));
    }

    #[test]
    fn requests_under_way_are_bounded() {
        let mut gate = Gate::default();
        gate.up(1);
        for by in 0..IN_FLIGHT_MAX as u64 {
            ask(&mut gate, by, by as u32, join()).unwrap();
        }
        assert_eq!(ask(&mut gate, 0, 0, join()), None);
        assert_eq!(gate.answered(1, 7), Some(Asker::Core(0, 6)));
        assert!(ask(&mut gate, 0, 0, join()).is_some());
    }

    #[test]
    fn what_a_silent_logic_was_asked_is_asked_again_and_it_gets_no_more_until_it_is_heard() {
        let (mut gate, mut now) = (Gate::default(), Instant::now());
        gate.up(1);
        let (_, joining) = ask(&mut gate, 1, 1, join()).unwrap();
        ask(&mut gate, 2, 1, publish("named"));
        ask(&mut gate, 3, 1, publish(""));
        ask(&mut gate, 4, 1, publish("named too"));
        pass(&mut gate, &mut now, SILENT_AFTER / 2);
        assert_eq!(done(&mut gate), ["probe>1"]);
        pass(&mut gate, &mut now, SILENT_AFTER);
        assert_eq!(done(&mut gate), ["silent 1"], "there is no other");
        gate.up(2);
        assert_eq!(done(&mut gate), ["1>2", "2>2", "3=OutcomeUnknown", "4>2"]);
        for slot in 10..30 {
            assert_eq!(ask(&mut gate, 5, slot, join()).unwrap().0, 2);
        }
        assert_eq!(gate.answered(1, joining), None, "its answer comes too late");
        gate.heard(1);
        assert_eq!(done(&mut gate), ["heard 1"]);
        let of_1 = (30..60).filter(|slot| ask(&mut gate, 6, *slot, join()).unwrap().0 == 1);
        assert!(of_1.count() > 5);
    }

    #[test]
    fn a_logic_that_answers_probes_is_not_silent_however_long_the_bus_takes() {
        let (mut gate, mut now) = (Gate::default(), Instant::now());
        gate.up(1);
        gate.up(2);
        let (logic, id) = ask(&mut gate, 1, 1, publish("")).unwrap();
        for _ in 0..50 {
            pass(&mut gate, &mut now, SILENT_AFTER / 2);
            if done(&mut gate).iter().any(|action| action.starts_with("probe")) {
                gate.heard(logic);
            }
        }
        assert_eq!(done(&mut gate), [""; 0]);
        assert_eq!(gate.answered(logic, id), Some(Asker::Core(0, 1)));
        pass(&mut gate, &mut now, SILENT_AFTER * 3);
        assert_eq!(done(&mut gate), [""; 0], "nothing is under way: no probe");
    }

    #[test]
    fn time_in_which_this_process_stood_still_does_not_count() {
        let (mut gate, mut now) = (Gate::default(), Instant::now());
        gate.up(1);
        gate.up(2);
        let (logic, _) = ask(&mut gate, 1, 1, join()).unwrap();
        pass(&mut gate, &mut now, LOOK_EVERY * 2);
        assert_eq!(done(&mut gate), [format!("probe>{logic}")]);
        now += Duration::from_secs(60);
        gate.look(now);
        assert_eq!(done(&mut gate), [""; 0]);
        pass(&mut gate, &mut now, SILENT_AFTER);
        assert_eq!(done(&mut gate).len(), 2, "silent, and asked again");
    }

    #[test]
    fn what_a_logic_that_ends_in_order_has_not_answered_is_asked_again_and_what_one_that_broke_took_is_not_known() {
        let mut gate = Gate::default();
        gate.up(1);
        ask(&mut gate, 1, 1, publish(""));
        gate.up(2);
        gate.down(1, StreamEnd::Ended);
        assert_eq!(done(&mut gate), ["1>2"]);
        gate.down(2, StreamEnd::Broken);
        assert_eq!(done(&mut gate), ["1=OutcomeUnknown"]);
        gate.up(3);
        ask(&mut gate, 1, 1, publish("named"));
        gate.down(3, StreamEnd::Broken);
        assert_eq!(done(&mut gate), ["1=OutcomeUnknown"], "there is no other");
        gate.up(4);
        ask(&mut gate, 1, 1, publish("named"));
        gate.down(4, StreamEnd::Ended);
        assert_eq!(done(&mut gate), ["1=Unavailable"], "it was not taken");
    }

    #[test]
    fn a_request_that_ends_its_logic_does_not_end_them_all() {
        let mut gate = Gate::default();
        (1..=5).for_each(|logic| gate.up(logic));
        ask(&mut gate, 1, 1, join());
        let mut asked = 0;
        while let Some(logic) = gate.pending.values().next().map(|pending| pending.logic) {
            gate.actions();
            gate.down(logic, StreamEnd::Broken);
            asked += 1;
        }
        assert_eq!(asked, LOGICS_ASKED_MAX);
        assert_eq!(done(&mut gate), ["1=Unavailable"]);
    }
}
