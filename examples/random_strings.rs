//! Four processes send random strings through a channel. They are received in any order and then sorted
//! by position.
//!
//! The channel ends when the last sender is dropped, so no end marker is needed.
//!
//! ```text
//! $ cargo run --example random_strings
//! 4 strings came
//! 0 auatk
//! 1 zkhbh
//! 2 zbejp
//! 3 yrlqx
//! ```

use procpool::Process;
use procpool::channel::{Sender, unbounded};

const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";

/// Sends a random string of this length, with its position.
fn random_string((length, position, output): (usize, usize, Sender<(usize, String)>)) {
    // A linear congruential generator with the constants of Numerical Recipes, seeded with the position.
    let mut state = position as u64 + 1;
    let string = (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) % (1 << 32);
            char::from(LETTERS[(state >> 16) as usize % LETTERS.len()])
        })
        .collect();
    // This fails only if there is no receiver.
    let _ = output.send((position, string));
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let (sender, receiver) = unbounded()?;
    let mut processes = Vec::new();
    for position in 0..4 {
        processes.push(Process::spawn(random_string, (5, position, sender.clone()))?);
    }
    drop(sender); // the processes have senders of their own
    let mut strings: Vec<(usize, String)> = receiver.iter().collect::<Result<_, _>>()?;
    println!("{} strings came", strings.len());
    strings.sort();
    for (position, string) in strings {
        println!("{position} {string}");
    }
    for mut process in processes {
        process.join()?;
    }
    Ok(())
}
