//! Memory that tasks share instead of receiving copies of it: [`SharedSlice`] is read-only, [`SharedArray`]
//! and [`SharedValue`] are writable.

// `os/memory` owns the memory itself, `object` the layout of everything that several processes write.

mod array;
pub(crate) mod object;
mod slice;
mod value;

pub use self::array::{Atomic, SharedArray};
pub use self::slice::SharedSlice;
pub use self::value::SharedValue;
