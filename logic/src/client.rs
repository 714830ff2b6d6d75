//! What clients do: being let in, joining, publishing. The gate and Bilibili's sending call come through here, so that
//! the checks are the same.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use proto::channel::{Channel, is_id};
use proto::client::{Error, ErrorCode, Lane, Sender};
use proto::cluster::{Admitted, Authenticate, Dialect, Displace, Join, Publish};
use proto::error::error;
use proto::operation::{SEND, TEXT};
use proto::record::{Command, Kick, Names, command};

use crate::config::{Config, Guests};
use crate::content::{CLIENT_PAYLOAD_BYTES_MAX, Content};
use crate::identity::Identities;
use crate::penalty::{Act, Penalties};
use crate::publish::{Accepting, Draft, Publisher};
use crate::rate::Rates;

/// Serves clients, wherever they come from.
pub(crate) struct Clients {
    config: Arc<Config>,
    identities: Identities,
    penalties: Arc<Penalties>,
    publisher: Arc<Publisher>,
    rates: Mutex<Rates>,
}

impl Clients {
    pub(crate) fn new(
        config: Arc<Config>,
        identities: Identities,
        penalties: Arc<Penalties>,
        publisher: Arc<Publisher>,
    ) -> Self {
        let limits = &config.limits;
        let rates = Mutex::new(Rates::new(limits.user_messages_per_s, limits.user_messages_burst));
        Self { config, identities, penalties, publisher, rates }
    }

    /// Lets a session in, and into those of the rooms it asks for that it may be in; or refuses it.
    pub(crate) fn authenticate(&self, ask: &Authenticate, now_ms: i64) -> Result<Admitted, Error> {
        self.identities.admit(self.publisher.ids(), ask, now_ms)
    }

    /// Lets a user into a room whose patterns were checked.
    pub(crate) fn join(&self, ask: &Join, now_ms: i64) -> Result<(), Error> {
        self.penalties.check(&ask.uid, &ask.channel, Act::Watch, now_ms)
    }

    /// Publishes what a user wrote; the order is taken before this returns.
    pub(crate) fn publish(&self, ask: Publish, now_ms: i64) -> Result<Accepting, Error> {
        let Ok(Channel::Room(_)) = Channel::parse(&ask.channel) else {
            return Err(error(ErrorCode::BadRequest, "clients publish to room:<id>"));
        };
        if !ask.client_message_id.is_empty() && !is_id(&ask.client_message_id) {
            return Err(error(ErrorCode::BadRequest, "a client message ID is 1-64 of A-Z a-z 0-9 _ . -"));
        }
        if ask.guest && self.config.guests != Guests::Send {
            return Err(error(ErrorCode::Forbidden, "guests may not write here"));
        }
        self.penalties.check(&ask.uid, &ask.channel, Act::Write, now_ms)?;
        let content = match ask.dialect() {
            Dialect::Goim => {
                let operations = &self.config.operations;
                let operation = if ask.operation == SEND { operations.of_type(TEXT) } else { ask.operation };
                Content::of_goim(operations, operation, ask.payload, CLIENT_PAYLOAD_BYTES_MAX)?
            }
            _ => Content::new(ask.r#type, ask.payload, CLIENT_PAYLOAD_BYTES_MAX)?,
        };
        if !self.config.operations.is_a_clients(&content.kind) {
            return Err(error(ErrorCode::BadRequest, "an operation of the protocol's own: only the platform sends it"));
        }
        self.rate(&ask.uid)?;
        let draft = Draft {
            content,
            client_message_id: ask.client_message_id,
            sender: Some(Sender { uid: ask.uid, name: ask.name }),
            style: ask.style,
            lane: Lane::Normal,
            session: ask.session,
        };
        Ok(self.publisher.room(&ask.channel, draft, now_ms))
    }

    /// Ends the session that lost its key to another.
    pub(crate) fn displace(&self, ask: Displace, now_ms: i64) -> Result<Accepting, Error> {
        let key = format!("session:{}", ask.session);
        let command = Command {
            to: Some(command::To::Sessions(Names { names: vec![ask.session] })),
            act: Some(command::Act::Kick(Kick {
                code: ErrorCode::Replaced.into(),
                reason: "another session took the same key".to_owned(),
            })),
        };
        Ok(self.publisher.command(&key, command, now_ms))
    }

    fn rate(&self, uid: &str) -> Result<(), Error> {
        let taken = self.rates.lock().unwrap_or_else(PoisonError::into_inner).take(uid, Instant::now());
        taken.map_err(|wait| {
            let mut refused = error(
                ErrorCode::TooFast,
                format!("at most {} messages a second of one user", self.config.limits.user_messages_per_s),
            );
            refused.retry_after_ms = wait.as_millis().try_into().unwrap_or(u32::MAX).max(1);
            refused
        })
    }
}
