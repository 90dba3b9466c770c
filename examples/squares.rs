//! Computes the squares of a list serially, then in a pool with `map`, `imap` and `imap_unordered`, and
//! prints which process computed each.
//!
//! ```text
//! $ cargo run --example squares
//! serial          [0, 1, 4, 9, 16, 25]
//! map             [0, 1, 4, 9, 16, 25]
//! imap            [0, 1, 4, 9, 16, 25]
//! imap_unordered  [0, 1, 4, 9, 16, 25], once sorted
//! this is PID 32033
//! 0 squared is 0, says PID 32034
//! 1 squared is 1, says PID 32035
//! 2 squared is 4, says PID 32034
//! 3 squared is 9, says PID 32035
//! 4 squared is 16, says PID 32034
//! 5 squared is 25, says PID 32034
//! ```

use procpool::Pool;

fn square(x: u64) -> u64 {
    x * x
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let pool = Pool::new(2)?;
    println!("serial          {:?}", (0..6).map(square).collect::<Vec<_>>());
    println!("map             {:?}", pool.map(square, 0..6)?);
    println!("imap            {:?}", pool.imap(square, 0..6).collect::<Result<Vec<_>, _>>()?);
    let mut squares = pool.imap_unordered(square, 0..6).collect::<Result<Vec<_>, _>>()?;
    squares.sort_unstable();
    println!("imap_unordered  {squares:?}, once sorted");
    println!("this is PID {}", std::process::id());
    for report in pool.imap(square, 0..6).reports() {
        let pid = report.pid().unwrap_or(0);
        println!("{} squared is {}, says PID {pid}", report.id, report.result?);
    }
    Ok(())
}
