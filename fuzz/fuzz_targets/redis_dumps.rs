#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvdb_fuzz::redis_dumps(data));
