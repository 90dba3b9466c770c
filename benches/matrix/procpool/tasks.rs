//! The tasks. Paths are relative: each case runs in a directory of its own.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const FOREVER: Duration = Duration::from_secs(3600);

/// A value that only the process that created it can decode.
#[derive(Debug)]
pub(crate) struct Picky {
    home: u32,
}

impl Picky {
    pub(crate) fn new() -> Self {
        Self { home: std::process::id() }
    }
}

impl fmt::Display for Picky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.home)
    }
}

impl Serialize for Picky {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.home.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Picky {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let home = u32::deserialize(deserializer)?;
        if home == std::process::id() {
            return Ok(Self { home });
        }
        Err(serde::de::Error::custom("would rather not be decoded"))
    }
}

pub(crate) fn healthy(n: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(20));
    n * n
}

pub(crate) fn square(n: u64) -> u64 {
    n * n
}

pub(crate) fn length(data: Vec<u8>) -> usize {
    data.len()
}

pub(crate) fn kill_self(_: u64) -> u64 {
    // SAFETY: a plain system call.
    unsafe { libc::raise(libc::SIGKILL) };
    0
}

pub(crate) fn exit_zero(_: u64) -> u64 {
    std::process::exit(0)
}

pub(crate) fn ignore(_: Picky) -> u64 {
    0
}

pub(crate) fn make_picky(_: u64) -> Picky {
    Picky::new()
}

pub(crate) fn sleep(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

pub(crate) fn sleep_forever((): ()) {
    std::thread::sleep(FOREVER);
}

pub(crate) fn spin((): ()) {
    while std::hint::black_box(true) {}
}

/// Starts a process, writes its PID to the file, and never returns.
pub(crate) fn start_grandchild(path: String) {
    let child = Command::new("sleep").arg(FOREVER.as_secs().to_string()).spawn();
    let pid = child.map_or(0, |child| child.id());
    let new = format!("{path}.new");
    if fs::write(&new, pid.to_string()).and_then(|()| fs::rename(&new, &path)).is_ok() {
        sleep_forever(());
    }
}

/// Counts its calls in the file `starts`, and panics.
pub(crate) fn failing_initializer((): ()) {
    let file = OpenOptions::new().create(true).append(true).open("starts");
    let _ = file.and_then(|mut file| file.write_all(b"."));
    panic!("no such model");
}
