//! Computes cubes in four ways: one blocking call per number, one blocking call for all numbers, and the
//! same two asynchronously.
//!
//! ```text
//! $ cargo run --example cube
//! apply        [1, 8, 27, 64, 125, 216]
//! map          [1, 8, 27, 64, 125, 216]
//! apply_async  [1, 8, 27, 64, 125, 216]
//! map_async    [1, 8, 27, 64, 125, 216]
//! ```

use procpool::{Pool, Task};

fn cube(x: u64) -> u64 {
    x.pow(3)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let pool = Pool::new(4)?;
    let cubes: Result<Vec<_>, _> = (1..7).map(|x| pool.apply(cube, x)).collect();
    println!("apply        {:?}", cubes?);
    println!("map          {:?}", pool.map(cube, 1..7)?);
    let tasks: Vec<Task<u64>> = (1..7).map(|x| pool.apply_async(cube, x)).collect();
    let cubes: Result<Vec<_>, _> = tasks.into_iter().map(Task::get).collect();
    println!("apply_async  {:?}", cubes?);
    println!("map_async    {:?}", pool.map_async(cube, 1..7).get()?);
    Ok(())
}
