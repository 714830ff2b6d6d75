//! What happens to sessions that are online.

use axum::Json as Answer;
use axum::extract::State;
use proto::client::{Error, ErrorCode};
use proto::error::error;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::{Act, Targets};
use crate::http::{Caller, ErrorBody, Json, Refused, Shared};

/// Sessions by users, by session IDs, or by goim's keys: one of the three, at most 1,000 names.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct Which {
    users: Option<Vec<String>>,
    sessions: Option<Vec<String>>,
    keys: Option<Vec<String>>,
}

impl Which {
    fn these(self) -> Result<Targets, Error> {
        match (self.users, self.sessions, self.keys) {
            (Some(names), None, None) => Ok(Targets::Users(names)),
            (None, Some(names), None) => Ok(Targets::Sessions(names)),
            (None, None, Some(names)) => Ok(Targets::Keys(names)),
            _ => Err(error(ErrorCode::BadRequest, "want one of users, sessions, keys")),
        }
    }
}

/// Sessions and rooms.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct InRooms {
    #[serde(flatten)]
    which: Which,
    /// At most 100.
    rooms: Vec<String>,
}

/// Sessions that end.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct Kicked {
    #[serde(flatten)]
    which: Which,
    /// Told to the client; at most 120 bytes.
    #[serde(default)]
    reason: String,
}

/// It was taken; sessions that are online feel it in a moment.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Done {}

/// Puts sessions that are online into rooms. Scope `sessions`.
#[utoipa::path(
    post, path = "/v1/sessions/subscribe", tag = "sessions", request_body = InRooms,
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(in crate::http) async fn subscribe(
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
pub(in crate::http) async fn unsubscribe(
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
pub(in crate::http) async fn kick(
    State(services): Shared,
    Caller(caller): Caller,
    Json(asked): Json<Kicked>,
) -> Result<Answer<Done>, Refused> {
    services.api.sessions(caller, asked.which.these()?, Act::Kick(asked.reason)).await?;
    Ok(Answer(Done {}))
}
