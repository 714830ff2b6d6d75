//! How many are there, and where clients connect.

use axum::Json as Answer;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::Guests;
use crate::http::{Caller, ErrorBody, Json, Query, Refused, Shared};

/// Sessions in a room.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RoomOnline {
    room: String,
    /// Over the whole cluster, at most 5 s old.
    sessions: u64,
}

/// Sessions in rooms.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RoomsOnline {
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
pub(in crate::http) async fn room_online(
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
pub(in crate::http) struct Rooms {
    /// At most 100.
    rooms: Vec<String>,
}

/// Sessions in many rooms, in the order asked. Scope `online`.
#[utoipa::path(
    post, path = "/v1/rooms/online", tag = "online", request_body = Rooms,
    responses((status = 200, body = RoomsOnline), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(in crate::http) async fn rooms_online(
    State(services): Shared,
    Caller(caller): Caller,
    Json(Rooms { rooms }): Json<Rooms>,
) -> Result<Answer<RoomsOnline>, Refused> {
    let counts = services.api.online(caller, &rooms).await?;
    Ok(Answer(RoomsOnline::new(rooms.into_iter().zip(counts))))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(in crate::http) struct Top {
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
pub(in crate::http) async fn top(
    State(services): Shared,
    Caller(caller): Caller,
    Query(Top { prefix, limit }): Query<Top>,
) -> Result<Answer<RoomsOnline>, Refused> {
    Ok(Answer(RoomsOnline::new(services.api.top(caller, &prefix, limit).await?)))
}

/// Sessions over the whole cluster, at most 5 s old.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Total {
    sessions: u64,
    /// Different client addresses, each connector's own added up.
    addresses: u64,
}

/// Sessions over the whole cluster. Scope `online`.
#[utoipa::path(
    get, path = "/v1/online", tag = "online",
    responses((status = 200, body = Total), (status = "default", body = ErrorBody)), security((), ("key" = []))
)]
pub(in crate::http) async fn total(State(services): Shared, Caller(caller): Caller) -> Result<Answer<Total>, Refused> {
    let (sessions, addresses) = services.api.total(caller).await?;
    Ok(Answer(Total { sessions, addresses }))
}

/// Where clients connect, and how.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Connect {
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
pub(in crate::http) struct Node {
    /// `host:port`, each taking WebSocket and TCP of every dialect.
    addresses: Vec<String>,
}

/// The n-th try waits `base * factor^n`, at most `max`; the share `jitter` of it is random.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Backoff {
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
pub(in crate::http) async fn connect(State(services): Shared) -> Result<Answer<Connect>, Refused> {
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
