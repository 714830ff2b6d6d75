//! How a bad configuration is refused.

/// A configuration value that cannot work. The operator's fault; nothing starts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: {want}")]
pub struct Invalid {
    /// The key, dotted, from its section on: `connector.cores`.
    pub key: &'static str,
    /// What it is; a secret is not shown.
    pub value: String,
    /// What would be right.
    pub want: &'static str,
}

/// `Ok` if `right`, else what is wrong with `key`.
///
/// # Errors
/// [`Invalid`] unless `right`.
pub fn require(
    right: bool,
    key: &'static str,
    value: impl std::fmt::Display,
    want: &'static str,
) -> Result<(), Invalid> {
    if right { Ok(()) } else { Err(Invalid { key, value: value.to_string(), want }) }
}

/// Who a service is among the others.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// The node's name, unique in the cluster.
    pub node: String,
    /// Random for each start: 13 characters of `a-z2-7`.
    pub incarnation: String,
    /// Shared by all services.
    pub secret: Secret,
}

/// Something that is never shown: not in a log, not by `barrage config show`.
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Hides `secret`.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for whoever must compute with it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "hidden" })
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn a_secret_is_not_shown() {
        assert!(!format!("{:?}", Secret::new("opensesame")).contains("sesame"));
    }
}
