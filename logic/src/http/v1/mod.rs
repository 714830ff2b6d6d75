//! `/v1`: the platform's API in JSON. Reads requests, says answers; checks and effects are [`Api`](crate::api::Api)'s.
//!
//! Rooms stand by their ID, without `room:`. Numbers are JSON numbers; times are milliseconds since 1970; bytes are
//! base64.

use std::sync::Arc;

use axum::Router;
use axum::routing::{any, get, post};
use proto::client::ErrorCode;
use proto::error::error;

use super::{Refused, Services};

pub(super) mod message;
pub(super) mod online;
pub(super) mod penalty;
pub(super) mod session;

pub(super) fn router() -> Router<Arc<Services>> {
    Router::new()
        .route("/v1/rooms/{room}/messages", post(message::publish))
        .route("/v1/messages", post(message::publish_many))
        .route("/v1/users/messages", post(message::push_to_users))
        .route("/v1/sessions/messages", post(message::push_to_sessions))
        .route("/v1/all/messages", post(message::push_to_all))
        .route("/v1/sessions/subscribe", post(session::subscribe))
        .route("/v1/sessions/unsubscribe", post(session::unsubscribe))
        .route("/v1/sessions/kick", post(session::kick))
        .route("/v1/penalties", get(penalty::penalties).post(penalty::penalise))
        .route("/v1/rooms/{room}/online", get(online::room_online))
        .route("/v1/rooms/online", post(online::rooms_online))
        .route("/v1/rooms/top", get(online::top))
        .route("/v1/online", get(online::total))
        .route("/v1/connect", get(online::connect))
        .route("/v1/{*unknown}", any(unknown))
}

async fn unknown() -> Refused {
    Refused(error(ErrorCode::NotFound, "no such call: see /openapi.json"))
}
