//! libFuzzer's door to `proto::goim_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto::goim_fuzz::run(data));
