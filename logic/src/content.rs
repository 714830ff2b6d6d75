//! What stands in a message: what may, and how a goim body becomes a message of ours (compat.md, "What").

use bytes::Bytes;
use proto::client::{Error, ErrorCode};
use proto::error::error;
use proto::operation::{Operations, TEXT, is_type, unnamed};

/// Longest payload from a client, bytes.
pub(crate) const CLIENT_PAYLOAD_BYTES_MAX: usize = 4 * 1024;

/// Longest payload from the API, bytes.
pub(crate) const API_PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Longest name that a sender is shown under, characters; a longer one is cut. As much as a chat line shows.
pub(crate) const NAME_CHARS_MAX: usize = 32;

/// A message before it is stamped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) kind: String,
    /// As native viewers get it.
    pub(crate) payload: Bytes,
    /// As it came, where that differs.
    pub(crate) raw: Bytes,
}

impl Content {
    /// Checks type and payload; an empty type is text.
    ///
    /// # Errors
    /// [`ErrorCode::TooLarge`] over `bytes_max`, [`ErrorCode::BadRequest`].
    pub(crate) fn new(kind: String, payload: Bytes, bytes_max: usize) -> Result<Self, Error> {
        let kind = if kind.is_empty() { TEXT.to_owned() } else { kind };
        let content = Self { kind, payload, raw: Bytes::new() };
        content.check(bytes_max)?;
        Ok(content)
    }

    /// What goim pushed or sent under `operation`. Bilibili's viewers get a JSON object with a string `cmd` as it is,
    /// native ones its text; any other body is the text itself. A body that is no text has the operation's own type.
    ///
    /// # Errors
    /// As [`Content::new`].
    pub(crate) fn of_goim(
        operations: &Operations,
        operation: i32,
        body: Bytes,
        bytes_max: usize,
    ) -> Result<Self, Error> {
        let mut content = Self { kind: operations.type_of(operation), payload: body.clone(), raw: Bytes::new() };
        let command = bilibili_command(&body);
        match &command {
            Some(Some(text)) => (content.payload, content.raw) = (Bytes::copy_from_slice(text.as_bytes()), body),
            Some(None) if content.kind == TEXT => content.kind = unnamed(operation),
            Some(None) | None => {}
        }
        // Pushed bodies are the platform's own business: what cannot be shown as text is passed on all the same.
        if content.kind == TEXT && not_shown(&content.payload).is_some() {
            content.kind = unnamed(operation);
        }
        content.check(bytes_max)?;
        Ok(content)
    }

    fn check(&self, bytes_max: usize) -> Result<(), Error> {
        if self.payload.len().max(self.raw.len()) > bytes_max {
            return Err(error(ErrorCode::TooLarge, format!("a payload is at most {bytes_max} bytes")));
        }
        if !is_type(&self.kind) {
            return Err(error(ErrorCode::BadRequest, "a type is 1-32 of A-Z a-z 0-9 _ . -"));
        }
        match not_shown(&self.payload) {
            Some(why) if self.kind == TEXT => Err(error(ErrorCode::BadRequest, why)),
            _ => Ok(()),
        }
    }
}

/// Why `payload` cannot be shown as text.
fn not_shown(payload: &[u8]) -> Option<&'static str> {
    let Ok(text) = std::str::from_utf8(payload) else { return Some("a text is UTF-8") };
    if text.trim().is_empty() {
        return Some("a text is not empty");
    }
    let control = text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    control.then_some("a text has no control characters but newline and tab")
}

/// `Some` if `body` is a Bilibili command (a JSON object with a string `cmd`), with its text where it is a chat message.
fn bilibili_command(body: &[u8]) -> Option<Option<String>> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let command = value.get("cmd")?.as_str()?;
    // `DANMU_MSG:4:0:2:2:2:0` is a chat message, too.
    let chat = command.split(':').next() == Some("DANMU_MSG");
    Some(chat.then(|| value.get("info")?.get(1)?.as_str().map(str::to_owned)).flatten())
}

/// A name fit to be shown: no control characters, no more than one space in a row, at most 32 characters; `otherwise`
/// where nothing is left.
pub(crate) fn shown_name(asked: &str, otherwise: &str) -> String {
    // Marks that turn the direction of the text would turn the neighbours', too (Unicode TR36 section 2.5).
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let visible: String = asked.chars().filter(|c| !turns(*c)).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> = visible.split_whitespace().collect();
    let name: String = words.join(" ").chars().take(NAME_CHARS_MAX).collect();
    if name.is_empty() { otherwise.to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goim(operation: i32, body: &str) -> Content {
        let body = Bytes::copy_from_slice(body.as_bytes());
        Content::of_goim(&Operations::default(), operation, body, API_PAYLOAD_BYTES_MAX).unwrap()
    }

    #[test]
    fn goim_bodies_become_messages_and_go_back_as_they_came() {
        let plain = goim(1000, "hello");
        assert_eq!((plain.kind.as_str(), &plain.payload[..], &plain.raw[..]), ("text", &b"hello"[..], &b""[..]));

        let chat = r#"{"cmd":"DANMU_MSG","info":[[0,1,25],"hi",[7,"Ada"]]}"#;
        let message = goim(1000, chat);
        assert_eq!((message.kind.as_str(), &message.payload[..]), ("text", &b"hi"[..]));
        assert_eq!(&message.raw[..], chat.as_bytes());

        let gift = r#"{"cmd":"SEND_GIFT","data":{"num":1}}"#;
        let message = goim(1000, gift);
        assert_eq!(
            (message.kind.as_str(), &message.payload[..], &message.raw[..]),
            ("goim.1000", gift.as_bytes(), &b""[..])
        );

        assert_eq!(goim(1001, "x").kind, "goim.1001");
        assert_eq!(goim(1000, "").kind, "goim.1000");
        assert_eq!(goim(1000, "\0").kind, "goim.1000");
        assert_eq!(goim(1000, r#"{"mid":1}"#).kind, "text", "JSON without cmd is text");
    }

    #[test]
    fn what_no_client_may_send() {
        let content = |kind: &str, payload: &[u8]| {
            Content::new(kind.into(), Bytes::copy_from_slice(payload), 16).map_err(|refused| refused.code())
        };
        assert!(content("", b"hello\n").is_ok());
        assert!(content("like", b"").is_ok());
        assert_eq!(content("text", &[b'x'; 17]), Err(ErrorCode::TooLarge));
        for bad in [&b""[..], b" \n", b"\xff", b"a\x07b", b"\x1b[31m"] {
            assert_eq!(content("text", bad), Err(ErrorCode::BadRequest), "{bad:?}");
        }
        assert_eq!(content("a b", b"x"), Err(ErrorCode::BadRequest));
    }

    #[test]
    fn a_shown_name_cannot_disturb_its_neighbours() {
        assert_eq!(shown_name("  Ada\n\u{202e}Lovelace ", "7"), "Ada Lovelace");
        assert_eq!(shown_name("\u{202e}\0", "7"), "7");
        assert_eq!(shown_name(&"x".repeat(99), "7").len(), NAME_CHARS_MAX);
    }
}
