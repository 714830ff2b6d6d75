//! What JSON of clients may be besides what serde and pbjson read at once: the protobuf JSON mapping allows more, and
//! browsers write more. Only what was refused comes here, so that nothing of it costs the usual frame anything.
//!
//! ```text
//!   text ─▶ read at once ─▶ a frame
//!             └ refused ─▶ [`whole_surrogates`] ─▶ a value ─▶ [`mapped`] ─▶ read again ─▶ a frame, or an error
//! ```
//!
//! Sources: <https://protobuf.dev/programming-guides/json/> (null is absence; `1.0` and `1e2` are integers), and ECMA-262,
//! 25.5.2.3: `JSON.stringify` writes half a surrogate pair as an escape, which WHATWG's UTF-8 encoder makes U+FFFD.

use std::borrow::Cow;

use serde_json::Value;

/// Bytes of an escape: `\ud83d`.
const ESCAPE_BYTES: usize = 6;

/// `text` with each escape of half a surrogate pair replaced by U+FFFD, as browsers do where they must write Unicode.
#[must_use]
pub fn whole_surrogates(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let unit = |at: usize| -> Option<u16> {
        let escape = bytes.get(at..at + ESCAPE_BYTES)?;
        let digits = std::str::from_utf8(escape.strip_prefix(b"\\u")?).ok()?;
        digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
    };
    let (mut whole, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(next) = bytes[at..].iter().position(|byte| *byte == b'\\') {
        at += next;
        at += match (unit(at), unit(at + ESCAPE_BYTES)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 2 * ESCAPE_BYTES,
            (Some(0xd800..=0xdfff), _) => {
                whole.push_str(&text[copied..at]);
                whole.push_str("\\ufffd");
                copied = at + ESCAPE_BYTES;
                ESCAPE_BYTES
            }
            (Some(_), _) => ESCAPE_BYTES,
            // Another escape, `\\` among them: what is escaped is no backslash of the next one.
            (None, _) => 2,
        };
        if at >= bytes.len() {
            break;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    whole.push_str(&text[copied..]);
    Cow::Owned(whole)
}

/// `value` as pbjson reads it: members that are null are absent, and numbers without a fraction are integers.
#[must_use]
pub fn mapped(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let present = members.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(present.map(|(name, value)| (name, mapped(value))).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(mapped).collect()),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            // Floats of no fraction are integers exactly.
            Some(float) if float.fract() == 0.0 && (0.0..18_446_744_073_709_551_616.0).contains(&float) => {
                Value::from(float as u64)
            }
            Some(float) if float.fract() == 0.0 && (-9_223_372_036_854_775_808.0..0.0).contains(&float) => {
                Value::from(float as i64)
            }
            _ => Value::Number(number),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn half_a_pair_is_replaced_and_a_whole_one_is_not() {
        for (text, whole) in [
            (r#""hi \ud83d""#, "hi \u{fffd}"),
            (r#""\ude00 hi""#, "\u{fffd} hi"),
            (r#""\ud83dA""#, "\u{fffd}A"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
            (r#""\ude00\ud83d""#, "\u{fffd}\u{fffd}"),
            (r#""\uD83D\uDE00 \\ud83d \u4e2d""#, "😀 \\ud83d 中"),
            (r#""\\\ud83d\n""#, "\\\u{fffd}\n"),
            (r#""弹幕 \ud83d 弹幕""#, "弹幕 \u{fffd} 弹幕"),
        ] {
            assert_eq!(serde_json::from_str::<String>(&whole_surrogates(text)).unwrap(), whole, "{text}");
        }
        for text in ["", "\\", "\\u", "\\ud83", "\"\\", "\\\\", r#"{"a":"\u00e9"}"#] {
            assert!(matches!(whole_surrogates(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn nulls_are_absent_and_whole_numbers_integers() {
        let value = serde_json::from_str(r#"{"a":null,"b":[50.0,5e1,-2.0,0.5,null],"c":{"d":null},"e":1e19,"f":-0.0}"#);
        let mapped = mapped(value.unwrap());
        assert_eq!(mapped, json!({"b": [50, 50, -2, 0.5, null], "c": {}, "e": 10_000_000_000_000_000_000_u64, "f": 0}));
    }

    proptest! {
        /// What serde reads, it reads the same afterwards; and nothing panics.
        #[test]
        fn what_was_right_stays_as_it_is(text in "\\PC*", escapes in "(\\\\u[d-e][0-9a-f]{3}|\\\\\\\\|a|\\\\n){0,8}") {
            let right = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(whole_surrogates(&right), right.as_str());
            let quoted = format!("\"{escapes}\"");
            let whole = whole_surrogates(&quoted);
            let read = serde_json::from_str::<String>(&whole);
            prop_assert!(read.is_ok(), "{} became {}", quoted, whole);
            if let Ok(before) = serde_json::from_str::<String>(&quoted) {
                prop_assert_eq!(read.unwrap(), before);
            }
        }
    }
}
