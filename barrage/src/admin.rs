//! The operator's port: Prometheus metrics, health, readiness, build information. On loopback unless configured.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use proto::ready::{Function, serves};
use tokio_util::sync::CancellationToken;

/// Asks one service what of its work it can do.
pub(crate) type Ready = Box<dyn Fn() -> BoxFuture<'static, Vec<Function>> + Send + Sync>;

/// The services of this process, each with the question whether it is ready.
pub(crate) type Services = Arc<Vec<(&'static str, Ready)>>;

struct State {
    registry: Registry,
    services: Services,
}

/// Serves until `stop`; gives the address that it got.
///
/// # Errors
/// The address cannot be had.
pub(crate) async fn start(
    listen: &str,
    registry: Registry,
    services: Services,
    stop: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(listen).await.with_context(|| format!("admin.listen = {listen}"))?;
    let address = listener.local_addr()?;
    let state = Arc::new(State { registry, services });
    let app = Router::new()
        .route(
            "/metrics",
            get({
                let state = Arc::clone(&state);
                async move || metrics(&state)
            }),
        )
        .route("/health", get(async || "ok\n"))
        .route("/ready", get(async move || readiness(&state).await))
        .route("/version", get(async || Json(version())));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::error!(%error, "the admin port failed");
        }
    });
    Ok(address)
}

fn metrics(state: &State) -> impl IntoResponse + use<> {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &state.registry) {
        Ok(()) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        ),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            error.to_string(),
        ),
    }
}

async fn readiness(state: &State) -> impl IntoResponse + use<> {
    let mut status = StatusCode::OK;
    let (mut services, mut details) = (serde_json::Map::new(), serde_json::Map::new());
    for (name, ready) in state.services.iter() {
        let functions = ready().await;
        let word = match serves(&functions) {
            Ok(()) => "ready".to_owned(),
            Err(reason) => {
                status = StatusCode::SERVICE_UNAVAILABLE;
                reason
            }
        };
        services.insert((*name).to_owned(), word.into());
        for function in functions {
            let state = function.state.err().unwrap_or_else(|| "works".to_owned());
            details.insert(format!("{name}.{}", function.name), state.into());
        }
    }
    services.insert("functions".to_owned(), details.into());
    (status, Json(services))
}

/// What `/version` tells.
fn version() -> serde_json::Value {
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("BARRAGE_COMMIT"),
        "target": env!("BARRAGE_TARGET"),
        "record_version": proto::RECORD_VERSION,
    })
}
