//! What a worker does to its parent: socket, lane and process together.
//!
//! `cargo +nightly fuzz run return_path fuzz/corpus/return_path fuzz/seeds/return_path`

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| procpool::talk_to_liar(bytes));
