//! `/v1`: the platform's API in JSON. Reads requests, says answers; checks and effects are [`Api`](crate::api::Api)'s.
//!
//! Rooms stand by their ID, without `room:`. Numbers are JSON numbers; times are milliseconds since 1970; bytes are
//! base64.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::client::{self, Error, ErrorCode};
use proto::error::error;
use proto::record::penalty::Kind;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Caller, ErrorBody, ErrorJson, Json, Query, Refused, Services, Shared};
use crate::api::{Act, Sentence, These, To};
use crate::config::Guests;
use crate::content::{API_PAYLOAD_BYTES_MAX, Content};
use crate::penalty::Holding;
use crate::publish::{Accepted, Draft};

pub(super) fn router() -> Router<Arc<Services>> {
    Router::new()
        .route("/v1/rooms/{room}/messages", post(publish))
        .route("/v1/messages", post(publish_many))
        .route("/v1/users/messages", post(push_to_users))
        .route("/v1/sessions/messages", post(push_to_sessions))
        .route("/v1/all/messages", post(push_to_all))
        .route("/v1/sessions/subscribe", post(subscribe))
        .route("/v1/sessions/unsubscribe", post(unsubscribe))
        .route("/v1/sessions/kick", post(kick))
        .route("/v1/penalties", get(penalties).post(penalise))
        .route("/v1/rooms/{room}/online", get(room_online))
        .route("/v1/rooms/online", post(rooms_online))
        .route("/v1/rooms/top", get(top))
        .route("/v1/online", get(total))
        .route("/v1/connect", get(connect))
        .route("/v1/{*unknown}", axum::routing::any(unknown))
}

async fn unknown() -> Refused {
    Refused(error(ErrorCode::NotFound, "no such call: see /openapi.json"))
}

/// One message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"text": "hello", "from": {"uid": "42", "name": "Ada"}}))]
pub(super) struct Message {
    /// 1-32 of A-Z a-z 0-9 _ . - ; text by default. Others that clients know: image, gift, like, custom.
    #[serde(default, rename = "type")]
    kind: String,
    /// The payload, at most 65,536 bytes; either this or `data`.
    text: Option<String>,
    /// The payload in base64.
    data: Option<String>,
    /// The same one again within five minutes has one effect and the same message ID. 1-64 of A-Z a-z 0-9 _ . -
    #[serde(default)]
    client_message_id: String,
    /// Whose message it is; absent: the platform's own.
    from: Option<From>,
    /// How a bullet comment wants to be shown.
    style: Option<Style>,
    /// `normal`, or `high`: sent before what waits on the normal lane.
    #[serde(default)]
    lane: Lane,
}

/// A user.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    /// 1-64 of A-Z a-z 0-9 _ . -
    uid: String,
    /// The name shown, at most 32 characters; absent: the uid.
    #[serde(default)]
    name: String,
}

/// Zeros: the viewer's default.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Style {
    /// Bilibili's: 1 flying, 4 at the bottom, 5 at the top.
    #[serde(default)]
    mode: u32,
    /// Bilibili's font size: 25 is ordinary.
    #[serde(default)]
    size: u32,
    /// 0xRRGGBB, as a number.
    #[serde(default)]
    colour: u32,
}

#[derive(Debug, Default, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Lane {
    #[default]
    Normal,
    High,
}

impl Message {
    fn draft(self) -> Result<Draft, Error> {
        let payload = match (self.text, self.data) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(data)) => {
                STANDARD.decode(data).map_err(|_| error(ErrorCode::BadRequest, "data is not base64"))?
            }
            (None, None) => Vec::new(),
            (Some(_), Some(_)) => return Err(error(ErrorCode::BadRequest, "text and data: want one of the two")),
        };
        Ok(Draft {
            content: Content::new(self.kind, payload.into(), API_PAYLOAD_BYTES_MAX)?,
            client_message_id: self.client_message_id,
            sender: self.from.map(|from| client::Sender { uid: from.uid, name: from.name }),
            style: self.style.map(|Style { mode, size, colour }| client::Style { mode, size, colour }),
            lane: match self.lane {
                Lane::Normal => client::Lane::Normal,
                Lane::High => client::Lane::High,
            },
        })
    }
}

/// Accepted: the bus has it durably.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Published {
    /// The message's ID.
    #[schema(example = "mHDXzXvjDvgbQz1sVx0wTA")]
    id: String,
    position: Position,
}

/// A place in the room's log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Position {
    log: String,
    offset: u64,
}

impl std::convert::From<Accepted> for Published {
    fn from(Accepted { id, log, offset }: Accepted) -> Self {
        Self { id, position: Position { log, offset } }
    }
}

/// Publishes one message to a room. Scope `publish`.
#[utoipa::path(
    post, path = "/v1/rooms/{room}/messages", tag = "messages", params(("room" = String, Path, description = "The room's ID")),
    request_body = Message, responses((status = 200, body = Published), (status = "default", body = ErrorBody)),
    security((), ("key" = []))
)]
pub(super) async fn publish(
    State(services): Shared,
    Caller(caller): Caller,
    Path(room): Path<String>,
    Json(message): Json<Message>,
) -> Result<Answer<Published>, Refused> {
    let outcomes = services.api.publish(caller, vec![(room, message.draft())]).await?;
    let only = outcomes.into_iter().next().expect("one outcome for each message");
    Ok(Answer(only?.into()))
}

/// Messages to rooms, accepted in this order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Batch {
    /// At most 100.
    messages: Vec<RoomMessage>,
}

/// One of them.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RoomMessage {
    /// The room's ID.
    room: String,
    message: Message,
}

/// One outcome for each message, in the order asked.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Outcomes {
    outcomes: Vec<Outcome>,
}

/// A published message or an error.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Outcome {
    Published(Published),
    Refused { error: ErrorJson },
}

/// Publishes many messages to rooms. Each succeeds or fails by itself. Scope `publish`.
#[utoipa::path(
    post, path = "/v1/messages", tag = "messages", request_body = Batch,
    responses((status = 200, body = Outcomes), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn publish_many(
    State(services): Shared,
    Caller(caller): Caller,
    Json(batch): Json<Batch>,
) -> Result<Answer<Outcomes>, Refused> {
    let messages = batch.messages.into_iter().map(|one| (one.room, one.message.draft())).collect();
    let outcomes = services.api.publish(caller, messages).await?;
    let outcome = |result: Result<Accepted, Error>| match result {
        Ok(accepted) => Outcome::Published(accepted.into()),
        Err(refused) => Outcome::Refused { error: refused.into() },
    };
    Ok(Answer(Outcomes { outcomes: outcomes.into_iter().map(outcome).collect() }))
}

/// A push was taken.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Pushed {
    /// The message's ID.
    id: String,
}

/// To these users' sessions that are online, at most once.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PushToUsers {
    /// At most 1,000.
    users: Vec<String>,
    message: Message,
}

/// Pushes to users who are online. Scope `push`.
#[utoipa::path(
    post, path = "/v1/users/messages", tag = "messages", request_body = PushToUsers,
    responses((status = 200, body = Pushed), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn push_to_users(
    State(services): Shared,
    Caller(caller): Caller,
    Json(push): Json<PushToUsers>,
) -> Result<Answer<Pushed>, Refused> {
    let to = To::These(These::Users(push.users));
    let id = services.api.push(caller, to, push.message.draft()?, 0).await?;
    Ok(Answer(Pushed { id }))
}

/// To these sessions, at most once.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PushToSessions {
    /// At most 1,000.
    sessions: Vec<String>,
    message: Message,
}

/// Pushes to sessions. Scope `push`.
#[utoipa::path(
    post, path = "/v1/sessions/messages", tag = "messages", request_body = PushToSessions,
    responses((status = 200, body = Pushed), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn push_to_sessions(
    State(services): Shared,
    Caller(caller): Caller,
    Json(push): Json<PushToSessions>,
) -> Result<Answer<Pushed>, Refused> {
    let to = To::These(These::Sessions(push.sessions));
    let id = services.api.push(caller, to, push.message.draft()?, 0).await?;
    Ok(Answer(Pushed { id }))
}

/// To everyone who is online.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PushToAll {
    /// Over the whole cluster; 0 or absent: as fast as it goes.
    #[serde(default)]
    sessions_per_s: u32,
    message: Message,
}

/// Pushes to all sessions, at a pace. Scope `push`.
#[utoipa::path(
    post, path = "/v1/all/messages", tag = "messages", request_body = PushToAll,
    responses((status = 200, body = Pushed), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn push_to_all(
    State(services): Shared,
    Caller(caller): Caller,
    Json(push): Json<PushToAll>,
) -> Result<Answer<Pushed>, Refused> {
    let id = services.api.push(caller, To::All(push.sessions_per_s), push.message.draft()?, 0).await?;
    Ok(Answer(Pushed { id }))
}

/// Sessions by users, by session IDs, or by goim's keys: one of the three, at most 1,000 names.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Which {
    users: Option<Vec<String>>,
    sessions: Option<Vec<String>>,
    keys: Option<Vec<String>>,
}

impl Which {
    fn these(self) -> Result<These, Error> {
        match (self.users, self.sessions, self.keys) {
            (Some(names), None, None) => Ok(These::Users(names)),
            (None, Some(names), None) => Ok(These::Sessions(names)),
            (None, None, Some(names)) => Ok(These::Keys(names)),
            _ => Err(error(ErrorCode::BadRequest, "want one of users, sessions, keys")),
        }
    }
}

/// Sessions and rooms.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct InRooms {
    #[serde(flatten)]
    which: Which,
    /// At most 100.
    rooms: Vec<String>,
}

/// Sessions that end.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Kicked {
    #[serde(flatten)]
    which: Which,
    /// Told to the client; at most 120 bytes.
    #[serde(default)]
    reason: String,
}

/// It was taken; sessions that are online feel it in a moment.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Done {}

/// Puts sessions that are online into rooms. Scope `sessions`.
#[utoipa::path(
    post, path = "/v1/sessions/subscribe", tag = "sessions", request_body = InRooms,
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn subscribe(
    State(services): Shared,
    Caller(caller): Caller,
    Json(asked): Json<InRooms>,
) -> Result<Answer<Done>, Refused> {
    services.api.sessions(caller, asked.which.these()?, Act::Subscribe(asked.rooms)).await?;
    Ok(Answer(Done {}))
}

/// Takes sessions out of rooms. Scope `sessions`.
#[utoipa::path(
    post, path = "/v1/sessions/unsubscribe", tag = "sessions", request_body = InRooms,
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn unsubscribe(
    State(services): Shared,
    Caller(caller): Caller,
    Json(asked): Json<InRooms>,
) -> Result<Answer<Done>, Refused> {
    services.api.sessions(caller, asked.which.these()?, Act::Unsubscribe(asked.rooms)).await?;
    Ok(Answer(Done {}))
}

/// Ends sessions. Scope `sessions`.
#[utoipa::path(
    post, path = "/v1/sessions/kick", tag = "sessions", request_body = Kicked,
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn kick(
    State(services): Shared,
    Caller(caller): Caller,
    Json(asked): Json<Kicked>,
) -> Result<Answer<Done>, Refused> {
    services.api.sessions(caller, asked.which.these()?, Act::Kick(asked.reason)).await?;
    Ok(Answer(Done {}))
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PenaltyKind {
    /// May not publish.
    Mute,
    /// May not be there.
    Ban,
}

/// Mutes or bans a user, or lifts that.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Penalise {
    uid: String,
    /// The room's ID; absent: everywhere.
    #[serde(default)]
    room: String,
    kind: PenaltyKind,
    /// From now; at most 2,678,400 (31 days); 0 lifts it.
    seconds: u32,
    /// Told to the client; at most 120 bytes.
    #[serde(default)]
    reason: String,
}

/// Until when it holds.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Penalised {
    /// Milliseconds since 1970; 0: lifted.
    until_ms: i64,
}

/// Mutes or bans a user in a room or everywhere, for a time. A ban ends what the user has open there. Scope `moderate`.
#[utoipa::path(
    post, path = "/v1/penalties", tag = "moderation", request_body = Penalise,
    responses((status = 200, body = Penalised), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn penalise(
    State(services): Shared,
    Caller(caller): Caller,
    Json(asked): Json<Penalise>,
) -> Result<Answer<Penalised>, Refused> {
    let Penalise { uid, room, kind, seconds, reason } = asked;
    let kind = match kind {
        PenaltyKind::Mute => Kind::Mute,
        PenaltyKind::Ban => Kind::Ban,
    };
    let until_ms = services.api.penalise(caller, Sentence { uid, room, kind, seconds, reason }).await?;
    Ok(Answer(Penalised { until_ms }))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(super) struct OfUser {
    uid: String,
}

/// What a user is under now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Penalties {
    penalties: Vec<Penalty>,
}

/// One penalty.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Penalty {
    /// The room's ID; absent: everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<String>,
    kind: PenaltyKind,
    /// Milliseconds since 1970.
    until_ms: i64,
    reason: String,
}

/// What a user is under now. Scope `moderate`.
#[utoipa::path(
    get, path = "/v1/penalties", tag = "moderation", params(OfUser),
    responses((status = 200, body = Penalties), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn penalties(
    State(services): Shared,
    Caller(caller): Caller,
    Query(OfUser { uid }): Query<OfUser>,
) -> Result<Answer<Penalties>, Refused> {
    let penalty = |one: Holding| Penalty {
        room: one.channel.strip_prefix("room:").map(str::to_owned),
        kind: if one.kind == Kind::Ban { PenaltyKind::Ban } else { PenaltyKind::Mute },
        until_ms: one.until_ms,
        reason: one.reason,
    };
    let penalties = services.api.penalties(caller, &uid)?.into_iter().map(penalty).collect();
    Ok(Answer(Penalties { penalties }))
}

/// Sessions in a room.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RoomOnline {
    room: String,
    /// Over the whole cluster, at most 5 s old.
    sessions: u64,
}

/// Sessions in rooms.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RoomsOnline {
    rooms: Vec<RoomOnline>,
}

impl RoomsOnline {
    fn new(counts: impl IntoIterator<Item = (String, u64)>) -> Self {
        Self { rooms: counts.into_iter().map(|(room, sessions)| RoomOnline { room, sessions }).collect() }
    }
}

/// Sessions in one room. Scope `online`.
#[utoipa::path(
    get, path = "/v1/rooms/{room}/online", tag = "online", params(("room" = String, Path, description = "The room's ID")),
    responses((status = 200, body = RoomOnline), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn room_online(
    State(services): Shared,
    Caller(caller): Caller,
    Path(room): Path<String>,
) -> Result<Answer<RoomOnline>, Refused> {
    let counts = services.api.online(caller, std::slice::from_ref(&room)).await?;
    Ok(Answer(RoomOnline { room, sessions: counts.first().copied().unwrap_or_default() }))
}

/// Rooms to count.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rooms {
    /// At most 100.
    rooms: Vec<String>,
}

/// Sessions in many rooms, in the order asked. Scope `online`.
#[utoipa::path(
    post, path = "/v1/rooms/online", tag = "online", request_body = Rooms,
    responses((status = 200, body = RoomsOnline), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn rooms_online(
    State(services): Shared,
    Caller(caller): Caller,
    Json(Rooms { rooms }): Json<Rooms>,
) -> Result<Answer<RoomsOnline>, Refused> {
    let counts = services.api.online(caller, &rooms).await?;
    Ok(Answer(RoomsOnline::new(rooms.into_iter().zip(counts))))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(super) struct Top {
    /// Only rooms whose ID begins with this.
    #[serde(default)]
    prefix: String,
    /// At most 100; 10 by default.
    #[serde(default)]
    limit: u32,
}

/// The rooms with the most sessions, most first. Scope `rooms.list`.
#[utoipa::path(
    get, path = "/v1/rooms/top", tag = "online", params(Top),
    responses((status = 200, body = RoomsOnline), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn top(
    State(services): Shared,
    Caller(caller): Caller,
    Query(Top { prefix, limit }): Query<Top>,
) -> Result<Answer<RoomsOnline>, Refused> {
    Ok(Answer(RoomsOnline::new(services.api.top(caller, &prefix, limit).await?)))
}

/// Sessions over the whole cluster, at most 5 s old.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Total {
    sessions: u64,
    /// Different client addresses, each connector's own added up.
    addresses: u64,
}

/// Sessions over the whole cluster. Scope `online`.
#[utoipa::path(
    get, path = "/v1/online", tag = "online",
    responses((status = 200, body = Total), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(super) async fn total(State(services): Shared, Caller(caller): Caller) -> Result<Answer<Total>, Refused> {
    let (sessions, addresses) = services.api.total(caller).await?;
    Ok(Answer(Total { sessions, addresses }))
}

/// Where clients connect, and how.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Connect {
    /// Connectors that take new sessions, least loaded first, at most 5.
    nodes: Vec<Node>,
    /// Send a ping at least this often, seconds.
    heartbeat_s: u32,
    backoff: Backoff,
    /// What a session without a token may do: `refuse`, `watch` or `send`.
    #[schema(example = "send")]
    guests: &'static str,
}

/// One connector.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Node {
    /// `host:port`, each taking WebSocket and TCP of every dialect.
    addresses: Vec<String>,
}

/// The n-th try waits `base * factor^n`, at most `max`; the share `jitter` of it is random.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Backoff {
    base_ms: u32,
    max_ms: u32,
    factor: f64,
    jitter: f64,
}

/// Where clients connect. Anybody may ask.
#[utoipa::path(
    get, path = "/v1/connect", tag = "connecting",
    responses((status = 200, body = Connect), (status = "default", body = ErrorBody))
)]
pub(super) async fn connect(State(services): Shared) -> Result<impl IntoResponse, Refused> {
    let nodes = services.api.nodes().await?;
    let guests = match services.api.config.guests {
        Guests::Refuse => "refuse",
        Guests::Watch => "watch",
        Guests::Send => "send",
    };
    Ok(Answer(Connect {
        nodes: nodes.nodes.into_iter().map(|node| Node { addresses: node.clients }).collect(),
        heartbeat_s: nodes.advice.heartbeat_s,
        backoff: Backoff {
            base_ms: nodes.advice.backoff_base_ms,
            max_ms: nodes.advice.backoff_max_ms,
            factor: nodes.advice.backoff_factor,
            jitter: nodes.advice.backoff_jitter,
        },
        guests,
    }))
}
