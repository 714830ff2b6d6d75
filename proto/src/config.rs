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
