//! Who a session is and what it may, as logic said when it admitted it: a user's names in one string, and the grant that
//! most users of a platform share.

use std::sync::Arc;

use proto::cluster::Admitted;

/// Who a session is, as logic said. Its ID is made of its key: [`super::Engine::session_id`].
#[derive(Debug)]
pub(super) struct Identity {
    /// Device, user, and the name where that is another than the user: one after another.
    names: Box<str>,
    /// What it may.
    pub(super) grant: Arc<Grant>,
    /// Seconds since 1970; 0: never.
    expires_s: u32,
    device_bytes: u8,
    uid_bytes: u8,
    /// The name is the user's ID.
    nameless: bool,
    /// Not by a token.
    pub(super) guest: bool,
}

/// What a token allows: the same for most users of a platform.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Grant {
    /// Patterns of channels.
    pub(super) subscribe: Vec<String>,
    /// Patterns of channels.
    pub(super) publish: Vec<String>,
}

impl Identity {
    /// Whom logic admitted, with what it allows; `None` where an ID is longer than any may be.
    pub(super) fn new(admitted: &Admitted, grant: Arc<Grant>) -> Option<Self> {
        let Admitted { uid, name, device, guest, expires_at_ms, .. } = admitted;
        let nameless = name == uid;
        let name = if nameless { "" } else { name };
        let mut identity = Self {
            names: [device, uid, name].concat().into(),
            grant,
            expires_s: 0,
            device_bytes: device.len().try_into().ok()?,
            uid_bytes: uid.len().try_into().ok()?,
            nameless,
            guest: *guest,
        };
        identity.expires_at(*expires_at_ms);
        Some(identity)
    }

    /// Which of the user's devices.
    pub(super) fn device(&self) -> &str {
        &self.names[..self.device_bytes.into()]
    }

    /// The user.
    pub(super) fn uid(&self) -> &str {
        &self.names[self.device_bytes.into()..][..self.uid_bytes.into()]
    }

    /// Shown as.
    pub(super) fn name(&self) -> &str {
        match self.nameless {
            true => self.uid(),
            false => &self.names[usize::from(self.device_bytes) + usize::from(self.uid_bytes)..],
        }
    }

    /// When its token lapses, milliseconds since 1970; `None`: never. To the second, upwards.
    pub(super) fn expires_at_ms(&self) -> Option<i64> {
        (self.expires_s > 0).then(|| i64::from(self.expires_s) * 1000)
    }

    /// Its token lapses at this time, milliseconds since 1970; 0: never.
    pub(super) fn expires_at(&mut self, ms: i64) {
        self.expires_s = u32::try_from(ms.max(0) as u64 / 1000 + u64::from(ms % 1000 > 0)).unwrap_or(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_a_session_is_comes_back_as_it_was_said() {
        let said = |uid: &str, name: &str, device: &str, expires_at_ms| {
            let admitted = Admitted {
                uid: uid.into(),
                name: name.into(),
                device: device.into(),
                expires_at_ms,
                ..Admitted::default()
            };
            Identity::new(&admitted, Arc::default())
        };
        for (uid, name, device) in [("ann", "Ann 安", "phone"), ("ann", "ann", ""), ("ann", "", "tv"), ("", "", "")] {
            let identity = said(uid, name, device, 0).unwrap();
            assert_eq!((identity.uid(), identity.name(), identity.device()), (uid, name, device));
            assert_eq!(identity.expires_at_ms(), None);
        }
        let lapses = |ms| said("ann", "", "", ms).unwrap().expires_at_ms();
        assert_eq!(lapses(1_700_000_000_000), Some(1_700_000_000_000));
        assert_eq!(lapses(1_700_000_000_001), Some(1_700_000_001_000));
        assert_eq!(lapses(i64::MAX), Some(i64::from(u32::MAX) * 1000), "2106");
        assert!(said(&"u".repeat(256), "", "", 0).is_none());
    }
}
