//! The page and its assets, from the binary itself. Every other path is not there.

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use proto::client::ErrorCode;
use proto::error::error;

use super::Refused;

pub(super) async fn serve(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let found = (method == Method::GET || method == Method::HEAD).then(|| web::asset(uri.path())).flatten();
    let Some(asset) = found else {
        return Refused(error(ErrorCode::NotFound, "there is no such page")).into_response();
    };
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|tags| {
        tags.to_str().is_ok_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == asset.etag))
    });
    let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { asset.bytes.into_response() };
    // The names are the same in every version: a browser keeps the files, and asks each time whether they still hold.
    for (name, value) in [
        (header::CONTENT_TYPE, asset.mime),
        (header::ETAG, asset.etag),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, web::CSP),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
