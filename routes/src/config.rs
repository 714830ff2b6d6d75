//! The `[routes]` section, and which implementation it asks for.

use std::sync::Arc;

use proto::config::{Invalid, Secret, require};
use serde::Deserialize;

use crate::{Memory, Redis, Routes};

/// Longest prefix of a key, bytes: it stands in every key, and a million keys pay for each of them.
const PREFIX_BYTES_MAX: usize = 32;

/// Which implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// In this process: `barrage run`.
    Memory,
    /// Shared by all nodes.
    Redis,
}

/// The section `[routes]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which implementation.
    pub kind: Kind,
    /// Where Redis answers; with `cluster` some of its nodes (it names the others itself).
    pub urls: Vec<String>,
    /// Of Redis's access list; empty: its default user.
    pub username: String,
    /// The user's, or the server's (requirepass); empty: none.
    pub password: Secret,
    /// Whether `urls` are of a Redis Cluster.
    pub cluster: bool,
    /// What every key begins with, so that several clusters can share one Redis.
    pub prefix: String,
}

impl Config {
    /// Whether it can work.
    ///
    /// # Errors
    /// [`Invalid`], naming the first key that cannot.
    pub fn check(&self) -> Result<(), Invalid> {
        let prefix = &self.prefix;
        require(
            (1..=PREFIX_BYTES_MAX).contains(&prefix.len())
                && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b':')),
            "routes.prefix",
            prefix,
            "1-32 of A-Z a-z 0-9 _ . - :",
        )?;
        if self.kind == Kind::Memory {
            return Ok(());
        }
        require(!self.urls.is_empty(), "routes.urls", "[]", "at least one URL: redis://127.0.0.1:6379")?;
        require(
            self.cluster || self.urls.len() == 1,
            "routes.urls",
            format_args!("{} URLs", self.urls.len()),
            "one URL, or routes.cluster = true",
        )?;
        require(
            self.username.is_empty() || !self.password.reveal().is_empty(),
            "routes.password",
            "\"\"",
            "the password of routes.username",
        )?;
        for (place, url) in self.urls.iter().enumerate() {
            // The URL itself is not shown: somebody may have put a password into it.
            let shown = format_args!("(the URL in place {})", place + 1);
            let Ok(info) = ::redis::IntoConnectionInfo::into_connection_info(url.as_str()) else {
                return require(false, "routes.urls", shown, "redis://host:port[/db]");
            };
            let settings = info.redis_settings();
            require(
                settings.username().is_none() && settings.password().is_none(),
                "routes.urls",
                shown,
                "no user and no password in a URL: they are routes.username and routes.password",
            )?;
            require(
                matches!(info.addr(), ::redis::ConnectionAddr::Tcp(..)),
                "routes.urls",
                shown,
                "redis://host:port[/db]: TLS and Unix sockets are not served",
            )?;
            require(
                !self.cluster || settings.db() == 0,
                "routes.urls",
                shown,
                "no database number: a Redis Cluster has only 0",
            )?;
        }
        Ok(())
    }
}

/// Opens what `config` asks for. Redis is dialled when it is first needed, and again whenever it was lost; whether it
/// can be reached now is [`Routes::ready`]'s to say. To be called inside a tokio runtime.
///
/// # Errors
/// [`Invalid`] as [`Config::check`].
pub fn open(config: &Config) -> Result<Arc<dyn Routes>, Invalid> {
    config.check()?;
    Ok(match config.kind {
        Kind::Memory => Arc::new(Memory::new()),
        Kind::Redis => Arc::new(Redis::open(config)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(urls: &[&str]) -> Config {
        let urls = urls.iter().map(ToString::to_string).collect();
        let (username, password) = (String::new(), Secret::new(""));
        Config { kind: Kind::Redis, urls, username, password, cluster: false, prefix: "barrage".into() }
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        assert_eq!(redis(&["redis://127.0.0.1:6379"]).check(), Ok(()));
        assert_eq!(redis(&["redis://[::1]:6379/2"]).check(), Ok(()));
        let cluster = |urls| Config { cluster: true, ..redis(urls) };
        assert_eq!(cluster(&["redis://127.0.0.1:1", "redis://127.0.0.1:2"]).check(), Ok(()));
        for bad in [
            redis(&[]),
            redis(&["redis://a:1", "redis://b:1"]),
            redis(&["http://a:1"]),
            redis(&["redis://:secretword@a:x"]),
            redis(&["redis://:secretword@a:1"]),
            redis(&["rediss://a:1"]),
            redis(&["unix:///run/redis"]),
            cluster(&["redis://a:1/3"]),
        ] {
            let error = bad.check().unwrap_err();
            assert_eq!(error.key, "routes.urls");
            assert!(!error.to_string().contains("secretword"), "{error}");
        }
        let user = Config { username: "barrage".into(), ..redis(&["redis://a:1"]) };
        assert_eq!(user.check().unwrap_err().key, "routes.password");
        let brace = Config { prefix: "a{b".into(), ..redis(&["redis://a:1"]) };
        assert_eq!(brace.check().unwrap_err().key, "routes.prefix");
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let text =
            r#"{"kind":"memory","urls":[],"username":"","password":"","cluster":false,"prefix":"barrage","url":""}"#;
        assert!(serde_json::from_str::<Config>(text).unwrap_err().to_string().contains("url"));
    }
}
