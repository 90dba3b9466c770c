//! Waiting for other processes: [`Lock`], [`Semaphore`], [`Event`] and [`Barrier`].
//!
//! Each is an object in shared memory. A clone is another handle on the same one, and each can be sent
//! anywhere inside an argument: of a task, of an initializer, of a process. None has a name in the file
//! system, and none is left behind by processes that are killed.
//!
//! Who holds something is noted with it, as a process. One that has died holds nothing: what it had is
//! taken over, some milliseconds after somebody has begun to wait for it, and the next holder is told.
//! Threads of one process exclude each other as processes do, but the end of a thread is not noticed:
//! a guard that it has leaked is held until its process ends.
//!
//! The standard library's `Mutex`, `Condvar` and `Barrier` work between threads of one process; a copy
//! of one that is sent to another process is another one.

mod barrier;
mod event;
mod eventcount;
mod lock;
mod owner;
mod semaphore;

pub use self::barrier::{Barrier, BarrierError};
pub use self::event::Event;
pub(crate) use self::eventcount::{EventCount, Probe, deadline};
pub(crate) use self::lock::RawLock;
pub use self::lock::{Lock, LockGuard};
pub use self::semaphore::{Permit, Semaphore};
