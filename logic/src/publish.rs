//! Stamping: a checked message becomes a record with an ID and a time, and goes into the bus's order.
//!
//! Flow: gate, API ─▶ [`Publisher::room`], [`Publisher::push`], [`Publisher::command`], [`Publisher::penalty`] (the
//! order is taken in the call) ─▶ the future that they return (durable, or an error). What it is not: the place where
//! duplicates are dropped; that is the job's, by the message ID that is made here.
//!
//! Invariants:
//! - `a_retry_has_the_same_id_through_any_logic`: with a client message ID the message ID is a keyed hash of (channel,
//!   sender, client message ID), the key being the cluster's secret (rule 15);
//! - records of one caller for one channel have rising offsets in the order of the calls (rule 16).

use std::hash::Hasher as _;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bus::{Bus, Topic};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use prost::Message as _;
use proto::client::{Error, ErrorCode, Lane, Sender, Style};
use proto::config::Secret;
use proto::error::{error, outcome_unknown};
use proto::record::{Command, Penalty, Post, Push, Record, record::Body};
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use crate::clock::us_since;
use crate::content::Content;
use crate::recent::RecentIds;
use crate::token::GUEST_PREFIX;

/// Makes records and publishes them.
pub(crate) struct Publisher {
    bus: Arc<dyn Bus>,
    ids: Ids,
    recent: Arc<Mutex<RecentIds>>,
}

/// A checked message on its way.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) content: Content,
    /// Empty: there is none.
    pub(crate) client_message_id: String,
    /// `None`: the platform's own.
    pub(crate) sender: Option<Sender>,
    pub(crate) style: Option<Style>,
    pub(crate) lane: Lane,
    /// The sender's session, to be told what becomes of the message after it was accepted; empty: nobody is.
    pub(crate) session: String,
}

/// Durable, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) id: String,
    pub(crate) log: String,
    pub(crate) offset: u64,
}

/// Resolves when the record is durable. Dropping it does not take the record back.
pub(crate) type Accepting = BoxFuture<'static, Result<Accepted, Error>>;

impl Publisher {
    pub(crate) fn new(bus: Arc<dyn Bus>, secret: &Secret) -> Self {
        Self { bus, ids: Ids::new(secret), recent: Arc::default() }
    }

    /// Whether publishing can be expected to work.
    pub(crate) fn ready(&self) -> Result<(), String> {
        self.bus.ready()
    }

    /// Whose IDs these are.
    pub(crate) fn ids(&self) -> &Ids {
        &self.ids
    }

    /// To the room `channel`.
    pub(crate) fn room(&self, channel: &str, draft: Draft, now_ms: i64) -> Accepting {
        let post = self.post(channel, draft);
        let (id, client_message_id) = (post.id.clone(), post.client_message_id.clone());
        if client_message_id.is_empty() {
            return self.publish(Topic::Rooms, channel, Body::Post(post), (id, client_message_id), now_ms);
        }
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let content = recent.content(&post.r#type, &post.payload, post.style.as_ref());
        let conflicts = recent.conflicts(&id, content);
        drop(recent);
        if conflicts {
            let text =
                format!("client_message_id {client_message_id:?} was used within five minutes for another message");
            return std::future::ready(Err(error(ErrorCode::Conflict, text))).boxed();
        }
        let remembered = (self.recent.clone(), id.clone());
        let accepting = self.publish(Topic::Rooms, channel, Body::Post(post), (id, client_message_id), now_ms);
        let remember = move |outcome: Result<Accepted, Error>| {
            let unknown = outcome.as_ref().is_err_and(|refused| refused.code() == ErrorCode::OutcomeUnknown);
            if outcome.is_ok() || unknown {
                let (recent, id) = remembered;
                recent.lock().unwrap_or_else(PoisonError::into_inner).remember(id, content, now_ms);
            }
            outcome
        };
        accepting.map(remember).boxed()
    }

    /// One message for `key` (`user:<uid>`, `session:<id>`, `key:<key>`, `all`).
    pub(crate) fn push(&self, key: &str, push: Push, now_ms: i64) -> Accepting {
        let id = push.post.as_ref().map(|post| post.id.clone()).unwrap_or_default();
        self.publish(Topic::Pushes, key, Body::Push(push), (id, String::new()), now_ms)
    }

    /// Something that happens to the sessions of `key`.
    pub(crate) fn command(&self, key: &str, command: Command, now_ms: i64) -> Accepting {
        self.publish(Topic::Pushes, key, Body::Command(command), Default::default(), now_ms)
    }

    /// To every logic.
    pub(crate) fn penalty(&self, penalty: Penalty, now_ms: i64) -> Accepting {
        let uid = penalty.uid.clone();
        self.publish(Topic::Control, &uid, Body::Penalty(penalty), Default::default(), now_ms)
    }

    /// The draft with its ID, for `channel` or a push's key.
    pub(crate) fn post(&self, channel: &str, draft: Draft) -> Post {
        let uid = draft.sender.as_ref().map_or("", |sender| &sender.uid);
        Post {
            id: self.ids.message(channel, uid, &draft.client_message_id),
            sender: draft.sender,
            client_message_id: draft.client_message_id,
            r#type: draft.content.kind,
            payload: draft.content.payload,
            style: draft.style,
            lane: draft.lane.into(),
            raw: draft.content.raw,
            session: draft.session,
        }
    }

    /// `ids`: the message's ID, and its client message ID.
    fn publish(&self, topic: Topic, key: &str, body: Body, ids: (String, String), now_ms: i64) -> Accepting {
        let (id, client_message_id) = ids;
        // What nobody would read before the retention takes it must not be accepted (rule 4). A penalty always may.
        if topic != Topic::Control
            && let Err(why) = self.bus.ready()
        {
            tracing::debug!(why, "nothing is accepted");
            let refused = error(ErrorCode::Unavailable, "messages are not accepted now: try again");
            return std::future::ready(Err(refused)).boxed();
        }
        let log = self.bus.log(topic);
        let record = Record {
            min_reader: 1,
            log: log.clone(),
            time_ms: now_ms,
            channel: key.to_owned(),
            handed_us: us_since(now_ms),
            body: Some(body),
        };
        let partition = proto::channel::partition(key, self.bus.partitions(topic));
        let durable = self.bus.publish(topic, partition, Bytes::from(record.encode_to_vec()));
        durable
            .map(move |published| match published {
                Ok(offset) => Ok(Accepted { id, log, offset }),
                Err(bus::Error::TooLarge(bytes)) => {
                    Err(error(ErrorCode::TooLarge, format!("a record of {bytes} bytes is over the bus's limit")))
                }
                Err(bus::Error::Unknown(why)) => {
                    tracing::warn!(why, ?topic, partition, "it is not known whether a record was taken");
                    Err(outcome_unknown(&client_message_id))
                }
                Err(refused) => {
                    tracing::warn!(%refused, ?topic, partition, "a record was not taken");
                    Err(error(ErrorCode::Unavailable, "the message was not accepted: try again"))
                }
            })
            .boxed()
    }
}

/// Makes IDs that every logic of the cluster makes alike.
pub(crate) struct Ids {
    key: (u64, u64),
}

impl Ids {
    pub(crate) fn new(secret: &Secret) -> Self {
        let mut hasher = SipHasher24::new_with_keys(0, 0);
        hasher.write(secret.reveal().as_bytes());
        let hash = hasher.finish128();
        Self { key: (hash.h1, hash.h2) }
    }

    /// 22 characters of base64url: 128 bits.
    pub(crate) fn message(&self, channel: &str, uid: &str, client_message_id: &str) -> String {
        let bits = if client_message_id.is_empty() {
            rand::random()
        } else {
            self.hash("message", &[channel, uid, client_message_id])
        };
        URL_SAFE_NO_PAD.encode(u128::to_be_bytes(bits))
    }

    /// A guest's ID, the same for the same session (or address); it does not give that away, as others are shown it.
    pub(crate) fn guest(&self, session: &str) -> String {
        format!("{GUEST_PREFIX}{:016x}", self.hash("guest", &[session]) as u64)
    }

    fn hash(&self, purpose: &str, parts: &[&str]) -> u128 {
        let mut hasher = SipHasher24::new_with_keys(self.key.0, self.key.1);
        for part in std::iter::once(&purpose).chain(parts) {
            // With its length, so that no two lists run together into the same bytes.
            hasher.write(&(part.len() as u64).to_le_bytes());
            hasher.write(part.as_bytes());
        }
        hasher.finish128().as_u128()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_has_the_same_id_through_any_logic() {
        let (one, other) = (Ids::new(&Secret::new("s")), Ids::new(&Secret::new("s")));
        let id = one.message("room:1", "7", "a");
        assert_eq!(id, other.message("room:1", "7", "a"));
        assert!(id.len() == 22 && proto::channel::is_id(&id));
        let others = [
            one.message("room:2", "7", "a"),
            one.message("room:1", "8", "a"),
            one.message("room:1", "7", "b"),
            one.message("room:17", "", "a"),
            Ids::new(&Secret::new("t")).message("room:1", "7", "a"),
            one.message("room:1", "7", ""),
            one.message("room:1", "7", ""),
        ];
        for (at, other) in others.iter().enumerate() {
            assert!(*other != id && !others[..at].contains(other), "{at}");
        }
    }

    #[tokio::test]
    async fn nothing_is_accepted_that_retention_would_take_unread() {
        use crate::penalty::tests::Empty;
        let accepted = async |ready: Result<(), String>| {
            let publisher = Publisher::new(Arc::new(Empty { next: 7, ready }), &Secret::new("s"));
            let content = Content::new(String::new(), Bytes::from("x"), 1).unwrap();
            let lane = Lane::Normal;
            let draft = Draft {
                content,
                client_message_id: String::new(),
                sender: None,
                style: None,
                lane,
                session: String::new(),
            };
            let message = publisher.room("room:1", draft, 0).await.map_err(|refused| refused.code());
            let penalty = publisher.penalty(Penalty::default(), 0).await.map_err(|refused| refused.code());
            (message.map(|accepted| accepted.offset), penalty.map(|accepted| accepted.offset))
        };
        assert_eq!(accepted(Ok(())).await, (Ok(7), Ok(7)));
        assert_eq!(accepted(Err("group job lags".to_owned())).await, (Err(ErrorCode::Unavailable), Ok(7)));
    }

    #[test]
    fn a_guest_is_an_id_and_keeps_the_session_to_itself() {
        let ids = Ids::new(&Secret::new("s"));
        let guest = ids.guest("abcdefghijklm.0.1f.2");
        assert!(proto::channel::is_id(&guest) && !guest.contains("1f"));
        assert_eq!(guest, ids.guest("abcdefghijklm.0.1f.2"));
        assert_ne!(guest, ids.guest("abcdefghijklm.0.1f.3"));
    }
}
