//! gRPC: the public `Api` beside the connectors' gate, on one port. Translates, and nothing else: checks and effects
//! are [`Api`]'s.

use std::sync::Arc;
use std::time::Duration;

use proto::api::{self as wire, outcome, push_request, sessions};
use proto::client::{Error, ErrorCode};
use proto::error::{error, row};
use proto::record::penalty::Kind;
use rpc::api::api_server::{Api as Service, ApiServer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};

use crate::api::{Act, Api, Sentence, Targets, To};
use crate::caller::Caller;
use crate::content::{API_PAYLOAD_BYTES_MAX, Content};
use crate::gate::GateService;
use crate::publish::{Accepted, Draft};

/// Longest request of the API, bytes: a hundred messages of 64 KiB do not fit, a few dozen do.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// How often a silent connection is asked for a sign of life.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Serves until `stop`, then what is in flight.
pub(crate) async fn serve(listener: TcpListener, gate: GateService, api: Arc<Api>, stop: CancellationToken) {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(gate.server())
        .add_service(ApiServer::new(Public(api)).max_decoding_message_size(REQUEST_BYTES_MAX))
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned())
        .await;
    if let Err(failed) = served {
        tracing::error!(%failed, "gRPC ended");
    }
}

struct Public(Arc<Api>);

impl Public {
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let shown = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer "));
        let loopback = request.remote_addr().is_some_and(|address| address.ip().to_canonical().is_loopback());
        self.0.callers.identify(shown, loopback).map_err(status)
    }
}

/// The error as gRPC says it: code and message are the table's and the error's, details what a client's `Error` frame
/// would hold.
fn status(refused: Error) -> Status {
    let code = Code::from_i32(row(refused.code()).grpc_code);
    let details = prost::Message::encode_to_vec(&refused);
    Status::with_details(code, refused.message, details.into())
}

fn refused(message: &str) -> Status {
    status(error(ErrorCode::BadRequest, message))
}

fn draft(message: Option<wire::Content>) -> Result<Draft, Error> {
    let Some(message) = message else { return Err(error(ErrorCode::BadRequest, "a message is missing")) };
    let lane = message.lane();
    let payload = match message.payload {
        Some(wire::content::Payload::Text(text)) => text.into(),
        Some(wire::content::Payload::Data(data)) => data,
        None => bytes::Bytes::new(),
    };
    Ok(Draft {
        content: Content::new(message.r#type, payload, API_PAYLOAD_BYTES_MAX)?,
        client_message_id: message.client_message_id,
        sender: message.from,
        style: message.style,
        lane,
        session: String::new(),
    })
}

fn these(of: Option<wire::Sessions>) -> Result<Targets, Status> {
    match of.and_then(|sessions| sessions.of) {
        Some(sessions::Of::Users(names)) => Ok(Targets::Users(names.names)),
        Some(sessions::Of::Sessions(names)) => Ok(Targets::Sessions(names.names)),
        Some(sessions::Of::Keys(names)) => Ok(Targets::Keys(names.names)),
        None => Err(refused("sessions: users, sessions or keys")),
    }
}

fn rooms(counts: impl IntoIterator<Item = (String, u64)>) -> Vec<wire::RoomOnline> {
    counts.into_iter().map(|(room, sessions)| wire::RoomOnline { room, sessions }).collect()
}

#[tonic::async_trait]
impl Service for Public {
    async fn publish(&self, request: Request<wire::PublishRequest>) -> Result<Response<wire::PublishResponse>, Status> {
        let caller = self.caller(&request)?;
        let messages = request.into_inner().messages.into_iter();
        let messages = messages.map(|one| (one.room, draft(one.message))).collect();
        let outcomes = self.0.publish(caller, messages).await.map_err(status)?;
        let outcome = |result: Result<Accepted, Error>| wire::Outcome {
            result: Some(match result {
                Ok(Accepted { id, log, offset }) => outcome::Result::Accepted(wire::Accepted { id, log, offset }),
                Err(refused) => outcome::Result::Error(refused),
            }),
        };
        Ok(Response::new(wire::PublishResponse { outcomes: outcomes.into_iter().map(outcome).collect() }))
    }

    async fn push(&self, request: Request<wire::PushRequest>) -> Result<Response<wire::PushResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let to = match request.to {
            Some(push_request::To::Users(names)) => To::Targets(Targets::Users(names.names)),
            Some(push_request::To::Sessions(names)) => To::Targets(Targets::Sessions(names.names)),
            Some(push_request::To::Keys(names)) => To::Targets(Targets::Keys(names.names)),
            Some(push_request::To::All(all)) => To::All(all.sessions_per_s),
            None => return Err(refused("to: users, sessions, keys or all")),
        };
        let draft = draft(request.message).map_err(status)?;
        let id = self.0.push(caller, to, draft, 0).await.map_err(status)?;
        Ok(Response::new(wire::PushResponse { id }))
    }

    async fn subscribe(
        &self,
        request: Request<wire::SubscribeRequest>,
    ) -> Result<Response<wire::SubscribeResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let act = Act::Subscribe(request.rooms);
        self.0.sessions(caller, these(request.sessions)?, act).await.map_err(status)?;
        Ok(Response::new(wire::SubscribeResponse {}))
    }

    async fn unsubscribe(
        &self,
        request: Request<wire::UnsubscribeRequest>,
    ) -> Result<Response<wire::UnsubscribeResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let act = Act::Unsubscribe(request.rooms);
        self.0.sessions(caller, these(request.sessions)?, act).await.map_err(status)?;
        Ok(Response::new(wire::UnsubscribeResponse {}))
    }

    async fn kick(&self, request: Request<wire::KickRequest>) -> Result<Response<wire::KickResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        self.0.sessions(caller, these(request.sessions)?, Act::Kick(request.reason)).await.map_err(status)?;
        Ok(Response::new(wire::KickResponse {}))
    }

    async fn penalise(
        &self,
        request: Request<wire::PenaliseRequest>,
    ) -> Result<Response<wire::PenaliseResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let kind = match request.kind() {
            wire::PenaltyKind::Mute => Kind::Mute,
            wire::PenaltyKind::Ban => Kind::Ban,
            wire::PenaltyKind::Unspecified => Kind::Unspecified,
        };
        let wire::PenaliseRequest { uid, room, seconds, reason, .. } = request;
        let sentence = Sentence { uid, room, kind, seconds, reason };
        let until_ms = self.0.penalise(caller, sentence).await.map_err(status)?;
        Ok(Response::new(wire::PenaliseResponse { until_ms }))
    }

    async fn penalties(
        &self,
        request: Request<wire::PenaltiesRequest>,
    ) -> Result<Response<wire::PenaltiesResponse>, Status> {
        let caller = self.caller(&request)?;
        let holding = self.0.penalties(caller, &request.get_ref().uid).map_err(status)?;
        let penalty = |one: crate::penalty::Holding| wire::Penalty {
            room: one.channel.strip_prefix("room:").unwrap_or_default().to_owned(),
            kind: match one.kind {
                Kind::Mute => wire::PenaltyKind::Mute,
                Kind::Ban => wire::PenaltyKind::Ban,
                Kind::Unspecified => wire::PenaltyKind::Unspecified,
            }
            .into(),
            until_ms: one.until_ms,
            reason: one.reason,
        };
        Ok(Response::new(wire::PenaltiesResponse { penalties: holding.into_iter().map(penalty).collect() }))
    }

    async fn online(&self, request: Request<wire::OnlineRequest>) -> Result<Response<wire::OnlineResponse>, Status> {
        let caller = self.caller(&request)?;
        let asked = request.into_inner().rooms;
        let counts = self.0.online(caller, &asked).await.map_err(status)?;
        Ok(Response::new(wire::OnlineResponse { rooms: rooms(asked.into_iter().zip(counts)) }))
    }

    async fn top(&self, request: Request<wire::TopRequest>) -> Result<Response<wire::TopResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let top = self.0.top(caller, &request.prefix, request.limit).await.map_err(status)?;
        Ok(Response::new(wire::TopResponse { rooms: rooms(top) }))
    }

    async fn total(&self, request: Request<wire::TotalRequest>) -> Result<Response<wire::TotalResponse>, Status> {
        let caller = self.caller(&request)?;
        let (sessions, addresses) = self.0.total(caller).await.map_err(status)?;
        Ok(Response::new(wire::TotalResponse { sessions, addresses }))
    }

    async fn nodes(&self, _: Request<wire::NodesRequest>) -> Result<Response<wire::NodesResponse>, Status> {
        let nodes = self.0.nodes().await.map_err(status)?;
        let advice = nodes.advice;
        Ok(Response::new(wire::NodesResponse {
            nodes: nodes.nodes.into_iter().map(|node| wire::Node { addresses: node.clients }).collect(),
            heartbeat_s: advice.heartbeat_s,
            backoff: Some(wire::Backoff {
                base_ms: advice.backoff_base_ms,
                max_ms: advice.backoff_max_ms,
                factor: advice.backoff_factor,
                jitter: advice.backoff_jitter,
            }),
        }))
    }
}
