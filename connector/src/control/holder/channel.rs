//! A channel as this process holds it: which cores have it or ask for it, up to where they have it, and what its owner
//! has not answered. Knows no partition, owner or stream: those are [`Holder`](super::Holder)'s.
//!
//! ```text
//!   core ─hold─▶ asks ─answer─▶ holds ─▶ gets what is delivered
//!                                    ▲└─re_hold───┐ a new owner, or a reset: from where it was
//!                                    └──answer────┘
//! ```

use std::sync::Arc;

use proto::client::GapReasons;
use proto::cluster::{self, Hold, Item};

use engine::event::Held;

/// A number that no channel has.
const UNTOLD: u64 = u64::MAX;

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Channel {
    members: Vec<Member>,
    /// Those that hold it have everything up to here, in this log.
    log: Arc<str>,
    offset: u64,
    ordinal: u64,
    ordinal_epoch: u64,
    /// The number of the hold by which it is re-held; 0: none is out.
    re_hold_number: u64,
    /// The position that it names.
    re_held_from: u64,
}

/// A core that has the channel, or asks for it.
#[derive(Debug)]
struct Member {
    core: usize,
    /// As it asked.
    ticket: u64,
    /// The number of its hold; 0: there is no owner to ask. `None`: it was answered, and gets what comes.
    asks: Option<u64>,
    /// Sessions over the whole cluster, as it was told; [`UNTOLD`]: it was not.
    online: u64,
}

/// What a core that holds a channel asks by the hold of this number.
pub(super) fn asked_by(hold: u64) -> Hold {
    Hold { hold, recent: proto::RECENT_MESSAGES as u32, ..Hold::default() }
}

impl Channel {
    /// A core asks for it, by the hold of this number (0: by none yet).
    pub(super) fn hold(&mut self, core: usize, ticket: u64, hold: u64) {
        self.members.retain(|member| member.core != core);
        self.members.reserve_exact(1);
        self.members.push(Member { core, ticket, asks: Some(hold), online: UNTOLD });
    }

    /// A core has done with it. Says whether it was the last one.
    pub(super) fn release(&mut self, core: usize) -> bool {
        self.members.retain(|member| member.core != core);
        self.members.is_empty()
    }

    /// Sessions in it over the whole cluster: `tell` is called for each core that has it or asks for it and has not been
    /// told this number, and answers whether that is told now.
    pub(super) fn online(&mut self, sessions: u64, mut tell: impl FnMut(usize) -> bool) {
        for member in self.members.iter_mut().filter(|member| member.online != sessions) {
            if tell(member.core) {
                member.online = sessions;
            }
        }
    }

    /// Those that get what comes.
    pub(super) fn holders(&self) -> impl Iterator<Item = usize> {
        self.members.iter().filter(|member| member.asks.is_none()).map(|member| member.core)
    }

    /// Whether a hold of those that have it is out.
    pub(super) fn is_re_held(&self) -> bool {
        self.re_hold_number > 0
    }

    /// Whether anything that was asked is not answered.
    pub(super) fn is_asking(&self) -> bool {
        self.is_re_held() || self.members.iter().any(|member| member.asks.is_some())
    }

    /// Asks for it again: for those that have it from where it is, then for each that was not answered. They have
    /// everything up to `through` of `log`, the partition's. `last` is the number of the last hold.
    pub(super) fn re_hold(&mut self, last: &mut u64, log: &Arc<str>, through: u64) -> Vec<Hold> {
        let mut next = || {
            *last += 1;
            *last
        };
        let mut holds = Vec::new();
        self.re_hold_number = 0;
        if self.holders().next().is_some() {
            self.re_hold_number = next();
            if self.log == *log {
                self.offset = self.offset.max(through);
            }
            self.re_held_from = self.offset;
            holds.push(Hold {
                hold: self.re_hold_number,
                log: self.log.to_string(),
                offset: self.re_held_from,
                ordinal: self.ordinal,
                ordinal_epoch: self.ordinal_epoch,
                ..Hold::default()
            });
        }
        for asks in self.members.iter_mut().filter_map(|member| member.asks.as_mut()) {
            *asks = next();
            holds.push(asked_by(*asks));
        }
        holds
    }

    /// A message of `log` came, from an owner of this epoch; `live`: one that answers at once. `true`: it is for all
    /// [`Channel::holders`].
    pub(super) fn deliver(&mut self, item: &Item, log: &Arc<str>, epoch: u64, live: bool) -> bool {
        let known = item.offset <= self.offset && self.log == *log;
        if known || self.holders().next().is_none() || (self.is_re_held() && live) {
            return false;
        }
        self.log = log.clone();
        self.offset = item.offset;
        (self.ordinal, self.ordinal_epoch) = (item.ordinal, epoch);
        true
    }

    /// The owner answers a hold: whom to tell what. Nobody, where it was released or asked again meanwhile.
    pub(super) fn answer(&mut self, held: cluster::Held) -> Vec<(usize, Held)> {
        let log: Arc<str> = held.log.as_str().into();
        let recent: Vec<_> = held.recent.into_iter().map(Arc::new).collect();
        let missed = held.missed.map(|missed| (GapReasons::of(missed.count, missed.reasons), missed.exact));
        let (channel, offset, before) = (held.channel, held.offset, held.before);
        let mut answer = Held { channel, ticket: 0, log: log.clone(), offset, missed, recent, before };
        let mut told = Vec::new();
        if self.is_re_held() && held.hold == self.re_hold_number {
            self.re_hold_number = 0;
            if self.log == log && self.offset > self.re_held_from {
                // An owner that still replays delivered meanwhile, on a hold from before a reset, what is answered now.
                let had = self.offset;
                let reached = answer.recent.first().is_some_and(|first| first.offset <= had);
                answer.recent.retain(|item| item.offset > had);
                // How much of what is missing came meanwhile is not known.
                answer.missed =
                    answer.missed.filter(|_| !reached && held.offset > had).map(|_| (GapReasons::unknown(1), false));
            }
            let holders = self.members.iter().filter(|member| member.asks.is_none());
            told.extend(holders.map(|member| (member.core, member.ticket)));
        } else {
            for member in self.members.iter_mut().filter(|member| member.asks == Some(held.hold)) {
                member.asks = None;
                told.push((member.core, member.ticket));
            }
        }
        if !told.is_empty() && (self.log != log || self.offset <= held.offset) {
            (self.log, self.offset) = (log, held.offset);
            if let Some(last) = answer.recent.last() {
                (self.ordinal, self.ordinal_epoch) = (last.ordinal, held.epoch);
            }
        }
        told.into_iter().map(|(core, ticket)| (core, Held { ticket, ..answer.clone() })).collect()
    }
}
