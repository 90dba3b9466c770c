//! What the parent reads from a worker: frames, and the records in its lane.
//!
//! `cargo +nightly fuzz run worker_output fuzz/corpus/worker_output fuzz/seeds/worker_output`

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| procpool::read_hostile(bytes));
