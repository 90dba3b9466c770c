//! Runs a corpus of inputs over a parser that crashes, and groups the crashes by signal and place.
//!
//! The parser is a C library ([parser.c](support/parser.c)), compiled here with `cc`. Each input is parsed in a worker
//! process, so a crash costs one input. A worker's signal handler prints the innermost function of the parser, and the
//! pool returns what a worker has printed last with the error of its death.
//!
//! ```text
//! $ cargo run --example triage
//! signal   in           crashes  smallest input
//! SIGSEGV  read_list         12  deep-400 (20000 bytes)
//! SIGSEGV  read_name          8  name-0 (3 bytes)
//! SIGABRT  read_number        5  number-19 (19 bytes)
//! 60 inputs: 35 were parsed, 25 crashed in 3 places
//! ```
//!
//! `triage DIR` runs the files of a folder.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use libloading::{Library, Symbol};
use procpool::{DeathCause, Failure, OutputMode, Pool, TaskErrorKind, with_state};

const PARSER: &str = include_str!("support/parser.c");

/// What the handler prints before the place.
const MARK: &str = "crashed in ";

/// The initializer: installs the handler and loads the parser.
fn prepare(library: PathBuf) -> Library {
    install_handler();
    // SAFETY: the library has no initialisers.
    unsafe { Library::new(&library) }
        .unwrap_or_else(|error| panic!("{}: {error}", library.display()))
}

/// A task: parses a file and returns how many values it has.
fn parse(file: PathBuf) -> Result<i32, Failure> {
    let text = std::fs::read(file)?;
    let values = with_state(|parser: &mut Library| {
        // SAFETY: parser.c has this function.
        let parse: Symbol<'_, unsafe extern "C" fn(*const u8, usize) -> c_int> =
            unsafe { parser.get(b"parse") }?;
        // SAFETY: the text is valid for its length. The parser may crash.
        Ok::<_, libloading::Error>(unsafe { parse(text.as_ptr(), text.len()) })
    });
    Ok(values.ok_or("the worker has loaded no parser")??)
}

/// Prints the innermost function of the parser. The signal then ends the worker, as without a handler.
extern "C" fn on_crash(_: c_int) {
    const DEPTH: usize = 64;
    let mut frames = [std::ptr::null_mut::<c_void>(); DEPTH];
    // SAFETY: the array has that many places. The signal was raised by the thread's own code, outside of the
    // loader, so its lock is free.
    let count = unsafe { libc::backtrace(frames.as_mut_ptr(), DEPTH as c_int) };
    for frame in &frames[..count.clamp(0, DEPTH as c_int) as usize] {
        // A return address may be behind the end of its function, if that calls `abort` last.
        let address = frame.wrapping_byte_sub(1);
        // SAFETY: all zeros are a valid `Dl_info`, and any address may be asked for.
        let found = unsafe {
            let mut info: libc::Dl_info = std::mem::zeroed();
            (libc::dladdr(address, &mut info) != 0).then_some(info)
        };
        let Some(info) =
            found.filter(|info| !info.dli_fname.is_null() && !info.dli_sname.is_null())
        else {
            continue;
        };
        // SAFETY: both are texts of the loader.
        let (file, name) =
            unsafe { (CStr::from_ptr(info.dli_fname), CStr::from_ptr(info.dli_sname)) };
        if file.to_bytes().ends_with(b"/parser.so") {
            for part in [MARK.as_bytes(), name.to_bytes(), b"\n"] {
                // SAFETY: the text is valid for its length.
                unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
            }
            return;
        }
    }
}

/// Installs the handler on a stack of its own: a stack may be what has overflowed.
fn install_handler() {
    const STACK: usize = 256 << 10;
    let stack = Box::leak(vec![0_u8; STACK].into_boxed_slice());
    // SAFETY: the stack is never freed. The handler takes what it is given, and the first `backtrace` loads what
    // the others need.
    unsafe {
        let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK };
        libc::sigaltstack(&stack, std::ptr::null_mut());
        libc::backtrace([std::ptr::null_mut(); 1].as_mut_ptr(), 1);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_crash as extern "C" fn(c_int) as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESETHAND;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT] {
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// Compiles the parser.
fn compile(dir: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let (source, library) = (dir.join("parser.c"), dir.join("parser.so"));
    std::fs::write(&source, PARSER)?;
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-fno-omit-frame-pointer", "-o"])
        .arg(&library)
        .arg(&source);
    match cc.status()?.success() {
        true => Ok(library),
        false => Err("cc has failed".into()),
    }
}

/// Writes inputs of which some make it crash.
fn write_corpus(dir: &Path) -> Result<(), std::io::Error> {
    let write = |name: String, text: String| std::fs::write(dir.join(name), text);
    for n in 0..20_usize {
        write(format!("deep-{}", 50 * n), "(".repeat(if n < 8 { n } else { 2500 * n }))?;
        write(format!("name-{n}"), if n < 8 { "(\"\"".into() } else { format!("(\"{n}\" x)") })?;
        write(format!("number-{}", n + 4), "7".repeat(n + 4))?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let dir = tempfile::tempdir()?;
    let library = compile(dir.path())?;
    let corpus = match std::env::args_os().nth(1) {
        Some(corpus) => corpus.into(),
        None => {
            let corpus = dir.path().join("corpus");
            std::fs::create_dir(&corpus)?;
            write_corpus(&corpus)?;
            corpus
        }
    };
    let files = std::fs::read_dir(&corpus)?.map(|entry| Ok(entry?.path()));
    let mut files = files.collect::<Result<Vec<PathBuf>, std::io::Error>>()?;
    files.sort();
    let pool = Pool::builder()
        .initializer(prepare, library)
        .output(OutputMode::Capture)
        .task_timeout(Duration::from_secs(5))
        .build()?;
    let (mut parsed, mut crashed) = (0, 0);
    // The number of crashes and the smallest input, by signal and place.
    let mut groups = BTreeMap::<(String, String), (usize, u64, PathBuf)>::new();
    for (file, result) in files.iter().zip(pool.imap(parse, files.clone())) {
        let key = match result {
            Ok(Ok(_)) => {
                parsed += 1;
                continue;
            }
            Ok(Err(error)) => return Err(format!("{}: {error}", file.display()).into()),
            Err(error) => match error.kind() {
                TaskErrorKind::Died {
                    cause: cause @ DeathCause::Signaled(..),
                    last_output,
                    ..
                } => {
                    let printed = last_output.as_deref().unwrap_or_default();
                    let place = printed.lines().rev().find_map(|line| line.strip_prefix(MARK));
                    (cause.signal_name().unwrap_or("?").to_owned(), place.unwrap_or("?").to_owned())
                }
                kind => ("-".to_owned(), kind.to_string()),
            },
        };
        crashed += 1;
        let size = file.metadata()?.len();
        let group = groups.entry(key).or_insert_with(|| (0, u64::MAX, PathBuf::new()));
        group.0 += 1;
        if size < group.1 {
            (group.1, group.2) = (size, file.clone());
        }
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(key, (count, ..))| (std::cmp::Reverse(*count), key.clone()));
    println!("{:8} {:12} {:>7}  smallest input", "signal", "in", "crashes");
    for ((signal, place), (count, size, file)) in &groups {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        println!("{signal:8} {place:12} {count:>7}  {name} ({size} bytes)");
    }
    let (inputs, places) = (parsed + crashed, groups.len());
    println!("{inputs} inputs: {parsed} were parsed, {crashed} crashed in {places} places");
    Ok(())
}
