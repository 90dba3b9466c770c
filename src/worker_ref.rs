//! [`WorkerRef`]: identifies a worker in results and errors, and [`HostName`] its host.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Identifies a worker in results and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerRef {
    /// The worker's slot in its pool, from 0. Each host of the pool has consecutive slots.
    pub slot: usize,
    /// The worker's PID, on its host.
    pub pid: u32,
    /// The worker's host, if the pool spans several.
    pub host: Option<HostName>,
}

impl WorkerRef {
    /// Identifies a worker on this host, of a pool that has no other.
    #[cfg(test)]
    pub(crate) const fn local(slot: usize, pid: u32) -> Self {
        Self { slot, pid, host: None }
    }
}

impl fmt::Display for WorkerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PID {}", self.pid)?;
        self.host.map_or(Ok(()), |host| write!(f, " on {host}"))
    }
}

/// The name of a host in a pool that spans several.
///
/// Copies are cheap: each name is stored once, for the life of the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(&'static str);

impl HostName {
    /// Longest name in bytes: the kernel's limit of a host name, and a rank.
    const MOST: usize = 80;

    /// Returns the stored copy of a name. A longer name is cut off, so that what a peer sends can't fill
    /// the memory.
    pub(crate) fn new(name: &str) -> Self {
        static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
        let end = (0..=Self::MOST.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
        let name = &name[..end.unwrap_or(0)];
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(name) {
            return Self(known);
        }
        let stored: &'static str = Box::leak(name.into());
        names.insert(stored);
        Self(stored)
    }

    /// Returns the name.
    pub fn as_str(&self) -> &'static str {
        self.0
    }
}

impl Deref for HostName {
    type Target = str;

    fn deref(&self) -> &str {
        self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|name| Self::new(&name))
    }
}
