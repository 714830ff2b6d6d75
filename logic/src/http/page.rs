//! The page and its assets, from the binary itself.

use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use proto::client::ErrorCode;
use proto::error::error;

use super::Refused;

pub(super) async fn serve(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let _ = (method, uri, headers, StatusCode::OK, header::ETAG);
    Refused(error(ErrorCode::NotFound, "there is no such page")).into_response()
}
