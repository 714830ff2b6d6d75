//! The owner of one partition since one claim: a state machine without bus, stream or clock. It is told what happened
//! and asked, by [`Owner::actions`], what to do. What the records mean is its [`Stage`]'s.
//!
//! ```text
//!   new ─Own to all─▶ Collecting ─all holds, or 2 s─▶ Replaying ─own claim is read─▶ Live
//!                                                       │ records to every holder      │ holds answered,
//!                                                       │ whose position is before     │ records delivered
//!                                    any of them ─▶ Paused (a record newer than this program), Lost (another's claim)
//! ```
//!
//! Without claims ([`Stage::CLAIMS`]) it is live at once, and no connector is told.
//!
//! Invariants (rules 2, 6, 8-12; the simulation in `simulation.rs` checks them with the rooms' stage):
//! - A holder's messages and gaps together are the channel's log from its position on: in order, each message once.
//! - What one owner dropped as repeated, every later owner drops. Each stage begins to read far enough back.
//! - A record is never lost because it was itself seen before.

use std::sync::Arc;

use bus::{Offset, Start};
use prost::Message as _;
use proto::{cluster, record};

use super::holds::Holds;
use super::phase::Phase;
use super::stage::{Action, Connector, Fit, LookedUp, Outgoing, Stage, StreamId, Takeover};
use crate::metrics::Metrics;
use crate::out::Out;

/// How long a new owner waits for the connectors that are attached to say what they hold, milliseconds. One that says
/// it later is answered from what is kept.
pub(crate) const HOLDS_WAIT_MS: i64 = 2000;

/// How often a holder that gets nothing is told how far the partition is, milliseconds: its position stays well inside
/// what a new owner reads again.
pub(crate) const THROUGH_MS: i64 = 5_000;

/// How often a stage is told to let go of what nobody needs, milliseconds.
pub(crate) const SWEEP_MS: i64 = 5_000;

/// What holds of every owner of a topic's partitions.
#[derive(Debug)]
pub(crate) struct OwnerConfig {
    /// The job's incarnation.
    pub(crate) owner: String,
    /// The topic's log ID.
    pub(crate) log: Arc<str>,
    /// Of the topic.
    pub(crate) partitions: u32,
    pub(crate) metrics: Arc<Metrics>,
}

/// See the module's opening.
pub(crate) struct Owner<S> {
    pub(super) config: Arc<OwnerConfig>,
    pub(super) stage: S,
    pub(super) partition: u32,
    pub(super) epoch: u64,
    /// Handled by an earlier owner up to here, as far as is known.
    committed: Offset,
    pub(super) phase: Phase,
    /// Everything after this offset is read; `None` before the first record.
    pub(super) from: Option<Offset>,
    /// It went back once to what no owner has handled.
    rewound: bool,
    /// Read up to here.
    pub(super) progress: Offset,
    pub(super) out: Outgoing,
    pub(super) waiting: Holds,
    through_ms: i64,
    sweep_ms: i64,
}

impl<S: Stage> Owner<S> {
    /// The owner from its claim at offset `epoch` on.
    pub(crate) fn new(
        config: Arc<OwnerConfig>,
        stage: S,
        takeover: Takeover,
        epoch: u64,
        attached: impl IntoIterator<Item = StreamId>,
        now_ms: i64,
    ) -> Self {
        let mut owner = Self {
            config,
            stage,
            partition: takeover.partition,
            epoch,
            committed: takeover.committed,
            phase: Phase::Collecting { until_ms: now_ms + HOLDS_WAIT_MS },
            from: None,
            rewound: false,
            progress: 0,
            out: Outgoing::default(),
            waiting: Holds::default(),
            through_ms: now_ms,
            sweep_ms: now_ms,
        };
        for connector in attached {
            owner.attached(connector);
        }
        owner.begin_if_collected(now_ms);
        owner
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Read, and handed on, up to here.
    pub(crate) fn progress(&self) -> Offset {
        self.progress
    }

    pub(crate) fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.phase == Phase::Paused
    }

    /// The stage takes no more records now.
    pub(crate) fn is_full(&self) -> bool {
        self.stage.is_full()
    }

    /// The records' meaning.
    pub(crate) fn stage(&mut self) -> &mut S {
        &mut self.stage
    }

    /// Takes what is to be done, in order.
    pub(crate) fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.out.actions)
    }

    /// A connector's stream is up.
    pub(crate) fn attached(&mut self, connector: StreamId) {
        if !S::CLAIMS {
            return;
        }
        self.out.connectors.insert(connector, Connector { collecting: true, ..Connector::default() });
        let own = cluster::Own {
            topic: S::TOPIC.into(),
            partition: self.partition,
            epoch: self.epoch,
            log: self.config.log.to_string(),
            partitions: self.config.partitions,
        };
        self.out.send(connector, Out::Own(own));
    }

    /// A connector's stream has ended.
    pub(crate) fn detached(&mut self, connector: StreamId, now_ms: i64) {
        self.out.connectors.remove(&connector);
        self.let_go(connector);
        self.begin_if_collected(now_ms);
    }

    /// The queue to the connector ran over and was dropped: the connector re-holds.
    pub(crate) fn overflowed(&mut self, connector: StreamId) {
        self.config.metrics.resets.inc();
        self.let_go(connector);
        if let Some(connector) = self.out.connectors.get_mut(&connector) {
            connector.collecting = true;
        }
    }

    /// What was asked of Routes first is answered.
    pub(crate) fn looked_up(&mut self, now_ms: i64, found: Option<LookedUp>) {
        self.stage.looked_up(&mut self.out, now_ms, found);
    }

    /// What was to be handed over is.
    pub(crate) fn handed_over(&mut self) {
        self.stage.handed_over(&mut self.out);
    }

    /// Everything up to here is done: what may be committed.
    pub(crate) fn done(&self) -> Offset {
        self.stage.done(self.progress)
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, now_ms: i64) {
        self.stage.tick(&mut self.out, now_ms);
        if let Phase::Collecting { until_ms } = self.phase
            && now_ms >= until_ms
        {
            self.begin(now_ms);
        }
        if self.phase == Phase::Live && now_ms - self.through_ms >= THROUGH_MS {
            self.through_ms = now_ms;
            self.tell_through(|connector, progress| connector.through < progress);
        }
        if now_ms - self.sweep_ms >= SWEEP_MS {
            self.sweep_ms = now_ms;
            let waiting = &self.waiting;
            self.stage.sweep(now_ms, &|channel| waiting.wants(channel));
        }
    }

    /// Records of the partition were read, in order, none twice since the last [`Action::Read`]; `now_us` is
    /// microseconds since 1970.
    pub(crate) fn records(&mut self, now_us: i64, records: &[bus::Record]) {
        for record in records {
            match self.phase {
                Phase::Replaying | Phase::Live => {}
                Phase::Collecting { .. } | Phase::Paused | Phase::Lost => return,
            }
            if self.from.is_none() && !self.begin_reading(record.offset) {
                return;
            }
            self.config.metrics.records.inc();
            self.record(now_us, record);
            match self.phase {
                Phase::Lost => return,
                Phase::Paused => return self.stage.end_of_batch(&mut self.out),
                _ => {}
            }
            self.progress = record.offset;
            if self.phase == Phase::Replaying && record.offset >= self.epoch {
                self.stage.end_of_batch(&mut self.out);
                self.phase = Phase::Live;
            }
        }
        self.stage.end_of_batch(&mut self.out);
        if self.phase == Phase::Live {
            self.tell_through(|connector, _| connector.fed);
        }
    }

    /// The partition is given up: tells every connector.
    pub(crate) fn disown(&mut self) {
        for connector in self.out.connectors.keys().copied().collect::<Vec<_>>() {
            self.out.send(connector, Out::Disown);
        }
        self.phase = Phase::Lost;
    }

    fn let_go(&mut self, connector: StreamId) {
        self.waiting.let_go(connector);
        self.stage.let_go(connector);
    }

    pub(super) fn begin_if_collected(&mut self, now_ms: i64) {
        let collecting = matches!(self.phase, Phase::Collecting { .. });
        if collecting && self.out.connectors.values().all(|connector| !connector.collecting) {
            self.begin(now_ms);
        }
    }

    fn begin(&mut self, now_ms: i64) {
        self.phase = if S::CLAIMS { Phase::Replaying } else { Phase::Live };
        self.out.act(Action::Read(self.stage.start(now_ms)));
    }

    /// The first record tells where reading began. False: it begins anew, further back.
    fn begin_reading(&mut self, first: Offset) -> bool {
        if self.committed > 0 && first > self.committed + 1 && !self.rewound {
            // Nobody has handled what lies between: too old to be delivered, but to be counted and told.
            self.rewound = true;
            self.out.act(Action::Read(Start::At(self.committed + 1)));
            return false;
        }
        self.from = Some(first - 1);
        self.progress = first - 1;
        self.stage.begin(first - 1);
        self.follow_all();
        true
    }

    fn record(&mut self, now_us: i64, record: &bus::Record) {
        let read = match record::Record::decode(record.value.clone()) {
            Ok(read) => read,
            Err(error) => return self.dead_letter(record, format!("cannot be decoded: {error}")),
        };
        if read.min_reader > proto::RECORD_VERSION {
            self.phase = Phase::Paused;
            self.out.act(Action::Pause(record.offset));
            return;
        }
        if *read.log != *self.config.log {
            return self.dead_letter(record, format!("was written to another log, {:?}", read.log));
        }
        if let (true, Some(record::record::Body::Claim(claim))) = (S::CLAIMS, &read.body) {
            if record.offset > self.epoch && claim.owner != self.config.owner {
                self.phase = Phase::Lost;
                self.out.act(Action::Lost);
            }
            return;
        }
        let fit = Fit {
            offset: record.offset,
            time_ms: record.time_ms,
            now_us,
            first_time: record.offset > self.committed,
            live: self.phase == Phase::Live,
            record: read,
        };
        if let Err(why) = self.stage.record(&mut self.out, fit) {
            self.dead_letter(record, why);
        }
    }

    fn tell_through(&mut self, whom: impl Fn(&Connector, Offset) -> bool) {
        // What was not said to be held, or not answered, is not complete.
        for (&to, connector) in &mut self.out.connectors {
            if !connector.collecting && !self.waiting.has(to) && whom(connector, self.progress) {
                (connector.fed, connector.through) = (false, self.progress);
                self.out.actions.push(Action::Send(to, Out::Through(self.progress)));
            }
        }
    }

    fn dead_letter(&mut self, record: &bus::Record, reason: String) {
        // An earlier owner has put aside what it handled.
        if record.offset > self.committed {
            self.out.act(Action::DeadLetter { offset: record.offset, reason, record: record.value.clone() });
        }
    }
}
