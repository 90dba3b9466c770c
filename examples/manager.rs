//! What `multiprocessing.Manager` does: a server process owns a dictionary, and other processes use it. The
//! server is a `Process` that answers requests from a channel. Each client has a channel for its answers.
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
use procpool::channel::{Receiver, Sender, unbounded};
use serde::{Deserialize, Serialize};

const CLIENTS: usize = 4;
const TIMES: u64 = 1000;

type Dictionary = BTreeMap<String, u64>;

/// What a client, by its number, asks the server to do.
#[derive(Serialize, Deserialize)]
enum Request {
    /// Adds to the value of a key.
    Add(String, u64),
    /// Sends the value of a key to the client with this number.
    Get(String, usize),
}

/// The server. Returns the dictionary when all clients are gone.
fn serve((requests, answers): (Receiver<Request>, Vec<Sender<u64>>)) -> Dictionary {
    let mut dictionary = Dictionary::new();
    for request in requests.iter().flatten() {
        match request {
            Request::Add(key, number) => *dictionary.entry(key).or_default() += number,
            Request::Get(key, client) => {
                let value = dictionary.get(&key).copied().unwrap_or_default();
                let _ = answers[client].send(value); // a client that has died needs no answer
            }
        }
    }
    dictionary
}

/// A client. Counts to a thousand in the server, and returns the count.
fn count((number, server, answer): (usize, Sender<Request>, Receiver<u64>)) -> Result<u64, String> {
    let key = format!("client {number}");
    for _ in 0..TIMES {
        for key in [key.clone(), "all".to_owned()] {
            server.send(Request::Add(key, 1)).map_err(|error| error.to_string())?;
        }
    }
    server.send(Request::Get(key, number)).map_err(|error| error.to_string())?;
    answer.recv().map_err(|error| error.to_string())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let (to_server, requests) = unbounded()?;
    let (answers, from_server): (Vec<_>, Vec<_>) =
        (0..CLIENTS).map(|_| unbounded()).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let mut server = Process::spawn(serve, (requests, answers))?;
    let mut clients = Vec::new();
    for (number, answer) in from_server.into_iter().enumerate() {
        clients.push(Process::spawn(count, (number, to_server.clone(), answer))?);
    }
    drop(to_server); // only the clients have senders now
    for client in &mut clients {
        assert_eq!(client.join()??, TIMES);
    }
    println!("{CLIENTS} clients counted to {TIMES} each");
    println!("the server's dictionary: {:?}", server.join()?);
    Ok(())
}
