//! Processes an infinite input on all CPUs, with the results in input order: finds the numbers whose
//! Collatz sequence (halve an even number, triple an odd one and add 1) takes more steps to reach 1 than
//! that of any smaller number.
//!
//! `imap` reads its input a bounded window ahead of the consumer. So the input may be infinite, and a slow
//! consumer does not fill the memory. Leaving the loop drops the iterator, which cancels the remaining
//! tasks.
//!
//! ```text
//! $ cargo run --example ordered_stream
//! 703 takes 170 steps
//! 871 takes 178 steps
//! 1161 takes 181 steps
//! 2223 takes 182 steps
//! 2463 takes 208 steps
//! 2919 takes 216 steps
//! 3711 takes 237 steps
//! 6171 takes 261 steps
//! ```

use procpool::Pool;

/// Returns the number of steps from `start` to 1.
fn steps(start: u64) -> u32 {
    let (mut n, mut steps) = (start, 0);
    while n != 1 {
        n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
        steps += 1;
    }
    steps
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let pool = Pool::new(0)?;
    // Skips the short sequences.
    let mut longest = 150;
    for (start, steps) in (1u64..).zip(pool.imap(steps, 1..)) {
        let steps = steps?;
        if steps > longest {
            println!("{start} takes {steps} steps");
            longest = steps;
        }
        if steps > 250 {
            break;
        }
    }
    Ok(())
}
