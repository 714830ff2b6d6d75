//! The rooms' owners: what is published, what comes to the core of it and in which way, and what is lost on the way and
//! told.

use std::sync::Arc;

use prost::Message as _;
use proto::{
    client::{self, GapReasons},
    cluster,
};

use super::{client::text, world::World};
use crate::event::{Held, Input};

/// One message as its owner knows it.
#[derive(Debug, Clone)]
pub(super) struct Published {
    pub(super) log: String,
    pub(super) offset: u64,
    /// 0: high, 1: normal.
    pub(super) lane: usize,
    pub(super) item: Arc<cluster::Item>,
    /// Why the owner does not deliver it, itself alone; none: it does.
    pub(super) withheld: GapReasons,
}

/// A room at its owner.
#[derive(Debug, Default)]
pub(super) struct Owned {
    pub(super) name: String,
    pub(super) log: u64,
    pub(super) offset: u64,
    pub(super) all: Vec<Published>,
    /// The core has it: deliveries are on their way to it.
    pub(super) held: bool,
    /// As the core asked last.
    pub(super) ticket: u64,
    /// Messages that were dropped on the way, to be told before the next one.
    pub(super) dropped: GapReasons,
    /// Messages that the owner did not deliver, to be told with the next one.
    pub(super) withheld: GapReasons,
}

impl Owned {
    /// What neither came to the core nor was told to it, which is to be told now.
    pub(super) fn untold(&mut self) -> GapReasons {
        let mut untold = std::mem::take(&mut self.dropped);
        untold += std::mem::take(&mut self.withheld);
        untold
    }
}

impl World {
    pub(super) fn publish(&mut self) {
        let room = self.random.below(self.rooms.len() as u64) as usize;
        for _ in 0..1 + self.random.below(4) {
            self.publish_to(room);
        }
    }

    pub(super) fn publish_to(&mut self, room: usize) {
        self.published += 1;
        let number = self.published;
        let lane = usize::from(!self.random.one_in(5));
        let padding = [0, 30, 700][self.random.below(3) as usize];
        let owned = &mut self.rooms[room];
        owned.offset += 1 + self.random.below(3);
        let wire_lane = if lane == 0 { client::Lane::High } else { client::Lane::Normal };
        let message = client::Message {
            channel: owned.name.clone(),
            id: number.to_string(),
            offset: owned.offset,
            r#type: "text".into(),
            payload: Some(client::message::Payload::Text(text(room as u64, number, lane, padding))),
            lane: wire_lane.into(),
            ..Default::default()
        };
        let withheld = match number % 3 {
            _ if self.lossless || !self.random.one_in(30) => GapReasons::default(),
            0 => GapReasons { aged: 1, ..GapReasons::default() },
            _ => GapReasons { capped: 1, ..GapReasons::default() },
        };
        let delivered = withheld.total() == 0;
        let told = if delivered { std::mem::take(&mut owned.withheld) } else { GapReasons::default() };
        let item = Arc::new(cluster::Item {
            channel: owned.name.clone(),
            offset: owned.offset,
            ordinal: 0,
            lane: wire_lane.into(),
            message: message.encode_to_vec().into(),
            raw: bytes::Bytes::new(),
            missed: told.total(),
            // An older owner tells none.
            reasons: (!number.is_multiple_of(7)).then_some(told),
        });
        let log = format!("log{}", owned.log);
        owned.all.push(Published { log, offset: owned.offset, lane, item: item.clone(), withheld });
        if !delivered {
            owned.withheld += withheld;
            return;
        }
        if !owned.held {
            return;
        }
        if !self.lossless && self.random.one_in(40) {
            owned.dropped += GapReasons::of(item.missed, item.reasons);
            owned.dropped += GapReasons::unknown(1);
            return;
        }
        if owned.dropped.total() > 0 {
            let reasons = std::mem::take(&mut owned.dropped);
            self.queue.push_back(Input::Missed { channel: owned.name.clone(), reasons });
        }
        // Several at once now and then, as they come over the stream.
        if self.random.one_in(2)
            && let Some(Input::Deliver(items)) = self.queue.back_mut()
        {
            items.push(item);
        } else {
            self.queue.push_back(Input::Deliver(vec![item]));
        }
    }

    /// What the owner answers to a hold: some of what is recent.
    pub(super) fn hold(&mut self, channel: &str, ticket: u64) {
        let most = self.random.below(30) as usize;
        let owned = self.rooms.iter_mut().find(|owned| owned.name == channel).expect("a room of ours");
        (owned.held, owned.dropped, owned.ticket) = (true, GapReasons::default(), ticket);
        let log = format!("log{}", owned.log);
        let recent: Vec<_> =
            owned.all.iter().rev().take_while(|it| it.log == log).take(most).map(|it| it.item.clone()).collect();
        // What was capped before the first of them is nobody's loss here, and what was capped after is in `missed`.
        let mut recent: Vec<_> = recent.into_iter().rev().collect();
        if std::mem::take(&mut owned.withheld).total() > 0 {
            // Its successor will tell of it: what is told must be what comes after.
            recent.clear();
        }
        if recent.iter().any(|item| item.missed > 0) {
            recent.clear();
        }
        // Half of the owners say what lies before.
        let before = owned.all.iter().rev().filter(|it| it.log == log).nth(recent.len());
        let before = match (recent.first(), before) {
            (Some(_), Some(before)) => Some(cluster::Before { offset: before.item.offset, message: true }),
            (Some(first), None) => Some(cluster::Before { offset: first.offset - 1, message: false }),
            (None, _) => None,
        };
        let before = before.filter(|_| self.random.one_in(2));
        let (channel, log, offset) = (channel.to_owned(), log.into(), owned.offset);
        let held = Held { channel, ticket, log, offset, missed: None, recent, before };
        self.queue.push_back(Input::Held(held));
    }

    /// A new owner, that delivers what the last one had not, or tells how many it cannot.
    pub(super) fn owner_news(&mut self) {
        let room = self.random.below(self.rooms.len() as u64) as usize;
        if !self.rooms[room].held {
            return;
        }
        let new_log = !self.lossless && self.random.one_in(3);
        // The core has been told everything up to here, or will be.
        let reasons = self.rooms[room].untold();
        if reasons.total() > 0 {
            self.queue.push_back(Input::Missed { channel: self.rooms[room].name.clone(), reasons });
        }
        self.rooms[room].held = false;
        if new_log {
            self.rooms[room].log += 1;
            self.rooms[room].offset = self.random.below(20);
        }
        let before = self.rooms[room].all.len();
        for _ in 0..self.random.below(6) {
            self.publish_to(room);
        }
        let lost = if self.lossless { 0 } else { self.random.below(3) as usize };
        let owned = &mut self.rooms[room];
        owned.held = true;
        let since: Vec<_> = owned.all[before..].iter().map(|it| it.item.clone()).collect();
        // Capped ones among them were never to be delivered: lost, all of them, is simplest.
        let withheld = std::mem::take(&mut owned.withheld).total() > 0;
        let lost = if since.iter().any(|item| item.missed > 0) || withheld { since.len() } else { lost };
        let lost = lost.min(since.len());
        let mut missed = GapReasons::default();
        for published in &owned.all[before..before + lost] {
            missed += GapReasons::of(1, Some(published.withheld));
        }
        let recent = since[lost..].to_vec();
        let held = Held {
            channel: owned.name.clone(),
            ticket: owned.ticket,
            log: format!("log{}", owned.log).into(),
            offset: owned.offset,
            missed: (lost > 0).then_some((missed, true)),
            recent,
            before: None,
        };
        self.queue.push_back(Input::Held(held));
    }

    /// A delivery is dropped before the core.
    pub(super) fn lose(&mut self) {
        let room = self.random.below(self.rooms.len() as u64) as usize;
        let owned = &mut self.rooms[room];
        if owned.held && owned.dropped.total() > 0 {
            let reasons = std::mem::take(&mut owned.dropped);
            self.queue.push_back(Input::Missed { channel: owned.name.clone(), reasons });
        }
    }
}

/// A message's number, by which it is known whatever its room and log.
pub(super) trait Numbered {
    fn message_number(&self) -> u64;
}

impl Numbered for cluster::Item {
    fn message_number(&self) -> u64 {
        client::Message::decode(&self.message[..]).expect("ours").id.parse().expect("ours")
    }
}
