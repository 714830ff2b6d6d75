//! goim's calls, as its callers know them (compat.md; goim's `internal/logic/http`): parameters in the query also of a
//! POST, the message as the raw body whatever its content type, always status 200 with `{"code","message","data"}`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use proto::channel::is_id;
use proto::client::{Error, ErrorCode, Fault, Lane};
use proto::error::{error, row};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Caller, Query, Refused, Services, Shared, body};
use crate::api::{Targets, To};
use crate::content::{API_PAYLOAD_BYTES_MAX, Content};
use crate::publish::Draft;

/// The room type that stands for none of ours: `live://1000` is `room:1000`.
const DEFAULT_TYPE: &str = "live";

/// goim's heartbeats that may be missed.
const HEARTBEAT_MAX: u32 = 2;

pub(super) fn router() -> Router<Arc<Services>> {
    Router::new()
        .route("/goim/push/keys", post(push_keys))
        .route("/goim/push/mids", post(push_mids))
        .route("/goim/push/room", post(push_room))
        .route("/goim/push/all", post(push_all))
        .route("/goim/online/top", get(online_top))
        .route("/goim/online/room", get(online_room))
        .route("/goim/online/total", get(online_total))
        .route("/goim/nodes/weighted", get(nodes_weighted))
}

/// An answer.
#[derive(Serialize)]
struct Reply {
    code: i32,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        Json(self).into_response()
    }
}

fn reply(answer: Result<Option<Value>, Error>) -> Reply {
    match answer {
        Ok(data) => Reply { code: 0, message: String::new(), data },
        Err(refused) => {
            let code = if row(refused.code()).fault == Fault::Server { -500 } else { -400 };
            Reply { code, message: refused.message, data: None }
        }
    }
}

/// The query: pairs, since a list repeats its parameter.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    fn one(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn required(&self, name: &str) -> Result<&str, Error> {
        self.one(name).ok_or_else(|| error(ErrorCode::BadRequest, format!("{name} is missing")))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        let parsed = self.one(name).map(str::parse).transpose();
        parsed.map_err(|_| error(ErrorCode::BadRequest, format!("{name} is not a number")))
    }

    /// goim holds 0 for missing where it requires a number.
    fn operation(&self) -> Result<i32, Error> {
        let operation = self.number("operation")?.filter(|operation| *operation != 0);
        operation.ok_or_else(|| error(ErrorCode::BadRequest, "operation is missing"))
    }
}

/// goim's room of a type as the ID of ours.
fn room(kind: &str, room: &str) -> Result<String, Error> {
    let id = if kind == DEFAULT_TYPE { room.to_owned() } else { format!("{kind}.{room}") };
    if is_id(&id) { Ok(id) } else { Err(error(ErrorCode::BadRequest, "not a room: 1-64 of A-Z a-z 0-9 _ . -")) }
}

/// What every call has: who calls, the parameters, and of a push the message.
async fn asked(
    caller: Result<Caller, Refused>,
    query: Result<Query<Vec<(String, String)>>, Refused>,
) -> Result<(crate::caller::Caller, Parameters), Error> {
    let Caller(caller) = caller.map_err(|Refused(refused)| refused)?;
    let Query(query) = query.map_err(|Refused(refused)| refused)?;
    Ok((caller, Parameters(query)))
}

type CallerResult = Result<Caller, Refused>;
type QueryPairs = Result<Query<Vec<(String, String)>>, Refused>;

fn draft(services: &Services, operation: i32, body: Bytes) -> Result<Draft, Error> {
    let content = Content::of_goim(&services.api.config.operations, operation, body, API_PAYLOAD_BYTES_MAX)?;
    Ok(Draft {
        content,
        client_message_id: String::new(),
        sender: None,
        style: None,
        lane: Lane::Normal,
        session: String::new(),
    })
}

async fn push_keys(State(services): Shared, caller: CallerResult, query: QueryPairs, request: Request) -> Reply {
    let pushed = async {
        let (caller, asked) = asked(caller, query).await?;
        push(&services, caller, To::Targets(Targets::Keys(asked.all("keys"))), asked.operation()?, request).await
    };
    reply(pushed.await)
}

async fn push_mids(State(services): Shared, caller: CallerResult, query: QueryPairs, request: Request) -> Reply {
    let pushed = async {
        let (caller, asked) = asked(caller, query).await?;
        push(&services, caller, To::Targets(Targets::Users(asked.all("mids"))), asked.operation()?, request).await
    };
    reply(pushed.await)
}

async fn push_all(State(services): Shared, caller: CallerResult, query: QueryPairs, request: Request) -> Reply {
    let pushed = async {
        let (caller, asked) = asked(caller, query).await?;
        let speed = asked.number::<u32>("speed")?.unwrap_or_default();
        push(&services, caller, To::All(speed), asked.operation()?, request).await
    };
    reply(pushed.await)
}

async fn push(
    services: &Services,
    caller: crate::caller::Caller,
    to: To,
    operation: i32,
    request: Request,
) -> Result<Option<Value>, Error> {
    let draft = draft(services, operation, body::read(request).await?)?;
    services.api.push(caller, to, draft, operation).await?;
    Ok(None)
}

async fn push_room(State(services): Shared, caller: CallerResult, query: QueryPairs, request: Request) -> Reply {
    let pushed = async {
        let (caller, asked) = asked(caller, query).await?;
        let room = room(asked.required("type")?, asked.required("room")?)?;
        let draft = draft(&services, asked.operation()?, body::read(request).await?);
        for outcome in services.api.publish(caller, vec![(room, draft)]).await? {
            outcome?;
        }
        Ok(None)
    };
    reply(pushed.await)
}

async fn online_top(State(services): Shared, caller: CallerResult, query: QueryPairs) -> Reply {
    let top = async {
        let (caller, asked) = asked(caller, query).await?;
        let kind = asked.required("type")?;
        let limit = asked.number::<u32>("limit")?.filter(|limit| *limit > 0);
        let limit = limit.ok_or_else(|| error(ErrorCode::BadRequest, "limit is missing"))?;
        // goim itself knows no most; ours is the list's own.
        let limit = limit.min(crate::online::TOP_MAX as u32);
        let prefix = if kind == DEFAULT_TYPE { String::new() } else { format!("{kind}.") };
        let top = services.api.top(caller, &prefix, limit).await?;
        let room = |(room, count): (String, u64)| json!({"room_id": room[prefix.len()..], "count": count});
        Ok(Some(top.into_iter().map(room).collect()))
    };
    reply(top.await)
}

async fn online_room(State(services): Shared, caller: CallerResult, query: QueryPairs) -> Reply {
    let counts = async {
        let (caller, asked) = asked(caller, query).await?;
        let kind = asked.required("type")?;
        let names = asked.all("rooms");
        let rooms = names.iter().map(|name| room(kind, name)).collect::<Result<Vec<_>, _>>()?;
        let counts = services.api.online(caller, &rooms).await?;
        Ok(Some(json!(names.into_iter().zip(counts).collect::<BTreeMap<_, _>>())))
    };
    reply(counts.await)
}

async fn online_total(State(services): Shared, caller: CallerResult) -> Reply {
    let total = async {
        let Caller(caller) = caller.map_err(|Refused(refused)| refused)?;
        let (sessions, addresses) = services.api.total(caller).await?;
        Ok(Some(json!({"conn_count": sessions, "ip_count": addresses})))
    };
    reply(total.await)
}

async fn nodes_weighted(State(services): Shared) -> Reply {
    let nodes = async {
        let nodes = services.api.nodes().await?;
        // A connector's first address is meant for TCP, its last for WebSocket; each takes both.
        let port = |address: Option<&String>| {
            let port = address.and_then(|address| address.rsplit_once(':')?.1.parse::<u16>().ok());
            port.unwrap_or_default()
        };
        let first = nodes.nodes.first().map(|node| node.clients.as_slice()).unwrap_or_default();
        let (tcp_port, ws_port) = (port(first.first()), port(first.last()));
        let host = |address: &String| address.rsplit_once(':').map(|(host, _)| host.to_owned());
        let mut hosts: Vec<String> = nodes.nodes.iter().filter_map(|node| host(node.clients.first()?)).collect();
        hosts.dedup();
        let domain = nodes.advice.domain.clone();
        if hosts.is_empty() {
            hosts.push(domain.clone());
        }
        // goim's own defaults (its `logic-example.toml`): its clients have them built in, too.
        let backoff = json!({"max_delay": 300, "base_delay": 3, "factor": 1.8, "jitter": 0.3});
        Ok(Some(json!({
            "domain": domain, "tcp_port": tcp_port, "ws_port": ws_port, "wss_port": 0,
            "heartbeat": nodes.advice.goim_heartbeat_s, "nodes": hosts, "backoff": backoff,
            "heartbeat_max": HEARTBEAT_MAX,
        })))
    };
    reply(nodes.await)
}

#[cfg(test)]
mod tests {
    #[test]
    fn goims_rooms_are_ours() {
        assert_eq!(super::room("live", "1000").unwrap(), "1000");
        assert_eq!(super::room("game", "7").unwrap(), "game.7");
        assert!(super::room("live", "a b").is_err());
    }
}
