//! What bad uploads cost the good ones: examples/service.rs on loopback, 64 connections, each for 60 s without and
//! with bad uploads (one in a hundred crashes the decoder, one in a thousand hangs it).
//!
//! `cargo bench --bench service --features metrics,tracing`; `SECONDS=10` shortens it. Goal: the 99th percentile of
//! good uploads is within 1.5 × of that without bad ones.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

#[path = "../tests/programs/load.rs"]
mod load;
#[path = "../examples/service.rs"]
#[allow(dead_code, unreachable_pub)]
mod service;

/// The most that the 99th percentile may grow.
const GOAL: f64 = 1.5;

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::var_os("SERVE").is_some() {
        return tokio::runtime::Runtime::new()?.block_on(service::serve("127.0.0.1:0".to_owned()));
    }
    let seconds = std::env::var("SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let mut child = Command::new(std::env::current_exe()?)
        .env("SERVE", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let address = line.trim().strip_prefix("listening on http://").ok_or("it does not listen")?;
    let (address, picture) = (address.parse()?, load::picture());
    let cpus = std::thread::available_parallelism()?;
    println!("{cpus} CPUs, 64 connections, {seconds} s each, uploads of {} bytes", picture.len());
    load::load(address, 64, Duration::from_secs(2), &picture, true);
    let first = resident(child.id());
    let mut slowest = Vec::new();
    // Without, with, without, with: a machine that gets slower does not look like a cost.
    for is_bad in [false, true, false, true] {
        let limit = Duration::from_secs(seconds) / 2;
        let mut seen = load::load(address, 64, limit, &picture, is_bad);
        seen.good.sort_unstable();
        let quantile = |part: f64| seen.good[(seen.good.len() as f64 * part) as usize];
        let (median, p99) = (quantile(0.5), quantile(0.99));
        println!(
            "{:8} {:6.0} good/s, median {median:.1?}, p99 {p99:.1?}; {} crashed, {} hung, {} shed; {} MiB",
            if is_bad { "with" } else { "without" },
            seen.good.len() as f64 / limit.as_secs_f64(),
            seen.crashes,
            seen.hangs,
            seen.shed,
            resident(child.id()) >> 10,
        );
        slowest.push(p99.as_secs_f64());
    }
    let ratio = (slowest[1] + slowest[3]) / (slowest[0] + slowest[2]);
    let verdict = if ratio <= GOAL { "met" } else { "missed" };
    println!("p99 with bad uploads: {ratio:.2} × that without (goal: {GOAL} ×, {verdict})");
    println!(
        "memory of the service: {} MiB at first, {} MiB at last",
        first >> 10,
        resident(child.id()) >> 10
    );
    child.kill()?;
    child.wait()?;
    Ok(())
}
