//! Sessions in rooms: coming and going, what the owner delivers, what is missing.

use std::sync::Arc;

use proto::{
    client::{self, ErrorCode, GapReasons, server_frame::Body},
    cluster::{self, command_out::Act},
    error::{error, row},
};

use super::{
    Engine,
    ahead::Gap,
    encoding::Encoding,
    entry::{Entry, HIGH, NORMAL},
    event::{CoreRequest, Held},
    fault::Fault,
    places::Place,
    room::{Backlog, Feed, HoldState, Join, Member, Rest, Waiter},
    session::{Dialect, Ending, Phase, Removal},
};
use machine::Key;

/// How long a channel's owner may take to answer a hold, milliseconds: a new one reads five minutes again first. Then
/// who waits is told to try again.
const HOLD_MS: u64 = 10_000;

impl Engine {
    /// Whether a session is in a room.
    pub(super) fn is_in(&mut self, key: Key, channel: &str) -> bool {
        let index = self.rooms.find(channel);
        self.session(key).is_some_and(|session| session.places.iter().any(|place| Some(place.room()) == index))
    }

    /// Whether the platform has subscribed a session to a room that is not held yet.
    fn is_subscribing(&self, key: Key, channel: &str) -> bool {
        let room = self.rooms.find(channel).map(|index| &self.rooms[index]);
        let by_platform =
            |waiter: &Waiter| waiter.key == key && matches!(waiter.join, Join::Subscribe { request: 0, .. });
        room.is_some_and(|room| room.waiters.iter().any(by_platform))
    }

    /// Sessions in a room over the cluster: as last told, at least those that are here.
    pub(super) fn online_in(&self, index: usize) -> u64 {
        self.rooms.get(index).map_or(0, |room| room.online.max(room.sessions() as u64))
    }

    /// A session comes into a room, as soon as that is held.
    pub(super) fn enter(&mut self, key: Key, channel: &str, join: Join) {
        let index = match self.rooms.find(channel) {
            Some(index) => index,
            None if self.endings.is_draining() => {
                let error = error(ErrorCode::Draining, row(ErrorCode::Draining).meaning);
                return self.not_entered(key, join, error);
            }
            None => {
                let ticket = self.requests.number();
                self.requests.push(CoreRequest::Hold { channel: channel.to_owned(), ticket });
                self.rooms.open(channel, ticket)
            }
        };
        let until_ms = self.now.mono_ms + HOLD_MS;
        let room = &mut self.rooms[index];
        room.release_ms = None;
        if room.state == HoldState::Held {
            return self.place(key, index, join);
        }
        let ticket = self.requests.number();
        room.waiters.push(Waiter { key, ticket, until_ms, join });
        self.timers.arm_room(index, until_ms);
        self.begin_joining(key, channel, ticket);
    }

    /// A session comes into a room that is held.
    fn place(&mut self, key: Key, index: usize, join: Join) {
        let Some(session) = self.session(key).filter(|session| !session.is_closing()) else {
            return self.linger(index);
        };
        let Some(encoding) = session.encoding() else { return self.linger(index) };
        let room = &mut self.rooms[index];
        let name = room.name.clone();
        let (history, resume) = match &join {
            Join::Subscribe { history, resume, .. } => (*history as usize, resume.clone()),
            Join::Packet { .. } => (0, None),
        };
        let (after, gap) = match resume {
            // In another log nothing of what is here was seen.
            Some((log, _)) if *log != *room.log => ([room.floor; 2], Some(0)),
            Some((_, after)) if after[NORMAL] < room.floor => {
                // Of what it lacks only the last one may be known. On the high lane it may have that.
                let known = room.floor_is_message && after[HIGH] < room.floor;
                ([room.floor.max(after[HIGH]), room.floor], Some(u64::from(known)))
            }
            // What is high and lower than the last normal one went out before that.
            Some((_, after)) => ([after[HIGH].max(after[NORMAL]), after[NORMAL]], None),
            None => ([room.before_last(history).max(room.floor); 2], None),
        };
        let (after, gap) = match self.position(key, index, encoding) {
            Some(present) => (present, None),
            None => {
                self.add_member(key, index, encoding, after);
                (after, gap)
            }
        };
        let room = &self.rooms[index];
        let position = client::Position { log: room.log.to_string(), normal: after[NORMAL], high: after[HIGH] };
        let online = self.online_in(index);
        match join {
            Join::Subscribe { request, .. } => {
                let channel = name.to_string();
                let subscribed =
                    client::Subscribed { channel: channel.clone(), position: Some(position.clone()), online };
                self.reply(key, request, Body::Subscribed(subscribed));
                if let Some(missing) = gap {
                    let reasons = GapReasons::unknown(missing);
                    let (position, count, reasons) = (Some(position), reasons.total(), Some(reasons));
                    let gap = client::Gap { channel, count, exact: false, position, reasons };
                    self.reply(key, 0, Body::Gap(gap));
                }
            }
            Join::Packet { turn, sequence, first } => self.entered(key, turn, sequence, first),
        }
        self.ready(key);
    }

    /// Where a session stands in a room that it is in.
    fn position(&mut self, key: Key, index: usize, encoding: Encoding) -> Option<[u64; 2]> {
        let place = self.session(key)?.places.iter().find(|place| place.room() == index).copied()?;
        let room = &self.rooms[index];
        let feed = &room.feeds[room.feed(encoding)?];
        Some(feed.position(place.member()))
    }

    fn add_member(&mut self, key: Key, index: usize, encoding: Encoding, after: [u64; 2]) {
        let room = &mut self.rooms[index];
        let feed = match room.feed(encoding) {
            Some(feed) => feed,
            None => {
                // Only native clients can ask for what was.
                let (from, offset) =
                    if encoding.is_native() { (room.first(), room.floor) } else { (room.end(), room.offset) };
                // Most rooms have one: a vector would begin with room for four, of half a KiB each.
                room.feeds.reserve_exact(1);
                room.feeds.push(Feed::new(encoding, from, offset));
                let feed = room.feeds.len() - 1;
                if room.end() > from {
                    self.rooms.mark_dirty(index);
                }
                feed
            }
        };
        self.encode(index, feed);
        let room = &self.rooms[index];
        let ahead = match self.config.planted() {
            Some(Fault::SentAgain) => [0; 2],
            _ => after.map(|after| if after > room.offset { after } else { 0 }),
        };
        let (mut cursors, mut backlog) = ([0; 2], Backlog { resume_position: after[NORMAL], ..Backlog::default() });
        for lane in [HIGH, NORMAL] {
            let ring = &room.feeds[feed].lanes[lane].ring;
            if ahead[lane] > 0 {
                cursors[lane] = ring.head();
                if lane == NORMAL && room.reached > room.offset {
                    // Of what is missing last, it has some.
                    backlog.add(NORMAL, room.last_missing(room.reached.saturating_sub(after[NORMAL])), true);
                }
                continue;
            }
            cursors[lane] = ring.seek(after[lane]);
            if !encoding.is_native() {
                continue;
            }
            let begins = ring.offset_at(ring.tail());
            if begins > after[lane] {
                let rest = encoding.is_compressed().then(|| room.rest(lane, after[lane], begins));
                match rest.flatten() {
                    Some(rest) => backlog.rest[lane] = rest,
                    None => {
                        // The client was away for longer than the ring kept them.
                        let (missing, exact) = room.count(lane, after[lane], begins, GapReasons::unknown(1));
                        backlog.add(lane, missing, !exact);
                    }
                }
            } else if let Some((end, frame, through)) = ring.frame_after(cursors[lane]) {
                if frame.missing > 0 {
                    // It may have some of what the ring tells everyone else as missing.
                    // The log may have messages of it: those that were shed, or one that cannot be said.
                    let each = match ring.missing_between(cursors[lane], end).reasons {
                        GapReasons { shed: 0, .. } => GapReasons::unknown(1),
                        _ => GapReasons { shed: 1, ..GapReasons::default() },
                    };
                    let (missing, exact) = room.count(lane, after[lane], through, each);
                    backlog.add(lane, missing, !exact);
                    cursors[lane] = end;
                } else if frame.all > 1 && self.config.planted() != Some(Fault::WholeBatch) {
                    // Or some of a batch.
                    let messages = room.items(lane, after[lane], through).len() as u64;
                    if messages < frame.all {
                        backlog.rest[lane] = Rest { after: after[lane], through, messages };
                        cursors[lane] = end;
                    }
                }
            }
        }
        if backlog.on(HIGH) || backlog.on(NORMAL) {
            self.rooms[index].feeds[feed].backlog.insert(key.slot, backlog);
        }
        if ahead != [0; 2] {
            self.rooms[index].feeds[feed].ahead.insert(key.slot, ahead);
        }
        let Feed { lanes, members, .. } = &mut self.rooms[index].feeds[feed];
        for lane in lanes.iter_mut().filter(|lane| lane.left > 0 && lane.at + lane.left > members.len()) {
            // The pass has yet to reach the end, where there is one member more now: else the last one's turn would be
            // lost.
            lane.left += 1;
        }
        members.push(Member { slot: key.slot, cursors });
        let place = Place::new(index, members.len() - 1);
        if let Some(session) = self.session(key) {
            session.places.push(place);
        }
        self.rooms.mark_changed(index);
    }

    /// A session leaves a channel, or gives up coming; `false` if it was not in it.
    pub(super) fn leave(&mut self, key: Key, channel: &str) -> bool {
        let Some(index) = self.rooms.find(channel) else { return false };
        if !self.is_in(key, channel) {
            return false;
        }
        self.leave_room(key, index);
        true
    }

    /// A session leaves a room that it is in. Of a frame that is half sent, the rest stays its own.
    pub(super) fn leave_room(&mut self, key: Key, index: usize) {
        let lost = self.config.planted() == Some(Fault::LostRemainder);
        let Some(session) = self.session(key) else { return };
        let Some(at) = session.places.iter().position(|place| place.room() == index) else { return };
        let place = session.places.swap_remove(at);
        let (Some(encoding), half) = (session.encoding(), session.busy().half) else { return };
        let room = &mut self.rooms[index];
        let Some(feed) = room.feed(encoding) else { return };
        let Feed { lanes, members, backlog, ahead, .. } = &mut room.feeds[feed];
        let member = members.swap_remove(place.member());
        backlog.remove(&member.slot);
        ahead.remove(&member.slot);
        for lane in lanes.iter_mut() {
            // A pass goes on where it is, or members that come and go would keep it from the others. The member that is
            // moved past it gets its turn below.
            lane.left = lane.left.min(members.len());
        }
        let moved = members.get(place.member()).map(|moved| moved.slot);
        if let (Some((room, lane)), Some(session)) = (half, self.sessions.at_mut(key.slot))
            && room == index
        {
            session.busy_mut().half = None;
            if !lost {
                session.busy_mut().out.push_remainder(lanes[lane].ring.rest(member.cursors[lane]));
            }
        }
        if members.is_empty() {
            let feed = room.feeds.swap_remove(feed);
            room.forget();
            if feed.lanes.iter().any(|lane| lane.ring.footprint() > 0) {
                self.rooms.mark_dirty(index);
            }
        }
        if let Some(moved) = moved.and_then(|slot| self.sessions.at_mut(slot)) {
            let key = moved.key;
            if let Some(moved) = moved.places.iter_mut().find(|moved| moved.room() == index) {
                moved.move_to(place.member());
            }
            self.ready(key);
        }
        self.rooms.mark_changed(index);
        self.linger(index);
        self.ready(key);
    }

    /// A room without anybody is given back after a while.
    pub(super) fn linger(&mut self, index: usize) {
        let until_ms = self.now.mono_ms + u64::from(self.config.room_linger_s) * 1000;
        if let Some(room) = self.rooms.get_mut(index)
            && room.sessions() == 0
            && room.waiters.is_empty()
        {
            room.release_ms = Some(until_ms);
            self.timers.arm_room(index, until_ms);
        }
    }

    /// A room's time has come: waiters to be refused, or the room to be given back.
    pub(super) fn room_due(&mut self, index: usize) {
        let now_ms = self.now.mono_ms;
        let Some(room) = self.rooms.get_mut(index) else { return };
        let name = room.name.clone();
        if room.release_ms.is_some_and(|at_ms| at_ms <= now_ms) && room.sessions() == 0 && room.waiters.is_empty() {
            if let Some(count) = self.tell_count(index) {
                self.requests.push(CoreRequest::Counts(vec![count]));
            }
            self.rooms.close(index);
            self.requests.push(CoreRequest::Release { channel: name.to_string() });
            return;
        }
        let (late, waiters) = std::mem::take(&mut room.waiters).into_iter().partition(|it| it.until_ms <= now_ms);
        room.waiters = waiters;
        let late: Vec<Waiter> = late;
        if late.is_empty() {
            return;
        }
        for waiter in late {
            let error = error(ErrorCode::Unavailable, "the room's owner does not answer: try again");
            self.end_joining(waiter.key, waiter.ticket);
            self.not_entered(waiter.key, waiter.join, error);
        }
        self.linger(index);
    }

    /// The number of sessions that the control thread has to know of.
    pub(super) fn tell_count(&mut self, index: usize) -> Option<(String, u64)> {
        let room = self.rooms.get_mut(index)?;
        room.changed = false;
        let sessions = room.sessions() as u64;
        (std::mem::replace(&mut room.told, sessions) != sessions).then(|| (room.name.to_string(), sessions))
    }

    /// Messages came.
    pub(super) fn deliver(&mut self, items: &[Arc<cluster::Item>]) {
        // Most follow one of the same room.
        let mut last = None;
        for item in items {
            let Some(index) = self.rooms.find(&item.channel) else { continue };
            let room = &self.rooms[index];
            if room.state != HoldState::Held || item.offset <= room.offset {
                continue;
            }
            self.append(index, item);
            if let Some(before) = last.replace(index)
                && before != index
            {
                self.news(before);
            }
        }
        if let Some(index) = last {
            self.news(index);
        }
    }

    /// Takes a message, and what is missing before it, into a room's log.
    fn append(&mut self, index: usize, item: &Arc<cluster::Item>) {
        if item.missed > 0 {
            let offset = if item.message.is_empty() { item.offset } else { item.offset - 1 };
            let reasons = GapReasons::of(item.missed, item.reasons);
            self.push_gap(index, Gap { offset, reasons, exact: true, whole: true });
        }
        self.pass_ahead(index, item.offset);
        let room = &mut self.rooms[index];
        if item.message.is_empty() {
            room.offset = room.offset.max(item.offset);
        } else if room.push(Entry::Item(item.clone())) {
            self.counters.delivered += 1;
        }
        if room.is_behind() {
            (0..self.rooms[index].feeds.len()).for_each(|feed| self.encode(index, feed));
            self.rooms[index].forget();
        }
    }

    /// A channel is held from here on, or anew.
    pub(super) fn held(&mut self, held: Held) {
        let Some(index) = self.rooms.find(&held.channel) else { return };
        let room = &mut self.rooms[index];
        if held.ticket != room.ticket {
            // Of before the room was released here: what came after it was not for this core until it asked again.
            return;
        }
        let before = held.recent.first().map_or(held.offset, |item| item.offset.saturating_sub(item.missed + 1));
        if room.state == HoldState::Requested {
            room.state = HoldState::Held;
            room.restart(held.log, held.before.map_or(before, |known| known.offset.min(before)));
            room.floor_is_message = held.before.is_some_and(|known| known.message);
        } else if room.log != held.log {
            self.restart(index, held.log, before, held.missed.map_or_else(GapReasons::default, |(reasons, _)| reasons));
        } else if let Some((reasons, exact)) = held.missed {
            let offset = before.max(room.offset.max(room.reached) + reasons.total());
            self.push_gap(index, Gap { offset, reasons, exact, whole: true });
        }
        for item in &held.recent {
            if item.offset > self.rooms[index].offset {
                self.append(index, item);
            }
        }
        let room = &mut self.rooms[index];
        room.offset = room.offset.max(held.offset);
        let waiters = std::mem::take(&mut room.waiters);
        for waiter in waiters {
            self.end_joining(waiter.key, waiter.ticket);
            self.place(waiter.key, index, waiter.join);
        }
        self.news(index);
    }

    /// The queue to this core ran over: messages of the channel are missing.
    pub(super) fn missed(&mut self, channel: &str, reasons: GapReasons) {
        let Some(index) = self.rooms.find(channel) else { return };
        let room = &mut self.rooms[index];
        let count = reasons.total();
        if room.state == HoldState::Held && count > 0 {
            let offset = room.offset.max(room.reached) + count;
            self.push_gap(index, Gap { offset, reasons, exact: true, whole: false });
            self.news(index);
        }
    }

    /// Sessions over the whole cluster.
    pub(super) fn online(&mut self, numbers: &[(String, u64)]) {
        for (channel, sessions) in numbers {
            if let Some(index) = self.rooms.find(channel) {
                self.rooms[index].online = *sessions;
            }
        }
    }

    /// The platform does something to sessions. It takes effect before the next frame (rule 20).
    pub(super) fn command(&mut self, keys: &[Key], act: &Act) {
        for &key in keys {
            if self.session(key).is_none_or(|session| session.is_closing()) {
                continue;
            }
            let live = self.session(key).is_some_and(|session| session.phase == Phase::Live);
            match act {
                Act::Subscribe(_) | Act::Unsubscribe(_) | Act::Refused(_) if !live => {}
                Act::Kick(kick) => {
                    self.end(key, Ending::new(said(kick.code()), kick.reason.clone()));
                }
                Act::Subscribe(names) => {
                    for channel in &names.names {
                        let is_room =
                            matches!(proto::channel::Channel::parse(channel), Ok(proto::channel::Channel::Room(_)));
                        if is_room && !self.is_in(key, channel) && !self.is_subscribing(key, channel) {
                            self.enter(key, channel, Join::Subscribe { request: 0, history: 0, resume: None });
                        }
                    }
                }
                Act::Refused(refused) => self.reply(key, 0, Body::Refused(refused.clone())),
                Act::Unsubscribe(leave) => {
                    let left_ms = leave.until_ms.saturating_sub(self.now.unix_ms).max(0);
                    let retry_after_ms = u32::try_from(left_ms).unwrap_or(u32::MAX);
                    for channel in &leave.channels {
                        self.take_out(key, channel, Removal { reason: said(leave.reason()), retry_after_ms });
                    }
                }
            }
        }
    }

    /// The channels that a session is in, or coming into.
    pub(super) fn channels(&mut self, key: Key) -> Vec<String> {
        let Some(session) = self.session(key) else { return Vec::new() };
        let places = session.places.to_vec();
        let coming = session.busy().joining.iter().filter(|joining| joining.out.is_none());
        let mut channels: Vec<_> = coming.map(|joining| joining.channel.clone()).collect();
        channels.extend(places.iter().map(|place| self.rooms[place.room()].name.to_string()));
        channels
    }

    /// Takes a session out of a channel, and gives up its coming there, and says why.
    pub(super) fn take_out(&mut self, key: Key, channel: &str, removal: Removal) {
        let reason = removal.reason;
        if let Some(index) = self.rooms.find(channel) {
            let waiters = &mut self.rooms[index].waiters;
            let given_up: Vec<Waiter> = waiters.extract_if(.., |waiter| waiter.key == key).collect();
            if !given_up.is_empty() {
                self.linger(index);
            }
            for waiter in given_up {
                self.end_joining(key, waiter.ticket);
                self.not_entered(key, waiter.join, removal.error());
            }
        }
        if let Some(session) = self.session(key)
            && session.busy().joining.iter().any(|joining| joining.channel == channel)
        {
            // What logic is asked about is answered with this when it answers.
            for joining in session.busy_mut().joining.iter_mut().filter(|joining| joining.channel == channel) {
                joining.out.get_or_insert(removal);
            }
        }
        if let Some(session) = self.session(key).filter(|session| !session.busy().allowed.is_empty()) {
            session.busy_mut().allowed.retain(|allowed| allowed != channel);
        }
        if !self.leave(key, channel) {
            return;
        }
        if let Some(session) = self.session(key)
            && let Some(packets) = session.packets.as_deref_mut().filter(|it| it.room.as_deref() == Some(channel))
        {
            packets.room = None;
            if reason == ErrorCode::Banned && matches!(session.dialect, Dialect::Bilibili(_)) {
                // It has no packet that says so, and no other room to be in: the close code does. goim has none either,
                // but other rooms, and pushes.
                return self.end(key, Ending::new(reason, row(reason).meaning));
            }
        }
        let retry_after_ms = removal.retry_after_ms;
        let unsubscribed = client::Unsubscribed { channel: channel.to_owned(), reason: reason.into(), retry_after_ms };
        self.reply(key, 0, Body::Unsubscribed(unsubscribed));
    }
}

/// The code of what the platform does to a session; a record that names none, or one of a newer version, is its wish.
fn said(code: ErrorCode) -> ErrorCode {
    if code == ErrorCode::None { ErrorCode::Kicked } else { code }
}
