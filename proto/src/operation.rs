//! Message types and goim's operations: which is which (compat.md, "What").
//!
//! Logic names the type of what goim pushed or sent; the connector names the operation of what goes to a goim session.
//! An operation that has no type of its own becomes `goim.<operation>`, so that it comes back as it went.

use std::collections::BTreeMap;

/// Longest type of a message, bytes.
pub const TYPE_BYTES_MAX: usize = 32;

/// The type of a chat message: `DANMU_MSG` to Bilibili's viewers.
pub const TEXT: &str = "text";

/// goim's own example operation, and the one that any type without an operation of its own goes under.
pub const TEXT_OPERATION: i32 = 1000;

/// The operation under which a goim client sends (`OP_SEND`): its body is a chat message, whose operation is text's.
pub const SEND: i32 = 4;

/// The last of the protocol's own operations (compat.md's table): what goes to a goim session under one of these is
/// taken for the server's word. Only the platform may push under them, no client.
pub const PROTOCOL_LAST: i32 = 17;

/// The operation of each type: `{ text = 1000 }` in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(transparent)]
pub struct Operations(BTreeMap<String, i32>);

impl Default for Operations {
    fn default() -> Self {
        Self(BTreeMap::from([(TEXT.to_owned(), TEXT_OPERATION)]))
    }
}

impl Operations {
    /// The type of what was pushed or sent under `operation`.
    ///
    /// ```
    /// use proto::operation::Operations;
    /// let operations = Operations::default();
    /// assert_eq!(operations.type_of(1000), "text");
    /// assert_eq!(operations.of_type(&operations.type_of(1007)), 1007);
    /// assert_eq!(operations.of_type("like"), 1000);
    /// ```
    #[must_use]
    pub fn type_of(&self, operation: i32) -> String {
        match self.0.iter().find(|(_, mapped)| **mapped == operation) {
            Some((name, _)) => name.clone(),
            None => unnamed(operation),
        }
    }

    /// The operation under which a message of this type goes to goim's viewers.
    #[must_use]
    pub fn of_type(&self, name: &str) -> i32 {
        self.0
            .get(name)
            .copied()
            .or_else(|| name.strip_prefix("goim.")?.parse().ok())
            .or_else(|| self.0.get(TEXT).copied())
            .unwrap_or(TEXT_OPERATION)
    }

    /// Whether a client may publish this type: not one that goim's clients would take for the server's word.
    #[must_use]
    pub fn is_a_clients(&self, name: &str) -> bool {
        self.of_type(name) > PROTOCOL_LAST
    }

    /// Whether each type may be one, and no operation has two.
    #[must_use]
    pub fn are_right(&self) -> bool {
        let mut seen = std::collections::BTreeSet::new();
        self.0.iter().all(|(name, operation)| is_type(name) && seen.insert(*operation))
    }
}

/// The type of an operation that the configuration does not name, or whose body is not what its type promises.
#[must_use]
pub fn unnamed(operation: i32) -> String {
    format!("goim.{operation}")
}

/// Whether `name` may be a message's type: 1-32 of `A-Z a-z 0-9 _ . -`.
#[must_use]
pub fn is_type(name: &str) -> bool {
    name.len() <= TYPE_BYTES_MAX && crate::channel::is_id(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_comes_back_as_it_went() {
        let operations = Operations::default();
        for operation in [0, 1, 1000, 1001, i32::MAX, i32::MIN] {
            let name = operations.type_of(operation);
            assert!(is_type(&name), "{name}");
            assert_eq!(operations.of_type(&name), operation);
        }
    }

    #[test]
    fn no_client_speaks_for_the_server() {
        let operations = Operations::default();
        for name in ["goim.9", "goim.17", "goim.0", "goim.-5", "goim.+9"] {
            assert!(!operations.is_a_clients(name), "{name}");
        }
        for name in ["text", "like", "goim.18", "goim.1000", "goim.x"] {
            assert!(operations.is_a_clients(name), "{name}");
        }
    }

    #[test]
    fn one_operation_has_one_type() {
        let of = |pairs: &[(&str, i32)]| {
            Operations(pairs.iter().map(|(name, operation)| ((*name).to_owned(), *operation)).collect())
        };
        assert!(of(&[("text", 1000), ("like", 1001)]).are_right());
        assert!(!of(&[("text", 1000), ("like", 1000)]).are_right());
        assert!(!of(&[("a b", 1)]).are_right());
    }
}
