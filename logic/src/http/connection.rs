//! Connections of HTTP: how many, and how long one may take to say what it wants. (axum's own `serve` bounds neither.)

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// How long a request's head may take, also the first one's: slow heads are a cheap way to hold connections.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Longest head, bytes: a token of 8 KiB in a header, and a browser's cookies.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// How long accepting waits after it failed (no file descriptor left): it would fail again at once.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Serves `router`, at most `connections` at once; after `stop` what is in flight.
pub(super) async fn serve(listener: TcpListener, router: Router, connections: usize, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(connections));
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
                    connection(stream, from, router, stop).await;
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

async fn connection(stream: TcpStream, from: SocketAddr, router: Router, stop: CancellationToken) {
    // Answers are small and awaited; Nagle would hold them back.
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from));
        router.clone().oneshot(request)
    });
    // HTTP/1.1 alone: before the version is known no timer would run, and who says nothing would keep his place for ever.
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD_BYTES_MAX);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(failed) = ended {
        tracing::debug!(%from, failed, "a connection failed");
    }
}
