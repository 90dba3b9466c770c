//! What tasks share instead of receiving copies of it: memory, of which [`SharedSlice`] is read-only,
//! [`SharedArray`] and [`SharedValue`] are writable; and open files, as [`SharedFd`].
//!
//! Handles are values. They can be anywhere inside an argument of a task, an initializer or a
//! [`Process`](crate::Process), inside a result, and inside a message of a [`channel`](crate::channel). A result
//! may refer to up to 200 open files. Few are needed: thousands of small values share one.

// `ipc/memory` owns the memory itself, `ipc/object` the layout of everything that several processes write.

mod array;
mod fd;
mod slice;
mod value;

pub use self::array::{Atomic, SharedArray};
pub use self::fd::SharedFd;
pub use self::slice::SharedSlice;
pub use self::value::SharedValue;
