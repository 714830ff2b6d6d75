//! The members of an auth body, goim's or Bilibili's: read by name and type.

use serde_json::{Map, Value};

/// An auth body that makes no sense. The client's fault, no use retrying: close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAuth {
    /// Not a JSON object.
    #[error("the auth body is not a JSON object")]
    NotAnObject,
    /// A member is of a type that it cannot have.
    #[error("`{0}` in the auth body is of another type")]
    Member(&'static str),
}

/// The members of an auth body. `null` is as good as missing.
pub(crate) struct Members(Map<String, Value>);

impl Members {
    pub(crate) fn new(members: Map<String, Value>) -> Self {
        Self(members)
    }

    /// Whether there is one of this name, be it `null`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A string; empty where missing.
    pub(crate) fn text(&self, name: &'static str) -> Result<String, BadAuth> {
        match self.get(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(BadAuth::Member(name)),
        }
    }

    /// A user's number, or ID, as an ID; 0, which both dialects take for "nobody", and missing: empty. The number is an
    /// int64 in both dialects (goim: `Mid int64`), so a larger one is refused.
    pub(crate) fn user(&self, name: &'static str) -> Result<String, BadAuth> {
        let id = match self.get(name) {
            None => return Ok(String::new()),
            Some(Value::Number(number)) if number.is_i64() => number.to_string(),
            Some(Value::String(text)) => text.clone(),
            Some(_) => return Err(BadAuth::Member(name)),
        };
        match id.as_str() {
            "" | "0" => Ok(String::new()),
            id if crate::channel::is_id(id) => Ok(id.to_owned()),
            _ => Err(BadAuth::Member(name)),
        }
    }

    /// A number, or its digits in a string.
    pub(crate) fn number(&self, name: &'static str) -> Result<Option<u64>, BadAuth> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => number.as_u64().map(Some).ok_or(BadAuth::Member(name)),
            Some(Value::String(text)) if text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().map(Some).map_err(|_| BadAuth::Member(name))
            }
            Some(_) => Err(BadAuth::Member(name)),
        }
    }

    /// A list of i32; empty where missing.
    pub(crate) fn operations(&self, name: &'static str) -> Result<Vec<i32>, BadAuth> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => values
                .iter()
                .map(|value| value.as_i64().and_then(|number| i32::try_from(number).ok()).ok_or(BadAuth::Member(name)))
                .collect(),
            Some(_) => Err(BadAuth::Member(name)),
        }
    }
}
