//! libFuzzer's door to `proto::http_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto::http_fuzz::run(data));
