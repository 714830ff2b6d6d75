//! The page and the client library. In Rust: the page's files as they lie in `dist/`, embedded, so that running the
//! server needs no Node. The sources are TypeScript, in `client/` (the library, an npm package) and `page/`;
//! `scripts/web.sh build` makes `dist/`, which is committed, and `scripts/web.sh check` shows that it is of the sources.
//!
//! Knows no HTTP server: whoever serves the files asks [`asset`] and sends [`CSP`] with them.

#![forbid(unsafe_code)]

use std::hash::{DefaultHasher, Hasher};
use std::sync::LazyLock;

/// What the page may load and reach, the value of `content-security-policy`: its own files only, and connectors at any
/// address, by WebSocket and, to ask why one was refused, by HTTP.
pub const CSP: &str = "default-src 'self'; connect-src 'self' http: https: ws: wss:; object-src 'none'; base-uri 'none'; \
                       form-action 'none'; frame-ancestors 'none'";

/// One file of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asset {
    /// `content-type`.
    pub mime: &'static str,
    /// The file.
    pub bytes: &'static [u8],
    /// `etag`, in its quotation marks: another one when the bytes are others. The names are the same in every version,
    /// so serve them with `cache-control: no-cache` and this.
    pub etag: &'static str,
}

/// The file that the page has under `path`, the path of a request's URL: `/` or `/app.js`, say.
///
/// ```
/// assert!(web::asset("/").is_some_and(|page| page.mime.starts_with("text/html")));
/// assert!(web::asset("/../Cargo.toml").is_none());
/// ```
#[must_use]
pub fn asset(path: &str) -> Option<Asset> {
    let path = if path == "/" { "/index.html" } else { path };
    ASSETS.iter().find(|(name, _)| *name == path).map(|(_, asset)| *asset)
}

macro_rules! files {
    ($($name:literal $mime:literal;)+) => {
        [$((concat!("/", $name), $mime, include_bytes!(concat!("../dist/", $name)) as &'static [u8])),+]
    };
}

static ASSETS: LazyLock<Vec<(&'static str, Asset)>> = LazyLock::new(|| {
    let files = files! {
        "index.html" "text/html; charset=utf-8";
        "app.css" "text/css; charset=utf-8";
        "app.js" "text/javascript; charset=utf-8";
        "icon.svg" "image/svg+xml";
    };
    files.map(|(name, mime, bytes)| (name, Asset { mime, bytes, etag: etag(bytes) })).into()
});

/// Once a file and process, so that what is leaked is bounded.
fn etag(bytes: &[u8]) -> &'static str {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    Box::leak(format!("\"{:016x}\"", hasher.finish()).into_boxed_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_page_is_there() {
        let page = asset("/").expect("the page");
        let html = std::str::from_utf8(page.bytes).expect("UTF-8");
        let named: Vec<_> = ["href=\"/", "src=\"/"]
            .iter()
            .flat_map(|attribute| html.split(attribute).skip(1))
            .map(|rest| format!("/{}", rest.split('"').next().expect("split yields one")))
            .collect();
        assert!(named.len() >= 3, "{named:?}");
        for path in named {
            assert!(asset(&path).is_some_and(|file| !file.bytes.is_empty()), "{path}");
        }
    }

    #[test]
    fn nothing_in_the_page_needs_what_its_policy_refuses() {
        let html = std::str::from_utf8(asset("/").expect("the page").bytes).expect("UTF-8");
        for inline in ["<script>", "<style", " style=", " onclick=", " onload=", "javascript:", "https://", "http://"] {
            assert!(!html.contains(inline), "{inline} in the page");
        }
    }

    #[test]
    fn files_have_entity_tags_of_their_own() {
        let (page, script) = (asset("/").expect("the page"), asset("/app.js").expect("the script"));
        assert_ne!(page.etag, script.etag);
        assert!(page.etag.starts_with('"') && page.etag.ends_with('"'));
    }
}
