//! Overhead: the cost of a process where a thread would do, and for calibration the kernel's share.

use std::fs;
use std::sync::Barrier;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rayon::ThreadPool;
use rayon::prelude::*;
use serde::Serialize;

use super::calibration::{Echo, start_and_end};
use super::machine::cores;
use super::measure::{
    Contender, Sample, SampleSize, percentile, seconds, sorted_calls, take_turns,
};
use super::timing::median;
use procpool::{Pool, WorkerState};

/// The number of workers of pools whose start is timed.
const STARTED: usize = 2;

#[derive(Debug, Serialize)]
pub(super) struct Overhead {
    /// Seconds to start a pool of two and get its first result.
    pub(super) start: Start,
    /// Seconds of a call's round trip.
    pub(super) round_trip: RoundTrip,
    /// Tasks per second.
    pub(super) tiny: Tiny,
    pub(super) payloads: Vec<Payload>,
    /// Bytes of memory per worker and thread.
    pub(super) memory: Memory,
}

#[derive(Debug, Serialize)]
pub(super) struct Start {
    pub(super) processes: Sample,
    pub(super) threads: Sample,
    pub(super) bare_process: Sample,
    pub(super) bare_thread: Sample,
}

#[derive(Debug, Serialize)]
pub(super) struct RoundTrip {
    pub(super) calls: usize,
    pub(super) processes: Latency,
    pub(super) threads: Latency,
    pub(super) socket: Latency,
}

#[derive(Debug, Serialize)]
pub(super) struct Latency {
    pub(super) p50: Sample,
    pub(super) p99: Sample,
}

#[derive(Debug, Serialize)]
pub(super) struct Tiny {
    pub(super) items: u64,
    pub(super) processes: Sample,
    pub(super) threads: Sample,
    pub(super) serial: Sample,
    pub(super) calls: u64,
    pub(super) processes_singly: Sample,
    pub(super) threads_singly: Sample,
}

/// The round trip of a `Vec<u8>` of one size.
#[derive(Debug, Serialize)]
pub(super) struct Payload {
    pub(super) bytes: usize,
    pub(super) seconds: Sample,
    /// One copy of the same bytes in memory.
    pub(super) copy: Sample,
    /// Bytes per second, each counted once.
    pub(super) rate: Sample,
}

#[derive(Debug, Serialize)]
pub(super) struct Memory {
    /// Private memory of an idle worker.
    pub(super) process: Sample,
    /// Private memory that an idle thread adds to this process.
    pub(super) thread: Sample,
}

fn identity(x: u64) -> u64 {
    x
}

fn send_back(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

pub(super) fn measure(size: &SampleSize) -> Result<Overhead> {
    let start = start(size)?;
    let pool = new_pool(cores())?;
    let threads = new_threads(cores())?;
    Ok(Overhead {
        start,
        round_trip: round_trip(&pool, &threads, size)?,
        tiny: tiny(&pool, &threads, size)?,
        payloads: payloads(&pool, size)?,
        memory: memory(size)?,
    })
}

fn new_pool(workers: usize) -> Result<Pool> {
    Pool::new(workers).context("failed to start the pool")
}

fn new_threads(threads: usize) -> Result<ThreadPool> {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    threads.context("failed to start the threads")
}

fn start(size: &SampleSize) -> Result<Start> {
    let times = size.of(15, 5);
    let some = |mut one: Box<dyn FnMut() -> Result<f64>>| -> Contender<'static> {
        Box::new(move || {
            let times: Result<Vec<_>> = (0..times).map(|_| one()).collect();
            Ok(median(&times?))
        })
    };
    let [processes, threads, bare_process, bare_thread] = take_turns(
        size.repetitions,
        [
            some(Box::new(|| {
                let (time, pool) = seconds(|| -> Result<Pool> {
                    let pool = new_pool(STARTED)?;
                    pool.apply(identity, 1)?;
                    Ok(pool)
                });
                pool?.terminate(); // its end is not timed
                Ok(time)
            })),
            some(Box::new(|| {
                let (time, pool) = seconds(|| -> Result<ThreadPool> {
                    let pool = new_threads(STARTED)?;
                    pool.install(|| identity(1));
                    Ok(pool)
                });
                pool?;
                Ok(time)
            })),
            some(Box::new(|| {
                let (time, done) = seconds(start_and_end);
                done?;
                Ok(time)
            })),
            some(Box::new(|| {
                let (time, done) = seconds(|| thread::spawn(|| identity(1)).join());
                if done.is_err() {
                    bail!("a thread failed");
                }
                Ok(time)
            })),
        ],
    )?;
    Ok(Start { processes, threads, bare_process, bare_thread })
}

fn round_trip(pool: &Pool, threads: &ThreadPool, size: &SampleSize) -> Result<RoundTrip> {
    let calls = size.of(5_000, 1_000);
    let socket = Echo::start()?;
    let by_thread = || {
        let (to, from) = sync_channel(1);
        threads.spawn(move || {
            let _ = to.send(identity(1)); // whoever asked waits for it
        });
        Ok(from.recv()?)
    };
    let mut all: [[Vec<f64>; 2]; 3] = Default::default();
    for round in 0..=size.repetitions {
        let times = [
            sorted_calls(calls, || Ok(pool.apply(identity, 1)?))?,
            sorted_calls(calls, by_thread)?,
            sorted_calls(calls, || socket.round_trip())?,
        ];
        // The first round is a warm-up.
        for (all, times) in all.iter_mut().zip(times).filter(|_| round > 0) {
            all[0].push(percentile(&times, 0.5));
            all[1].push(percentile(&times, 0.99));
        }
    }
    let [processes, threads, socket] =
        all.map(|[p50, p99]| Latency { p50: Sample::of(p50), p99: Sample::of(p99) });
    Ok(RoundTrip { calls, processes, threads, socket })
}

fn tiny(pool: &Pool, threads: &ThreadPool, size: &SampleSize) -> Result<Tiny> {
    let items = size.of(1_000_000, 200_000);
    let calls = size.of(20_000, 5_000);
    let rate = |count: u64, time: f64| count as f64 / time;
    let by_processes: Contender<'_> = Box::new(|| {
        let (time, done) = seconds(|| pool.map(identity, 0..items));
        done?;
        Ok(rate(items, time))
    });
    let by_threads: Contender<'_> = Box::new(|| {
        let work = || (0..items).into_par_iter().map(identity).collect::<Vec<_>>();
        Ok(rate(items, seconds(|| threads.install(work)).0))
    });
    let serial: Contender<'_> =
        Box::new(|| Ok(rate(items, seconds(|| (0..items).map(identity).collect::<Vec<_>>()).0)));
    let processes_singly: Contender<'_> = Box::new(|| {
        let (time, done) = seconds(|| -> Result<()> {
            let tasks: Vec<_> = (0..calls).map(|x| pool.apply_async(identity, x)).collect();
            for task in tasks {
                task.get()?;
            }
            Ok(())
        });
        done?;
        Ok(rate(calls, time))
    });
    let threads_singly: Contender<'_> = Box::new(|| {
        let (time, done) = seconds(|| -> Result<()> {
            let (to, from) = std::sync::mpsc::channel();
            for x in 0..calls {
                let to = to.clone();
                threads.spawn(move || {
                    let _ = to.send(identity(x)); // whoever asked waits for all
                });
            }
            for _ in 0..calls {
                from.recv()?;
            }
            Ok(())
        });
        done?;
        Ok(rate(calls, time))
    });
    let [processes, threads, serial, processes_singly, threads_singly] = take_turns(
        size.repetitions,
        [by_processes, by_threads, serial, processes_singly, threads_singly],
    )?;
    Ok(Tiny { items, processes, threads, serial, calls, processes_singly, threads_singly })
}

fn payloads(pool: &Pool, size: &SampleSize) -> Result<Vec<Payload>> {
    /// From a page to more than any cache, by powers of 4.
    const FULL: [u32; 8] = [12, 14, 16, 18, 20, 22, 24, 26];
    const QUICK: [u32; 4] = [12, 16, 20, 24];
    let sizes: &[u32] = size.of(&FULL, &QUICK);
    sizes.iter().map(|power| payload(pool, 1 << power, size)).collect()
}

fn payload(pool: &Pool, bytes: usize, size: &SampleSize) -> Result<Payload> {
    let content: Vec<u8> = (0..bytes).map(|place| place as u8).collect();
    // Short ones many times, the longest once.
    let times = ((16 << 20) / bytes).clamp(1, 200);
    let some = |mut one: Box<dyn FnMut() -> Result<f64> + '_>| -> Result<f64> {
        let times: Result<Vec<_>> = (0..times).map(|_| one()).collect();
        Ok(median(&times?))
    };
    let travel: Contender<'_> = Box::new(|| {
        some(Box::new(|| {
            let argument = content.clone();
            let (time, back) = seconds(|| pool.apply(send_back, argument));
            if back?.last() != content.last() {
                bail!("the returned bytes differ");
            }
            Ok(time)
        }))
    });
    let copied: Contender<'_> = Box::new(|| some(Box::new(|| Ok(seconds(|| content.clone()).0))));
    let [seconds, copy] = take_turns(size.repetitions, [travel, copied])?;
    let rate = seconds.map(|time| bytes as f64 / time);
    Ok(Payload { bytes, seconds, copy, rate })
}

fn memory(size: &SampleSize) -> Result<Memory> {
    let mut process = Vec::new();
    let mut thread = Vec::new();
    for _ in 0..size.repetitions {
        let pool = new_pool(STARTED)?;
        pool.map(identity, 0..1_000)?;
        wait_until_idle(&pool)?;
        let each: Result<Vec<_>> =
            pool.workers().iter().map(|worker| private(&worker.pid.to_string())).collect();
        process.push(median(&each?));
        thread.push(memory_of_thread()?);
    }
    Ok(Memory { process: Sample::of(process), thread: Sample::of(thread) })
}

/// Blocks until all workers are ready and idle.
fn wait_until_idle(pool: &Pool) -> Result<()> {
    let start = Instant::now();
    while pool.workers().iter().any(|worker| worker.state != WorkerState::Idle) {
        if start.elapsed() > Duration::from_secs(60) {
            bail!("the workers did not become idle within a minute");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Measures the growth of this process per waiting thread.
fn memory_of_thread() -> Result<f64> {
    const THREADS: usize = 64;
    let barrier = Barrier::new(THREADS + 1);
    let before = private("self")?;
    let after = thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                barrier.wait(); // until all are there
                barrier.wait(); // until they have been looked at
            });
        }
        barrier.wait();
        let after = private("self");
        barrier.wait();
        after
    })?;
    Ok((after - before).max(0.0) / THREADS as f64)
}

/// Returns the private memory of a process, in bytes.
fn private(pid: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    Ok(private_of(&text))
}

fn private_of(rollup: &str) -> f64 {
    let kib = |line: &str| -> Option<f64> {
        let value = line.strip_prefix("Private_Clean:").or(line.strip_prefix("Private_Dirty:"))?;
        value.trim().strip_suffix(" kB")?.parse().ok()
    };
    rollup.lines().filter_map(kib).sum::<f64>() * 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory_is_clean_and_dirty() {
        let rollup = "Rss:  900 kB\nPrivate_Clean:   3 kB\nPrivate_Dirty:  40 kB\nSwap: 1 kB\n";
        assert_eq!(private_of(rollup), 43.0 * 1024.0);
    }
}
