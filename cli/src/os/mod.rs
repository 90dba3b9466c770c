//! System interfaces: starting programs and observing processes.

pub(crate) mod clock;
pub(crate) mod observe;
pub(crate) mod program;
pub(crate) mod terminal;
