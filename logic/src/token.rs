//! Users' tokens: JSON Web Tokens (RFC 7519) that the platform signs. `check` for whoever shows one, [`mint`] for
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

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use proto::channel::{CHANNEL_BYTES_MAX, is_id};
use proto::client::{Error, ErrorCode};
use proto::error::error;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{Alg, TokenConfig};
use crate::keys::{ED25519, KeyRing};

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
    let named = Named::of(token).ok_or_else(|| refused("not a JWT, or of an unknown algorithm"))?;
    if named.critical {
        return Err(refused("it has critical extensions (RFC 7515 section 4.1.11)"));
    }
    let alg = Alg::of(named.algorithm).ok_or_else(|| refused("want HS256, RS256, ES256 or EdDSA"))?;
    let key = keys.find(named.kid.as_deref(), alg).ok_or_else(|| refused("no key of that kid and alg"))?;
    // Times are checked below, against the caller's clock.
    let mut validation = Validation::new(named.algorithm);
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
    let decoded = match named.ed25519 {
        true => decode_ed25519(token, &key, config),
        false => jsonwebtoken::decode::<Claims>(token, &key, &validation).map(|decoded| decoded.claims),
    };
    let claims = decoded.map_err(|error| {
        use jsonwebtoken::errors::ErrorKind as Kind;
        refused(match error.kind() {
            Kind::InvalidSignature => "the signature is not of that key",
            Kind::InvalidAudience => "it is for another audience",
            Kind::InvalidIssuer => "it is from another issuer",
            Kind::MissingRequiredClaim(_) | Kind::Json(_) => "a claim is missing or of another type",
            _ => "it cannot be read",
        })
    })?;
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

/// What a token's header says.
struct Named {
    kid: Option<String>,
    algorithm: Algorithm,
    critical: bool,
    /// `alg` is EdDSA's name of RFC 9864, which the library does not read (jsonwebtoken 11.1).
    ed25519: bool,
}

impl Named {
    /// `None`: it is no JWT, or of an algorithm that nobody here knows.
    fn of(token: &str) -> Option<Self> {
        if let Ok(header) = jsonwebtoken::decode_header(token) {
            let critical = header.crit.is_some();
            return Some(Self { kid: header.kid, algorithm: header.alg, critical, ed25519: false });
        }
        let header: Value = part(token, 0)?;
        if header.get("alg")?.as_str()? != ED25519 {
            return None;
        }
        let kid = match header.get("kid") {
            None => None,
            Some(kid) => Some(kid.as_str()?.to_owned()),
        };
        let critical = header.get("crit").is_some();
        Some(Self { kid, algorithm: Algorithm::EdDSA, critical, ed25519: true })
    }
}

/// One of the three parts of a token, as JSON.
fn part<T: serde::de::DeserializeOwned>(token: &str, at: usize) -> Option<T> {
    let bytes = URL_SAFE_NO_PAD.decode(token.split('.').nth(at)?).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The claims of a token that says `Ed25519` in its header: what [`jsonwebtoken::decode`] does for `EdDSA`.
fn decode_ed25519(token: &str, key: &DecodingKey, config: &TokenConfig) -> Result<Claims, jsonwebtoken::errors::Error> {
    use jsonwebtoken::errors::ErrorKind;
    let (message, signature) = token.rsplit_once('.').ok_or(ErrorKind::InvalidToken)?;
    if message.matches('.').count() != 1 {
        return Err(ErrorKind::InvalidToken.into());
    }
    if !jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, Algorithm::EdDSA)? {
        return Err(ErrorKind::InvalidSignature.into());
    }
    let claims: Value = part(token, 1).ok_or(ErrorKind::InvalidToken)?;
    // Each may be one string or a list of them (RFC 7519 section 4.1.3; of issuers the library takes lists, too).
    let names = |claim: &str, wanted: &str| match claims.get(claim) {
        Some(Value::String(name)) => name == wanted,
        Some(Value::Array(names)) => names.iter().any(|name| name == wanted),
        _ => false,
    };
    if !config.audience.is_empty() && !names("aud", &config.audience) {
        return Err(ErrorKind::InvalidAudience.into());
    }
    if !config.issuer.is_empty() && !names("iss", &config.issuer) {
        return Err(ErrorKind::InvalidIssuer.into());
    }
    Ok(serde_json::from_value(claims)?)
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

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use jsonwebtoken::jwk::{Jwk, JwkSet};
    use proto::config::Secret;
    use serde_json::{Value, json};

    use super::*;
    use crate::config::KeyConfig;
    use crate::config::tests::shipped;

    const NOW_S: u64 = 1_800_000_000;
    const SECRET: &str = "a secret for tests, long enough to be one";

    /// The private half for each algorithm, and its public half as the configuration takes it.
    fn keys_of(alg: Alg) -> (EncodingKey, String) {
        macro_rules! pair {
            ($name:literal, $from:ident) => {
                (
                    EncodingKey::$from(include_bytes!(concat!("../tests/keys/", $name, ".pem"))).unwrap(),
                    include_str!(concat!("../tests/keys/", $name, ".pub.pem")).to_owned(),
                )
            };
        }
        match alg {
            Alg::HS256 => (EncodingKey::from_secret(SECRET.as_bytes()), SECRET.to_owned()),
            Alg::RS256 => pair!("rs256", from_rsa_pem),
            Alg::ES256 => pair!("es256", from_ec_pem),
            Alg::EdDSA => pair!("eddsa", from_ed_pem),
        }
    }

    const ALL: [(Alg, Algorithm, &str); 4] = [
        (Alg::HS256, Algorithm::HS256, "h"),
        (Alg::RS256, Algorithm::RS256, "r"),
        (Alg::ES256, Algorithm::ES256, "e"),
        (Alg::EdDSA, Algorithm::EdDSA, "d"),
    ];

    fn key(kid: &str, alg: Alg, key: &str) -> KeyConfig {
        KeyConfig { kid: kid.into(), alg, key: Secret::new(key), file: PathBuf::new() }
    }

    /// One key of each algorithm, in the configuration.
    fn config() -> TokenConfig {
        let mut config = shipped().token;
        config.keys = ALL.map(|(alg, _, kid)| key(kid, alg, &keys_of(alg).1)).into();
        config
    }

    fn sign(alg: Alg, algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
        let mut header = Header::new(algorithm);
        header.kid = kid.map(str::to_owned);
        jsonwebtoken::encode(&header, claims, &keys_of(alg).0).unwrap()
    }

    fn claims() -> Value {
        json!({"sub": "42", "exp": NOW_S + 60})
    }

    fn with(claim: &str, value: impl Into<Value>) -> Value {
        let mut claims = claims();
        claims[claim] = value.into();
        claims
    }

    /// `None`: the token is taken.
    fn outcome(config: &TokenConfig, token: &str) -> Option<ErrorCode> {
        let keys = KeyRing::load(config).unwrap();
        check(&keys, config, token, NOW_S).err().map(|refused| refused.code())
    }

    fn signed(claims: &Value) -> Option<ErrorCode> {
        outcome(&config(), &sign(Alg::HS256, Algorithm::HS256, Some("h"), claims))
    }

    #[test]
    fn every_algorithm_works_from_the_configuration_and_from_a_key_set() {
        let folder = tempfile::tempdir().unwrap();
        let set = ALL.map(|(alg, algorithm, kid)| {
            let mut jwk = Jwk::from_encoding_key(&keys_of(alg).0, algorithm).unwrap();
            jwk.common.key_id = Some(kid.to_owned());
            jwk
        });
        let path = folder.path().join("jwks.json");
        std::fs::write(&path, serde_json::to_vec(&JwkSet { keys: set.into() }).unwrap()).unwrap();
        let from_set = TokenConfig { keys: Vec::new(), jwks: path, ..config() };
        for (alg, algorithm, kid) in ALL {
            let token = sign(alg, algorithm, Some(kid), &claims());
            assert!(is_shaped_like_one(&token));
            assert_eq!(outcome(&config(), &token), None, "{alg:?} from the configuration");
            assert_eq!(outcome(&from_set, &token), None, "{alg:?} from a set");
            let mut forged = token.into_bytes();
            let place = forged.len() - 10;
            forged[place] = if forged[place] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert_eq!(outcome(&config(), &forged), Some(ErrorCode::Unauthenticated), "{alg:?} forged");
        }
    }

    #[test]
    fn the_algorithm_is_the_keys_and_not_the_headers() {
        // The oldest trick: the public key, which everybody has, as the secret of an HMAC.
        let public = keys_of(Alg::RS256).1;
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("r".to_owned());
        let confused = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(public.as_bytes())).unwrap();
        assert_eq!(outcome(&config(), &confused), Some(ErrorCode::Unauthenticated));
        let only = TokenConfig { keys: vec![key("", Alg::RS256, &public)], ..config() };
        header.kid = None;
        let confused = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(public.as_bytes())).unwrap();
        assert_eq!(outcome(&only, &confused), Some(ErrorCode::Unauthenticated));

        let base64 = |json: Value| {
            use base64::Engine as _;
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json.to_string())
        };
        for alg in ["none", "None", "NONE", "HS512", ""] {
            for kid in ["h", "r", ""] {
                let token = format!("{}.{}.", base64(json!({"alg": alg, "kid": kid})), base64(claims()));
                assert_eq!(outcome(&config(), &token), Some(ErrorCode::Unauthenticated), "{alg} {kid}");
            }
        }
        let longer = sign(Alg::HS256, Algorithm::HS512, Some("h"), &claims());
        assert_eq!(outcome(&config(), &longer), Some(ErrorCode::Unauthenticated));
    }

    #[test]
    fn a_token_finds_its_key_by_kid() {
        let token = |kid| sign(Alg::HS256, Algorithm::HS256, kid, &claims());
        assert_eq!(outcome(&config(), &token(Some("another"))), Some(ErrorCode::Unauthenticated));
        assert_eq!(outcome(&config(), &token(None)), Some(ErrorCode::Unauthenticated), "four keys: which?");
        let one = TokenConfig { keys: vec![key("h", Alg::HS256, SECRET)], ..config() };
        assert_eq!(outcome(&one, &token(None)), None, "the only key");
        let other = "another secret, as long as the first one is";
        let two = TokenConfig { keys: vec![key("", Alg::HS256, SECRET), key("h", Alg::HS256, other)], ..config() };
        assert_eq!(outcome(&two, &token(None)), None, "the key without a name");
        assert_eq!(outcome(&two, &token(Some("h"))), Some(ErrorCode::Unauthenticated));
        let twice = TokenConfig { keys: vec![key("h", Alg::HS256, SECRET), key("h", Alg::HS256, other)], ..config() };
        assert!(KeyRing::load(&twice).is_err());
    }

    #[test]
    fn times_are_kept_with_leeway() {
        let leeway = config().leeway_s;
        assert_eq!(signed(&with("exp", NOW_S - leeway + 1)), None);
        assert_eq!(signed(&with("exp", NOW_S - leeway)), Some(ErrorCode::TokenExpired));
        assert_eq!(signed(&with("exp", NOW_S as f64 + 0.5)), None, "a date may have a fraction");
        assert_eq!(signed(&with("exp", NOW_S + config().lifetime_max_s)), None);
        let far = NOW_S + config().lifetime_max_s + leeway + 1;
        assert_eq!(signed(&with("exp", far)), Some(ErrorCode::Unauthenticated));
        for wrong in [json!("tomorrow"), json!(-1), json!(1e300), Value::Null] {
            assert_eq!(signed(&with("exp", wrong.clone())), Some(ErrorCode::Unauthenticated), "{wrong}");
        }
        assert_eq!(signed(&json!({"sub": "42"})), Some(ErrorCode::Unauthenticated), "no exp");
        assert_eq!(signed(&with("nbf", NOW_S + leeway)), None);
        assert_eq!(signed(&with("nbf", NOW_S + leeway + 1)), Some(ErrorCode::Unauthenticated));
    }

    #[test]
    fn claims_must_make_sense() {
        for sub in [json!(""), json!("a b"), json!("guest.0123"), json!(7), json!("x".repeat(65))] {
            assert_eq!(signed(&with("sub", sub.clone())), Some(ErrorCode::Unauthenticated), "{sub}");
        }
        assert_eq!(signed(&json!({"exp": NOW_S + 60})), Some(ErrorCode::Unauthenticated), "no sub");
        assert_eq!(signed(&with("device", "a b")), Some(ErrorCode::Unauthenticated));
        assert_eq!(signed(&with("subscribe", json!(["room:1", "room:game.*"]))), None);
        for patterns in [json!(["*"]), json!(["user:7"]), json!("room:*"), json!(vec!["room:1"; 65])] {
            assert_eq!(signed(&with("subscribe", patterns.clone())), Some(ErrorCode::Unauthenticated), "{patterns}");
        }
        assert_eq!(signed(&with("name", "x".repeat(9_000))), Some(ErrorCode::Unauthenticated), "over 8 KiB");
    }

    #[test]
    fn audience_and_issuer_are_looked_at_where_they_are_configured() {
        let strict = TokenConfig { audience: "barrage".into(), issuer: "platform".into(), ..config() };
        let token = |claims: &Value| sign(Alg::HS256, Algorithm::HS256, Some("h"), claims);
        let mut right = with("aud", json!(["other", "barrage"]));
        right["iss"] = "platform".into();
        assert_eq!(outcome(&strict, &token(&right)), None);
        assert_eq!(outcome(&config(), &token(&right)), None, "not configured, not looked at");
        right["iss"] = "another".into();
        assert_eq!(outcome(&strict, &token(&right)), Some(ErrorCode::Unauthenticated));
        assert_eq!(outcome(&strict, &token(&claims())), Some(ErrorCode::Unauthenticated));
        let minted = mint(&strict, &Claims::new("42", NOW_S + 60)).unwrap();
        assert_eq!(outcome(&strict, &minted), None);
    }

    #[test]
    fn critical_extensions_are_refused() {
        let mut header = Header::new(Algorithm::HS256);
        (header.kid, header.crit) = (Some("h".to_owned()), Some(vec!["b64".to_owned()]));
        let token = jsonwebtoken::encode(&header, &claims(), &keys_of(Alg::HS256).0).unwrap();
        assert_eq!(outcome(&config(), &token), Some(ErrorCode::Unauthenticated));
    }

    #[test]
    fn a_minted_token_says_what_it_was_told() {
        let mut claims = Claims::new("42", NOW_S + 60);
        claims.name = Some("Ada".into());
        claims.publish = Some(vec!["room:7".into()]);
        let token = mint(&config(), &claims).unwrap();
        let keys = KeyRing::load(&config()).unwrap();
        assert_eq!(check(&keys, &config(), &token, NOW_S).unwrap(), claims);
        assert!(matches!(mint(&config(), &Claims::new("a b", NOW_S)), Err(MintError::Claims(_))));
        let public_only = TokenConfig { keys: vec![key("r", Alg::RS256, &keys_of(Alg::RS256).1)], ..config() };
        assert!(matches!(mint(&public_only, &claims), Err(MintError::NoSecret)));
    }

    #[test]
    fn weak_keys_are_refused_wherever_they_stand() {
        let weak = include_str!("../tests/keys/weak.pub.pem");
        assert!(KeyRing::load(&TokenConfig { keys: vec![key("", Alg::RS256, weak)], ..config() }).is_err());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "short\n").unwrap();
        let short = KeyConfig { file, ..key("", Alg::HS256, "") };
        assert!(KeyRing::load(&TokenConfig { keys: vec![short], ..config() }).is_err());
    }

    /// As libraries sign that know RFC 9864: the header's `alg` is `Ed25519`.
    fn sign_ed25519(header: &Value, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(serde_json::to_vec(value).unwrap());
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &keys_of(Alg::EdDSA).0, Algorithm::EdDSA).unwrap();
        format!("{message}.{signature}")
    }

    #[test]
    fn eddsa_goes_by_its_new_name_too() {
        let header = json!({"alg": "Ed25519", "typ": "JWT", "kid": "d"});
        let token = sign_ed25519(&header, &claims());
        assert!(is_shaped_like_one(&token));
        assert_eq!(outcome(&config(), &token), None);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwks.json");
        let mut jwk =
            serde_json::to_value(Jwk::from_encoding_key(&keys_of(Alg::EdDSA).0, Algorithm::EdDSA).unwrap()).unwrap();
        (jwk["kid"], jwk["alg"]) = ("d".into(), "Ed25519".into());
        std::fs::write(&path, json!({ "keys": [jwk] }).to_string()).unwrap();
        let from_set = TokenConfig { keys: Vec::new(), jwks: path, ..config() };
        assert_eq!(outcome(&from_set, &token), None, "a key of a set");
        assert_eq!(outcome(&from_set, &sign(Alg::EdDSA, Algorithm::EdDSA, Some("d"), &claims())), None, "both names");
        // What is checked of every other token is checked of these.
        let bound = TokenConfig { audience: "live".into(), issuer: "platform".into(), ..config() };
        let of = |aud: Value, iss: &str| {
            let mut claims = claims();
            (claims["aud"], claims["iss"]) = (aud, iss.into());
            outcome(&bound, &sign_ed25519(&header, &claims))
        };
        let refused = Some(ErrorCode::Unauthenticated);
        assert_eq!(of(json!("live"), "platform"), None);
        assert_eq!(of(json!(["other", "live"]), "platform"), None);
        assert_eq!(of(json!("other"), "platform"), refused);
        assert_eq!(of(json!("live"), "other"), refused);
        assert_eq!(outcome(&bound, &token), refused, "no audience at all");
        let critical = json!({"alg": "Ed25519", "kid": "d", "crit": ["exp"]});
        assert_eq!(outcome(&config(), &sign_ed25519(&critical, &claims())), refused);
        let other_key = json!({"alg": "Ed25519", "kid": "h"});
        assert_eq!(outcome(&config(), &sign_ed25519(&other_key, &claims())), refused, "the algorithm is the key's");
        let (message, signature) = token.rsplit_once('.').unwrap();
        let forged = format!("{message}.{}", signature.chars().rev().collect::<String>());
        assert_eq!(outcome(&config(), &forged), refused);
        assert_eq!(
            outcome(&config(), &sign_ed25519(&header, &with("exp", NOW_S - 1000))),
            Some(ErrorCode::TokenExpired)
        );
    }

    #[test]
    fn keys_of_a_set_that_cannot_be_used_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwks.json");
        let mut good =
            serde_json::to_value(Jwk::from_encoding_key(&keys_of(Alg::EdDSA).0, Algorithm::EdDSA).unwrap()).unwrap();
        good["kid"] = "d".into();
        let nameless = {
            let mut key = good.clone();
            key.as_object_mut().unwrap().remove("kid");
            key
        };
        for beside in [
            json!({"kty": "oct", "alg": "HS256", "kid": "weak", "k": "AAAAAAAAAAA"}),
            json!({"kty": "oct", "alg": "HS256", "kid": "padded", "k": "YSBzZWNyZXQgZm9yIHRlc3RzLCBsb25nIGVub3VnaCE="}),
            json!({"kty": "OKP", "crv": "X448", "kid": "other", "x": "AAAA"}),
            json!({"kty": "new kind", "kid": "new"}),
            json!("no key"),
            good.clone(),
        ] {
            std::fs::write(&path, json!({ "keys": [beside, good, nameless, nameless] }).to_string()).unwrap();
            let config = TokenConfig { keys: Vec::new(), jwks: path.clone(), ..config() };
            let token = sign(Alg::EdDSA, Algorithm::EdDSA, Some("d"), &claims());
            assert_eq!(outcome(&config, &token), None, "{beside}");
        }
    }

    #[tokio::test]
    async fn a_link_that_moves_to_a_file_of_the_same_length_and_time_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("jwks.json"), folder.path().join("link"));
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
        let point_to = |kid: &str| {
            let mut jwk = Jwk::from_encoding_key(&keys_of(Alg::EdDSA).0, Algorithm::EdDSA).unwrap();
            jwk.common.key_id = Some(kid.to_owned());
            let file = folder.path().join(kid);
            std::fs::write(&file, serde_json::to_vec(&JwkSet { keys: vec![jwk] }).unwrap()).unwrap();
            std::fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
            std::os::unix::fs::symlink(&file, &link).unwrap();
            std::fs::rename(&link, &path).unwrap();
        };
        point_to("old");
        let config = TokenConfig { keys: Vec::new(), jwks: path.clone(), ..config() };
        let keys = std::sync::Arc::new(KeyRing::load(&config).unwrap());
        let stop = tokio_util::sync::CancellationToken::new();
        let following = tokio::spawn(keys.clone().follow(stop.clone()));
        let taken =
            |kid| check(&keys, &config, &sign(Alg::EdDSA, Algorithm::EdDSA, Some(kid), &claims()), NOW_S).is_ok();
        assert!(taken("old"));
        for (gone, there) in [("old", "new"), ("new", "old")] {
            point_to(there);
            tokio::time::timeout(std::time::Duration::from_secs(60), async {
                while !taken(there) || taken(gone) {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            })
            .await
            .unwrap_or_else(|_| panic!("{there} in place of {gone} was not seen"));
        }
        stop.cancel();
        following.await.unwrap();
    }

    #[test]
    fn a_changed_file_changes_the_keys_and_a_broken_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwks.json");
        let write = |path: &Path, kid: &str| {
            let mut jwk = Jwk::from_encoding_key(&keys_of(Alg::EdDSA).0, Algorithm::EdDSA).unwrap();
            jwk.common.key_id = Some(kid.to_owned());
            std::fs::write(path, serde_json::to_vec(&JwkSet { keys: vec![jwk] }).unwrap()).unwrap();
        };
        write(&path, "old");
        let config = TokenConfig { keys: Vec::new(), jwks: path.clone(), ..config() };
        let keys = KeyRing::load(&config).unwrap();
        let taken = |kid| {
            let token = sign(Alg::EdDSA, Algorithm::EdDSA, Some(kid), &claims());
            check(&keys, &config, &token, NOW_S).is_ok()
        };
        assert!(taken("old") && !taken("new"));
        for broken in ["", "{", "{\"keys\": []}"] {
            std::fs::write(&path, broken).unwrap();
            keys.reload();
            assert!(taken("old"), "{broken:?}");
        }
        write(&path, "new");
        keys.reload();
        assert!(taken("new") && !taken("old"));
    }
}
