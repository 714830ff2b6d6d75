//! libFuzzer's door to `proto::sniff_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto::sniff_fuzz::run(data));
