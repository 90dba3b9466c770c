//! Failures and their errors: a panic, an exit code, a terminated process, a worker that dies. Answers go to
//! standard output. The log of the pool and of the processes goes to standard error when all answers are
//! there, so that the two don't mix on a terminal. `procpool::log_to_stderr` prints the same lines at once.
//!
//! ```text
//! $ cargo run --example exceptions 2> target/exceptions.log
//! a panic:    panicked at examples/exceptions.rs:27:5: -4 has no real root
//! an exit:    its worker exited with code 3 while running it; exit code 3
//! it is alive: true
//! terminated: its worker was killed by SIGTERM while running it; it is alive: false
//! a worker:   its worker was killed by SIGKILL while running it
//! the others: [1.0, 2.0, 3.0]
//! and after:  [1.0, 2.0, 3.0]
//! ```

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use procpool::{Event, Pool, Process};

const KILL: f64 = 666.0;

/// The log, until it is printed.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn root(x: f64) -> f64 {
    assert!(x >= 0.0, "{x} has no real root");
    if x == KILL {
        let pid = std::process::id().to_string();
        let _ = std::process::Command::new("kill").args(["-KILL", &pid]).status();
    }
    x.sqrt()
}

fn log(event: &Event) {
    LOG.lock().unwrap_or_else(PoisonError::into_inner).push(event.to_string());
}

fn answers() -> Result<(), Box<dyn std::error::Error>> {
    let mut process = Process::builder().on_event(log).spawn(root, -4.0)?;
    if let Err(error) = process.join() {
        println!("a panic:    {}", error.kind());
    }

    let exit = |code: i32| -> () { std::process::exit(code) };
    let mut process = Process::builder().on_event(log).spawn(exit, 3)?;
    if let Err(error) = process.join() {
        let code = process.exit_status().and_then(|status| status.code());
        println!("an exit:    {}; exit code {}", error.kind(), code.unwrap_or(-1));
    }

    let sleep: fn(Duration) = std::thread::sleep;
    let mut process = Process::builder().on_event(log).spawn(sleep, Duration::from_secs(3600))?;
    println!("it is alive: {}", process.is_alive());
    process.terminate();
    if let Err(error) = process.join() {
        println!("terminated: {}; it is alive: {}", error.kind(), process.is_alive());
    }

    let pool = Pool::builder().workers(2).on_event(log).build()?;
    let mut roots = Vec::new();
    for result in pool.imap(root, [1.0, 4.0, KILL, 9.0]) {
        match result {
            Ok(root) => roots.push(root),
            Err(error) => println!("a worker:   {}", error.kind()),
        }
    }
    println!("the others: {roots:?}");
    println!("and after:  {:?}", pool.map(root, [1.0, 4.0, 9.0])?);
    pool.close();
    pool.join();
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    answers()?;
    for line in LOG.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        eprintln!("{line}");
    }
    Ok(())
}
