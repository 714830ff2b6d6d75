//! libFuzzer's door to `proto::deflate_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto::deflate_fuzz::run(data));
