//! Plays [`super::super::gate::Gate`] against logics that stand still, go on, end in order, break off and come back, under
//! random schedules. A logic whose stream broke, or that was silent, still publishes what it took. The log keeps the
//! first one of a message ID, as job does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use machine::Key;
use proto::client::ErrorCode;
use proto::cluster::gate_reply::Answer;
use proto::cluster::gate_request::Ask;
use proto::cluster::{GateRequest, Join, Publish};

use super::Random;
use crate::control::gate::{Action, Asker, Gate, LOOK_EVERY, LogicId, StreamEnd};

const SEEDS: u64 = 2000;
const STEPS: usize = 400;
const SESSIONS: usize = 4;
const LOGICS_MAX: usize = 3;

/// One message or subscription of a session: its session, and its number there.
type Name = (usize, u64);

#[derive(Default)]
struct Logic {
    /// What it has not read.
    inbox: VecDeque<GateRequest>,
    /// What it has given to the bus, which has not taken it.
    publishing: VecDeque<(u64, Name)>,
    /// Answers that have not come to the connector.
    out: VecDeque<u64>,
    stopped: bool,
    /// Takes nothing more, and ends its stream when it has answered.
    draining: bool,
    /// Its stream broke: nobody hears its answers.
    broken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Unavailable,
    Unknown,
}

struct World {
    random: Random,
    gate: Gate,
    now: Instant,
    logics: BTreeMap<LogicId, Logic>,
    last_logic: LogicId,
    /// Requests of each session.
    asked: [u64; SESSIONS],
    /// Messages that have a client message ID.
    named: BTreeSet<Name>,
    /// Each message, once or more, in the order of the log.
    log: Vec<Name>,
    outcomes: BTreeMap<Name, Outcome>,
    /// What happened, to tell a short run from one that tried nothing.
    seen: BTreeSet<&'static str>,
}

impl World {
    fn new(random: Random) -> Self {
        Self {
            random,
            gate: Gate::default(),
            now: Instant::now(),
            logics: BTreeMap::new(),
            last_logic: 0,
            asked: [0; SESSIONS],
            named: BTreeSet::new(),
            log: Vec::new(),
            outcomes: BTreeMap::new(),
            seen: BTreeSet::new(),
        }
    }

    fn step(&mut self) {
        let chance = self.random.below(1000);
        let standing = self.logics.values().filter(|logic| !logic.broken).count();
        match chance {
            0..200 => self.ask(),
            200..220 if standing < LOGICS_MAX => {
                self.last_logic += 1;
                self.logics.insert(self.last_logic, Logic::default());
                self.gate.up(self.last_logic);
            }
            220..290 => self.pass(1),
            290..295 => self.pass(15),
            _ => {
                let at = self.random.below(self.logics.len().max(1));
                let Some(&id) = self.logics.keys().nth(at) else { return };
                match chance {
                    295..310 => self.logic(id).stopped = true,
                    310..340 => self.logic(id).stopped = false,
                    340..345 => self.logic(id).draining = true,
                    345..350 if !self.logic(id).broken => {
                        self.logic(id).broken = true;
                        self.gate.down(id, StreamEnd::Broken);
                        self.seen.insert("broken");
                    }
                    350..352 if self.logic(id).broken => drop(self.logics.remove(&id)),
                    352..600 => self.take(id),
                    600..750 => self.land(id),
                    750.. => self.reply(id),
                    _ => {}
                }
            }
        }
        self.act();
    }

    fn logic(&mut self, id: LogicId) -> &mut Logic {
        self.logics.get_mut(&id).expect("it is there")
    }

    fn ask(&mut self) {
        let session = self.random.below(SESSIONS);
        self.asked[session] += 1;
        let name = (session, self.asked[session]);
        let ask = match self.random.below(10) {
            0..2 => Ask::Join(Join::default()),
            chance => {
                let client_message_id = if chance < 8 { format!("{}", name.1) } else { String::new() };
                if !client_message_id.is_empty() {
                    self.named.insert(name);
                }
                let session = format!("{} {}", name.0, name.1);
                Ask::Publish(Publish { session, client_message_id, ..Publish::default() })
            }
        };
        let key = (0, Key { slot: session as u32, generation: 1 });
        self.gate.ask(Asker::Core(session, name.1), Some(key), ask);
    }

    fn pass(&mut self, looks: usize) {
        for _ in 0..looks {
            self.now += LOOK_EVERY;
            self.gate.look(self.now);
            self.act();
        }
    }

    /// The logic reads one request.
    fn take(&mut self, id: LogicId) {
        let logic = self.logic(id);
        if logic.stopped || logic.draining {
            return;
        }
        match logic.inbox.pop_front() {
            Some(GateRequest { id, ask: Some(Ask::Publish(publish)) }) => {
                let (session, number) = publish.session.split_once(' ').expect("as it was asked");
                let name = (session.parse().expect("a number"), number.parse().expect("a number"));
                logic.publishing.push_back((id, name));
            }
            Some(request) => logic.out.push_back(request.id),
            None => {}
        }
    }

    /// The bus takes what a logic has given to it.
    fn land(&mut self, id: LogicId) {
        let logic = self.logic(id);
        if logic.stopped {
            return;
        }
        let Some((request, name)) = logic.publishing.pop_front() else { return };
        logic.out.push_back(request);
        if self.log.contains(&name) {
            assert!(self.named.contains(&name), "{name:?} is doubled: nothing tells that it is a repeat");
            self.seen.insert("repeat");
        }
        self.log.push(name);
    }

    /// An answer comes; or the stream ends, if it was the last one.
    fn reply(&mut self, id: LogicId) {
        let logic = self.logic(id);
        if logic.broken {
            logic.out.clear();
            return;
        }
        if let Some(request) = logic.out.pop_front() {
            self.gate.heard(id);
            if let Some(by) = self.gate.answered(id, request) {
                self.outcome(by, Outcome::Done);
            }
        } else if logic.draining && logic.publishing.is_empty() && !logic.stopped {
            self.logics.remove(&id);
            self.gate.down(id, StreamEnd::Ended);
            self.seen.insert("ended");
        }
    }

    fn act(&mut self) {
        for action in self.gate.actions() {
            match action {
                Action::Send(logic, request) => self.logic(logic).inbox.push_back(request),
                Action::Answer(by, Answer::Error(error)) => match error.code() {
                    ErrorCode::OutcomeUnknown => self.outcome(by, Outcome::Unknown),
                    ErrorCode::Unavailable => self.outcome(by, Outcome::Unavailable),
                    other => panic!("{other:?}"),
                },
                Action::Answer(_, answer) => panic!("{answer:?}"),
                Action::Silent(_) => drop(self.seen.insert("silent")),
                Action::Heard(_) => drop(self.seen.insert("heard")),
            }
        }
    }

    fn outcome(&mut self, by: Asker, outcome: Outcome) {
        let Asker::Core(session, number) = by else { panic!("nobody else asks") };
        let before = self.outcomes.insert((session, number), outcome);
        assert_eq!(before, None, "session {session} is answered twice to {number}");
        self.seen.insert(match outcome {
            Outcome::Done => "done",
            Outcome::Unavailable => "unavailable",
            Outcome::Unknown => "unknown",
        });
    }

    /// Nothing more happens but what is under way; then everything is as it should be.
    fn settle(&mut self) {
        for _ in 0..STEPS * 4 {
            for id in self.logics.keys().copied().collect::<Vec<_>>() {
                self.logic(id).stopped = false;
                self.take(id);
                self.land(id);
                self.reply(id);
                self.act();
            }
        }
        for session in 0..SESSIONS {
            let outcome = |name: Name| self.outcomes.get(&name).copied().unwrap_or_else(|| panic!("{name:?} hangs"));
            for number in 1..=self.asked[session] {
                outcome((session, number));
            }
            let mut first = BTreeSet::new();
            let own = self.log.iter().filter(|name| name.0 == session && first.insert(**name));
            let own: Vec<Name> = own.copied().collect();
            assert!(own.iter().all(|name| outcome(*name) != Outcome::Unavailable), "untrue: {own:?}");
            let told: Vec<Name> = own.into_iter().filter(|name| outcome(*name) == Outcome::Done).collect();
            assert!(told.is_sorted(), "out of order: {told:?}");
        }
    }
}

#[test]
fn a_sender_s_messages_keep_their_order_whatever_logics_do() {
    let run = |random| {
        let mut world = World::new(random);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        world.seen
    };
    let all = ["broken", "done", "ended", "heard", "repeat", "silent", "unavailable", "unknown"];
    super::run(SEEDS, run, &all);
}
