//! Who calls the API: an API key with its scopes and its rate, or, where no key is configured, whoever reaches the
//! loopback address.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use proto::client::{Error, ErrorCode};
use proto::config::Secret;
use proto::error::error;

use crate::config::{ApiConfig, Scope};
use crate::rate::Rates;

/// Knows callers.
pub(crate) struct Callers {
    keys: Vec<Key>,
}

struct Key {
    name: String,
    key: Secret,
    scopes: Vec<Scope>,
    rate: Mutex<Rates>,
}

/// One who was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Over loopback, no key being configured.
    Local,
    /// By its place in the configuration.
    Key(usize),
}

impl Callers {
    pub(crate) fn new(config: &ApiConfig) -> Self {
        let key = |key: &crate::config::ApiKeyConfig| Key {
            name: key.name.clone(),
            key: key.key.clone(),
            scopes: key.scopes.clone(),
            rate: Mutex::new(Rates::new(key.requests_per_s, key.requests_per_s)),
        };
        Self { keys: config.keys.iter().map(key).collect() }
    }

    /// Whether no key is configured: then addresses and origins are all there is to go by.
    pub(crate) fn is_open(&self) -> bool {
        self.keys.is_empty()
    }

    /// Who shows this key (or none) from there. All keys are compared, in a time that tells nothing.
    ///
    /// # Errors
    /// [`ErrorCode::Unauthenticated`].
    pub(crate) fn identify(&self, shown: Option<&str>, from_loopback: bool) -> Result<Caller, Error> {
        if self.is_open() {
            return if from_loopback {
                Ok(Caller::Local)
            } else {
                Err(error(ErrorCode::Unauthenticated, "no API key is configured: only callers on loopback are let in"))
            };
        }
        let Some(shown) = shown else {
            return Err(error(ErrorCode::Unauthenticated, "an API key is needed: Authorization: Bearer <key>"));
        };
        let matching = self.keys.iter().enumerate().fold(None, |found, (at, key)| {
            let same = rpc::secret::same(shown.as_bytes(), key.key.reveal().as_bytes());
            if same { Some(at) } else { found }
        });
        matching.map(Caller::Key).ok_or_else(|| error(ErrorCode::Unauthenticated, "this API key is not known"))
    }

    /// Whether the caller may do this now; takes one request from its rate.
    ///
    /// # Errors
    /// [`ErrorCode::Forbidden`], [`ErrorCode::TooFast`].
    pub(crate) fn allow(&self, caller: Caller, scope: Scope, now: Instant) -> Result<(), Error> {
        let Caller::Key(at) = caller else { return Ok(()) };
        let key = &self.keys[at];
        key.rate.lock().unwrap_or_else(PoisonError::into_inner).take("", now).map_err(|wait| {
            let mut refused = error(ErrorCode::TooFast, "over the key's requests_per_s");
            refused.retry_after_ms = wait.as_millis().try_into().unwrap_or(u32::MAX).max(1);
            refused
        })?;
        if key.scopes.contains(&scope) {
            Ok(())
        } else {
            Err(error(ErrorCode::Forbidden, format!("the key lacks the scope {scope:?}")))
        }
    }

    /// The caller's name, for logs and metrics.
    pub(crate) fn name(&self, caller: Caller) -> &str {
        match caller {
            Caller::Local => "local",
            Caller::Key(at) => &self.keys[at].name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ApiKeyConfig;

    fn callers() -> Callers {
        let key = |name: &str, letter: &str, scopes: &[Scope]| ApiKeyConfig {
            name: name.into(),
            key: Secret::new(letter.repeat(32)),
            scopes: scopes.into(),
            requests_per_s: 2,
        };
        Callers::new(&ApiConfig { keys: vec![key("one", "a", &[Scope::Publish]), key("two", "b", &[Scope::Online])] })
    }

    #[test]
    fn a_key_does_what_its_scopes_say_and_no_more() {
        let (callers, now) = (callers(), Instant::now());
        let two = callers.identify(Some(&"b".repeat(32)), false).unwrap();
        assert_eq!(callers.name(two), "two");
        callers.allow(two, Scope::Online, now).unwrap();
        assert_eq!(callers.allow(two, Scope::Publish, now).unwrap_err().code(), ErrorCode::Forbidden);
        assert_eq!(callers.allow(two, Scope::Online, now).unwrap_err().code(), ErrorCode::TooFast);
        let one = callers.identify(Some(&"a".repeat(32)), false).unwrap();
        callers.allow(one, Scope::Publish, now).unwrap();
    }

    #[test]
    fn where_a_key_is_configured_loopback_needs_one_too() {
        for shown in [None, Some(""), Some("aaaa")] {
            assert_eq!(callers().identify(shown, true).unwrap_err().code(), ErrorCode::Unauthenticated);
        }
        let open = Callers::new(&ApiConfig { keys: Vec::new() });
        assert_eq!(open.identify(None, true), Ok(Caller::Local));
        assert!(open.identify(None, false).is_err());
    }
}
