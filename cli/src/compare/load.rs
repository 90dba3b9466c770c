//! The work of a built-in task, as `procpool run` sends it: enough jobs for about a second, and
//! files for tasks over files.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use image::{Rgb, RgbImage};

use crate::tasks::{Bytes, Job, Output, Params, Takes, Task};

/// The most jobs: with more, the time would not be known better.
const MAX_JOBS: usize = 2_000_000;

/// The number of files. Jobs use them in turn.
const FILES: usize = 16;

/// Jobs, and the directory that lives as long as they do.
pub(super) struct Load {
    pub(super) task: &'static Task,
    pub(super) jobs: Vec<Job>,
    _dir: Dir,
}

impl Load {
    /// Creates jobs that take about this long serially.
    pub(super) fn new(task: &'static Task, long: Duration) -> Result<Self> {
        let dir = Dir::make()?;
        let inputs = match task.takes {
            Takes::Numbers => Vec::new(),
            Takes::Files => files(&dir.0)?,
        };
        let params = Params {
            out: task.options.out.then(|| Bytes::from(dir.0.join("out"))),
            ..Params::default()
        };
        let job = |number: usize| -> Job {
            let job = match inputs.get(number % FILES) {
                Some(path) => Job::new(path.as_path()),
                // Parzen windows need a width above 0. For other tasks, any number will do.
                None if task.name == "parzen" => {
                    Job::new(format!("{:.1}", 0.1 + (number % 12) as f64 / 10.0).as_str())
                }
                None => Job::new(number as i64),
            };
            Job { params: params.clone(), ..job }
        };
        let (start, mut jobs) = (Instant::now(), Vec::new());
        while jobs.len() < MAX_JOBS && (start.elapsed() < long || jobs.len() < FILES) {
            let one = job(jobs.len());
            answer((task.run)(one.clone()))?;
            jobs.push(one);
        }
        ensure!(!jobs.is_empty(), "no job could be made");
        Ok(Self { task, jobs, _dir: dir })
    }
}

/// Returns the result, or the error of the task.
pub(super) fn answer(answer: Result<Output, String>) -> Result<Output> {
    answer.map_err(|error| anyhow!("a task failed: {error}"))
}

/// Creates pictures, which also serve as files of bytes.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let write = |number: usize| -> Result<PathBuf> {
        let path = dir.join(format!("{number:02}.png"));
        // Neither flat nor noise: as much work as a real picture.
        let pixel = |x: u32, y: u32| {
            let wave = (f64::from(x) / 17.0).sin() + (f64::from(y) / 23.0).cos();
            Rgb([(x / 3) as u8, (wave * 60.0 + 120.0) as u8, (x * y / 640 + number as u32) as u8])
        };
        RgbImage::from_fn(640, 480, pixel)
            .save(&path)
            .with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path)
    };
    (0..FILES).map(write).collect()
}

/// A directory that is removed on drop.
struct Dir(PathBuf);

impl Dir {
    fn make() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("procpool-compare-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .with_context(|| format!("failed to create the directory {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // it is in the directory for what may be lost
    }
}
