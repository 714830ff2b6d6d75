//! HTTP: who may reach it ([`origin`]), what each path does, how an error is said. What it is not: TLS (in front), and
//! WebSocket (the connector's).
//!
//! | path | what | for whom |
//! |---|---|---|
//! | `/v1/...` | the API ([`v1`]) | API keys; `/v1/connect` anybody |
//! | `/goim/...` | goim's calls ([`goim`]) | API keys; `/goim/nodes/weighted` anybody |
//! | `/msg/send` | Bilibili's sending call ([`bilibili`]) | users, by their token |
//! | `/openapi.json`, `/docs` | the description, and a page to try it ([`openapi`]) | anybody |
//! | all else | the page ([`page`]) | anybody |

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use proto::client::{Error, ErrorCode, Fault};
use proto::error::{error, row};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::client::Clients;

mod bilibili;
mod body;
mod connection;
mod goim;
mod openapi;
mod origin;
mod page;
mod v1;
mod watched;

/// How long a request may take, all of it: the bus's own patience and a little more.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);

/// What every handler can reach.
pub(crate) struct Services {
    pub(crate) api: Arc<Api>,
    pub(crate) clients: Arc<Clients>,
}

type Shared = axum::extract::State<Arc<Services>>;

/// Serves until `stop`, then what is in flight.
pub(crate) async fn serve(listener: TcpListener, api: Arc<Api>, clients: Arc<Clients>, stop: CancellationToken) {
    let limits = &api.config.limits;
    let idle = Duration::from_secs(limits.http_idle_s.into());
    let bounds = connection::Bounds { connections: limits.http_connections as usize, idle };
    let guard = Arc::new(origin::Guard::new(&api.config.origins, api.callers.is_open()));
    let router = router(Arc::new(Services { api, clients }), guard);
    connection::serve(listener, router, bounds, stop).await;
}

fn router(services: Arc<Services>, guard: Arc<origin::Guard>) -> Router {
    Router::new()
        .merge(v1::router())
        .merge(goim::router())
        .merge(bilibili::router())
        .with_state(services)
        .merge(openapi::router())
        .fallback(page::serve)
        .layer(from_fn(within))
        .layer(from_fn_with_state(guard, origin::check))
        .layer(from_fn(body::discard_unread))
}

async fn within(request: Request, next: Next) -> Response {
    let mut response = match tokio::time::timeout(REQUEST_WITHIN, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            Refused(error(ErrorCode::Unavailable, "not done in time: it may be done all the same")).into_response()
        }
    };
    // What a browser takes for a script or a page, it would run with this origin's rights.
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

/// An error as HTTP says it: the table's status, and the error in JSON.
pub(crate) struct Refused(pub(crate) Error);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// The JSON of an error.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorJson,
}

/// What is wrong, whose fault it is, and whether to try again.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ErrorJson {
    /// A name of the error table.
    #[schema(example = "too_fast")]
    code: &'static str,
    /// For a developer.
    message: String,
    /// `client` or `server`.
    #[schema(example = "client")]
    fault: &'static str,
    /// Whether the same request can succeed later.
    retry: bool,
    /// Not before this many milliseconds; 0: not known.
    retry_after_ms: u32,
}

impl From<Error> for ErrorJson {
    fn from(refused: Error) -> Self {
        let row = row(refused.code());
        let fault = match row.fault {
            Fault::None => "none",
            Fault::Client => "client",
            Fault::Server => "server",
        };
        let Error { message, retry_after_ms, .. } = refused;
        Self { code: row.name, message, fault, retry: row.retry, retry_after_ms }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let row = row(self.0.code());
        let status = StatusCode::from_u16(row.http_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after_s = self.0.retry_after_ms.div_ceil(1000);
        let mut response = (status, axum::Json(ErrorBody { error: self.0.into() })).into_response();
        let headers = response.headers_mut();
        if retry_after_s > 0 {
            headers.insert(header::RETRY_AFTER, retry_after_s.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Who calls the API.
pub(crate) struct Caller(pub(crate) crate::caller::Caller);

impl FromRequestParts<Arc<Services>> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, services: &Arc<Services>) -> Result<Self, Refused> {
        // A proxy on this machine is on loopback, too, but whom it speaks for is not.
        let forwarded =
            ["forwarded", "x-forwarded-for", "x-real-ip"].iter().any(|name| parts.headers.contains_key(*name));
        let loopback = peer(parts).is_some_and(|address| address.ip().to_canonical().is_loopback()) && !forwarded;
        Ok(Self(services.api.callers.identify(shown_key(&parts.headers), loopback)?))
    }
}

/// Where the connection comes from: a proxy, where there is one in front.
fn peer(parts: &Parts) -> Option<SocketAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| *address)
}

fn shown_key(headers: &HeaderMap) -> Option<&str> {
    bearer(headers).or_else(|| headers.get("x-api-key")?.to_str().ok())
}

/// What `Authorization: Bearer` holds.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A JSON body, whatever content type it claims (`curl -d` says it is a form): pages of other sites are kept out by
/// their origin.
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        let body = body::read(request).await?;
        let wrong = match serde_json::from_slice(&body) {
            Ok(read) => return Ok(Self(read)),
            Err(wrong) => wrong,
        };
        // Half a surrogate pair is U+FFFD, as browsers have it.
        let text = std::str::from_utf8(&body).map(proto::json::whole_surrogates).unwrap_or_default();
        serde_json::from_str(&text)
            .map(Self)
            .map_err(|_| Refused(error(ErrorCode::BadRequest, format!("the body is not what is wanted: {wrong}"))))
    }
}

/// A query.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|wrong| Refused(error(ErrorCode::BadRequest, wrong.to_string())))
    }
}
