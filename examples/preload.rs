//! Builds a dictionary of 200 MB once, and parses each document in a fresh process that has it.
//!
//! The parser may crash, leak or change its globals: the next document has a process in which nothing has
//! happened yet. The dictionary is built in a template process, from which the workers are forked. They share
//! its memory until they write to it. In Python, this is `set_forkserver_preload`.
//!
//! ```text
//! $ cargo run --release --example preload
//! PID 6716 builds 5,000,000 entries, 200 MB
//! document 0: 2 of 2 words are known
//! document 1: its worker was killed by SIGSEGV while running it
//! document 2: 1 of 2 words are known
//! document 3: its worker was killed by SIGSEGV while running it
//! document 4: 3 of 3 words are known
//! 3 documents were parsed, by 3 processes
//! ```

use std::collections::BTreeSet;

use procpool::{Pool, with_state};

/// A word and what it means.
type Entry = ([u8; 8], [u8; 32]);

struct Dictionary(Vec<Entry>);

/// Returns the word of a number, in the order of the numbers.
fn word(mut number: u32) -> [u8; 8] {
    let mut letters = [b'a'; 8];
    for letter in letters.iter_mut().rev() {
        *letter += (number % 26) as u8;
        number /= 26;
    }
    letters
}

/// The preload function. It runs once, in the template.
fn build(entries: u32) -> Dictionary {
    let bytes = size_of::<Entry>() * entries as usize / 1_000_000;
    let (millions, rest) = (entries / 1_000_000, entries % 1_000_000 / 1_000);
    println!("PID {} builds {millions},{rest:03},000 entries, {bytes} MB", std::process::id());
    Dictionary((0..entries).map(|number| (word(number), [b'.'; 32])).collect())
}

/// A task. Its parser has a bug.
fn parse(document: String) -> (u32, usize, usize) {
    if document.contains('%') {
        // SAFETY: it is not safe, which is the point.
        unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
    }
    let is_known = |word: &&str| {
        with_state(|dictionary: &mut Dictionary| {
            let find = |entry: &Entry| entry.0[..].cmp(word.as_bytes());
            dictionary.0.binary_search_by(find).is_ok()
        })
    };
    let known = document.split(' ').filter(|word| is_known(word) == Some(true)).count();
    (std::process::id(), known, document.split(' ').count())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let pool =
        Pool::builder().workers(2).max_tasks_per_worker(1).preload(build, 5_000_000).build()?;
    let documents = [
        "aaaaabcd aaaaxyza",
        "aaaaaaab %n%n",
        "aaaaaaac zzzzzzzz",
        "%s",
        "aaaaaaad aaaabbbb aaaaaaae",
    ];
    let mut processes = BTreeSet::new();
    let mut parsed = 0;
    let results = pool.imap(parse, documents.map(str::to_owned));
    for (number, result) in results.enumerate() {
        match result {
            Ok((pid, known, words)) => {
                processes.insert(pid);
                parsed += 1;
                println!("document {number}: {known} of {words} words are known");
            }
            Err(error) => println!("document {number}: {}", error.kind()),
        }
    }
    println!("{parsed} documents were parsed, by {} processes", processes.len());
    Ok(())
}
