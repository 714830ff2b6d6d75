//! libFuzzer's door to `proto::native_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto::native_fuzz::run(data));
