//! Which bytes a session gets: one for each dialect, carrier and compression. What the bytes are, `encode` knows.

use proto::bilibili::Version;

/// What a session's bytes look like: sessions of one encoding in one room get the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Encoding {
    /// Protobuf in binary WebSocket messages.
    NativeBinary,
    /// The same, several messages in one, those compressed that are worth it.
    NativeBinaryDeflate,
    /// JSON in text ones.
    NativeJson,
    /// The same, several messages in one, those compressed that are worth it.
    NativeJsonDeflate,
    /// Protobuf behind lengths.
    NativeTcp,
    /// Batches of goim's packets in binary WebSocket messages.
    GoimWeb,
    /// The same, those batches compressed that are worth it.
    GoimWebDeflate,
    /// goim's packets.
    GoimTcp,
    /// Bilibili's packets in binary WebSocket messages.
    BilibiliWeb(Version),
    /// Bilibili's packets.
    BilibiliTcp(Version),
}

impl Encoding {
    /// Whether frames of the native protocol can be said: gaps, positions, goodbyes.
    #[must_use]
    pub(super) fn is_native(self) -> bool {
        matches!(
            self,
            Self::NativeBinary
                | Self::NativeBinaryDeflate
                | Self::NativeJson
                | Self::NativeJsonDeflate
                | Self::NativeTcp
        )
    }

    /// Whether it costs so much that it is made once a process.
    pub(super) fn is_compressed(self) -> bool {
        match self {
            Self::NativeBinaryDeflate | Self::NativeJsonDeflate | Self::GoimWebDeflate => true,
            Self::BilibiliWeb(version) | Self::BilibiliTcp(version) => version != Version::Plain,
            _ => false,
        }
    }

    /// What says the same to a native session, message by message and as it is.
    pub(super) fn plain(self) -> Self {
        match self {
            Self::NativeBinaryDeflate => Self::NativeBinary,
            Self::NativeJsonDeflate => Self::NativeJson,
            other => other,
        }
    }

    pub(super) fn is_json(self) -> bool {
        matches!(self, Self::NativeJson | Self::NativeJsonDeflate)
    }
}
