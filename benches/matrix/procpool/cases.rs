//! The cases in which a task or a worker fails, or an input is long. `lives` has the cases about ends.

use std::cell::Cell;
use std::collections::VecDeque;
use std::error::Error;
use std::fmt::Display;
use std::fs;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use procpool::{Pool, Task, TaskOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::facts::{Facts, Outcome};
use crate::lives::{kill, wait_dead};
use crate::tasks;

pub(crate) type Done = Result<(), Box<dyn Error>>;

pub(crate) const WORKERS: usize = 2;
pub(crate) const HEALTHY: u64 = 8;
/// The bad task is the third: by then some healthy tasks are done, and most are not.
const BAD_POSITION: u64 = 2;
/// A task without a result or an error after this time hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);
/// The same for the task that tests whether the pool continues.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// The same for initializers: they are retried with pauses, and a busy machine starts workers slowly.
const INITIALIZER_PATIENCE: Duration = Duration::from_secs(8);
const HUGE: usize = 400_000_000;
/// How many kills may come after the result before the case ends.
const MAX_MISSES: u32 = 3;
const LAZY_INPUTS: u64 = 300_000;
const LIMIT: Duration = Duration::from_millis(100);
const LIMIT_TRIES: usize = 5;

pub(crate) fn millis(since: Instant) -> f64 {
    1000.0 * since.elapsed().as_secs_f64()
}

pub(crate) fn pids(pool: &Pool) -> Vec<u32> {
    pool.workers().iter().map(|worker| worker.pid).collect()
}

/// Creates a pool all of whose workers have run a task.
pub(crate) fn warm_pool(workers: usize) -> Result<Pool, Box<dyn Error>> {
    let pool = Pool::new(workers)?;
    warm_up(&pool, workers)?;
    Ok(pool)
}

fn warm_up(pool: &Pool, workers: usize) -> Done {
    let one_each = pool.with_options(TaskOptions::new().chunk_size(1));
    one_each.map(tasks::sleep, std::iter::repeat_n(100, 2 * workers))?;
    Ok(())
}

fn outcome<R: DeserializeOwned>(
    mut task: Task<R>,
    since: Instant,
    deadline: Instant,
) -> Outcome<R> {
    let left = deadline.saturating_duration_since(Instant::now());
    match task.get_timeout(left) {
        Some(Ok(answer)) => Outcome::Answer(answer, millis(since)),
        Some(Err(error)) => Outcome::Error(error.to_string(), millis(since)),
        None => Outcome::Nothing,
    }
}

fn submit_healthy(pool: &Pool) -> Vec<Task<u64>> {
    (0..HEALTHY).map(|n| pool.apply_async(tasks::healthy, n)).collect()
}

fn tell_healthy(healthy: Vec<Task<u64>>, deadline: Instant) {
    let right = |(n, task): (u64, Task<u64>)| {
        let outcome = outcome(task, Instant::now(), deadline);
        matches!(outcome, Outcome::Answer(answer, _) if answer == n * n)
    };
    let answered = (0..).zip(healthy).map(right).filter(|right| *right).count();
    Facts::new().add("answered", answered).add("of", HEALTHY);
}

/// Reports the outcome of one more task. Returns whether its result is right.
fn goes_on(pool: &Pool) -> bool {
    let start = Instant::now();
    let last = outcome(pool.apply_async(tasks::square, 11), start, start + AFTERWARDS);
    let what = match last {
        Outcome::Answer(121, _) => "answer",
        Outcome::Answer(..) | Outcome::Error(..) => "error",
        Outcome::Nothing => "nothing",
    };
    Facts::new().text("after", what);
    what == "answer"
}

/// Marks the end of the observations. The end of the process is observed from outside.
fn finish(pool: &Pool) {
    Facts::new().add("done", true);
    pool.terminate();
}

pub(crate) fn one_bad<A, R>(f: fn(A) -> R, argument: A) -> Done
where
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned + Display,
{
    let pool = warm_pool(WORKERS)?;
    let before = pids(&pool);
    let mut healthy: Vec<_> =
        (0..BAD_POSITION).map(|n| pool.apply_async(tasks::healthy, n)).collect();
    let since = Instant::now();
    let bad = pool.apply_async(f, argument);
    healthy.extend((BAD_POSITION..HEALTHY).map(|n| pool.apply_async(tasks::healthy, n)));
    let deadline = Instant::now() + PATIENCE;
    Facts::new().add("bad", outcome(bad, since, deadline));
    tell_healthy(healthy, deadline + Duration::from_secs(1));
    goes_on(&pool);
    Facts::new().add("same_workers", pids(&pool) == before);
    finish(&pool);
    Ok(())
}

pub(crate) fn idle_killed() -> Done {
    let pool = warm_pool(WORKERS)?;
    let pids = pids(&pool);
    pids.iter().for_each(|pid| kill(*pid, libc::SIGKILL));
    wait_dead(&pids);
    let start = Instant::now();
    let first = outcome(pool.apply_async(tasks::square, 7), start, start + PATIENCE);
    Facts::new().add("first", &first);
    tell_healthy(submit_healthy(&pool), Instant::now() + PATIENCE);
    finish(&pool);
    Ok(())
}

/// Returns a process's memory in bytes; 0 once it has ended.
fn resident(pid: u32) -> usize {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    // SAFETY: a plain system call.
    pages * usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Waits until a process holds a tenth of the huge argument.
fn wait_grown(pid: u32, limit: Duration) {
    let (enough, start) = (resident(pid) + HUGE / 10, Instant::now());
    while resident(pid) < enough && start.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills a worker while it receives an argument. The pool has one worker, so that it is known which.
///
/// If the pool survives, the worker is killed three times: once it has a part of the argument, and after half
/// and three quarters of the duration of an undisturbed call.
pub(crate) fn killed_while_sent() -> Done {
    let pool = warm_pool(1)?;
    let huge = vec![0_u8; HUGE];
    let start = Instant::now();
    pool.apply(tasks::length, huge.clone())?;
    let undisturbed = start.elapsed();
    Facts::new().add("undisturbed_ms", 1000.0 * undisturbed.as_secs_f64());
    let mut kills = Vec::new();
    let mut parts = VecDeque::from([None, Some(0.5), Some(0.75)]);
    let mut misses = 0;
    while let Some(part) = parts.pop_front() {
        let (victim, copy) = (pids(&pool)[0], huge.clone());
        let start = Instant::now();
        let killer = std::thread::spawn(move || {
            match part {
                None => wait_grown(victim, 2 * undisturbed),
                Some(part) => std::thread::sleep(undisturbed.mul_f64(part)),
            }
            let at = start.elapsed();
            kill(victim, libc::SIGKILL);
            1000.0 * at.as_secs_f64()
        });
        let task = pool.apply_async(tasks::length, copy);
        let ended = outcome(task, start, start + 2 * undisturbed + PATIENCE);
        let at = killer.join().map_err(|_| "the killer failed")?;
        let ended = ended.since(at);
        if matches!(ended, Outcome::Answer(_, ms) if ms < 0.0) && misses < MAX_MISSES {
            // The call was done before the kill: once more, and earlier.
            misses += 1;
            parts.push_front(Some(0.7 * part.unwrap_or(1.0)));
            Facts::new().add("misses", misses);
            wait_dead(&[victim]);
            continue;
        }
        kills.push(ended);
        Facts::new().list("kills", &kills).add("whole", HUGE);
        if !goes_on(&pool) {
            break;
        }
    }
    tell_healthy(submit_healthy(&pool), Instant::now() + AFTERWARDS);
    finish(&pool);
    Ok(())
}

pub(crate) fn initializer() -> Done {
    let starts = || fs::metadata("starts").map_or(0, |file| file.len());
    let begin = Instant::now();
    let pool =
        Pool::builder().workers(WORKERS).initializer(tasks::failing_initializer, ()).build()?;
    let submitted: Vec<_> = (0..HEALTHY).map(|n| pool.apply_async(tasks::square, n)).collect();
    let mut errors = Vec::new();
    for task in submitted {
        if let Outcome::Error(text, ms) = outcome(task, begin, begin + INITIALIZER_PATIENCE) {
            errors.push((text, ms));
        }
    }
    let facts = Facts::new().add("errors", errors.len()).add("of", HEALTHY);
    if let Some((text, _)) = errors.first() {
        let last = errors.iter().map(|(_, ms)| *ms).fold(0.0, f64::max);
        drop(facts.text("text", text).add("ms", last));
    }
    // Starts that were under way at the last error may still count.
    std::thread::sleep(Duration::from_secs(1));
    Facts::new().add("starts", starts());
    std::thread::sleep(Duration::from_secs(1));
    Facts::new().add("starts_a_second_later", starts());
    finish(&pool);
    Ok(())
}

pub(crate) fn callback() -> Done {
    let pool = warm_pool(WORKERS)?;
    let (called, right) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    pool.apply_async(tasks::healthy, 3).on_done(|_| panic!("the callback went wrong"));
    for n in 0..HEALTHY {
        let (called, right) = (Arc::clone(&called), Arc::clone(&right));
        pool.apply_async(tasks::healthy, n).on_done(move |result| {
            right.fetch_add(u64::from(result == Ok(n * n)), Ordering::SeqCst);
            called.fetch_add(1, Ordering::SeqCst);
        });
    }
    let deadline = Instant::now() + PATIENCE;
    while called.load(Ordering::SeqCst) < HEALTHY && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (called, right) = (called.load(Ordering::SeqCst), right.load(Ordering::SeqCst));
    Facts::new().add("answered", right).add("of", HEALTHY).add("called", called);
    goes_on(&pool);
    finish(&pool);
    Ok(())
}

pub(crate) fn lazy() -> Done {
    let pool = warm_pool(WORKERS)?;
    let read = Rc::new(Cell::new(0_u64));
    let counter = Rc::clone(&read);
    let numbers = (0..LAZY_INPUTS).inspect(move |_| counter.set(counter.get() + 1));
    let mut results = pool.imap(tasks::square, numbers);
    let first = results.next().ok_or("no result")??;
    Facts::new().add("first", first).add("read", read.get()).add("of", LAZY_INPUTS);
    std::thread::sleep(Duration::from_millis(500));
    Facts::new().add("read_later", read.get());
    std::thread::sleep(Duration::from_millis(500));
    Facts::new().add("read_in_the_end", read.get());
    drop(results);
    finish(&pool);
    Ok(())
}

pub(crate) fn limit() -> Done {
    let pool = warm_pool(WORKERS)?;
    let limited = pool.with_options(TaskOptions::new().timeout(LIMIT));
    let mut times = Vec::new();
    for _ in 0..LIMIT_TRIES {
        let start = Instant::now();
        let (time, text) =
            match outcome(limited.apply_async(tasks::spin, ()), start, start + AFTERWARDS) {
                Outcome::Error(text, ms) => (ms.to_string(), text),
                Outcome::Answer((), _) | Outcome::Nothing => ("null".to_owned(), String::new()),
            };
        times.push(time);
        Facts::new().list("times", &times).text("text", &text);
        // Waits for a ready worker: otherwise its start would be measured too.
        warm_up(&pool, WORKERS)?;
    }
    goes_on(&pool);
    finish(&pool);
    Ok(())
}
