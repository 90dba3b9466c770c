//! Memory that parent and worker share, and the system calls beneath everything else.

mod atomic;
pub mod doorbell;
#[allow(unsafe_code)] // Lays its words over shared memory; copies results by raw pointer.
pub mod lane;
#[allow(unsafe_code)] // Copies by raw pointer.
pub mod memcpy;
#[allow(unsafe_code)] // Touches a vector's reserved pages.
pub mod prefault;
pub mod record;
#[allow(unsafe_code)] // Maps memory, and copies into it by raw pointer.
pub mod region;
#[allow(unsafe_code)] // Raw system calls.
pub mod sys;
