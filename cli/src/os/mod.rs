//! What the command asks of the operating system itself: to start programs, and to look at processes.

pub(crate) mod clock;
pub(crate) mod observe;
pub(crate) mod program;
