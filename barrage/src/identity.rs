//! Who this process is: node name and incarnation; and, for `barrage run` on loopback, the secrets that it makes up so
//! that a newcomer needs none.
//!
//! Invariant: a made-up secret is random, kept in the data directory for its owner's eyes only, and never used where
//! anything listens on another address than loopback.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use logic::config::{Alg, KeyConfig, TokenConfig};
use proto::config::Secret;
use rand::RngExt as _;

/// Characters of an incarnation: base32 in lower case, safe in a session ID, a Redis key and a host name.
const INCARNATION_LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Letters of an incarnation: 65 bits, so that two nodes never have the same one.
const INCARNATION_LENGTH: usize = 13;

/// Bytes of a made-up secret.
const SECRET_BYTES: usize = 32;

/// A random name for this start.
pub(crate) fn incarnation() -> String {
    let mut rng = rand::rng();
    (0..INCARNATION_LENGTH).map(|_| char::from(INCARNATION_LETTERS[rng.random_range(0..32)])).collect()
}

/// The host's name, or `host` where it has none that an ID can hold.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    if name.is_empty() { "host".to_owned() } else { name }
}

/// Reads, or makes once, the secret of this name in `directory`.
///
/// # Errors
/// The directory cannot be written to, or the file is not a secret.
fn made_up(directory: &Path, name: &str) -> anyhow::Result<Secret> {
    let path = directory.join(name);
    let in_path = || format!("the secret in {}", path.display());
    DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(in_path)?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            let secret: [u8; SECRET_BYTES] = rand::random();
            let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
            file.write_all(secret.as_bytes()).and_then(|()| file.sync_all()).with_context(in_path)?;
            Ok(Secret::new(secret))
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let mut secret = String::new();
            std::fs::File::open(&path)
                .and_then(|file| file.take(2 * SECRET_BYTES as u64).read_to_string(&mut secret))
                .with_context(in_path)?;
            anyhow::ensure!(secret.len() == 2 * SECRET_BYTES, "{} is not whole: delete it", path.display());
            Ok(Secret::new(secret))
        }
        Err(error) => Err(error).with_context(in_path),
    }
}

/// Gives `barrage run` on loopback the secrets that it was not given, kept in `directory`: the cluster's, and a key that
/// signs tokens.
///
/// # Errors
/// The directory cannot be written to.
pub(crate) fn make_up_secrets(directory: &Path, cluster: &mut Secret, token: &mut TokenConfig) -> anyhow::Result<()> {
    if cluster.reveal().is_empty() {
        *cluster = made_up(directory, "cluster.secret")?;
    }
    if token.keys.is_empty() && token.jwks.as_os_str().is_empty() {
        let key = made_up(directory, "token.secret")?;
        token.keys.push(KeyConfig { kid: String::new(), alg: Alg::HS256, key, file: PathBuf::new() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_made_up_secret_stays_and_is_its_owners_only() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let secret = made_up(&data, "x.secret").unwrap();
        assert_eq!(secret.reveal().len(), 64);
        assert!(made_up(&data, "x.secret").unwrap() == secret);
        assert!(made_up(&data, "y.secret").unwrap() != secret);
        let mode = std::fs::metadata(data.join("x.secret")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(data.join("x.secret"), "short").unwrap();
        assert!(made_up(&data, "x.secret").is_err());
    }

    #[test]
    fn an_incarnation_is_new_each_time() {
        let (one, other) = (incarnation(), incarnation());
        assert_ne!(one, other);
        assert!(one.len() == 13 && one.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7')));
    }
}
