//! The npm client `bilibili-live-ws`, unchanged, against `barrage run`: web/test/bilibili.

mod node;

#[test]
fn the_npm_client_works_unchanged() {
    node::run("bilibili/client.test.mjs", false);
}
