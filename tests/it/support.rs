//! Shared by the tests: side effects that outlive a worker, bounded waits, and tests in a process of their own.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize, Serializer};

pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) fn square(x: u64) -> u64 {
    x * x
}

pub(crate) fn sleepy(millis: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(millis));
    millis
}

/// A type whose encoding fails.
#[derive(Debug, Deserialize)]
pub(crate) struct Secret;

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("it is a secret"))
    }
}

/// Waits until `condition` holds. Fails the test after [`SOON`].
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn kill(pid: u32, signal: i32) {
    assert_ne!(pid, 0, "that would be this process's own group");
    // SAFETY: a plain system call.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}

/// Returns whether a process exists and is not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X'))
}

/// Runs an ignored test of the calling module alone in a process, with a temporary directory of its own. For
/// measurements of a whole process, which other tests would affect.
macro_rules! alone {
    ($test:literal) => {{
        let dir = tempfile::tempdir().unwrap();
        $crate::support::run_alone(module_path!(), $test, dir.path());
    }};
}
pub(crate) use alone;

/// Runs an ignored test alone in a process with this `TMPDIR`, and checks that it ran and passed.
pub(crate) fn run_alone(module: &str, test: &str, tmpdir: &Path) {
    let (_, module) = module.split_once("::").unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{test}"), "--ignored", "--test-threads=1"])
        .env("TMPDIR", tmpdir)
        .stderr(std::process::Stdio::inherit())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Counts what a pool might leak: descriptors, threads, children, temporary files, and mappings of shared
/// memory.
pub(crate) fn left_behind() -> [usize; 5] {
    let count = |dir: &str| fs::read_dir(dir).unwrap().count();
    let children = fs::read_dir("/proc/self/task").unwrap().map(|task| {
        let children = task.unwrap().path().join("children");
        fs::read_to_string(children).map_or(0, |pids| pids.split_whitespace().count())
    });
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let shared = maps.lines().filter(|line| line.contains("memfd:")).count();
    let temporary = fs::read_dir(std::env::temp_dir()).unwrap().count();
    [count("/proc/self/fd"), count("/proc/self/task"), children.sum(), temporary, shared]
}

/// Waits until a process has left nothing more behind than `before`: a joined thread is listed for a moment, also in
/// `before`. Fails the test after [`SOON`] and says what there is.
#[track_caller]
pub(crate) fn wait_until_as_before(before: [usize; 5]) {
    let deadline = Instant::now() + SOON;
    let is_more =
        |after: [usize; 5]| after.iter().zip(before).any(|(after, before)| *after > before);
    while is_more(left_behind()) {
        let counted = "descriptors, threads, children, temporary files, mappings";
        assert!(Instant::now() < deadline, "{:?} after {before:?} ({counted})", left_behind());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Counts the side effects of tasks in files, which survive the death of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SideEffects {
    path: PathBuf,
    #[serde(skip)]
    _dir: Option<Arc<tempfile::TempDir>>,
}

impl SideEffects {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { path: dir.path().to_owned(), _dir: Some(Arc::new(dir)) }
    }

    /// Returns the file that counts the side effects of `x`.
    pub(crate) fn file(&self, x: u64) -> PathBuf {
        self.path.join(x.to_string())
    }

    /// Adds one side effect of `x`.
    pub(crate) fn note(&self, x: u64) {
        let path = self.file(x);
        OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(b".").unwrap();
    }

    /// Returns how many side effects `x` had.
    pub(crate) fn count(&self, x: u64) -> usize {
        fs::metadata(self.file(x)).map_or(0, |file| file.len() as usize)
    }

    /// Returns all values that had side effects.
    pub(crate) fn noted(&self) -> Vec<u64> {
        let name = |entry: std::io::Result<fs::DirEntry>| {
            entry.unwrap().file_name().to_str().unwrap().parse().unwrap()
        };
        fs::read_dir(&self.path).unwrap().map(name).collect()
    }
}
