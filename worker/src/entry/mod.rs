//! The process: how it becomes a safe worker, serves, and ends.

#[allow(unsafe_code)] // Advice on memory.
mod huge_pages;
#[allow(unsafe_code)] // Signal handlers and raw system calls.
mod liveness;
#[allow(unsafe_code)] // A signal handler, and walking the aborting thread's stack.
mod oom;
#[cfg(feature = "sandbox")]
#[allow(unsafe_code)] // A signal handler, and a query of the kernel.
pub mod sandbox;
#[allow(unsafe_code)] // Calls the functions that frames name; borrows arguments from shared memory.
pub mod serve;
#[allow(unsafe_code)] // Closes inherited descriptors, resets signals.
mod setup;
#[allow(unsafe_code)] // Forks; calls the preload function that a packet names.
pub mod template_process;
