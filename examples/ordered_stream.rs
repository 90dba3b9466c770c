//! An endless input, worked on by all CPUs, with the results in the input's order: the numbers
//! whose way down to 1 in Collatz's game (halve it if it is even, else triple it and add 1) is
//! longer than that of every number before.
//!
//! `imap` reads the input a bounded window ahead of what has been taken, so that it may be endless,
//! and a slow consumer doesn't fill the memory. Leaving the loop drops the iterator, which cancels
//! what is still under way.
//!
//! ```text
//! $ cargo run --example ordered_stream --no-default-features
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

/// How many steps it takes from `start` to 1.
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
    // Short ways are no news.
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
