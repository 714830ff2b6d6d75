//! Who a session is: a token's user, or a guest (compat.md, "Who").
//!
//! | what is shown | native | goim, Bilibili |
//! |---|---|---|
//! | a valid token | its user | its user, whom `mid` or `uid` must name if it names anybody |
//! | another token | refused | refused if it is shaped like a JWT, else as if there were none |
//! | none | a guest, where guests are let in | the same; `mid` and `uid` are believed by `trust_claims` only |

use std::sync::Arc;

use proto::channel::{is_id, matches};
use proto::client::{Error, ErrorCode};
use proto::cluster::{Admitted, Authenticate, Dialect};
use proto::error::error;

use crate::config::{Config, Guests};
use crate::content::shown_name;
use crate::keys::KeyRing;
use crate::penalty::{Act, Penalties};
use crate::publish::Ids;
use crate::token;

/// What a user may be in and write to where the token does not say.
const ANY_ROOM: &str = "room:*";

/// Knows users.
pub(crate) struct Identities {
    config: Arc<Config>,
    keys: Arc<KeyRing>,
    penalties: Arc<Penalties>,
}

impl Identities {
    pub(crate) fn new(config: Arc<Config>, keys: Arc<KeyRing>, penalties: Arc<Penalties>) -> Self {
        Self { config, keys, penalties }
    }

    /// Lets a session in, and into those of the rooms it asks for that it may be in; or refuses it.
    ///
    /// # Errors
    /// Unauthenticated, expired, forbidden (guests, another user's claim, a room outside of the patterns), banned.
    pub(crate) fn admit(&self, ids: &Ids, ask: &Authenticate, now_ms: i64) -> Result<Admitted, Error> {
        let claimed = match ask.claimed_uid.as_str() {
            // What goim's and Bilibili's own clients say where nobody is logged in.
            "" | "0" => None,
            claimed => Some(claimed),
        };
        let foreign = !matches!(ask.dialect(), Dialect::Native | Dialect::Unspecified);
        let shown = !ask.token.is_empty() && (!foreign || token::is_shaped_like_one(&ask.token));
        let admitted = if shown {
            self.user(ask, claimed, now_ms)?
        } else if let Some(claimed) = claimed.filter(|_| self.config.trust_claims) {
            self.claimant(ask, claimed)?
        } else {
            self.guest(ids, ask)?
        };
        if !ask.refreshes_uid.is_empty() && ask.refreshes_uid != admitted.uid {
            return Err(error(ErrorCode::Forbidden, "the new token is for another user"));
        }
        match ask.channel.as_str() {
            "" => self.penalties.check(&admitted.uid, "", Act::Watch, now_ms)?,
            channel => self.may_watch(&admitted, channel, now_ms)?,
        }
        let may = |channel: &&String| self.may_watch(&admitted, channel, now_ms).is_ok();
        let joined = ask.joins.iter().filter(may).cloned().collect();
        Ok(Admitted { joined, ..admitted })
    }

    /// By its patterns, and by the penalties on its user.
    fn may_watch(&self, admitted: &Admitted, channel: &str, now_ms: i64) -> Result<(), Error> {
        if !admitted.subscribe.iter().any(|pattern| matches(pattern, channel)) {
            return Err(error(ErrorCode::Forbidden, format!("the token does not allow {channel}")));
        }
        self.penalties.check(&admitted.uid, channel, Act::Watch, now_ms)
    }

    fn user(&self, ask: &Authenticate, claimed: Option<&str>, now_ms: i64) -> Result<Admitted, Error> {
        let claims = token::check(&self.keys, &self.config.token, &ask.token, now_ms.max(0) as u64 / 1000)?;
        if claimed.is_some_and(|claimed| claimed != claims.sub) {
            return Err(error(ErrorCode::Forbidden, "mid or uid is not the token's subject"));
        }
        let patterns = |named: Option<Vec<String>>| named.unwrap_or_else(|| vec![ANY_ROOM.to_owned()]);
        Ok(Admitted {
            name: shown_name(claims.name.as_deref().unwrap_or(&ask.name), &claims.sub),
            device: claims.device.unwrap_or_else(|| device(ask)),
            guest: false,
            expires_at_ms: i64::try_from(claims.exp.saturating_mul(1000)).unwrap_or(i64::MAX),
            subscribe: patterns(claims.subscribe),
            publish: patterns(claims.publish),
            joined: Vec::new(),
            uid: claims.sub,
        })
    }

    fn claimant(&self, ask: &Authenticate, claimed: &str) -> Result<Admitted, Error> {
        if !is_id(claimed) || claimed.starts_with(token::GUEST_PREFIX) {
            return Err(error(ErrorCode::BadRequest, "mid or uid is 1-64 of A-Z a-z 0-9 _ . - and no guest's"));
        }
        Ok(Admitted {
            uid: claimed.to_owned(),
            name: shown_name(&ask.name, claimed),
            device: device(ask),
            guest: false,
            expires_at_ms: 0,
            subscribe: vec![ANY_ROOM.to_owned()],
            publish: vec![ANY_ROOM.to_owned()],
            joined: Vec::new(),
        })
    }

    fn guest(&self, ids: &Ids, ask: &Authenticate) -> Result<Admitted, Error> {
        let publish = match self.config.guests {
            Guests::Refuse => {
                return Err(error(ErrorCode::Unauthenticated, "a token is needed: guests are not let in"));
            }
            Guests::Watch => Vec::new(),
            Guests::Send => vec![ANY_ROOM.to_owned()],
        };
        let uid = ids.guest(&ask.session);
        Ok(Admitted {
            // Tells guests apart in a chat list without showing sixteen digits.
            name: shown_name(&ask.name, &format!("guest-{}", &uid[uid.len() - 4..])),
            uid,
            device: device(ask),
            guest: true,
            expires_at_ms: 0,
            subscribe: vec![ANY_ROOM.to_owned()],
            publish,
            joined: Vec::new(),
        })
    }
}

fn device(ask: &Authenticate) -> String {
    if is_id(&ask.device) { ask.device.clone() } else { String::new() }
}
