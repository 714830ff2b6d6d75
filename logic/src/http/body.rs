//! Bodies of requests: how large one may be, how long it may take, and what becomes of one that nobody reads. A client
//! that writes all of its body before it reads would otherwise see its connection reset in place of the answer.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use proto::client::{Error, ErrorCode};
use proto::error::error;
use tokio::time::{Instant, timeout, timeout_at};

/// Longest body that is read, bytes: ten messages of 64 KiB in base64, or a thousand names.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Of a refused request's body at most this is read and discarded, bytes, before the answer. A longer one is cut off.
const DISCARD_BYTES_MAX: usize = 16 << 20;
const _: () = assert!(DISCARD_BYTES_MAX > BODY_BYTES_MAX);
/// Discarding ends after this: an honest client on a slow line still sees the answer.
const DISCARD_WITHIN: Duration = Duration::from_secs(10);
/// How long the next bytes of a body may take. Over it: 408.
const BYTES_WITHIN: Duration = Duration::from_secs(10);
/// How long a whole body may take. Over it: 408. Less than a request may take in all.
const BODY_WITHIN: Duration = Duration::from_secs(25);
const _: () = assert!(BODY_WITHIN.as_secs() < super::REQUEST_WITHIN.as_secs());

/// The whole body.
///
/// # Errors
/// `too_large`; `too_slow`, where it does not come; `bad_request`, where it breaks off.
pub(super) async fn read(request: Request) -> Result<Bytes, Error> {
    let too_large = || error(ErrorCode::TooLarge, format!("a body is at most {BODY_BYTES_MAX} bytes"));
    let body = request.into_body();
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let deadline = Instant::now() + BODY_WITHIN;
    let mut pieces = body.into_data_stream();
    let mut whole = BytesMut::new();
    loop {
        let until = deadline.min(Instant::now() + BYTES_WITHIN);
        match timeout_at(until, pieces.next()).await {
            Err(_) => {
                let within = BYTES_WITHIN.as_secs();
                return Err(error(ErrorCode::TooSlow, format!("the body did not come: no byte within {within} s")));
            }
            Ok(None) => return Ok(whole.freeze()),
            Ok(Some(Err(_))) => return Err(error(ErrorCode::BadRequest, "the body could not be read")),
            Ok(Some(Ok(piece))) if whole.len() + piece.len() > BODY_BYTES_MAX => return Err(too_large()),
            Ok(Some(Ok(piece))) => whole.extend_from_slice(&piece),
        }
    }
}

/// Answers when the body has been read, by the handler or, where that did not want it, here.
pub(super) async fn discard_unread(request: Request, next: Next) -> Response {
    // A client that waits for a "go on" does not send what nobody asked for.
    let waits = request.headers().contains_key(header::EXPECT);
    let (parts, body) = request.into_parts();
    let length = body.size_hint();
    let lent = Lent(Arc::new(Mutex::new(LentState { body, begun: false, ended: length.exact() == Some(0) })));
    let response = next.run(Request::from_parts(parts, Body::new(lent.clone()))).await;
    let unread = {
        let state = lent.0.lock().unwrap_or_else(PoisonError::into_inner);
        !state.ended && (state.begun || !waits)
    };
    let worth_it = length.lower() <= DISCARD_BYTES_MAX as u64 && response.status() != StatusCode::REQUEST_TIMEOUT;
    if unread && worth_it {
        let mut pieces = Body::new(lent).into_data_stream();
        let mut left = DISCARD_BYTES_MAX;
        let discarding = async {
            while let Some(Ok(piece)) = pieces.next().await {
                let Some(less) = left.checked_sub(piece.len()) else { break };
                left = less;
            }
        };
        // Whatever it comes to, the answer is said.
        let _ = timeout(DISCARD_WITHIN, discarding).await;
    }
    response
}

/// A body that is lent to a handler and comes back.
#[derive(Clone)]
struct Lent(Arc<Mutex<LentState>>);

struct LentState {
    body: Body,
    /// Somebody asked for it.
    begun: bool,
    ended: bool,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.begun = true;
        let frame = Pin::new(&mut state.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) || state.body.is_end_stream() {
            state.ended = true;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).body.size_hint()
    }
}
