//! A first program: four workers, four tasks, and one of them crashes.
//!
//! ```text
//! $ cargo run --example first
//! 100 / 1 = 100
//! 100 / 2 = 50
//! 100 / 0 has no answer: its worker was killed by SIGABRT while running it
//! 100 / 5 = 20
//! ```

fn divide_100_by(x: i32) -> i32 {
    if x == 0 { std::process::abort() } else { 100 / x }
}

fn main() -> Result<(), procpool::Error> {
    procpool::init();
    let pool = procpool::Pool::new(4)?;
    let inputs = [1, 2, 0, 5];
    for (x, result) in inputs.into_iter().zip(pool.imap(divide_100_by, inputs)) {
        match result {
            Ok(y) => println!("100 / {x} = {y}"),
            Err(error) => println!("100 / {x} has no answer: {}", error.kind()),
        }
    }
    Ok(())
}
