//! A counter and an array that processes share under a lock, and the counter without the lock.
//!
//! An addition reads, computes and writes. If two processes read before either writes, one addition is
//! lost. The lock admits one process at a time. An atomic reads and writes in one step.
//!
//! ```text
//! $ cargo run --example shared_counter
//! 4 processes, each adds 1 10000 times
//! without the lock: some additions are lost
//! under the lock:   40000
//! as an atomic:     40000
//! squares: [0, 1, 4, 9, 16, 25, 36, 49]
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use procpool::Pool;
use procpool::shared::{SharedArray, SharedValue};

const PROCESSES: usize = 4;
const TIMES: u64 = 10_000;

fn add_without_lock(counter: SharedValue<u64>) {
    for _ in 0..TIMES {
        let count = counter.get();
        std::thread::yield_now(); // a slow computation, in a real program
        counter.set(count + 1);
    }
}

fn add_under_lock(counter: SharedValue<u64>) {
    for _ in 0..TIMES {
        *counter.lock() += 1;
    }
}

fn add_atomically(counter: SharedValue<AtomicU64>) {
    for _ in 0..TIMES {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn put_square((squares, x): (SharedArray<u64>, usize)) {
    squares.lock()[x] = (x * x) as u64;
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let pool = Pool::new(PROCESSES)?;
    println!("{PROCESSES} processes, each adds 1 {TIMES} times");
    let total = PROCESSES as u64 * TIMES;

    let counter = SharedValue::new(0)?;
    for added in pool.broadcast(add_without_lock, counter.clone()) {
        added?;
    }
    match counter.get() {
        count if count < total => println!("without the lock: some additions are lost"),
        count => println!("without the lock: {count}, by luck"),
    }

    counter.set(0);
    for added in pool.broadcast(add_under_lock, counter.clone()) {
        added?;
    }
    println!("under the lock:   {}", counter.get());

    let counter = SharedValue::<AtomicU64>::atomic(0)?;
    for added in pool.broadcast(add_atomically, counter.clone()) {
        added?;
    }
    println!("as an atomic:     {}", counter.load(Ordering::Relaxed));

    let squares = SharedArray::new([0; 8])?;
    pool.map(put_square, (0..squares.len()).map(|x| (squares.clone(), x)))?;
    println!("squares: {:?}", squares.to_vec());
    Ok(())
}
