//! procpool's side of benches/hosts/run.sh: the cost of pools that span hosts. Prints one JSON object.
//!
//! `rate`: empty tasks in a chunked map, items per second. `single`: the time of a call to a worker of
//! another host, one in flight, while this host's worker is busy; and of a call to one of this host.
//! `idle`: the CPU time that this process uses per second while the pool does nothing. `pi`: a Monte Carlo
//! estimate of π, seconds.

use std::time::{Duration, Instant};

use procpool::{Hosts, Pool};

fn empty(x: u64) -> u64 {
    x
}

fn nap(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

fn host(_: ()) -> Option<String> {
    procpool::worker().and_then(|worker| worker.host)
}

/// Counts points within the quarter circle.
fn hits(points: u64) -> u64 {
    let mut state = procpool::random_u64();
    let mut uniform = || {
        // A linear congruential generator: the work is the same on each host.
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..points)
        .map(|_| {
            let (x, y) = (uniform(), uniform());
            u64::from(x * x + y * y < 1.0)
        })
        .sum()
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// The CPU time of this process, in seconds.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    // Fields 14 and 15 of the file: user and system time, in hundredths.
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / 100.0
}

/// The median time of a call, in microseconds.
fn round_trip(pool: &Pool, calls: usize) -> Result<f64, procpool::Error> {
    let mut times = Vec::new();
    for x in 0..calls as u64 {
        let start = Instant::now();
        pool.apply(empty, x)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(times))
}

fn main() -> Result<(), procpool::Error> {
    procpool::init();
    let mut arguments = std::env::args().skip(1);
    let case = arguments.next().unwrap_or_default();
    let workers = arguments.next().and_then(|workers| workers.parse().ok()).unwrap_or(1);
    let builder = || Pool::builder().workers(workers).hosts(Hosts::Mpi);
    match case.as_str() {
        "rate" => {
            const ITEMS: u64 = 3_000_000;
            let pool = builder().build()?;
            pool.map(empty, 0..ITEMS / 10)?;
            let rates: Result<Vec<f64>, procpool::Error> = (0..5)
                .map(|_| {
                    let start = Instant::now();
                    pool.map(empty, 0..ITEMS)?;
                    Ok(ITEMS as f64 / start.elapsed().as_secs_f64())
                })
                .collect();
            let rate = median(rates?);
            let done: Vec<u64> = pool.workers().iter().map(|worker| worker.tasks_done).collect();
            println!("{{\"rate\": {rate:.0}, \"done_by_worker\": {done:?}}}");
        }
        "single" => {
            let local = Pool::builder().workers(1).hosts(Hosts::Local).build()?;
            round_trip(&local, 500)?;
            let here = round_trip(&local, 3000)?;
            let pool = builder().build()?;
            // Until this host's worker is the busy one.
            let (own, busy) = loop {
                let busy = pool.apply_async(nap, 20_000);
                nap(50);
                let other = pool.apply_async(host, ()).get()?;
                let own = pool.hosts().first().map(|host| host.name.to_string());
                if other != own {
                    break (own, busy);
                }
                busy.cancel();
            };
            round_trip(&pool, 200)?;
            let there = round_trip(&pool, 3000)?;
            busy.cancel();
            println!("{{\"own\": {own:?}, \"here\": {here:.1}, \"there\": {there:.1}}}");
        }
        "idle" => {
            let pool = builder().build()?;
            pool.map(empty, 0..1000)?;
            nap(1000);
            let before = cpu();
            nap(5000);
            println!("{{\"idle\": {:.4}}}", (cpu() - before) / 5.0);
        }
        "pi" => {
            let pool = builder().build()?;
            pool.map(hits, [1000; 50])?;
            let times: Result<Vec<f64>, procpool::Error> = (0..5)
                .map(|_| {
                    let start = Instant::now();
                    pool.map(hits, [1_000_000; 200])?;
                    Ok(start.elapsed().as_secs_f64())
                })
                .collect();
            println!("{{\"pi\": {:.4}}}", median(times?));
        }
        _ => eprintln!("usage: rate|single|idle|pi [WORKERS]"),
    }
    Ok(())
}
