//! libFuzzer's door to `proto::bilibili_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto::bilibili_fuzz::run(data));
