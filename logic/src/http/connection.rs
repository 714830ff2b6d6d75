//! Connections of HTTP: how many there may be, and when one is ended. (axum's own `serve` bounds neither.)

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, header};
use axum::response::IntoResponse as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use proto::client::ErrorCode;
use proto::error::error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::Refused;
use super::watched::{Due, Watch, Watched};

/// Longest head, bytes: a token of 8 KiB in a header, and a browser's cookies.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// How long accepting waits after it failed (no file descriptor left): it would fail again at once.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What bounds connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// At once.
    pub(super) connections: usize,
    /// How long one is kept between requests.
    pub(super) idle: Duration,
}

/// Serves `router` within `bounds`; after `stop` what is in flight.
pub(super) async fn serve(listener: TcpListener, router: Router, bounds: Bounds, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(bounds.connections));
    let open = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = stop.run_until_cancelled(async {
            let place = places.clone().acquire_owned().await.expect("never closed");
            (listener.accept().await, place)
        });
        match accepted.await {
            None => break,
            Some((Ok((stream, from)), place)) => {
                let (router, stop) = (router.clone(), stop.clone());
                open.spawn(async move {
                    connection(stream, from, router, bounds.idle, stop).await;
                    drop(place);
                });
            }
            Some((Err(failed), _)) => {
                tracing::warn!(%failed, "no connection could be accepted");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
    drop(listener);
    open.close();
    open.wait().await;
}

async fn connection(stream: TcpStream, from: SocketAddr, router: Router, idle: Duration, stop: CancellationToken) {
    // Answers are small and awaited; Nagle would hold them back.
    let _ = stream.set_nodelay(true);
    let watch = Watch::new(idle);
    let watching = watch.clone();
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let (router, watch) = (router.clone(), watching.clone());
        async move {
            let answer = if watch.begin() {
                let text = "both Content-Length and Transfer-Encoding (RFC 9112, 6.1)";
                let mut refused = Refused(error(ErrorCode::BadRequest, text)).into_response();
                refused.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                Ok(refused)
            } else {
                request.extensions_mut().insert(ConnectInfo(from));
                router.oneshot(request).await
            };
            watch.answered();
            answer
        }
    });
    // HTTP/1.1 alone: the watch knows no other heads.
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().max_buf_size(HEAD_BYTES_MAX);
    let mut served = pin!(builder.serve_connection(TokioIo::new(Watched::new(stream, watch.clone())), service));
    let mut ending = false;
    let ended = loop {
        tokio::select! {
            ended = served.as_mut() => break ended,
            due = watch.due() => {
                if due == Due::Head || ending {
                    return;
                }
            }
            () = stop.cancelled(), if !ending => {}
        }
        // What is being handled is finished.
        ending = true;
        served.as_mut().graceful_shutdown();
    };
    if let Err(failed) = ended {
        tracing::debug!(%from, failed, "a connection failed");
    }
}
