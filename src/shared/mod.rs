//! Memory that tasks share instead of receiving copies of it: [`SharedSlice`] is read-only, [`SharedArray`]
//! and [`SharedValue`] are writable.

// `ipc/memory` owns the memory itself, `ipc/object` the layout of everything that several processes write.

mod array;
mod slice;
mod value;

pub use self::array::{Atomic, SharedArray};
pub use self::slice::SharedSlice;
pub use self::value::SharedValue;
