//! The page in a real Chromium against `barrage run`: web/test/browser.

mod node;

#[test]
fn the_page_works_in_a_browser() {
    node::run("browser/page.test.mjs", true);
}
