//! How far the owner of a partition has come.

/// `Collecting` ─▶ `Replaying` ─▶ `Live`; each of them may become `Paused` or `Lost`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Connectors say what they hold.
    Collecting {
        /// Nobody is waited for after this.
        until_ms: i64,
    },
    /// Records from before the claim are read.
    Replaying,
    /// Everything up to the claim was read: holds are answered.
    Live,
    /// A record is newer than this program.
    Paused,
    /// Another job owns the partition.
    Lost,
}
