//! Runs bubble sort in a child process, while the parent does something else.
//!
//! ```text
//! $ cargo run --example bubble_sort
//! PID 32034, called sorter, sorts 2000 numbers
//! meanwhile, 1 + 2 + … + 100 = 5050
//! sorted: 0, 1, 2, … 1999
//! it is alive: false, its exit code: 0
//! ```

use procpool::Process;

fn bubble_sort(mut list: Vec<u32>) -> Vec<u32> {
    for end in (1..list.len()).rev() {
        for i in 0..end {
            if list[i] > list[i + 1] {
                list.swap(i, i + 1);
            }
        }
    }
    list
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let list: Vec<u32> = (0..2000).map(|i| i * 1001 % 2000).collect();
    let mut process = Process::builder().name("sorter").spawn(bubble_sort, list)?;
    println!("PID {}, called {}, sorts 2000 numbers", process.pid(), process.name());
    println!("meanwhile, 1 + 2 + … + 100 = {}", (1..=100).sum::<u32>());
    let sorted = process.join()?;
    println!("sorted: {}, {}, {}, … {}", sorted[0], sorted[1], sorted[2], sorted[1999]);
    let code = process.exit_status().and_then(|status| status.code());
    println!("it is alive: {}, its exit code: {}", process.is_alive(), code.unwrap_or(-1));
    assert!(sorted.into_iter().eq(0..2000));
    Ok(())
}
