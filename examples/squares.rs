//! Computes six squares serially, then with six workers, and shows which process computed each.
//!
//! `imap` yields the results in input order, and `imap_unordered` in order of completion. The first input
//! takes the longest, so both orders can be told apart. `map` returns all results at once, in input order.
//!
//! ```text
//! $ cargo run --example squares
//! serial
//!   0 squared is 0, by PID 8692
//!   1 squared is 1, by PID 8692
//!   2 squared is 4, by PID 8692
//!   3 squared is 9, by PID 8692
//!   4 squared is 16, by PID 8692
//!   5 squared is 25, by PID 8692
//!   1 process, 1.7 s
//! six workers, in input order
//!   0 squared is 0, by PID 9040
//!   1 squared is 1, by PID 9048
//!   2 squared is 4, by PID 9050
//!   3 squared is 9, by PID 9052
//!   4 squared is 16, by PID 9053
//!   5 squared is 25, by PID 9051
//!   6 processes, 0.4 s
//! six workers, in order of completion
//!   5 squared is 25, by PID 9051
//!   4 squared is 16, by PID 9053
//!   3 squared is 9, by PID 9052
//!   2 squared is 4, by PID 9050
//!   1 squared is 1, by PID 9048
//!   0 squared is 0, by PID 9040
//!   6 processes, 0.4 s
//! all at once: [0, 1, 4, 9, 16, 25]
//! ```

use std::collections::HashSet;
use std::time::{Duration, Instant};

use procpool::{Pool, TaskError};

/// Returns `x`, its square, and the PID of the process that computed it. Takes 150 ms for 5, and 50 ms
/// more for each number below.
fn square(x: u64) -> (u64, u64, u32) {
    std::thread::sleep(Duration::from_millis(50) * (8 - x) as u32);
    (x, x * x, std::process::id())
}

/// Prints each result as soon as it is there.
fn show(
    title: &str,
    results: impl Iterator<Item = Result<(u64, u64, u32), TaskError>>,
) -> Result<(), TaskError> {
    println!("{title}");
    let (start, mut pids) = (Instant::now(), HashSet::new());
    for result in results {
        let (x, square, pid) = result?;
        println!("  {x} squared is {square}, by PID {pid}");
        pids.insert(pid);
    }
    let processes = if pids.len() == 1 { "process" } else { "processes" };
    println!("  {} {processes}, {:.1} s", pids.len(), start.elapsed().as_secs_f64());
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    show("serial", (0..6).map(square).map(Ok))?;
    let pool = Pool::new(6)?;
    show("six workers, in input order", pool.imap(square, 0..6))?;
    show("six workers, in order of completion", pool.imap_unordered(square, 0..6))?;
    let squares: Vec<u64> = pool.map(|x| x * x, 0..6)?;
    println!("all at once: {squares:?}");
    Ok(())
}
