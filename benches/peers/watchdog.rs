//! Ends the program if a row takes too long, after printing the measurements so far.

use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

/// Process groups that would outlive this program.
static GROUPS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Kills this group when the watchdog ends the program.
pub(crate) fn end_with_us(group: u32) {
    GROUPS.lock().unwrap().push(group);
}

/// Stops the watchdog of a row when it is dropped.
pub(crate) struct Guard(#[expect(dead_code, reason = "to be dropped")] Sender<()>);

/// Ends the program if the guard still exists after `limit`.
pub(crate) fn guard(
    row: &str,
    limit: Duration,
    before_end: impl FnOnce() + Send + 'static,
) -> Guard {
    let (alive, gone) = mpsc::channel();
    let row = row.to_owned();
    std::thread::spawn(move || {
        if gone.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            before_end();
            eprintln!("error: {row} did not end within {limit:?}");
            for group in GROUPS.lock().unwrap().iter() {
                if let Some(group) = Pid::from_raw(*group as i32) {
                    let _ = kill_process_group(group, Signal::KILL);
                }
            }
            std::process::exit(3);
        }
    });
    Guard(alive)
}
