//! The native protocol's requests (schema: `proto/schema/barrage/client/v1/client.proto`). Each gets exactly one reply;
//! replies may overtake each other.

use bytes::Bytes;
use proto::{
    channel::{Channel, is_id, matches},
    client::{self, ClientFrame, ErrorCode, client_frame, server_frame::Body},
    cluster::{self, gate_request},
    error::error,
    native,
    operation::is_type,
    websocket::{Decoder, Event, Role},
};

use super::super::{
    Engine,
    encoding::Encoding,
    event::CoreRequest,
    identity::Grant,
    limits::Verdict,
    reading::AHEAD_BYTES_MAX,
    requests::Continuation,
    room::Join,
    session::{Ending, Phase, Removal, Wire},
};
use machine::Key;

impl Engine {
    /// A frame came.
    pub(in super::super) fn native(&mut self, key: Key, frame: ClientFrame) {
        let Some(phase) = self.session(key).map(|session| session.phase) else { return };
        let request = frame.request;
        if request == 0 {
            return self.end(key, Ending::new(ErrorCode::BadRequest, "a request is numbered from 1"));
        }
        match (phase, frame.body) {
            (Phase::Opening, Some(client_frame::Body::Connect(connect))) => self.connect_native(key, request, connect),
            (Phase::Opening, _) => {
                self.end(key, Ending::new(ErrorCode::BadRequest, "the first frame must be a connect"));
            }
            (_, Some(body)) => {
                match self.draw(key) {
                    Verdict::Within => {}
                    Verdict::Over(wait_ms) => {
                        let rate = self.config.requests_per_s;
                        let mut error = error(ErrorCode::TooFast, format!("more than {rate} requests a second"));
                        error.retry_after_ms = wait_ms;
                        return self.refuse_error(key, request, error);
                    }
                    Verdict::Abuse => return,
                }
                if let Err(error) = self.request(key, request, body) {
                    self.refuse_error(key, request, error);
                }
            }
            (_, None) => {
                self.draw(key);
                self.refuse_error(key, request, error(ErrorCode::BadRequest, "a request that is not known here"));
            }
        }
    }

    fn request(&mut self, key: Key, request: u32, body: client_frame::Body) -> Result<(), client::Error> {
        match body {
            client_frame::Body::Connect(_) => Err(error(ErrorCode::BadRequest, "connected already")),
            client_frame::Body::Refresh(refresh) => {
                self.refresh(key, request, refresh.token);
                Ok(())
            }
            client_frame::Body::Subscribe(subscribe) => self.subscribe(key, request, subscribe),
            client_frame::Body::Unsubscribe(unsubscribe) => self.unsubscribe(key, request, unsubscribe.channel),
            client_frame::Body::Publish(publish) => self.publish(key, request, publish),
            client_frame::Body::Ping(_) => {
                self.ping(key, request);
                Ok(())
            }
        }
    }

    fn connect_native(&mut self, key: Key, request: u32, connect: client::Connect) {
        let id = self.session_id(key);
        let Some(session) = self.session(key) else { return };
        (session.phase, session.batches) = (Phase::Authenticating, connect.batches);
        let ask = cluster::Authenticate {
            session: id,
            token: connect.token,
            device: connect.device,
            name: connect.name,
            dialect: cluster::Dialect::Native.into(),
            claimed_uid: String::new(),
            address: session.address().to_string(),
            channel: String::new(),
            refreshes_uid: String::new(),
            joins: Vec::new(),
        };
        self.ask_gate(key, gate_request::Ask::Authenticate(ask), Continuation::Connect(request));
    }

    /// What stands `behind` a `Connect` that was handled just now is handled when logic has answered. Which rooms it asks
    /// for is looked up before, so that logic is asked once and both answers go out together.
    pub(in super::super) fn announce(&mut self, key: Key, behind: &[u8]) {
        // The question stands where it was put: nothing has been asked since, or taken from there.
        let Some(CoreRequest::Gate { session, ask: gate_request::Ask::Authenticate(_), .. }) = self.requests.last_mut()
        else {
            return;
        };
        if *session != key || behind.is_empty() || behind.len() > AHEAD_BYTES_MAX {
            return;
        }
        let channels = self.channels_asked_for(key, behind);
        if let Some(CoreRequest::Gate { ask: gate_request::Ask::Authenticate(ask), .. }) = self.requests.last_mut() {
            ask.joins = channels;
        }
    }

    /// Rooms of the subscriptions that `input` begins with. What is wrong with them is found when they are handled.
    fn channels_asked_for(&mut self, key: Key, input: &[u8]) -> Vec<String> {
        let Self { sessions, inflater, windows, .. } = self;
        let Some(session) = sessions.get(key) else { return Vec::new() };
        let mut channels = Vec::new();
        let mut note = |frame: Result<ClientFrame, native::BadFrame>| match frame {
            Ok(ClientFrame { body: Some(client_frame::Body::Subscribe(subscribe)), .. })
                if room_of(&subscribe.channel).is_ok() =>
            {
                channels.push(subscribe.channel);
                true
            }
            _ => false,
        };
        match session.wire {
            Wire::Tcp => {
                let mut rest = input;
                while let Ok(Some(frame)) = native::unpack(&mut rest, native::CLIENT_FRAME_BYTES_MAX)
                    && note(native::from_binary(frame))
                {}
            }
            Wire::WebSocket(_) => {
                // It is unmasked where it lies, and has to be read once more.
                let (mut copy, mut decoder) = (input.to_vec(), Decoder::new(Role::Server, AHEAD_BYTES_MAX as u32));
                let mut rest = &mut copy[..];
                inflater.resume(windows.copy(key.slot, session.deflate));
                loop {
                    let event = match session.deflate.is_agreed() {
                        true => decoder.next_inflated(inflater, &mut rest),
                        false => decoder.next(&mut rest),
                    };
                    let goes_on = match event {
                        Ok(Some(Event::Text(text))) => note(native::from_json(text)),
                        Ok(Some(Event::Binary(bytes))) => note(native::from_binary(bytes)),
                        _ => false,
                    };
                    if !goes_on {
                        break;
                    }
                }
                inflater.suspend();
            }
            Wire::Sniff | Wire::Http => {}
        }
        channels
    }

    /// Logic has let it in.
    pub(in super::super) fn connected(&mut self, key: Key, request: u32, mut admitted: cluster::Admitted) {
        if !self.admit(key, &admitted) {
            return;
        }
        if let Some(session) = self.session(key) {
            session.busy_mut().allowed = std::mem::take(&mut admitted.joined);
        }
        let limits = client::Limits {
            payload_bytes_max: self.config.payload_bytes_max,
            requests_per_s_max: self.config.requests_per_s,
            rooms_max: self.config.rooms_per_session,
        };
        let connected = client::Connected {
            session: self.session_id(key),
            uid: admitted.uid,
            name: admitted.name,
            guest: admitted.guest,
            expires_at_ms: admitted.expires_at_ms,
            heartbeat_s: self.config.heartbeat_s,
            limits: Some(limits),
        };
        self.reply(key, request, Body::Connected(connected));
    }

    fn refresh(&mut self, key: Key, request: u32, token: String) {
        let id = self.session_id(key);
        let Some(session) = self.session(key) else { return };
        let Some(identity) = session.identity.as_ref() else { return };
        let ask = cluster::Authenticate {
            session: id,
            token,
            device: identity.device().to_owned(),
            name: identity.name().to_owned(),
            dialect: cluster::Dialect::Native.into(),
            claimed_uid: String::new(),
            address: session.address().to_string(),
            channel: String::new(),
            refreshes_uid: identity.uid().to_owned(),
            joins: Vec::new(),
        };
        self.ask_gate(key, gate_request::Ask::Authenticate(ask), Continuation::Refresh(request));
    }

    /// Logic has taken the new token.
    pub(in super::super) fn refreshed(&mut self, key: Key, request: u32, admitted: cluster::Admitted) {
        let grant = Grant { subscribe: admitted.subscribe.clone(), publish: admitted.publish };
        let grant = self.sessions.grants.take(grant);
        let Some(identity) = self.session(key).and_then(|session| session.identity.as_mut()) else { return };
        if identity.uid() != admitted.uid {
            self.sessions.grants.give_back(grant);
            let error = error(ErrorCode::Forbidden, "the new token is of another user");
            return self.refuse_error(key, request, error);
        }
        identity.expires_at(admitted.expires_at_ms);
        let before = std::mem::replace(&mut identity.grant, grant);
        self.sessions.grants.give_back(before);
        self.rearm(key);
        self.reply(key, request, Body::Refreshed(client::Refreshed { expires_at_ms: admitted.expires_at_ms }));
        // The new token may allow less.
        for channel in self.channels(key) {
            if !admitted.subscribe.iter().any(|pattern| matches(pattern, &channel)) {
                self.take_out(key, &channel, Removal { reason: ErrorCode::Forbidden, retry_after_ms: 0 });
            }
        }
    }

    fn subscribe(&mut self, key: Key, request: u32, subscribe: client::Subscribe) -> Result<(), client::Error> {
        room_of(&subscribe.channel)?;
        let join = Join::Subscribe {
            request,
            history: subscribe.history.min(proto::RECENT_MESSAGES as u32),
            resume: subscribe.resume.map(|position| (position.log, [position.high, position.normal])),
        };
        if self.is_in(key, &subscribe.channel) {
            self.enter(key, &subscribe.channel, join);
            return Ok(());
        }
        self.ask_join(key, &subscribe.channel, join)
    }

    fn unsubscribe(&mut self, key: Key, request: u32, channel: String) -> Result<(), client::Error> {
        if !self.leave(key, &channel) {
            return Err(error(ErrorCode::NotSubscribed, "the session is not in that channel"));
        }
        let reason = ErrorCode::None.into();
        self.reply(key, request, Body::Unsubscribed(client::Unsubscribed { channel, reason, retry_after_ms: 0 }));
        Ok(())
    }

    fn publish(&mut self, key: Key, request: u32, publish: client::Publish) -> Result<(), client::Error> {
        room_of(&publish.channel)?;
        let most = self.config.payload_bytes_max;
        let session = self.session_id(key);
        let Some(identity) = self.session(key).and_then(|session| session.identity.as_ref()) else {
            return Ok(());
        };
        if !identity.grant.publish.iter().any(|pattern| matches(pattern, &publish.channel)) {
            let message = format!("the token does not allow publishing to {}", publish.channel);
            return Err(error(ErrorCode::Forbidden, message));
        }
        if !publish.client_message_id.is_empty() && !is_id(&publish.client_message_id) {
            return Err(error(ErrorCode::BadRequest, "a client message ID is 1-64 of A-Z a-z 0-9 _ . -"));
        }
        if !is_type(&publish.r#type) {
            return Err(error(ErrorCode::BadRequest, "a type is 1-32 of A-Z a-z 0-9 _ . -"));
        }
        let payload = native::published_bytes(publish.payload);
        if payload.len() > most as usize {
            return Err(error(ErrorCode::TooLarge, format!("a payload may be {most} bytes long")));
        }
        let ask = cluster::Publish {
            uid: identity.uid().to_owned(),
            name: identity.name().to_owned(),
            guest: identity.guest,
            session,
            channel: publish.channel,
            client_message_id: publish.client_message_id,
            r#type: publish.r#type,
            payload,
            style: publish.style,
            dialect: cluster::Dialect::Native.into(),
            operation: 0,
        };
        self.ask_gate(key, gate_request::Ask::Publish(ask), Continuation::Publish(request));
        Ok(())
    }

    fn ping(&mut self, key: Key, request: u32) {
        let time_ms = self.now.unix_ms;
        let Some(session) = self.session(key) else { return };
        let places: Vec<_> = session.places.iter().map(|place| place.room()).collect();
        let online = places
            .into_iter()
            .map(|index| client::Online {
                channel: self.rooms[index].name.to_string(),
                sessions: self.online_in(index),
            })
            .collect();
        self.reply(key, request, Body::Pong(client::Pong { online, time_ms }));
    }

    /// A native frame to a session; nothing to others.
    pub(in super::super) fn reply(&mut self, key: Key, request: u32, body: Body) {
        let encoding = self.session(key).and_then(|session| session.encoding());
        if let Some(encoding) = encoding.filter(|encoding: &Encoding| encoding.is_native()) {
            let frame = self.encoder.own(encoding, request, body);
            self.own(key, frame);
        }
    }

    /// The reply to a request that is refused.
    pub(in super::super) fn refuse_error(&mut self, key: Key, request: u32, error: client::Error) {
        self.count_error(&error);
        self.reply(key, request, Body::Error(error));
    }

    pub(in super::super) fn count_error(&mut self, error: &client::Error) {
        if let Some(errors) = self.counters.errors.get_mut(error.code as usize) {
            *errors += 1;
        }
    }

    /// Output of a session's own. Too much of it: closed (rule 28).
    pub(in super::super) fn own(&mut self, key: Key, frame: Bytes) {
        let most = self.config.private_bytes_max as usize;
        let Some(session) = self.session(key).filter(|session| !session.is_closing()) else { return };
        if session.busy().out.bytes() + frame.len() > most && !session.busy().out.is_empty() {
            return self.end(key, Ending::new(ErrorCode::TooSlow, "what is sent to this session alone is not read"));
        }
        session.busy_mut().out.push(frame);
        self.ready(key);
    }
}

fn room_of(channel: &str) -> Result<&str, client::Error> {
    match Channel::parse(channel) {
        Ok(Channel::Room(room)) => Ok(room),
        Ok(_) => Err(error(ErrorCode::Forbidden, "only rooms can be subscribed or published to")),
        Err(bad) => Err(error(ErrorCode::BadRequest, bad.to_string())),
    }
}
