//! What the platform may do. HTTP and gRPC both come through here, so that checks and effects are the same.
//!
//! Flow: HTTP's `/v1` and `/goim`, gRPC's `Api` ─▶ [`Api`]: scope and rate, then the request's own limits, then the bus
//! (in the order of the calls) or Routes.

use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use proto::channel::{Channel, is_id};
use proto::client::{Error, ErrorCode, Sender};
use proto::error::error;
use proto::record::penalty::Kind;
use proto::record::{Command, Everyone, Kick, Leave, Names, Penalty, Push, command, push};

use crate::caller::{Caller, Callers};
use crate::clock::now_ms;
use crate::config::{AdviceConfig, Config, Scope};
use crate::content::shown_name;
use crate::metrics::Metrics;
use crate::online::{Online, TOP_MAX};
use crate::penalty::{Holding, PENALTY_SECONDS_MAX, Penalties, USERS_MAX};
use crate::publish::{Accepted, Accepting, Draft, Publisher};

/// Most messages, and most rooms, in one request. Large messages meet the body's limit before.
pub(crate) const BATCH_MAX: usize = 100;

/// Most users, sessions or keys in one request. Each is a record of its own.
pub(crate) const NAMES_MAX: usize = 1_000;

/// Most bytes that one push may become, over all its records: what the bus takes in a fraction of a second.
pub(crate) const PUSH_BYTES_MAX: usize = 16 << 20;

/// Longest reason, bytes: it goes into a close frame, which holds 123 (RFC 6455 section 5.5).
pub(crate) const REASON_BYTES_MAX: usize = 120;

/// Most connectors that a client is told.
pub(crate) const NODES_MAX: usize = 5;

/// Does what the platform asks.
pub(crate) struct Api {
    pub(crate) config: Arc<Config>,
    pub(crate) callers: Callers,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) penalties: Arc<Penalties>,
    pub(crate) online: Online,
    pub(crate) metrics: Metrics,
}

/// Whom a push is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum To {
    Targets(Targets),
    /// Sessions a second over the whole cluster, 0: as fast as it goes.
    All(u32),
}

/// Sessions by one of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Targets {
    Users(Vec<String>),
    Sessions(Vec<String>),
    Keys(Vec<String>),
}

/// What happens to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    /// Rooms by ID.
    Subscribe(Vec<String>),
    Unsubscribe(Vec<String>),
    /// The reason.
    Kick(String),
}

/// A penalty as asked for.
#[derive(Debug, Clone)]
pub(crate) struct Sentence {
    pub(crate) uid: String,
    /// A room's ID; empty: everywhere.
    pub(crate) room: String,
    pub(crate) kind: Kind,
    /// From now; 0 lifts it.
    pub(crate) seconds: u32,
    pub(crate) reason: String,
}

/// Where clients connect.
pub(crate) struct Nodes<'a> {
    pub(crate) nodes: Vec<routes::Lease>,
    pub(crate) advice: &'a AdviceConfig,
}

impl Api {
    /// Publishes to rooms (by ID), in this order; one outcome for each.
    pub(crate) async fn publish(
        &self,
        caller: Caller,
        messages: Vec<(String, Result<Draft, Error>)>,
    ) -> Result<Vec<Result<Accepted, Error>>, Error> {
        self.count(caller, "publish", async {
            let read = Instant::now();
            self.allow(caller, Scope::Publish)?;
            let count = messages.len();
            if !(1..=BATCH_MAX).contains(&count) {
                return Err(error(ErrorCode::BadRequest, format!("1 to {BATCH_MAX} messages, not {count}")));
            }
            let now_ms = now_ms();
            let publish = |(room, draft): (String, Result<Draft, Error>)| -> Result<Accepting, Error> {
                let draft = checked(draft?)?;
                Ok(self.publisher.room(&channel(&room)?, draft, now_ms))
            };
            let accepting: Vec<_> = messages.into_iter().map(publish).collect();
            let since = Instant::now();
            self.metrics.accepted(since - read);
            let outcomes = accepting.into_iter().map(|accepting| async {
                match accepting {
                    Ok(accepting) => accepting.await,
                    Err(refused) => Err(refused),
                }
            });
            let outcomes = join_all(outcomes).await;
            self.metrics.durable(since.elapsed());
            Ok(outcomes)
        })
        .await
    }

    /// Pushes one message; its ID. `operation` is goim's, 0: by the type.
    pub(crate) async fn push(&self, caller: Caller, to: To, draft: Draft, operation: i32) -> Result<String, Error> {
        self.count(caller, "push", async {
            self.allow(caller, Scope::Push)?;
            let post = self.publisher.post("push", checked(draft)?);
            let id = post.id.clone();
            let now_ms = now_ms();
            let accepting: Vec<Accepting> = match to {
                To::All(sessions_per_s) => {
                    let to = Some(push::To::All(Everyone { sessions_per_s }));
                    vec![self.publisher.push("all", Push { to, post: Some(post), operation }, now_ms)]
                }
                To::Targets(targets) => {
                    let names = targets.check()?;
                    let bytes = names * (post.payload.len() + post.raw.len());
                    if bytes > PUSH_BYTES_MAX {
                        return Err(error(
                            ErrorCode::TooLarge,
                            format!("names times payload are {bytes} bytes: at most {PUSH_BYTES_MAX} in one request"),
                        ));
                    }
                    let push = |(key, to): (String, command::To)| {
                        let to = match to {
                            command::To::Users(names) => push::To::Users(names),
                            command::To::Sessions(names) => push::To::Sessions(names),
                            command::To::Keys(names) => push::To::Keys(names),
                        };
                        self.publisher.push(&key, Push { to: Some(to), post: Some(post.clone()), operation }, now_ms)
                    };
                    targets.each().map(push).collect()
                }
            };
            all(accepting).await?;
            Ok(id)
        })
        .await
    }

    /// Does something to sessions that are online.
    pub(crate) async fn sessions(&self, caller: Caller, targets: Targets, act: Act) -> Result<(), Error> {
        self.count(caller, "sessions", async {
            self.allow(caller, Scope::Sessions)?;
            targets.check()?;
            let act = act.command()?;
            self.command(targets, &act).await
        })
        .await
    }

    /// Puts a user under a penalty, or lifts it; until when, milliseconds since 1970 (0: lifted).
    pub(crate) async fn penalise(&self, caller: Caller, sentence: Sentence) -> Result<i64, Error> {
        self.count(caller, "penalise", async {
            self.allow(caller, Scope::Moderate)?;
            let Sentence { uid, room, kind, seconds, reason } = sentence;
            id("uid", &uid)?;
            let channel = if room.is_empty() { String::new() } else { channel(&room)? };
            if kind == Kind::Unspecified {
                return Err(error(ErrorCode::BadRequest, "kind: mute or ban"));
            }
            if seconds > PENALTY_SECONDS_MAX {
                return Err(error(ErrorCode::BadRequest, format!("seconds: at most {PENALTY_SECONDS_MAX} (31 days)")));
            }
            check_reason(&reason)?;
            if seconds > 0 && self.penalties.users() >= USERS_MAX {
                return Err(error(ErrorCode::Unavailable, format!("{USERS_MAX} users are under a penalty already")));
            }
            let now_ms = now_ms();
            let until_ms = if seconds == 0 { 0 } else { now_ms + i64::from(seconds) * 1000 };
            let penalty = Penalty {
                uid: uid.clone(),
                channel: channel.clone(),
                kind: kind.into(),
                until_ms,
                reason: reason.clone(),
            };
            let accepted = self.publisher.penalty(penalty.clone(), now_ms).await?;
            self.penalties.apply(penalty, accepted.offset);
            if kind == Kind::Ban && seconds > 0 {
                let act = if channel.is_empty() {
                    command::Act::Kick(Kick { code: ErrorCode::Banned.into(), reason })
                } else {
                    let reason = ErrorCode::Banned.into();
                    command::Act::Unsubscribe(Leave { channels: vec![channel], reason, until_ms })
                };
                self.command(Targets::Users(vec![uid]), &act).await?;
            }
            Ok(until_ms)
        })
        .await
    }

    /// What a user is under now.
    pub(crate) fn penalties(&self, caller: Caller, uid: &str) -> Result<Vec<Holding>, Error> {
        self.allow(caller, Scope::Moderate)?;
        id("uid", uid)?;
        Ok(self.penalties.of(uid, now_ms()))
    }

    /// Sessions in rooms (by ID), in the order asked.
    pub(crate) async fn online(&self, caller: Caller, rooms: &[String]) -> Result<Vec<u64>, Error> {
        self.count(caller, "online", async {
            self.allow(caller, Scope::Online)?;
            let channels = rooms.iter().map(|room| channel(room)).collect::<Result<Vec<_>, _>>()?;
            if !(1..=BATCH_MAX).contains(&channels.len()) {
                return Err(error(ErrorCode::BadRequest, format!("1 to {BATCH_MAX} rooms")));
            }
            self.online.counts(&channels, Instant::now()).await
        })
        .await
    }

    /// The rooms (by ID) that begin with `prefix` and have the most sessions.
    pub(crate) async fn top(&self, caller: Caller, prefix: &str, limit: u32) -> Result<Vec<(String, u64)>, Error> {
        self.count(caller, "top", async {
            self.allow(caller, Scope::RoomsList)?;
            if !prefix.is_empty() {
                id("prefix", prefix)?;
            }
            let limit = if limit == 0 { 10 } else { limit as usize };
            if limit > TOP_MAX {
                return Err(error(ErrorCode::BadRequest, format!("limit: at most {TOP_MAX}")));
            }
            let top = self.online.top(&format!("room:{prefix}"), limit, Instant::now()).await?;
            let room = |(channel, count): (String, u64)| Some((channel.strip_prefix("room:")?.to_owned(), count));
            Ok(top.into_iter().filter_map(room).collect())
        })
        .await
    }

    /// Sessions and addresses over the whole cluster.
    pub(crate) async fn total(&self, caller: Caller) -> Result<(u64, u64), Error> {
        self.count(caller, "total", async {
            self.allow(caller, Scope::Online)?;
            self.online.total(Instant::now()).await
        })
        .await
    }

    /// Where clients connect. Anybody may ask.
    pub(crate) async fn nodes(&self) -> Result<Nodes<'_>, Error> {
        let mut nodes = self.online.open(Instant::now()).await?;
        nodes.truncate(NODES_MAX);
        Ok(Nodes { nodes, advice: &self.config.advice })
    }

    async fn command(&self, targets: Targets, act: &command::Act) -> Result<(), Error> {
        let now_ms = now_ms();
        let command = |(key, to): (String, command::To)| {
            self.publisher.command(&key, Command { to: Some(to), act: Some(act.clone()) }, now_ms)
        };
        all(targets.each().map(command).collect()).await
    }

    fn allow(&self, caller: Caller, scope: Scope) -> Result<(), Error> {
        self.callers.allow(caller, scope, Instant::now())
    }

    async fn count<T>(
        &self,
        caller: Caller,
        call: &'static str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let answer = answer.await;
        self.metrics.called(call, self.callers.name(caller), &answer);
        answer
    }
}

/// Waits for all records; the first error, if any was not taken.
async fn all(accepting: Vec<Accepting>) -> Result<(), Error> {
    join_all(accepting).await.into_iter().try_for_each(|accepted| accepted.map(drop))
}

impl Targets {
    /// How many there are, each name being one.
    fn check(&self) -> Result<usize, Error> {
        let (Self::Users(names) | Self::Sessions(names) | Self::Keys(names)) = self;
        if !(1..=NAMES_MAX).contains(&names.len()) {
            return Err(error(ErrorCode::BadRequest, format!("1 to {NAMES_MAX} names, not {}", names.len())));
        }
        for name in names {
            match self {
                Self::Users(_) | Self::Sessions(_) => id("name", name)?,
                // A goim key is whatever its client chose.
                Self::Keys(_) if (1..=KEY_BYTES_MAX).contains(&name.len()) => {}
                Self::Keys(_) => {
                    return Err(error(ErrorCode::BadRequest, format!("a key has 1 to {KEY_BYTES_MAX} bytes")));
                }
            }
        }
        Ok(names.len())
    }

    /// One record's key and addressee for each name: a user's pushes stay in order, and no record names two.
    fn each(self) -> impl Iterator<Item = (String, command::To)> {
        type Wrap = fn(Names) -> command::To;
        let (kind, names, wrap): (&str, Vec<String>, Wrap) = match self {
            Self::Users(names) => ("user", names, command::To::Users),
            Self::Sessions(names) => ("session", names, command::To::Sessions),
            Self::Keys(names) => ("key", names, command::To::Keys),
        };
        names.into_iter().map(move |name| (format!("{kind}:{name}"), wrap(Names { names: vec![name] })))
    }
}

/// Longest goim key, bytes: a generated one is a UUID.
pub(crate) const KEY_BYTES_MAX: usize = 128;

impl Act {
    fn command(self) -> Result<command::Act, Error> {
        let channels = |rooms: Vec<String>| {
            if !(1..=BATCH_MAX).contains(&rooms.len()) {
                return Err(error(ErrorCode::BadRequest, format!("1 to {BATCH_MAX} rooms")));
            }
            rooms.iter().map(|room| channel(room)).collect::<Result<Vec<_>, _>>()
        };
        Ok(match self {
            Self::Subscribe(rooms) => command::Act::Subscribe(Names { names: channels(rooms)? }),
            Self::Unsubscribe(rooms) => {
                let reason = ErrorCode::Kicked.into();
                command::Act::Unsubscribe(Leave { channels: channels(rooms)?, reason, until_ms: 0 })
            }
            Self::Kick(reason) => {
                check_reason(&reason)?;
                command::Act::Kick(Kick { code: ErrorCode::Kicked.into(), reason })
            }
        })
    }
}

/// What the platform sends needs no user's rights, but must be in shape.
fn checked(mut draft: Draft) -> Result<Draft, Error> {
    if !draft.client_message_id.is_empty() {
        id("client_message_id", &draft.client_message_id)?;
    }
    if let Some(Sender { uid, name }) = &mut draft.sender {
        id("from.uid", uid)?;
        *name = shown_name(name, uid);
    }
    Ok(draft)
}

fn channel(room: &str) -> Result<String, Error> {
    id("room", room)?;
    Ok(Channel::Room(room).to_string())
}

fn id(what: &str, id: &str) -> Result<(), Error> {
    if is_id(id) {
        Ok(())
    } else {
        Err(error(ErrorCode::BadRequest, format!("{what}: want 1-64 of A-Z a-z 0-9 _ . -")))
    }
}

fn check_reason(reason: &str) -> Result<(), Error> {
    if reason.len() <= REASON_BYTES_MAX && !reason.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(error(ErrorCode::BadRequest, format!("reason: at most {REASON_BYTES_MAX} bytes, no control characters")))
    }
}
