//! The `[logic]` section of the configuration. The shipped file is the defaults: no key has another one here.

use std::net::SocketAddr;
use std::path::PathBuf;

use proto::config::{Invalid, Secret, require};
use proto::operation::Operations;
use serde::Deserialize;

/// Shortest secret that signs tokens or opens the API, bytes: 256 bits, the least that HS256 asks for (RFC 7518
/// section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// What logic is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where HTTP listens: the API, the page, goim's and Bilibili's calls.
    pub http: SocketAddr,
    /// Where gRPC listens: the API, and the connectors' gate.
    pub grpc: SocketAddr,
    /// `host:port` under which connectors reach `grpc`; empty: as it listens.
    pub grpc_advertised: String,
    /// What a session without a token may do.
    pub guests: Guests,
    /// Believe goim's `mid` and Bilibili's `uid` without a token. For `barrage run` on loopback only.
    pub trust_claims: bool,
    /// Other origins (`https://live.example`) whose pages may call, besides the address itself.
    pub origins: Vec<String>,
    /// Tokens.
    pub token: TokenConfig,
    /// API callers.
    pub api: ApiConfig,
    /// The goim operation of each message type.
    pub operations: Operations,
    /// Advice to clients.
    pub advice: AdviceConfig,
    /// Limits.
    pub limits: LimitsConfig,
}

/// What a session without a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Guests {
    /// Nothing: it is not let in.
    Refuse,
    /// Be in rooms.
    Watch,
    /// Be in rooms and write there.
    Send,
}

/// How users' tokens are checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// Keys.
    pub keys: Vec<KeyConfig>,
    /// A file with a JSON Web Key Set (RFC 7517), read again when it changes; empty: none.
    pub jwks: PathBuf,
    /// What a token's `aud` must hold; empty: not looked at.
    pub audience: String,
    /// What a token's `iss` must be; empty: not looked at.
    pub issuer: String,
    /// How far the platform's clock may be from ours, seconds.
    pub leeway_s: u64,
    /// Longest time from now to a token's `exp`, seconds.
    pub lifetime_max_s: u64,
}

/// One key that signs tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// Its name in the token's header; empty: for tokens that name none.
    #[serde(default)]
    pub kid: String,
    /// The one algorithm that it is used with.
    pub alg: Alg,
    /// HS256: the secret; the others: the public key, PEM.
    #[serde(default = "no_secret")]
    pub key: Secret,
    /// Instead of `key`, a file that holds it, read again when it changes.
    #[serde(default)]
    pub file: PathBuf,
}

fn no_secret() -> Secret {
    Secret::new("")
}

/// Signature algorithms that are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum Alg {
    /// HMAC with SHA-256.
    HS256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

/// Who may call the API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiConfig {
    /// Keys. None: whoever reaches a loopback address may do everything, and no other address is listened on.
    pub keys: Vec<ApiKeyConfig>,
}

/// One API caller.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyConfig {
    /// Its name, in logs and metrics.
    pub name: String,
    /// What it shows: `Authorization: Bearer <key>`.
    pub key: Secret,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Requests a second, and as many at once.
    pub requests_per_s: u32,
}

/// What an API key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum Scope {
    /// Publish to rooms.
    #[serde(rename = "publish")]
    Publish,
    /// Push to users, sessions, keys and to all.
    #[serde(rename = "push")]
    Push,
    /// Subscribe, unsubscribe and kick sessions.
    #[serde(rename = "sessions")]
    Sessions,
    /// Mute and ban.
    #[serde(rename = "moderate")]
    Moderate,
    /// Ask how many are online.
    #[serde(rename = "online")]
    Online,
    /// List rooms.
    #[serde(rename = "rooms.list")]
    RoomsList,
}

/// What clients are advised.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdviceConfig {
    /// A native client's heartbeat, seconds.
    pub heartbeat_s: u32,
    /// goim's heartbeat, seconds.
    pub goim_heartbeat_s: u32,
    /// First wait before connecting again, milliseconds.
    pub backoff_base_ms: u32,
    /// Longest wait, milliseconds.
    pub backoff_max_ms: u32,
    /// By which each further wait is longer.
    pub backoff_factor: f64,
    /// The share of a wait that is random.
    pub backoff_jitter: f64,
    /// goim's `domain`: what clients connect to where no connector is known.
    pub domain: String,
}

/// Bounds that an operator may want to move.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// Messages a second of one user through this logic, over all of the user's sessions.
    pub user_messages_per_s: u32,
    /// As many at once.
    pub user_messages_burst: u32,
    /// HTTP connections at once; further ones wait to be accepted.
    pub http_connections: u32,
    /// How long an HTTP connection is kept between requests, seconds. Proxies and pools must end it first.
    pub http_idle_s: u32,
}

impl Config {
    /// Whether this can work.
    ///
    /// # Errors
    /// The first key that cannot, with what would be right.
    pub fn check(&self) -> Result<(), Invalid> {
        let open = self.api.keys.is_empty();
        require(
            !open || self.http.ip().is_loopback(),
            "logic.http",
            self.http,
            "a loopback address, or at least one key in logic.api.keys",
        )?;
        require(
            !self.grpc.ip().is_unspecified() || !self.grpc_advertised.is_empty(),
            "logic.grpc_advertised",
            "\"\"",
            "host:port of this machine, as logic.grpc listens on every address",
        )?;
        require(
            !self.trust_claims || (self.http.ip().is_loopback() && self.grpc.ip().is_loopback()),
            "logic.trust_claims",
            self.trust_claims,
            "false, or loopback addresses in logic.http and logic.grpc",
        )?;
        for origin in &self.origins {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            require(
                host.is_some_and(|host| !host.is_empty() && !host.contains('/')),
                "logic.origins",
                origin,
                "scheme://host[:port], without a path",
            )?;
        }
        require(self.operations.are_right(), "logic.operations", format!("{:?}", self.operations), {
            "a type is 1-32 of A-Z a-z 0-9 _ . - and no operation stands twice"
        })?;
        self.token.check()?;
        self.api.check()?;
        self.advice.check()?;
        let limits = &self.limits;
        require(
            limits.user_messages_per_s > 0,
            "logic.limits.user_messages_per_s",
            limits.user_messages_per_s,
            "at least 1",
        )?;
        require(
            limits.user_messages_burst > 0,
            "logic.limits.user_messages_burst",
            limits.user_messages_burst,
            "at least 1",
        )?;
        require(limits.http_connections > 0, "logic.limits.http_connections", limits.http_connections, "at least 1")?;
        require(
            (1..=3600).contains(&limits.http_idle_s),
            "logic.limits.http_idle_s",
            limits.http_idle_s,
            "1 to 3600, more than what the proxies in front keep a connection",
        )
    }
}

impl TokenConfig {
    fn check(&self) -> Result<(), Invalid> {
        for key in &self.keys {
            require(
                key.kid.is_empty() || proto::channel::is_id(&key.kid),
                "logic.token.keys.kid",
                &key.kid,
                "1-64 of A-Z a-z 0-9 _ . - or empty",
            )?;
            let inline = !key.key.reveal().is_empty();
            require(
                inline == key.file.as_os_str().is_empty(),
                "logic.token.keys.key",
                &key.kid,
                "either key or file, for each kid",
            )?;
            require(
                !inline || key.alg != Alg::HS256 || key.key.reveal().len() >= SECRET_BYTES_MIN,
                "logic.token.keys.key",
                "hidden",
                "at least 32 characters for HS256",
            )?;
        }
        require(
            self.leeway_s <= 600,
            "logic.token.leeway_s",
            self.leeway_s,
            "at most 600: clocks that are further apart want to be set",
        )?;
        require(self.lifetime_max_s >= 60, "logic.token.lifetime_max_s", self.lifetime_max_s, "at least 60")
    }
}

impl ApiConfig {
    fn check(&self) -> Result<(), Invalid> {
        for (at, key) in self.keys.iter().enumerate() {
            require(proto::channel::is_id(&key.name), "logic.api.keys.name", &key.name, "1-64 of A-Z a-z 0-9 _ . -")?;
            require(
                key.key.reveal().len() >= SECRET_BYTES_MIN && key.key.reveal().bytes().all(|b| b.is_ascii_graphic()),
                "logic.api.keys.key",
                "hidden",
                "at least 32 visible ASCII characters",
            )?;
            require(
                self.keys[..at].iter().all(|other| other.name != key.name && other.key != key.key),
                "logic.api.keys",
                &key.name,
                "names and keys that differ",
            )?;
            require(!key.scopes.is_empty(), "logic.api.keys.scopes", "[]", "at least one scope")?;
            require(key.requests_per_s > 0, "logic.api.keys.requests_per_s", key.requests_per_s, "at least 1")?;
        }
        Ok(())
    }
}

impl AdviceConfig {
    fn check(&self) -> Result<(), Invalid> {
        require(self.heartbeat_s > 0, "logic.advice.heartbeat_s", self.heartbeat_s, "at least 1")?;
        require(self.goim_heartbeat_s > 0, "logic.advice.goim_heartbeat_s", self.goim_heartbeat_s, "at least 1")?;
        require(
            0 < self.backoff_base_ms && self.backoff_base_ms <= self.backoff_max_ms,
            "logic.advice.backoff_base_ms",
            self.backoff_base_ms,
            "at least 1 and at most backoff_max_ms",
        )?;
        require(
            (1.0..=10.0).contains(&self.backoff_factor),
            "logic.advice.backoff_factor",
            self.backoff_factor,
            "1 to 10",
        )?;
        require(
            (0.0..=1.0).contains(&self.backoff_jitter),
            "logic.advice.backoff_jitter",
            self.backoff_jitter,
            "0 to 1",
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The shipped defaults.
    pub(crate) fn shipped() -> Config {
        #[derive(Deserialize)]
        struct File {
            logic: Config,
        }
        toml::from_str::<File>(include_str!("../../config/barrage.toml")).unwrap().logic
    }

    #[test]
    fn the_shipped_configuration_is_right() {
        shipped().check().unwrap();
        assert_eq!(shipped().guests, Guests::Refuse);
    }

    #[test]
    fn without_a_key_only_loopback_is_listened_on() {
        let mut config = shipped();
        config.http = "0.0.0.0:3111".parse().unwrap();
        assert_eq!(config.check().unwrap_err().key, "logic.http");
        config.api.keys.push(ApiKeyConfig {
            name: "platform".into(),
            key: Secret::new("k".repeat(32)),
            scopes: vec![Scope::Publish],
            requests_per_s: 10,
        });
        config.check().unwrap();
        config.trust_claims = true;
        assert_eq!(config.check().unwrap_err().key, "logic.trust_claims");
    }

    #[test]
    fn weak_keys_are_refused_and_never_shown() {
        let mut config = shipped();
        config.token.keys.push(KeyConfig {
            kid: String::new(),
            alg: Alg::HS256,
            key: Secret::new("opensesame"),
            file: PathBuf::new(),
        });
        let refused = config.check().unwrap_err();
        assert_eq!(refused.key, "logic.token.keys.key");
        assert!(!format!("{config:?} {refused}").contains("sesame"));
    }
}
