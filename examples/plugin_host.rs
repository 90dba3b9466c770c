//! Calls a plugin, a shared library, in worker processes only.
//!
//! The host never loads the library: what it breaks, leaks or blocks is a worker, which is replaced. Each worker
//! loads it once, in its initializer. The plugin here turns text into capitals, and has bugs.
//!
//! ```text
//! $ cargo build --quiet --example procpool-test-plugin && cargo run --example plugin_host
//! hello  HELLO
//! crash  its worker was killed by SIGSEGV while running it
//! hang   was stopped after its time limit of 2s
//! leak   its worker ran out of memory while running it
//! world  WORLD
//! 2 calls returned, 3 cost a worker each
//! the plugin is mapped in this process: false
//! ```
//!
//! `plugin_host LIBRARY INPUT...` calls another one. It exports `plugin_run(input, len, output, capacity)`, which
//! writes to `output` and returns how much it has written, as `tests/programs/plugin.rs` does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use libloading::{Library, Symbol};
use procpool::{Failure, Pool, with_state};

/// The most that a plugin may write.
const CAPACITY: usize = 1 << 16;

type Run = unsafe extern "C" fn(*const u8, usize, *mut u8, usize) -> usize;

/// The initializer: loads the plugin. What it returns is the worker's state.
fn load(path: PathBuf) -> Library {
    // SAFETY: the library's initialisers may do anything, which is why this is a worker.
    unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A task: one call of the plugin.
fn call(input: String) -> Result<String, Failure> {
    let mut output = vec![0; CAPACITY];
    let len = with_state(|plugin: &mut Library| {
        // SAFETY: the symbol has this type, as the plugin's author promises.
        let run: Symbol<'_, Run> = unsafe { plugin.get(b"plugin_run") }?;
        // SAFETY: both buffers are valid for their lengths. The rest is the plugin's.
        Ok::<_, libloading::Error>(unsafe {
            run(input.as_ptr(), input.len(), output.as_mut_ptr(), output.len())
        })
    });
    let len = len.ok_or("the worker has loaded no plugin")??;
    output.truncate(len);
    Ok(String::from_utf8(output)?)
}

/// Returns the plugin that is built with this program.
fn default_plugin() -> Result<PathBuf, std::io::Error> {
    let program = std::env::current_exe()?;
    Ok(program.with_file_name("libprocpool_test_plugin.so"))
}

fn is_mapped(library: &Path) -> Result<bool, std::io::Error> {
    let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(std::fs::read_to_string("/proc/self/maps")?.contains(&name))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let mut arguments = std::env::args_os().skip(1);
    let library = arguments.next().map_or_else(default_plugin, |path| Ok(path.into()))?;
    let mut inputs: Vec<String> =
        arguments.map(|input| input.to_string_lossy().into_owned()).collect();
    if inputs.is_empty() {
        inputs = ["hello", "crash", "hang", "leak", "world"].map(str::to_owned).into();
    }
    let pool = Pool::builder()
        .workers(2)
        .initializer(load, library.clone())
        .task_timeout(Duration::from_secs(2))
        .max_memory_per_worker(256 << 20)
        .build()?;
    let width = inputs.iter().map(String::len).max().unwrap_or(0);
    let (mut returned, mut lost) = (0, 0);
    for (input, result) in inputs.iter().zip(pool.imap(call, inputs.clone())) {
        match result {
            Ok(answer) => {
                returned += 1;
                let answer = answer.unwrap_or_else(|error| format!("the plugin failed: {error}"));
                println!("{input:width$}  {answer}");
            }
            Err(error) => {
                lost += 1;
                println!("{input:width$}  {}", error.kind());
            }
        }
    }
    println!("{returned} calls returned, {lost} cost a worker each");
    println!("the plugin is mapped in this process: {}", is_mapped(&library)?);
    Ok(())
}
