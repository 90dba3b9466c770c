//! A server that hands each connection to a worker. A request that crashes its worker costs one connection:
//! that client reads the end of it, and the others are served.
//!
//! ```text
//! $ cargo run --example connections
//! client 0 asked for 0 squared and read "0"
//! client 1 asked for 1 squared and read "1"
//! client 2 asked for 2 squared and read ""
//!     task 2 (PID 4711): its worker was killed by SIGABRT while running it
//! client 3 asked for 3 squared and read "9"
//! ```

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use procpool::shared::SharedFd;
use procpool::{Failure, Pool};

/// Answers one request.
fn serve(connection: SharedFd) -> Result<(), Failure> {
    let mut connection = TcpStream::from(connection.into_owned()?);
    let mut request = String::new();
    connection.read_to_string(&mut request)?;
    let x: u32 = request.parse()?;
    if x == 2 {
        std::process::abort();
    }
    connection.write_all((x * x).to_string().as_bytes())?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let pool = Pool::new(2)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    for x in 0..4 {
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (connection, _) = listener.accept()?;
        let task = pool.apply_async(serve, SharedFd::from(connection));

        client.write_all(x.to_string().as_bytes())?;
        client.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        client.read_to_string(&mut answer)?;
        println!("client {x} asked for {x} squared and read {answer:?}");
        if let Err(error) = task.get() {
            println!("    {error}");
        }
    }
    Ok(())
}
