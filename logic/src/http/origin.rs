//! Who a browser may call for (rule 36): any page on the web can make its visitor's browser POST to an address of the
//! visitor's own machine or network.
//!
//! - A request with an `Origin` other than the address's own and the listed ones is refused, everywhere.
//! - Where no API key is configured, the `Host` must be a loopback name besides: else a site whose name is rebound to
//!   127.0.0.1 would be "the address's own".

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use proto::client::{Error, ErrorCode};
use proto::error::error;

use super::Refused;

/// How often refused origins are logged.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// Longest part of an origin that is logged, characters.
const ORIGIN_CHARS_MAX: usize = 200;

/// Looks at `Host` and `Origin`.
pub(super) struct Guard {
    origins: Vec<String>,
    loopback_only: bool,
    refusals: Mutex<Refusals>,
}

/// Requests of unlisted origins.
#[derive(Debug, Default)]
struct Refusals {
    /// Since the last one was logged.
    count: u64,
    logged: Option<Instant>,
}

impl Refusals {
    /// One more. Where it is to be logged: how many there were since the last one that was.
    fn next(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        self.logged.is_none_or(|logged| now - logged >= LOGGED_EVERY).then(|| {
            self.logged = Some(now);
            std::mem::take(&mut self.count)
        })
    }
}

impl Guard {
    pub(super) fn new(origins: &[String], loopback_only: bool) -> Self {
        Self { origins: origins.to_vec(), loopback_only, refusals: Mutex::default() }
    }

    fn judge(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), Error> {
        // HTTP/2 has the host in the URI.
        let host = match headers.get(header::HOST).map(HeaderValue::to_str) {
            Some(host) => host.ok(),
            None => uri.authority().map(|authority| authority.as_str()),
        };
        let Some(host) = host else { return Err(error(ErrorCode::BadRequest, "a Host is needed")) };
        if self.loopback_only && !is_loopback(name_of(host)) {
            return Err(error(
                ErrorCode::Forbidden,
                "Host is not a loopback name: without an API key only this machine is served",
            ));
        }
        for origin in headers.get_all(header::ORIGIN) {
            let own = |origin: &str| {
                let (_, authority) = origin.split_once("://")?;
                (authority.eq_ignore_ascii_case(host) || self.origins.iter().any(|listed| listed == origin))
                    .then_some(())
            };
            if origin.to_str().ok().and_then(own).is_none() {
                self.log(origin);
                return Err(error(ErrorCode::Forbidden, "pages of another origin may not call: logic.origins"));
            }
        }
        Ok(())
    }

    fn log(&self, origin: &HeaderValue) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = refusals.next(Instant::now()) {
            let origin: String = String::from_utf8_lossy(origin.as_bytes()).chars().take(ORIGIN_CHARS_MAX).collect();
            tracing::warn!(origin, count, "refused a page of another origin: logic.origins lists those that may call");
        }
    }
}

/// The host without its port.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn is_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.judge(request.headers(), request.uri()) {
        Ok(()) => next.run(request).await,
        Err(refused) => Refused(refused).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(guard: &Guard, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        guard.judge(&headers, &Uri::from_static("/v1/online")).is_ok()
    }

    #[test]
    fn without_a_key_only_loopback_names_are_served() {
        let guard = Guard::new(&[], true);
        for host in ["127.0.0.1:3111", "localhost:3111", "LOCALHOST", "[::1]:3111", "127.8.9.1", "[::ffff:127.0.0.1]:1"]
        {
            assert!(judged(&guard, host, None), "{host}");
        }
        for host in
            ["evil.example", "evil.example:3111", "127.0.0.1.evil.example", "10.0.0.1:3111", "localhost.evil", ""]
        {
            assert!(!judged(&guard, host, None), "{host}");
        }
        assert!(guard.judge(&HeaderMap::new(), &Uri::from_static("/")).is_err(), "no Host");
    }

    #[test]
    fn refused_origins_are_logged_once_in_ten_seconds() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let logged: Vec<_> = (0..25).map(|second| refusals.next(start + Duration::from_secs(second))).collect();
        assert_eq!((logged[0], logged[10], logged[20]), (Some(1), Some(10), Some(10)));
        assert_eq!(logged.iter().flatten().count(), 3);
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let guard = Guard::new(&["https://live.example".to_owned()], true);
        assert!(judged(&guard, "127.0.0.1:3111", Some("http://127.0.0.1:3111")));
        assert!(judged(&guard, "127.0.0.1:3111", Some("https://live.example")));
        for origin in [
            "http://evil.example",
            "http://127.0.0.1:8080",
            "null",
            "http://localhost:3111",
            "https://live.example.evil",
        ] {
            assert!(!judged(&guard, "127.0.0.1:3111", Some(origin)), "{origin}");
        }
        let keyed = Guard::new(&[], false);
        assert!(judged(&keyed, "api.live.example", Some("https://api.live.example")));
        assert!(!judged(&keyed, "api.live.example", Some("https://live.example")));
    }
}
