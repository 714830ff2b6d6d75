//! Changes of session routes on their way to who writes them. Where Routes are slower than sessions come, thousands
//! of them wait there: so the texts of many stand in one string. A string for each, among what its session keeps
//! for good, left the allocator's pages half empty for good (some 40 bytes a session).

/// A session can be found from now on, or no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteChange<'a> {
    /// It can be found no longer.
    pub gone: bool,
    /// `name` is a goim key, not a user.
    pub by_key: bool,
    /// What it is found by.
    pub name: &'a str,
    /// The session's ID.
    pub session: &'a str,
    /// The device that its token names, or empty.
    pub device: &'a str,
}

/// Changes, in order.
#[derive(Debug, Clone, Default)]
pub struct RouteChanges {
    /// Of each its name, session and device.
    texts: String,
    marks: Vec<Mark>,
}

/// A change, with its texts' lengths in bytes.
#[derive(Debug, Clone, Copy)]
struct Mark {
    gone: bool,
    by_key: bool,
    name: u32,
    session: u32,
    device: u32,
}

impl RouteChanges {
    /// Appends a change.
    pub fn push(&mut self, change: RouteChange<'_>) {
        let RouteChange { gone, by_key, name, session, device } = change;
        let bytes = |text: &str| text.len() as u32;
        self.marks.push(Mark { gone, by_key, name: bytes(name), session: bytes(session), device: bytes(device) });
        self.texts.extend([name, session, device]);
    }

    /// How many changes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// Whether there is no change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// The changes, in order.
    pub fn iter(&self) -> impl Iterator<Item = RouteChange<'_>> {
        let mut rest = self.texts.as_str();
        let mut next = move |bytes: u32| {
            let (text, after) = rest.split_at(bytes as usize);
            rest = after;
            text
        };
        self.marks.iter().map(move |&Mark { gone, by_key, name, session, device }| RouteChange {
            gone,
            by_key,
            name: next(name),
            session: next(session),
            device: next(device),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_out_as_they_went_in() {
        let change = |gone, by_key, name, session, device| RouteChange { gone, by_key, name, session, device };
        let all = [
            change(false, false, "ann 安", "incarnation.1.0.0", "phone"),
            change(false, true, "", "incarnation.1.ff.7", ""),
            change(true, false, "bo", "", "tv"),
        ];
        let mut changes = RouteChanges::default();
        assert!(changes.is_empty() && changes.iter().next().is_none());
        all.into_iter().for_each(|change| changes.push(change));
        assert!(changes.len() == all.len() && changes.iter().eq(all));
    }
}
