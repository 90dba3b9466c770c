//! One program, on one host or on several: `mpi4py.futures` in Rust.
//!
//! ```text
//! $ cargo run --release --example hosts
//! 1000 squares, the last of them 998001
//! hosts: this one
//! a task that crashes fails alone: its worker was killed by SIGABRT while running it
//! ```
//!
//! On several hosts, with the feature `mpi`:
//!
//! ```text
//! $ mpirun --host n1,n2 --map-by ppr:1:node --bind-to none target/release/examples/hosts
//! 1000 squares, the last of them 998001
//! hosts: n1, n2
//! a task that crashes fails alone: its worker was killed by SIGABRT while running it
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use procpool::{Hosts, Pool};

fn square(x: u64) -> u64 {
    // Long enough for each host to get some.
    std::thread::sleep(Duration::from_micros(200));
    x * x
}

fn crash(_: ()) {
    std::process::abort()
}

fn main() -> Result<(), procpool::Error> {
    procpool::init(); // serves the pool on every host but the first
    let pool = Pool::builder().workers(2).hosts(Hosts::Mpi).retries(1).build()?;

    let mut hosts = BTreeSet::new();
    let mut last = 0;
    let reports: Vec<_> = pool.imap(square, 0..1000).reports().collect();
    for report in &reports {
        hosts.insert(report.worker.and_then(|worker| worker.host));
        last = report.result.clone()?;
    }
    println!("{} squares, the last of them {last}", reports.len());
    let names = hosts.iter().map(|host| host.map_or("this one", |host| host.as_str()));
    println!("hosts: {}", names.collect::<Vec<_>>().join(", "));

    let error = pool.with_options(procpool::TaskOptions::new().retries(0)).apply(crash, ());
    if let Err(error) = error {
        println!("a task that crashes fails alone: {}", error.kind());
    }
    Ok(())
}
