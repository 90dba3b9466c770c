//! What can go wrong, and doing it, for real, to the process that this is called in.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What a program takes for granted, and any code in it can change.
pub(super) static GLOBAL: AtomicU64 = AtomicU64::new(1);

/// A leak that nothing stops ends here, so that the wall's failure is not the machine's.
const LEAK_AT_MOST: usize = 1 << 30;

/// Likewise a wait for a kill that doesn't come.
const WAIT_AT_MOST: Duration = Duration::from_secs(10);

/// How many healthy tasks there are beside the one that goes wrong.
pub(super) const NEIGHBOURS: usize = 8;

/// What a worker that leaks may take, and the process of threads as a whole. A healthy one takes a tenth.
pub(super) const MEMORY: u64 = 128 << 20;

/// The limit that keeps core files away. With 1 the kernel doesn't even start a program that would
/// collect one, which with 0 it does (core(5)); and no core file is as small as that.
pub(super) const NO_CORE: u64 = 1;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// It panics
    Panic,
    /// It aborts
    Abort,
    /// It writes to memory that isn't there
    Segfault,
    /// It calls itself without end
    StackOverflow,
    /// It calls exit(0)
    Exit,
    /// It takes more and more memory
    Leak,
    /// It never comes to an end
    Loop,
    /// It changes a global variable
    Global,
    /// It changes the current directory
    Directory,
    /// It closes the file descriptors 0 to 255
    Descriptors,
    /// It is killed from outside (SIGKILL)
    Kill,
}

impl Case {
    pub(super) fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// As it is typed.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What the task does, in a few words.
    pub(super) fn summary(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    /// Whether it leaves the process alive and well, but changed.
    pub(super) fn is_change(self) -> bool {
        matches!(self, Self::Global | Self::Directory | Self::Descriptors)
    }

    /// Does it.
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
                let _ = std::env::set_current_dir("/"); // whether it was done is seen afterwards
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
    // SAFETY: none; the kernel ends this process for it, which is what is to be shown. Nothing is
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
        // Written to, or the kernel would only promise it.
        std::mem::forget(black_box(vec![1u8; PIECE]));
    }
}

fn close_descriptors() {
    // SAFETY: none for whoever owns them, which is what is to be shown.
    unsafe { libc::close_range(0, 255, 0) };
}
