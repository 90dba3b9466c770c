//! [`WorkerRef`]: identifies a worker in results and errors.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Identifies a worker in results and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerRef {
    /// The worker's slot in its pool, from 0.
    pub slot: usize,
    /// The worker's PID.
    pub pid: u32,
}

impl fmt::Display for WorkerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PID {}", self.pid)
    }
}
