//! What a confined worker may still do, as the pool tells it.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

/// What a worker may do from now on. All else is refused by the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Files and directories that it may read.
    pub read: Vec<OsString>,
    /// Files and directories that it may read and change.
    pub write: Vec<OsString>,
    /// Which connections it may make.
    pub network: Network,
    /// Whether it may start processes, of programs that it may read.
    pub spawn: bool,
    /// Whether it may go on where the kernel lacks a part of this.
    pub best_effort: bool,
}

/// Which connections a worker may make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// None.
    #[default]
    Denied,
    /// TCP connections to these ports, and from others to these.
    Tcp {
        /// Ports to connect to.
        connect: Vec<u16>,
        /// Ports to listen on.
        listen: Vec<u16>,
    },
    /// All of IPv4 and IPv6.
    Full,
}
