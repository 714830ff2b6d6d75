//! Mutes and bans.

use axum::Json as Answer;
use axum::extract::State;
use proto::record::penalty::Kind;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::Sentence;
use crate::http::{Caller, ErrorBody, Json, Query, Refused, Shared};
use crate::penalty::Holding;

#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum PenaltyKind {
    /// May not publish.
    Mute,
    /// May not be there.
    Ban,
}

/// Mutes or bans a user, or lifts that.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Penalise {
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
pub(in crate::http) struct Penalised {
    /// Milliseconds since 1970; 0: lifted.
    until_ms: i64,
}

/// Mutes or bans a user in a room or everywhere, for a time. A ban ends what the user has open there. Scope `moderate`.
#[utoipa::path(
    post, path = "/v1/penalties", tag = "moderation", request_body = Penalise,
    responses((status = 200, body = Penalised), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(in crate::http) async fn penalise(
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
pub(in crate::http) struct OfUser {
    uid: String,
}

/// What a user is under now.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Penalties {
    penalties: Vec<Penalty>,
}

/// One penalty.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Penalty {
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
pub(in crate::http) async fn penalties(
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
