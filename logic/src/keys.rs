//! The keys that users' tokens are checked with: from the configuration, from files, from a JSON Web Key Set.
//!
//! Flow: [`KeyRing::load`] at start ─▶ [`KeyRing::find`] for each token; [`KeyRing::follow`] reads the files again when
//! they change. What it is not: a client of an identity provider; fetching the set is the operator's (a file is enough,
//! and this process opens no connection to anywhere).
//!
//! Invariants:
//! - a key is used with the one algorithm that it was given with, whatever the token's header says;
//! - a file that cannot be read keeps the keys that were there, and is logged.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::config::{Alg, KeyConfig, SECRET_BYTES_MIN, TokenConfig};

/// How often files are looked at: a platform that rotates keys publishes the new one minutes before it signs with it.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// EdDSA with the curve Ed25519, as RFC 9864 section 2.2 names it.
pub(crate) const ED25519: &str = "Ed25519";

/// Longest key file, bytes: some hundred keys. A longer one is refused like a broken one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Shortest RSA key, bytes of its modulus or of its DER: 2,048 bits (RFC 7518 section 3.3).
const RSA_BYTES_MIN: usize = 256;

/// A key that cannot be used. The operator's fault: at start nothing starts, later the keys that were there stay.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is not a key of that algorithm, or a weak one.
    #[error("key {kid:?} ({alg:?}) of {place}: {why}")]
    Key {
        /// The key's name.
        kid: String,
        /// What it is for.
        alg: Alg,
        /// Where it stands.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// Not a key set, or none of its keys can be used.
    #[error("{path}: {why}")]
    Set {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Two keys of one name and algorithm.
    #[error("two keys named {kid:?} for {alg:?}")]
    Twice {
        /// The name.
        kid: String,
        /// What they are for.
        alg: Alg,
    },
}

/// All keys, replaced as a whole.
pub(crate) struct KeyRing {
    config: TokenConfig,
    keys: ArcSwap<Keys>,
}

/// By (kid, algorithm).
type Keys = HashMap<(String, Alg), Arc<DecodingKey>>;

/// What changes when a file does, also when a link is moved to another of the same length and time.
type Stamps = Vec<Option<Stamp>>;

/// Which file it is (device, inode), when it was written and changed, its length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    modified: SystemTime,
    changed: (i64, i64),
    bytes: u64,
}

impl KeyRing {
    /// Reads all keys.
    pub(crate) fn load(config: &TokenConfig) -> Result<Self, KeyError> {
        Ok(Self { keys: ArcSwap::from_pointee(read(config)?), config: config.clone() })
    }

    /// The key for a token whose header names `kid` and `alg`. A token without a `kid` is for the key without one, or
    /// the only one there is.
    pub(crate) fn find(&self, kid: Option<&str>, alg: Alg) -> Option<Arc<DecodingKey>> {
        let keys = self.keys.load();
        let named = keys.get(&(kid.unwrap_or_default().to_owned(), alg));
        match (named, kid, keys.len()) {
            (Some(key), ..) => Some(key.clone()),
            (None, None, 1) => keys.iter().find(|((_, of), _)| *of == alg).map(|(_, key)| key.clone()),
            (None, ..) => None,
        }
    }

    /// Whether there is any key.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.load().is_empty()
    }

    /// Reads the files again whenever they change, until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let files: Vec<PathBuf> = files(&self.config).map(Path::to_owned).collect();
        if files.is_empty() {
            return;
        }
        // Taken before the first reading would be better still; a change in between is seen by the empty stamps.
        let mut seen = Stamps::new();
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let (ring, files, before) = (self.clone(), files.clone(), seen.clone());
            let looked = tokio::task::spawn_blocking(move || {
                let now = stamps(&files);
                if now != before {
                    ring.reload();
                }
                now
            });
            match looked.await {
                Ok(now) => seen = now,
                Err(stopped) => tracing::error!(%stopped, "reading the keys again failed"),
            }
        }
    }

    /// Reads everything again; what is broken changes nothing.
    pub(crate) fn reload(&self) {
        match read(&self.config) {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "token keys read");
                self.keys.store(Arc::new(keys));
            }
            Err(error) => tracing::error!(%error, "token keys not changed"),
        }
    }
}

fn files(config: &TokenConfig) -> impl Iterator<Item = &Path> {
    let named = config.keys.iter().map(|key| key.file.as_path());
    named.chain([config.jwks.as_path()]).filter(|path| !path.as_os_str().is_empty())
}

fn stamps(files: &[PathBuf]) -> Stamps {
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Stamp {
            file: (metadata.dev(), metadata.ino()),
            modified: metadata.modified().ok()?,
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            bytes: metadata.len(),
        })
    };
    files.iter().map(stamp).collect()
}

fn read(config: &TokenConfig) -> Result<Keys, KeyError> {
    let mut keys = Keys::new();
    let mut add = |kid: &str, alg, key| match keys.entry((kid.to_owned(), alg)) {
        Entry::Vacant(place) => {
            place.insert(Arc::new(key));
            Ok(())
        }
        Entry::Occupied(_) => Err(KeyError::Twice { kid: kid.to_owned(), alg }),
    };
    for key in &config.keys {
        add(&key.kid, key.alg, of_config(key)?)?;
    }
    if !config.jwks.as_os_str().is_empty() {
        for (kid, alg, key) in of_set(&config.jwks)? {
            if add(&kid, alg, key).is_err() {
                // The first one stays.
                tracing::warn!(kid, ?alg, path = %config.jwks.display(), "a second key of this name is passed over");
            }
        }
    }
    Ok(keys)
}

fn file(path: &Path) -> Result<String, KeyError> {
    let failed = |source| KeyError::File { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::other("longer than 1 MiB")));
    }
    std::fs::read_to_string(path).map_err(failed)
}

fn of_config(config: &KeyConfig) -> Result<DecodingKey, KeyError> {
    let (text, place) = if config.file.as_os_str().is_empty() {
        (config.key.reveal().to_owned(), "the configuration".to_owned())
    } else {
        (file(&config.file)?, config.file.display().to_string())
    };
    let wrong = |why: String| KeyError::Key { kid: config.kid.clone(), alg: config.alg, place: place.clone(), why };
    let key = match config.alg {
        // A file made by an editor ends in a newline that nobody means.
        Alg::HS256 => Ok(DecodingKey::from_secret(text.trim_end_matches(['\r', '\n']).as_bytes())),
        Alg::RS256 => DecodingKey::from_rsa_pem(text.as_bytes()),
        Alg::ES256 => DecodingKey::from_ec_pem(text.as_bytes()),
        Alg::EdDSA => DecodingKey::from_ed_pem(text.as_bytes()),
    };
    let key = key.map_err(|error| wrong(error.to_string()))?;
    strong(config.alg, &key).map_err(wrong)?;
    Ok(key)
}

fn of_set(path: &Path) -> Result<Vec<(String, Alg, DecodingKey)>, KeyError> {
    let wrong = |why: String| KeyError::Set { path: path.to_owned(), why };
    let set: Set = serde_json::from_str(&file(path)?).map_err(|error| wrong(error.to_string()))?;
    let mut keys = Vec::new();
    for jwk in set.keys {
        let kid = jwk.get("kid").and_then(Value::as_str).unwrap_or_default().to_owned();
        match of_jwk(jwk) {
            Ok((alg, key)) => keys.push((kid, alg, key)),
            // RFC 7517 section 5: what cannot be used is to be ignored; a provider's set holds keys for other purposes, too.
            Err(why) => tracing::warn!(kid, why, path = %path.display(), "a key of the set is passed over"),
        }
    }
    if keys.is_empty() { Err(wrong("no key that can be used".to_owned())) } else { Ok(keys) }
}

/// A key set (RFC 7517 section 5), its keys as they came.
#[derive(serde::Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// A key of a set; else why it cannot be used.
fn of_jwk(mut jwk: Value) -> Result<(Alg, DecodingKey), String> {
    // EdDSA on this curve by its name of RFC 9864, which the library does not know.
    if jwk.get("alg").and_then(Value::as_str) == Some(ED25519) {
        jwk["alg"] = "EdDSA".into();
    }
    let jwk: Jwk = serde_json::from_value(jwk).map_err(|error| error.to_string())?;
    let alg = alg_of(&jwk).ok_or("it is not for HS256, RS256, ES256 or EdDSA")?;
    let key = DecodingKey::from_jwk(&jwk).map_err(|error| error.to_string())?;
    strong(alg, &key)?;
    Ok((alg, key))
}

/// The algorithm that a key of a set is for: what it says, or its kind's; `None` where that is not one of ours.
fn alg_of(jwk: &Jwk) -> Option<Alg> {
    if jwk.common.public_key_use == Some(PublicKeyUse::Encryption) {
        return None;
    }
    let (alg, said) = match &jwk.algorithm {
        AlgorithmParameters::OctetKey(_) => (Alg::HS256, KeyAlgorithm::HS256),
        AlgorithmParameters::RSA(_) => (Alg::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Alg::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Alg::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    (jwk.common.key_algorithm.is_none_or(|named| named == said)).then_some(alg)
}

fn strong(alg: Alg, key: &DecodingKey) -> Result<(), String> {
    let bytes = match key.kind() {
        DecodingKeyKind::SecretOrDer(bytes) => bytes.len(),
        DecodingKeyKind::RsaModulusExponent { n, .. } => n.len(),
    };
    match alg {
        Alg::HS256 if bytes < SECRET_BYTES_MIN => Err(format!("a secret of {bytes} bytes: want at least 32")),
        Alg::RS256 if bytes < RSA_BYTES_MIN => Err("want at least 2048 bits".to_owned()),
        _ => Ok(()),
    }
}
