//! A producer and three consumers with a channel of tasks and a channel of results. Each consumer loads
//! an expensive resource once, in its initializer, and uses it for all its tasks.
//!
//! The resource is a table of the primes up to a million. A task is a number, and its result is the number
//! of primes up to it. Known values: π(10⁴) = 1,229, π(10⁵) = 9,592 and π(10⁶) = 78,498.
//!
//! ```text
//! $ cargo run --example producer_consumer
//! 3 consumers did 1000 tasks
//!   10000    1229
//!  100000    9592
//! 1000000   78498
//! ```

use std::collections::BTreeMap;

use procpool::channel::{Receiver, Sender, bounded, unbounded};
use procpool::{Pool, Process, with_state};

const MOST: usize = 1_000_000;

/// The expensive resource, and the consumer's ends of the channels.
struct Consumer {
    primes: Vec<usize>,
    tasks: Receiver<usize>,
    results: Sender<(usize, usize)>,
}

/// The initializer: the sieve of Eratosthenes.
fn load((tasks, results): (Receiver<usize>, Sender<(usize, usize)>)) -> Consumer {
    let mut is_prime = vec![true; MOST + 1];
    let mut primes = Vec::new();
    for n in 2..=MOST {
        if is_prime[n] {
            primes.push(n);
            (n * n..=MOST).step_by(n).for_each(|multiple| is_prime[multiple] = false);
        }
    }
    Consumer { primes, tasks, results }
}

/// Consumes tasks until the producer is dropped. Returns how many it completed.
fn consume((): ()) -> usize {
    let consumed = with_state(|consumer: &mut Consumer| {
        let mut done = 0;
        for n in consumer.tasks.iter().flatten() {
            let count = consumer.primes.partition_point(|&prime| prime <= n);
            if consumer.results.send((n, count)).is_err() {
                break;
            }
            done += 1;
        }
        done
    });
    consumed.unwrap_or(0)
}

/// Sends all tasks to the channel, and blocks while it is full.
fn produce(tasks: Sender<usize>) {
    for n in (1000..=MOST).step_by(1000) {
        if tasks.send(n).is_err() {
            return;
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let (tasks, to_do) = bounded(16)?;
    let (done, results) = unbounded()?;
    let pool = Pool::builder().workers(3).initializer(load, (to_do, done)).build()?;
    let mut producer = Process::spawn(produce, tasks)?;
    let consumers = pool.broadcast(consume, ());
    producer.join()?;

    let consumed: usize = consumers.into_iter().sum::<Result<usize, _>>()?;
    println!("3 consumers did {consumed} tasks");
    let counts: BTreeMap<usize, usize> = results.iter().take(consumed).collect::<Result<_, _>>()?;
    for n in [10_000, 100_000, 1_000_000] {
        println!("{n:>7} {:>7}", counts[&n]);
    }
    Ok(())
}
