//! What a client may speak.

/// What the viewers speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// Barrage's own, protobuf.
    Native,
    /// goim's.
    Goim,
    /// Bilibili's, each message in a packet of its own.
    Bilibili,
    /// Bilibili's, batches as zlib streams.
    BilibiliZlib,
    /// Bilibili's, batches as brotli streams.
    BilibiliBrotli,
}

impl Dialect {
    /// Bilibili's `protover`; `None`: another dialect.
    pub(crate) fn protover(self) -> Option<u16> {
        match self {
            Self::Native | Self::Goim => None,
            Self::Bilibili => Some(0),
            Self::BilibiliZlib => Some(2),
            Self::BilibiliBrotli => Some(3),
        }
    }

    /// Whether messages are published by goim's call, else by our own.
    pub(crate) fn is_goim(self) -> bool {
        self == Self::Goim
    }
}
