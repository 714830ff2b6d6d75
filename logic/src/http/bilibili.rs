//! Bilibili's sending call: `POST /msg/send`, a form. Its clients watch over their socket and write over this.
//!
//! Who: a token as `Authorization: Bearer` or in the cookie `SESSDATA`, as Bilibili's own session stands there; a cookie
//! of another shape counts as none, as `key` does when they connect. With the cookie, `csrf` must repeat the cookie
//! `bili_jct`, which another site cannot read. Without a token the sender is a guest, one for each address.
//!
//! Answers have status 200 and Bilibili's codes, as its community has written them down.

use std::sync::Arc;

use axum::extract::rejection::FormRejection;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Form, Json, Router};
use proto::channel::matches;
use proto::client::{Error, ErrorCode, Style};
use proto::cluster::{Authenticate, Dialect, Publish};
use proto::error::error;
use serde_json::json;

use super::{Services, Shared, bearer};
use crate::clock::now_ms;
use crate::token::is_shaped_like_one;

pub(super) fn router() -> Router<Arc<Services>> {
    Router::new().route("/msg/send", post(send))
}

type Fields = Vec<(String, String)>;

async fn send(
    State(services): Shared,
    ConnectInfo(from): ConnectInfo<std::net::SocketAddr>,
    headers: HeaderMap,
    form: Result<Form<Fields>, FormRejection>,
) -> Response {
    let sent = async {
        let Form(fields) = form.map_err(|wrong| error(ErrorCode::BadRequest, wrong.to_string()))?;
        let (authenticate, publish) = read(&headers, &fields, from.ip())?;
        let now_ms = now_ms();
        let user = services.clients.authenticate(&authenticate, now_ms)?;
        let channel = publish.channel.clone();
        if !user.publish.iter().any(|pattern| matches(pattern, &channel)) {
            return Err(error(ErrorCode::Forbidden, format!("the token does not allow to write to {channel}")).into());
        }
        let publish = Publish { uid: user.uid, name: user.name, guest: user.guest, ..publish };
        Ok(services.clients.publish(publish, now_ms)?.await?)
    };
    let sent = match sent.await {
        Err(Unsent::Forged) => Err((-111, error(ErrorCode::Forbidden, "csrf is not the cookie bili_jct"))),
        Err(Unsent::Refused(refused)) => Err((code(&refused), refused)),
        Ok(_) => Ok(()),
    };
    let (code, sent) = sent.map_or_else(|(code, refused)| (code, Err(refused)), |()| (0, Ok(())));
    services.api.metrics.called("send", "client", &sent);
    let message = sent.err().map(|refused| refused.message).unwrap_or_default();
    Json(json!({"code": code, "message": message, "msg": message, "data": {}})).into_response()
}

/// Why nothing was sent.
enum Unsent {
    /// The request may be another site's: code -111.
    Forged,
    Refused(Error),
}

impl From<Error> for Unsent {
    fn from(refused: Error) -> Self {
        Self::Refused(refused)
    }
}

/// Bilibili's code for an error: -101 not logged in, -400 a bad request, 1003 muted, 10031 too fast, 1003212 too long.
fn code(refused: &Error) -> i32 {
    match refused.code() {
        ErrorCode::Unauthenticated | ErrorCode::TokenExpired => -101,
        ErrorCode::Forbidden => -403,
        ErrorCode::Muted | ErrorCode::Banned => 1003,
        ErrorCode::TooFast => 10031,
        ErrorCode::TooLarge => 1_003_212,
        ErrorCode::Unavailable | ErrorCode::Internal => -500,
        _ => -400,
    }
}

fn read(
    headers: &HeaderMap,
    fields: &[(String, String)],
    from: std::net::IpAddr,
) -> Result<(Authenticate, Publish), Unsent> {
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
    let number = |name: &str| match field(name) {
        "" => Ok(0),
        text => text.parse::<u32>().map_err(|_| error(ErrorCode::BadRequest, format!("{name} is not a number"))),
    };
    let room: u64 = field("roomid").parse().map_err(|_| error(ErrorCode::BadRequest, "roomid is not a number"))?;
    let (token, by_cookie) = match (bearer(headers), cookie(headers, "SESSDATA")) {
        (Some(token), _) => (token, false),
        (None, Some(session)) if is_shaped_like_one(session) => (session, true),
        (None, _) => ("", false),
    };
    if by_cookie && cookie(headers, "bili_jct").is_none_or(|expected| expected.is_empty() || expected != field("csrf"))
    {
        return Err(Unsent::Forged);
    }
    let channel = format!("room:{room}");
    let authenticate = Authenticate {
        // What a guest's ID is made from: it stays the same from one call to the next, so that it can be muted.
        session: format!("address:{from}"),
        token: token.to_owned(),
        claimed_uid: cookie(headers, "DedeUserID").unwrap_or_default().to_owned(),
        address: from.to_string(),
        channel: channel.clone(),
        dialect: Dialect::Bilibili.into(),
        ..Authenticate::default()
    };
    let publish = Publish {
        channel,
        r#type: proto::operation::TEXT.to_owned(),
        payload: field("msg").to_owned().into(),
        style: Some(Style { mode: number("mode")?, size: number("fontsize")?, colour: number("color")? }),
        dialect: Dialect::Bilibili.into(),
        ..Publish::default()
    };
    Ok((authenticate, publish))
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    pairs.flat_map(|value| value.split(';')).find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}
