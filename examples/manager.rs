//! What `multiprocessing.Manager` does: a server process owns a dictionary, and other processes use it. The
//! server is a `Process` that answers requests from a channel. A request that wants an answer contains the
//! sender for it.
//!
//! Requests and answers are types, so a wrong name or a wrong value does not compile. The server ends when
//! the last client is gone. For numbers, `SharedValue` and `SharedArray` need no server.
//!
//! ```text
//! $ cargo run --example manager
//! 4 clients counted to 1000 each
//! the server's dictionary: {"all": 4000, "client 0": 1000, "client 1": 1000, "client 2": 1000, "client 3": 1000}
//! ```

use std::collections::BTreeMap;

use procpool::Process;
use procpool::channel::{Receiver, Sender, bounded, unbounded};
use serde::{Deserialize, Serialize};

const CLIENTS: usize = 4;
const TIMES: u64 = 1000;

type Dictionary = BTreeMap<String, u64>;

/// What a client asks the server to do.
#[derive(Serialize, Deserialize)]
enum Request {
    /// Adds to the value of a key.
    Add(String, u64),
    /// Sends the value of a key.
    Get(String, Sender<u64>),
}

/// The server. Returns the dictionary when all clients are gone.
fn serve(requests: Receiver<Request>) -> Dictionary {
    let mut dictionary = Dictionary::new();
    for request in requests.iter().flatten() {
        match request {
            Request::Add(key, number) => *dictionary.entry(key).or_default() += number,
            Request::Get(key, answer) => {
                let value = dictionary.get(&key).copied().unwrap_or_default();
                let _ = answer.send(value); // a client that has died needs no answer
            }
        }
    }
    dictionary
}

/// A client. Counts to a thousand in the server, and returns the count.
fn count((number, server): (usize, Sender<Request>)) -> Result<u64, String> {
    let send = |request| server.send(request).map_err(|error| error.to_string());
    let key = format!("client {number}");
    for _ in 0..TIMES {
        send(Request::Add(key.clone(), 1))?;
        send(Request::Add("all".to_owned(), 1))?;
    }
    let (sender, answer) = bounded(1).map_err(|error| error.to_string())?;
    send(Request::Get(key, sender))?;
    answer.recv().map_err(|error| error.to_string())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let (to_server, requests) = unbounded()?;
    let mut server = Process::spawn(serve, requests)?;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(Process::spawn(count, (number, to_server.clone()))?);
    }
    drop(to_server); // only the clients have senders now
    for client in &mut clients {
        assert_eq!(client.join()??, TIMES);
    }
    println!("{CLIENTS} clients counted to {TIMES} each");
    println!("the server's dictionary: {:?}", server.join()?);
    Ok(())
}
