//! Memory that tasks share instead of being sent copies of it. `os/memory` has the memory itself,
//! [`object`] what all that is written by several processes is made of.

mod array;
pub(crate) mod object;
mod slice;
mod value;

pub use self::array::{Atomic, SharedArray};
pub use self::slice::SharedSlice;
pub use self::value::SharedValue;
