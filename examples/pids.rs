//! Prints each result with its id, its worker's PID, the attempt and the elapsed time. One task kills its
//! worker at the first attempt and is retried in another worker.
//!
//! ```text
//! $ cargo run --example pids
//! id  result     PID  attempt  elapsed
//!  0       0   32034        1  20.2ms
//!  1       1   32035        1  20.1ms
//!  2       4   32034        1  20.1ms
//!  3       9   32036        2  20.2ms
//!  4      16   32034        1  20.1ms
//!  5      25   32034        1  20.1ms
//! ```

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use procpool::Pool;

/// Returns the square of `x`. The first call with 3, before `mark` exists, aborts.
fn square((x, mark): (u64, PathBuf)) -> u64 {
    std::thread::sleep(Duration::from_millis(20));
    if x == 3 && File::create_new(mark).is_ok() {
        std::process::abort();
    }
    x * x
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let mark = std::env::temp_dir().join(format!("procpool-pids-{}", std::process::id()));
    let pool = Pool::builder().workers(2).retries(1).build()?;
    println!("id  result     PID  attempt  elapsed");
    for report in pool.imap(square, (0..6).map(|x| (x, mark.clone()))).reports() {
        let pid = report.pid().unwrap_or(0);
        let (id, attempt) = (report.id, report.attempt);
        println!("{id:>2}  {:>6}  {pid:>6}  {attempt:>7}  {:.1?}", report.result?, report.elapsed);
    }
    std::fs::remove_file(mark)?;
    Ok(())
}
