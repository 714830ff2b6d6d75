//! Users' tokens: JSON Web Tokens (RFC 7519) that the platform signs. [`check`] for whoever shows one, [`mint`] for
//! `barrage token` and tests.
//!
//! ```json
//! {"sub": "42", "name": "Ada", "device": "phone", "exp": 1700000000, "subscribe": ["room:*"], "publish": ["room:7"]}
//! ```
//!
//! Invariants:
//! - the algorithm is the key's, never the header's choice; `none` is none of ours;
//! - `exp` is there and not too far, `nbf` is kept, each with the same leeway;
//! - a subject is an ID and never a guest's.

use jsonwebtoken::{Algorithm, EncodingKey, Header, Validation};
use proto::channel::{CHANNEL_BYTES_MAX, is_id};
use proto::client::{Error, ErrorCode};
use proto::error::error;
use serde::{Deserialize, Serialize};

use crate::config::{Alg, TokenConfig};
use crate::keys::KeyRing;

/// Longest token, bytes: 64 patterns fit. Over it the token is refused before anything is decoded.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Most patterns of each kind in a token; more are refused with it. Each is compared on each subscribe and publish.
pub const PATTERNS_MAX: usize = 64;

/// What guests' IDs begin with; no token may be for one.
pub const GUEST_PREFIX: &str = "guest.";

/// What a token says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// The user's ID.
    pub sub: String,
    /// Seconds since 1970 at which it lapses.
    #[serde(deserialize_with = "numeric_date")]
    pub exp: u64,
    /// Seconds since 1970 before which it is not valid.
    #[serde(default, deserialize_with = "optional_numeric_date", skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// The name that the user is shown under; absent: what the client says, or the ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which of the user's devices this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Patterns of rooms that the user may be in; absent: `room:*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscribe: Option<Vec<String>>,
    /// Patterns of rooms that the user may publish to; absent: `room:*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<Vec<String>>,
}

/// RFC 7519 section 2: a NumericDate may have a fraction (Python's `time.time() + 60` has one).
fn numeric_date<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let seconds = f64::deserialize(from)?;
    if (0.0..9e15).contains(&seconds) { Ok(seconds as u64) } else { Err(serde::de::Error::custom("not a date")) }
}

fn optional_numeric_date<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    numeric_date(from).map(Some)
}

/// Whether `text` has the shape of a JWT: three base64url parts, the first of which begins a JSON object. goim and
/// Bilibili clients show anything in `key`; only this is taken for a token (compat.md, "Who").
#[must_use]
pub fn is_shaped_like_one(text: &str) -> bool {
    let base64url = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let mut parts = text.split('.');
    // `{"` is `ey` in base64.
    text.starts_with("ey")
        && parts.by_ref().take(3).filter(|part| base64url(part)).count() == 3
        && parts.next().is_none()
}

/// What `token` says, if it was signed by one of `keys` and is valid at `now_s` (seconds since 1970).
///
/// # Errors
/// [`ErrorCode::Unauthenticated`], or [`ErrorCode::TokenExpired`] where another token of the same kind would do. The
/// message names what is wrong, not what would be right in a forger's eyes.
pub(crate) fn check(keys: &KeyRing, config: &TokenConfig, token: &str, now_s: u64) -> Result<Claims, Error> {
    let refused = |why: &str| error(ErrorCode::Unauthenticated, format!("the token is refused: {why}"));
    if token.len() > TOKEN_BYTES_MAX {
        return Err(refused("longer than 8 KiB"));
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| refused("not a JWT, or of an unknown algorithm"))?;
    if header.crit.is_some() {
        return Err(refused("it has critical extensions (RFC 7515 section 4.1.11)"));
    }
    let alg = Alg::of(header.alg).ok_or_else(|| refused("want HS256, RS256, ES256 or EdDSA"))?;
    let key = keys.find(header.kid.as_deref(), alg).ok_or_else(|| refused("no key of that kid and alg"))?;
    // Times are checked below, against the caller's clock.
    let mut validation = Validation::new(header.alg);
    validation.validate_exp = false;
    validation.validate_aud = !config.audience.is_empty();
    validation.required_spec_claims = ["exp", "sub"].map(str::to_owned).into();
    if !config.audience.is_empty() {
        validation.set_audience(&[&config.audience]);
        validation.required_spec_claims.insert("aud".to_owned());
    }
    if !config.issuer.is_empty() {
        validation.set_issuer(&[&config.issuer]);
        validation.required_spec_claims.insert("iss".to_owned());
    }
    let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(|error| {
        use jsonwebtoken::errors::ErrorKind as Kind;
        refused(match error.kind() {
            Kind::InvalidSignature => "the signature is not of that key",
            Kind::InvalidAudience => "it is for another audience",
            Kind::InvalidIssuer => "it is from another issuer",
            Kind::MissingRequiredClaim(_) | Kind::Json(_) => "a claim is missing or of another type",
            _ => "it cannot be read",
        })
    })?;
    let claims = claims.claims;
    if claims.exp.saturating_add(config.leeway_s) <= now_s {
        return Err(error(ErrorCode::TokenExpired, "the token has lapsed: get another"));
    }
    if claims.exp > now_s.saturating_add(config.lifetime_max_s).saturating_add(config.leeway_s) {
        return Err(refused("its exp is farther away than logic.token.lifetime_max_s"));
    }
    if claims.nbf.is_some_and(|nbf| nbf > now_s.saturating_add(config.leeway_s)) {
        return Err(refused("its nbf is yet to come"));
    }
    claims.check().map_err(refused)?;
    Ok(claims)
}

impl Claims {
    /// For `sub` until `exp` (seconds since 1970), with all the rest left to the defaults.
    #[must_use]
    pub fn new(sub: impl Into<String>, exp: u64) -> Self {
        Self { sub: sub.into(), exp, nbf: None, name: None, device: None, subscribe: None, publish: None }
    }

    fn check(&self) -> Result<(), &'static str> {
        if !is_id(&self.sub) || self.sub.starts_with(GUEST_PREFIX) {
            return Err("its sub is not 1-64 of A-Z a-z 0-9 _ . - or begins with guest.");
        }
        if self.device.as_deref().is_some_and(|device| !is_id(device)) {
            return Err("its device is not 1-64 of A-Z a-z 0-9 _ . -");
        }
        for patterns in [&self.subscribe, &self.publish].into_iter().flatten() {
            if patterns.len() > PATTERNS_MAX || patterns.iter().any(|pattern| pattern.len() > CHANNEL_BYTES_MAX) {
                return Err("it has more than 64 patterns, or one longer than a channel");
            }
            // `*` would be the user's neighbours' own channels, too.
            if patterns.iter().any(|pattern| !pattern.starts_with("room:")) {
                return Err("a pattern does not begin with room:");
            }
        }
        Ok(())
    }
}

impl Alg {
    fn of(algorithm: Algorithm) -> Option<Self> {
        Some(match algorithm {
            Algorithm::HS256 => Self::HS256,
            Algorithm::RS256 => Self::RS256,
            Algorithm::ES256 => Self::ES256,
            Algorithm::EdDSA => Self::EdDSA,
            _ => return None,
        })
    }
}

/// Why no token could be made. The operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// Only the platform has the private halves of other keys.
    #[error("logic.token.keys has no HS256 key: only the platform can sign with the others")]
    NoSecret,
    /// The key's file cannot be read.
    #[error("{0}: {1}")]
    File(String, std::io::Error),
    /// The claims would be refused.
    #[error("the token would be refused: {0}")]
    Claims(String),
}

/// Signs a token with the first HS256 key of the configuration, with its audience and issuer.
///
/// # Errors
/// [`MintError`].
pub fn mint(config: &TokenConfig, claims: &Claims) -> Result<String, MintError> {
    #[derive(Serialize)]
    struct Signed<'a> {
        #[serde(flatten)]
        claims: &'a Claims,
        #[serde(skip_serializing_if = "str::is_empty")]
        aud: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        iss: &'a str,
    }
    claims.check().map_err(|why| MintError::Claims(why.to_owned()))?;
    let key = config.keys.iter().find(|key| key.alg == Alg::HS256).ok_or(MintError::NoSecret)?;
    let secret = if key.file.as_os_str().is_empty() {
        key.key.reveal().to_owned()
    } else {
        std::fs::read_to_string(&key.file).map_err(|error| MintError::File(key.file.display().to_string(), error))?
    };
    let mut header = Header::new(Algorithm::HS256);
    header.kid = (!key.kid.is_empty()).then(|| key.kid.clone());
    let signed = Signed { claims, aud: &config.audience, iss: &config.issuer };
    let key = EncodingKey::from_secret(secret.trim_end_matches(['\r', '\n']).as_bytes());
    jsonwebtoken::encode(&header, &signed, &key).map_err(|error| MintError::Claims(error.to_string()))
}
