//! `/openapi.json`, made from the code of [`v1`](super::v1), and `/docs`, a page to try it.

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::middleware::map_response;
use axum::response::Response;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_swagger_ui::SwaggerUi;

use super::v1;

/// Swagger UI sets styles in the page and draws its icons from `data:`; its scripts are files of its own.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Barrage",
        description = "Publish to rooms, push to users, moderate, count. An accepted push is in the log: it goes, at most once, to the sessions that are online, and is dropped and counted where they cannot be looked up for `job.push_keep_s`. Errors are `{\"error\": {code, message, fault, retry, retry_after_ms}}`."
    ),
    paths(
        v1::message::publish,
        v1::message::publish_many,
        v1::message::push_to_users,
        v1::message::push_to_sessions,
        v1::message::push_to_all,
        v1::session::subscribe,
        v1::session::unsubscribe,
        v1::session::kick,
        v1::penalty::penalise,
        v1::penalty::penalties,
        v1::online::room_online,
        v1::online::rooms_online,
        v1::online::top,
        v1::online::total,
        v1::online::connect
    ),
    modifiers(&Key),
    tags(
        (name = "messages", description = "To rooms, users, sessions and all"),
        (name = "sessions", description = "What happens to those who are online"),
        (name = "moderation", description = "Mutes and bans"),
        (name = "online", description = "How many are there"),
        (name = "connecting", description = "Where clients go")
    )
)]
struct Description;

/// The API key, as the page's "Authorize" wants it.
struct Key;

impl Modify for Key {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("An API key")).build();
        let components = description.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(bearer));
    }
}

pub(super) fn router() -> Router {
    let docs: Router = SwaggerUi::new("/docs").url("/openapi.json", Description::openapi()).into();
    docs.layer(map_response(policed))
}

async fn policed(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}
