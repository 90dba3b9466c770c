//! An async program. `main!` makes a process a worker before the runtime starts. Tasks are awaited, and one
//! task has a runtime of its own.
//!
//! ```text
//! $ cargo run --example tokio
//! 12 * 12 = 144
//! a runtime inside of a worker: 42
//! 100 / 0 has no answer: its worker was killed by SIGABRT while running it
//! ```

procpool::main!();

fn divide_100_by(x: i32) -> i32 {
    if x == 0 { std::process::abort() } else { 100 / x }
}

fn with_a_runtime(x: u32) -> std::io::Result<u32> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    Ok(runtime.block_on(async { tokio::spawn(async move { x * 2 }).await })?)
}

/// What `#[tokio::main]` expands an `async fn main` to.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let pool = procpool::Pool::new(2)?;
    let square = pool.apply_async(|x: u32| x * x, 12);
    println!("12 * 12 = {}", square.await?);
    let own = |x: u32| with_a_runtime(x).map_err(|error| error.to_string());
    println!("a runtime inside of a worker: {}", pool.apply_async(own, 21).await??);
    if let Err(error) = pool.apply_async(divide_100_by, 0).await {
        println!("100 / 0 has no answer: {}", error.kind());
    }
    Ok(())
}
