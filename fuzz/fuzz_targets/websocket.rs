//! libFuzzer's door to `proto::websocket_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto::websocket_fuzz::run(data));
