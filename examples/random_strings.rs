//! Four processes each send a random string through a channel. The parent prints them as they arrive, in
//! any order, and then sorted by position.
//!
//! The strings are different in each run. `--seed` repeats them. The channel ends when the last sender is
//! dropped, so no end marker is needed.
//!
//! ```text
//! $ cargo run --example random_strings -- --seed 7
//! arrived: 0 DLtb9
//! arrived: 1 ZbWsa
//! arrived: 2 mbM4E
//! arrived: 3 OzFyx
//! by position: ["DLtb9", "ZbWsa", "mbM4E", "OzFyx"]
//! ```

use clap::Parser;
use procpool::Process;
use procpool::channel::{Sender, unbounded};
use rand::distr::{Alphanumeric, SampleString};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// Collects random strings from four processes.
#[derive(Parser)]
struct Args {
    /// Repeats the strings of a run
    #[arg(long)]
    seed: Option<u64>,
}

/// Sends a random string of letters and digits of this length, with its position.
fn random_string((position, length, seed, output): (u64, usize, u64, Sender<(u64, String)>)) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed + position);
    let string = Alphanumeric.sample_string(&mut random, length);
    // This fails only if there is no receiver.
    let _ = output.send((position, string));
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let seed = Args::parse().seed.unwrap_or_else(|| rand::rng().random::<u32>().into());
    let (sender, receiver) = unbounded()?;
    let mut processes = Vec::new();
    for position in 0..4 {
        processes.push(Process::spawn(random_string, (position, 5, seed, sender.clone()))?);
    }
    drop(sender); // the processes have senders of their own
    let mut strings = Vec::new();
    for message in receiver {
        let (position, string) = message?;
        println!("arrived: {position} {string}");
        strings.push((position, string));
    }
    strings.sort();
    let strings: Vec<String> = strings.into_iter().map(|(_, string)| string).collect();
    println!("by position: {strings:?}");
    for mut process in processes {
        process.join()?;
    }
    Ok(())
}
