//! Opens something heavy once in each worker, and nowhere else: a model, a database, a GPU.
//!
//! The parent never opens it. So the program starts fast, and what can't be sent to another process, such as
//! an open connection, is made where it is used. In Python, a heavy import at the top of the module is
//! repeated by each worker; here, an initializer does what that import is for.
//!
//! ```text
//! $ cargo run --example initializer
//! PID 32034 opens the table
//! PID 32035 opens the table
//! PID 32036 opens the table
//! PID 32034 has opened it 1 time and finds 3 words with "pool"
//! PID 32035 has opened it 1 time and finds 3 words with "pool"
//! PID 32036 has opened it 1 time and finds 3 words with "pool"
//! ```

use procpool::{Pool, with_state};

/// What is heavy, in a real program.
struct Table(Vec<&'static str>);

/// The initializer. Its value is kept for the tasks of its worker.
fn open((): ()) -> (Table, u32) {
    println!("PID {} opens the table", std::process::id());
    (Table(vec!["pool", "process", "spool", "whirlpool", "worker"]), 1)
}

/// A task, which finds the worker's table.
fn find(part: String) -> Option<(u32, u32, usize)> {
    with_state(|(table, opened): &mut (Table, u32)| {
        let found = table.0.iter().filter(|word| word.contains(&part)).count();
        (std::process::id(), *opened, found)
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let pool = Pool::builder().workers(3).initializer(open, ()).build()?;
    for found in pool.broadcast(find, "pool".to_owned()) {
        let (pid, opened, found) = found?.ok_or("the worker has no table")?;
        println!("PID {pid} has opened it {opened} time and finds {found} words with \"pool\"");
    }
    Ok(())
}
