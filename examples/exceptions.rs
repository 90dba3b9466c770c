//! Failures and their errors: a panic, an exit code, a terminated process, a worker that dies. The pool
//! logs its events to standard error with `log_to_stderr`.
//!
//! ```text
//! $ cargo run --example exceptions 2> log
//! a panic:    panicked at examples/exceptions.rs:22:5: -4 has no real root
//! an exit:    its worker exited with code 3 while running it; exit code 3
//! it is alive: true
//! terminated: its worker was killed by SIGTERM while running it; it is alive: false
//! a worker:   its worker was killed by SIGKILL while running it
//! the others: [1.0, 2.0, 3.0]
//! and after:  [1.0, 2.0, 3.0]
//! ```

use std::time::Duration;

use procpool::{Pool, Process};

const KILL: f64 = 666.0;

fn root(x: f64) -> f64 {
    assert!(x >= 0.0, "{x} has no real root");
    if x == KILL {
        let pid = std::process::id().to_string();
        let _ = std::process::Command::new("kill").args(["-KILL", &pid]).status();
    }
    x.sqrt()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    procpool::log_to_stderr();

    let mut process = Process::spawn(root, -4.0)?;
    if let Err(error) = process.join() {
        println!("a panic:    {}", error.kind());
    }

    let mut process = Process::spawn(|code: i32| -> () { std::process::exit(code) }, 3)?;
    if let Err(error) = process.join() {
        let code = process.exit_status().and_then(|status| status.code());
        println!("an exit:    {}; exit code {}", error.kind(), code.unwrap_or(-1));
    }

    let mut process = Process::spawn(std::thread::sleep, Duration::from_secs(3600))?;
    println!("it is alive: {}", process.is_alive());
    process.terminate();
    if let Err(error) = process.join() {
        println!("terminated: {}; it is alive: {}", error.kind(), process.is_alive());
    }

    let pool = Pool::new(2)?;
    let mut roots = Vec::new();
    for result in pool.imap(root, [1.0, 4.0, KILL, 9.0]) {
        match result {
            Ok(root) => roots.push(root),
            Err(error) => println!("a worker:   {}", error.kind()),
        }
    }
    println!("the others: {roots:?}");
    println!("and after:  {:?}", pool.map(root, [1.0, 4.0, 9.0])?);
    Ok(())
}
