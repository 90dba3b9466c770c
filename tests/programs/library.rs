//! A shared library that uses procpool, for tests/entry.rs: the program that loads it can't be its
//! worker.

use procpool::{Pool, Process};

/// Tries to build a pool and to spawn a process, before and after `init`; writes the errors into `text`,
/// and returns how long they are.
///
/// # Safety
///
/// `text` is valid for writes of `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn procpool_test_library(text: *mut u8, room: usize) -> usize {
    let mut errors = String::new();
    for _ in 0..2 {
        let pool = Pool::new(1).map(drop).map_err(|error| error.to_string());
        let process = Process::spawn(|()| (), ()).map(drop).map_err(|error| error.to_string());
        for tried in [pool, process] {
            errors += &tried.err().unwrap_or_else(|| "no error".to_owned());
            errors.push('\n');
        }
        procpool::init();
    }
    let len = errors.len().min(room);
    // SAFETY: as promised by the caller.
    unsafe { text.copy_from_nonoverlapping(errors.as_ptr(), len) };
    len
}
