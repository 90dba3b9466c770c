//! The cases about ends: of the pool, of the program, and of processes that a task started.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use procpool::{Pool, TaskOptions};

use crate::cases::{Done, HEALTHY, PATIENCE, WORKERS, millis, pids, warm_pool};
use crate::facts::Facts;
use crate::tasks;

pub(crate) fn kill(pid: u32, signal: i32) {
    assert_ne!(pid, 0, "that would be this process's own group");
    // SAFETY: a plain system call.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}

fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X'))
}

fn pause() {
    std::thread::sleep(Duration::from_millis(1));
}

pub(crate) fn wait_dead(pids: &[u32]) {
    while pids.iter().any(|pid| is_alive(*pid)) {
        pause();
    }
}

pub(crate) fn terminated() -> Done {
    let pool = warm_pool(WORKERS)?;
    let woken = Arc::new(AtomicU64::new(0));
    let (last, wakes) = std::sync::mpsc::channel();
    for _ in 0..HEALTHY {
        let task = pool.apply_async(tasks::sleep_forever, ());
        let (woken, last) = (Arc::clone(&woken), last.clone());
        std::thread::spawn(move || {
            drop(task.get());
            woken.fetch_add(1, Ordering::SeqCst);
            let _ = last.send(Instant::now());
        });
    }
    drop(last);
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    let stopper = std::thread::spawn(move || pool.terminate());
    let over = || start.elapsed() > PATIENCE;
    while !over() && (woken.load(Ordering::SeqCst) < HEALTHY || !stopper.is_finished()) {
        pause();
    }
    let last = wakes.try_iter().max().unwrap_or(start);
    Facts::new()
        .add("terminate_returned", stopper.is_finished())
        .add("woken", woken.load(Ordering::SeqCst))
        .add("of", HEALTHY)
        .add("ms", 1000.0 * last.duration_since(start).as_secs_f64())
        .add("done", true);
    Ok(())
}

pub(crate) fn stopped() -> Done {
    let pool = warm_pool(WORKERS)?;
    kill(pids(&pool)[0], libc::SIGSTOP);
    Facts::new().add("stopped", true);
    let start = Instant::now();
    pool.join();
    Facts::new().add("shutdown_ms", millis(start)).add("done", true);
    Ok(())
}

pub(crate) fn grandchild() -> Done {
    let pool = warm_pool(WORKERS)?;
    drop(pool.apply_async(tasks::start_grandchild, "grandchild".to_owned()));
    while !fs::exists("grandchild")? {
        pause();
    }
    let pid: u32 = fs::read_to_string("grandchild")?.parse()?;
    Facts::new().add("grandchild_alive", is_alive(pid));
    let start = Instant::now();
    pool.terminate();
    Facts::new().add("terminate_ms", millis(start));
    while is_alive(pid) && start.elapsed() < Duration::from_secs(2) {
        pause();
    }
    Facts::new().add("grandchild_alive", is_alive(pid)).add("ms", millis(start)).add("done", true);
    Ok(())
}

/// One worker computes and one sleeps. Then this process is killed from outside.
pub(crate) fn parent_killed() -> Done {
    let pool = warm_pool(WORKERS)?;
    let computes = pool.apply_async(tasks::spin, ());
    let sleeps = pool.apply_async(tasks::sleep_forever, ());
    std::thread::sleep(Duration::from_millis(500));
    Facts::new().list("workers", pids(&pool)).add("ready", true);
    sleeps.get()?;
    computes.get()?;
    Ok(())
}

/// A program that handles no signals is interrupted from outside.
pub(crate) fn interrupted() -> Done {
    Facts::new().add("ready", true);
    let pool = Pool::new(WORKERS)?.with_options(TaskOptions::new().chunk_size(1));
    pool.map(tasks::sleep, [60_000; 20])?;
    Ok(())
}
