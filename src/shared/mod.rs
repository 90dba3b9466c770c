//! Memory that tasks share instead of being sent copies of it. This file owns what its forms have in
//! common; `os/memory` has the memory itself.

mod slice;

pub use self::slice::SharedSlice;
