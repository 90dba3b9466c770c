//! Sorts a list in a child process by bubble sort. The child prints the sorted list, and returns it too.
//!
//! ```text
//! $ cargo run --example bubble_sort
//! Array sorted: [1, 2, 4, 4, 5, 6, 8, 9]
//! PID 32034, called sorter, is alive: false, its exit code: 0
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
    println!("Array sorted: {list:?}");
    list
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let list = vec![1, 9, 4, 5, 2, 6, 8, 4];
    let mut process = Process::builder().name("sorter").spawn(bubble_sort, list)?;
    let sorted = process.join()?;
    assert!(sorted.is_sorted());
    let code = process.exit_status().and_then(|status| status.code());
    println!(
        "PID {}, called {}, is alive: {}, its exit code: {}",
        process.pid(),
        process.name(),
        process.is_alive(),
        code.unwrap_or(-1)
    );
    Ok(())
}
