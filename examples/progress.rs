//! A progress bar: `imap_unordered` yields each result as soon as it is available. The bar is drawn on
//! standard error, if that is a terminal, and the answer is printed on standard output.
//!
//! ```text
//! $ cargo run --example progress
//! 200 of 200 done: the sum of the first 200 squares is 2646700
//! ```

use std::io::IsTerminal;
use std::time::Duration;

use procpool::Pool;

const TASKS: u64 = 200;

/// Returns a square, slowly.
fn square(x: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(5));
    x * x
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let pool = Pool::new(4)?;
    let (mut done, mut sum) = (0, 0);
    let has_bar = std::io::stderr().is_terminal();
    for result in pool.imap_unordered(square, 0..TASKS) {
        sum += result?;
        done += 1;
        if has_bar {
            let width = (40 * done / TASKS) as usize;
            eprint!("\r[{:<40}] {done}/{TASKS}", "#".repeat(width));
        }
    }
    if has_bar {
        eprintln!();
    }
    println!("{done} of {TASKS} done: the sum of the first {TASKS} squares is {sum}");
    assert_eq!(sum, (TASKS - 1) * TASKS * (2 * TASKS - 1) / 6);
    Ok(())
}
