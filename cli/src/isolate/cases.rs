//! The cases: faults, and their execution in the calling process.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A global variable that the program relies on and any code can change.
pub(super) static GLOBAL: AtomicU64 = AtomicU64::new(1);

/// Ends a leak that no limit stops, to protect the machine.
const LEAK_AT_MOST: usize = 1 << 30;

/// Ends the wait for a kill that does not come.
const WAIT_AT_MOST: Duration = Duration::from_secs(10);

/// Healthy tasks beside the one that fails.
pub(super) const BYSTANDERS: usize = 8;

/// Memory limit of the leaking worker, and of the process of threads. A healthy worker uses a
/// tenth.
pub(super) const MEMORY: u64 = 128 << 20;

/// The core size limit that prevents core files. With 0 the kernel still starts a program that
/// collects them, with 1 it does not (core(5)); and no core file is as small as that.
pub(super) const NO_CORE: u64 = 1;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// Panics
    Panic,
    /// Aborts
    Abort,
    /// Writes to unmapped memory
    Segfault,
    /// Recurses without end
    StackOverflow,
    /// Calls exit(0)
    Exit,
    /// Allocates memory without end
    Leak,
    /// Loops forever
    Loop,
    /// Changes a global variable
    Global,
    /// Changes the current directory
    Directory,
    /// Closes the file descriptors 0 to 255
    Descriptors,
    /// Is killed from outside (SIGKILL)
    Kill,
}

impl Case {
    pub(super) fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// Returns the name on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Returns a short description.
    pub(super) fn summary(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    /// Whether the process survives, with changed state.
    pub(super) fn is_change(self) -> bool {
        matches!(self, Self::Global | Self::Directory | Self::Descriptors)
    }

    /// Causes the fault.
    pub(super) fn act(self) {
        match self {
            Self::Panic => panic!("on purpose"),
            Self::Abort => std::process::abort(),
            Self::Segfault => segfault(),
            Self::StackOverflow => {
                overflow(0);
            }
            Self::Exit => std::process::exit(0),
            Self::Leak => leak(),
            Self::Loop => {
                while black_box(true) {
                    std::hint::spin_loop();
                }
            }
            Self::Global => {
                GLOBAL.fetch_add(1, Ordering::SeqCst);
            }
            Self::Directory => {
                let _ = std::env::set_current_dir("/"); // the check of the environment shows whether it succeeded
            }
            Self::Descriptors => close_descriptors(),
            Self::Kill => {
                let start = Instant::now();
                while start.elapsed() < WAIT_AT_MOST {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
}

fn segfault() {
    let nowhere = std::ptr::without_provenance_mut::<u8>(black_box(8));
    // SAFETY: none. The kernel kills this process for it, which is what the case shows. Nothing is
    // ever mapped at the first page.
    unsafe { nowhere.write_volatile(1) }
}

#[allow(unconditional_recursion)]
fn overflow(depth: u64) -> u64 {
    let room = black_box([depth; 128]);
    black_box(overflow(depth + 1)) + black_box(room)[0]
}

fn leak() {
    const PIECE: usize = 1 << 20;
    for _ in 0..LEAK_AT_MOST / PIECE {
        // Written to, since the kernel would otherwise only promise the memory.
        std::mem::forget(black_box(vec![1u8; PIECE]));
    }
}

fn close_descriptors() {
    // SAFETY: none for the owners of the descriptors, which is what the case shows.
    unsafe { libc::close_range(0, 255, 0) };
}
