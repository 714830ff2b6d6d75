//! Why there is no measurement, or no good one.

/// Why there is no measurement, or no good one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's fault.
    #[error("--{option} {value}: {want}")]
    Option {
        /// Without dashes.
        option: &'static str,
        /// As given.
        value: String,
        /// What would be right.
        want: String,
    },
    /// This machine's limit.
    #[error(
        "{sessions} sessions need {wanted} open files, and the hard limit is {limit}: raise it (`ulimit -Hn {wanted}` as \
         root, `nofile` in /etc/security/limits.conf, `LimitNOFILE=` of a systemd unit) or take fewer --viewers"
    )]
    OpenFiles {
        /// Viewers and publishers.
        sessions: u64,
        /// With what else is open.
        wanted: u64,
        /// RLIMIT_NOFILE's.
        limit: u64,
    },
    /// The server cannot be started, or reached as its owner.
    #[error("no server: {0}")]
    Server(String),
    /// The server's fault, or it is not there.
    #[error("not all viewers could enter: {0}")]
    Entering(String),
    /// This machine's limit, of many sessions.
    #[error("{sessions} sessions: {what}")]
    Admission {
        /// As asked for.
        sessions: u64,
        /// With the setting to raise.
        what: String,
    },
    /// A worker process ended, or spoke what is none of ours.
    #[error("the workers: {0}")]
    Worker(std::io::Error),
    /// This machine has no thread or no runtime to give.
    #[error("cannot run: {0}")]
    Machine(#[from] std::io::Error),
    /// A result's file cannot be written.
    #[error("{}: {reason}", .path.display())]
    File {
        /// As given.
        path: std::path::PathBuf,
        /// The system's, or the drawing's.
        reason: String,
    },
    /// What was to be measured beside the server could not be.
    #[error("the bare measurement: {reason}")]
    Bare {
        /// The disk's or Kafka's.
        reason: String,
    },
    /// It was measured, and it is not right.
    #[error("{0}")]
    Fault(String),
}
