//! procpool beside its peers, on the same work in one run: `cargo bench --bench peers`.
//!
//! ```text
//! cargo bench --bench peers -- [--quick] [--only ROW,…] [--format markdown|json]
//!     [--wait SECONDS] [--list]
//! ```
//!
//! Peers are procspawn, rayon, an ipc-channel by itself and, if there is a python3, `multiprocessing.Pool`
//! and `ProcessPoolExecutor`. They take turns within each repetition, so that other load on the machine
//! affects all of them. Goals are judged by ratios within a repetition: their median, least and greatest.
//!
//! | file | rows |
//! |---|---|
//! | `calls` | one call, many single calls |
//! | `maps` | square roots of a range |
//! | `payload` | 64 MiB in and out |
//! | `startup_and_death` | start, crash, memory |
//! | `template` | a fresh process for each task, many workers, a preloaded table |
//! | `many` | ten million items, 256 workers |
//! | `workloads` | skewed load, one slow item first, π, Parzen windows |
//! | `sharing` | messages through a channel, memory that is not copied |
//! | `sandbox` | start and calls in a sandbox, with `--features sandbox` |
//!
//! `peers` has the contenders, `python` and `peers.py` those in Python. `measure` lets them take turns,
//! `report` prints the table, `machine` describes the machine, and `watchdog` ends a run that hangs.

#![allow(clippy::unwrap_used, missing_docs)]

mod calls;
mod machine;
mod many;
mod maps;
mod measure;
mod payload;
mod peers;
mod python;
#[path = "../../cli/src/tasks/random.rs"]
#[allow(dead_code)] // Not all of its work is measured here.
mod random;
mod report;
#[cfg(feature = "sandbox")]
mod sandbox;
mod sharing;
mod startup_and_death;
mod template;
#[path = "../../cli/src/compare/timing.rs"]
mod timing;
mod watchdog;
mod workloads;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use measure::{Outcome, SampleSize};
use peers::Peers;
use report::{Format, Report, Row};

/// The rows in the order of the goals: the name for `--only`, and the function that measures.
const ROWS: &[(&str, Measure)] = &[
    ("apply", calls::apply),
    ("apply_async", calls::apply_async),
    ("map-5m", maps::five_million),
    ("map-10k", maps::ten_thousand),
    ("bytes", payload::bytes),
    ("floats", payload::floats),
    ("start", startup_and_death::start),
    ("crash", startup_and_death::crash),
    ("memory", startup_and_death::memory),
    ("fresh", template::fresh),
    ("many-workers", template::many_workers),
    ("preload-memory", template::preload_memory),
    ("preload-crash", template::preload_crash),
    ("stream", many::stream),
    ("workers", many::workers),
    ("skewed", workloads::skewed),
    ("slow-first", workloads::slow_first),
    ("efficiency", workloads::efficiency),
    ("channel", sharing::channel),
    ("shared", sharing::memory),
    #[cfg(feature = "sandbox")]
    ("sandbox", sandbox::cost),
];

type Measure = fn(&mut Peers, &SampleSize) -> Outcome<Row>;

fn main() -> ExitCode {
    // Copies of this program start here too: workers of procpool and of procspawn, and those of `peers`.
    procpool::init();
    procspawn::init();
    peers::serve_if_copy();

    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether every row could be measured. A missed goal is not a failure of the bench.
fn run(options: &Options) -> Outcome<bool> {
    let size = if options.quick { SampleSize::quick() } else { SampleSize::full() };
    let mut peers = Peers::start()?;
    let report = Report::new(machine::Machine::detect(&peers), size.name);
    let report = Arc::new(Mutex::new(report));
    let mut all_measured = true;
    for (name, measure) in ROWS.iter().filter(|(name, _)| options.wants(name)) {
        let before = wait_for_quiet(peers.cores, options.wait);
        eprintln!("measuring {name}; {:.0} % of the cores are free", before * 100.0);
        let watchdog = watchdog::guard(name, size.limit, {
            let (report, format) = (Arc::clone(&report), options.format);
            move || report.lock().unwrap().print(format)
        });
        // Some peers panic when they fail.
        let measured = panic::catch_unwind(AssertUnwindSafe(|| measure(&mut peers, &size)));
        match measured.unwrap_or_else(|_| Err("it panicked".into())) {
            Ok(mut row) => {
                row.share = [before, machine::share_of_cores(peers.cores)];
                report.lock().unwrap().rows.push(row);
            }
            Err(error) => {
                eprintln!("{name} could not be measured: {error}");
                all_measured = false;
            }
        }
        drop(watchdog);
    }
    report.lock().unwrap().print(options.format);
    Ok(all_measured)
}

/// Waits until no other program runs, for at most this time. Returns the share of the cores that was free
/// last.
fn wait_for_quiet(cores: usize, longest: Duration) -> f64 {
    const QUIET: f64 = 0.97;
    let start = Instant::now();
    loop {
        let share = machine::share_of_cores(cores);
        if share >= QUIET || start.elapsed() >= longest {
            return share;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

struct Options {
    /// How long each row may wait for a quiet machine.
    wait: Duration,
    quick: bool,
    only: Vec<String>,
    format: Format,
}

impl Options {
    /// Returns none if the request was to print something, which was done.
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options =
            Self { wait: Duration::ZERO, quick: false, only: Vec::new(), format: Format::Markdown };
        let mut is_bench = false;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--bench" => is_bench = true, // cargo's word that it isn't a test
                "--quick" => options.quick = true,
                "--only" => options.only.extend(value()?.split(',').map(str::to_owned)),
                "--format" => options.format = Format::named(&value()?)?,
                "--wait" => {
                    let seconds = value()?.parse().map_err(|_| "--wait needs whole seconds")?;
                    options.wait = Duration::from_secs(seconds);
                }
                "--list" => {
                    ROWS.iter().for_each(|(name, _)| println!("{name}"));
                    return Ok(None);
                }
                _ => {
                    return Err(format!(
                        "there is no {arg}; there are --quick, --only ROW,…, --format \
                         markdown|json, --wait SECONDS and --list"
                    ));
                }
            }
        }
        if !is_bench {
            println!("nothing to test: cargo bench --bench peers");
            return Ok(None);
        }
        let known = |name: &String| ROWS.iter().any(|(row, _)| row == name);
        match options.only.iter().find(|name| !known(name)) {
            Some(name) => Err(format!("there is no row {name}; --list has them all")),
            None => Ok(Some(options)),
        }
    }

    fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == row)
    }
}
