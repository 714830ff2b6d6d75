//! libFuzzer's door to `proto::packet_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto::packet_fuzz::run(data));
