//! Messages: to rooms, to users, to sessions, to all.

use axum::Json as Answer;
use axum::extract::{Path, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::client::{self, Error, ErrorCode};
use proto::error::error;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::{Targets, To};
use crate::content::{API_PAYLOAD_BYTES_MAX, Content};
use crate::http::{Caller, ErrorBody, ErrorJson, Json, Refused, Shared};
use crate::publish::{Accepted, Draft};

/// One message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"text": "hello", "from": {"uid": "42", "name": "Ada"}}))]
pub(in crate::http) struct Message {
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
pub(in crate::http) struct From {
    /// 1-64 of A-Z a-z 0-9 _ . -
    uid: String,
    /// The name shown, at most 32 characters; absent: the uid.
    #[serde(default)]
    name: String,
}

/// Zeros: the viewer's default.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Style {
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
pub(in crate::http) enum Lane {
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
            session: String::new(),
        })
    }
}

/// Accepted: the bus has it durably.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Published {
    /// The message's ID.
    #[schema(example = "mHDXzXvjDvgbQz1sVx0wTA")]
    id: String,
    position: Position,
}

/// A place in the room's log.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Position {
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
pub(in crate::http) async fn publish(
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
pub(in crate::http) struct Batch {
    /// At most 100. One that is not what is wanted is refused by itself.
    #[schema(value_type = Vec<RoomMessage>)]
    messages: Vec<serde_json::Value>,
}

/// One of them.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct RoomMessage {
    /// The room's ID.
    room: String,
    message: Message,
}

/// One outcome for each message, in the order asked.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Outcomes {
    outcomes: Vec<Outcome>,
}

/// A published message or an error.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum Outcome {
    Published(Published),
    Refused { error: ErrorJson },
}

/// Publishes many messages to rooms. Each succeeds or fails by itself. Scope `publish`.
#[utoipa::path(
    post, path = "/v1/messages", tag = "messages", request_body = Batch,
    responses((status = 200, body = Outcomes), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(in crate::http) async fn publish_many(
    State(services): Shared,
    Caller(caller): Caller,
    Json(batch): Json<Batch>,
) -> Result<Answer<Outcomes>, Refused> {
    let messages = batch.messages.into_iter().map(|one| match serde_json::from_value::<RoomMessage>(one) {
        Ok(one) => (one.room, one.message.draft()),
        // The room is not looked at where there is no message.
        Err(wrong) => (String::new(), Err(error(ErrorCode::BadRequest, format!("not a message: {wrong}")))),
    });
    let messages = messages.collect();
    let outcomes = services.api.publish(caller, messages).await?;
    let outcome = |result: Result<Accepted, Error>| match result {
        Ok(accepted) => Outcome::Published(accepted.into()),
        Err(refused) => Outcome::Refused { error: refused.into() },
    };
    Ok(Answer(Outcomes { outcomes: outcomes.into_iter().map(outcome).collect() }))
}

/// A push was taken.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Pushed {
    /// The message's ID.
    id: String,
}

/// To these users' sessions that are online, at most once.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct PushToUsers {
    /// At most 1,000.
    users: Vec<String>,
    message: Message,
}

/// Pushes to users who are online. Scope `push`.
#[utoipa::path(
    post, path = "/v1/users/messages", tag = "messages", request_body = PushToUsers,
    responses((status = 200, body = Pushed), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(in crate::http) async fn push_to_users(
    State(services): Shared,
    Caller(caller): Caller,
    Json(push): Json<PushToUsers>,
) -> Result<Answer<Pushed>, Refused> {
    let to = To::Targets(Targets::Users(push.users));
    let id = services.api.push(caller, to, push.message.draft()?, 0).await?;
    Ok(Answer(Pushed { id }))
}

/// To these sessions, at most once.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct PushToSessions {
    /// At most 1,000.
    sessions: Vec<String>,
    message: Message,
}

/// Pushes to sessions. Scope `push`.
#[utoipa::path(
    post, path = "/v1/sessions/messages", tag = "messages", request_body = PushToSessions,
    responses((status = 200, body = Pushed), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(in crate::http) async fn push_to_sessions(
    State(services): Shared,
    Caller(caller): Caller,
    Json(push): Json<PushToSessions>,
) -> Result<Answer<Pushed>, Refused> {
    let to = To::Targets(Targets::Sessions(push.sessions));
    let id = services.api.push(caller, to, push.message.draft()?, 0).await?;
    Ok(Answer(Pushed { id }))
}

/// To everyone who is online.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct PushToAll {
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
pub(in crate::http) async fn push_to_all(
    State(services): Shared,
    Caller(caller): Caller,
    Json(push): Json<PushToAll>,
) -> Result<Answer<Pushed>, Refused> {
    let id = services.api.push(caller, To::All(push.sessions_per_s), push.message.draft()?, 0).await?;
    Ok(Answer(Pushed { id }))
}
