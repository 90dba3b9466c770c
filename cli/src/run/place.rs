//! Where a run is: on this machine, or on hosts, and where its results go.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::args::RunArgs;
use crate::collect::{Event, Events};
use crate::exit::Usage;
use crate::journal::{History, JournalManner};
use crate::launch::{self, Orders};
use crate::plan::RunPlan;
use crate::record::{LostHost, Shown};
use procpool::{EventKind, Pool, PoolBuilder};

/// Where a run is.
pub(super) struct Place {
    spans_hosts: bool,
    /// What a supervisor has ordered.
    orders: Option<Orders>,
}

impl Place {
    /// Finds out where this run is. Takes the journal that a supervisor follows.
    pub(super) fn of(args: &mut RunArgs, orders: Option<Orders>) -> Self {
        if let Some(orders) = &orders {
            args.journal.journal = Some(orders.journal.clone());
        }
        Self { spans_hosts: launch::spans_hosts(args), orders }
    }

    pub(super) fn spans_hosts(&self) -> bool {
        self.spans_hosts
    }

    pub(super) fn is_supervised(&self) -> bool {
        self.orders.is_some()
    }

    /// Returns the number of hosts, as far as known before the pool is there.
    pub(super) fn hosts(&self) -> usize {
        self.orders.as_ref().map_or(1, |orders| orders.hosts.len()).max(1)
    }

    /// Whether outputs name the hosts: there are several, or were at the start of the run.
    pub(super) fn shows_hosts(&self, pool: &Pool) -> bool {
        self.orders.as_ref().map_or_else(|| pool.hosts().len() > 1, |orders| orders.several)
    }

    pub(super) fn journal_manner(&self, has_results: bool) -> JournalManner {
        JournalManner {
            pending: has_results || self.is_supervised(),
            since: self.orders.as_ref().map(|orders| orders.since),
            is_private: self.orders.as_ref().is_some_and(|orders| orders.is_private),
        }
    }

    /// Lets the pool span the hosts.
    pub(super) fn build_on(&self, builder: PoolBuilder, events: &Arc<Events>) -> PoolBuilder {
        if !self.spans_hosts {
            return builder;
        }
        let events = Arc::clone(events);
        let mut builder = builder.hosts(procpool::Hosts::Mpi).on_event(move |event| {
            if let (EventKind::HostLost { reason }, Some(host)) = (&event.kind, event.host) {
                let lost = LostHost { host: host.to_string(), reason: reason.clone() };
                events.send_over_capacity(Event::HostLost(lost));
            }
        });
        let hosts = self.orders.iter().flat_map(|orders| &orders.hosts);
        for (name, workers) in hosts {
            let Some(workers) = *workers else { continue };
            // A host may be named by its address, or with its domain.
            let name = if launch::is_here(name) { launch::own_name() } else { name.clone() };
            if let Some((short, _)) = name.split_once('.') {
                builder = builder.workers_on(short, workers);
            }
            builder = builder.workers_on(name, workers);
        }
        builder
    }
}

/// Where the results go, if not to standard output.
#[derive(Default)]
pub(super) struct Results {
    pub(super) is_elsewhere: bool,
    /// Whether there are earlier results in the file.
    pub(super) is_continued: bool,
    pub(super) out: Option<File>,
    pub(super) err: Option<File>,
    /// The name of the file in the journal.
    pub(super) file: Option<String>,
}

impl Results {
    /// Opens the files, and cuts them where the journal's jobs end.
    pub(super) fn open(plan: &RunPlan, place: &Place, history: Option<&History>) -> Result<Self> {
        let orders = place.orders.as_ref();
        if plan.results.is_none() && orders.is_none() {
            return Ok(Self::default());
        }
        let mut results = Self { is_elsewhere: true, ..Self::default() };
        let shown = |file: Option<&str>| history.and_then(|history| history.shown(file)).cloned();
        if let Some(path) = &plan.results {
            let name = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let name = name.to_string_lossy().into_owned();
            let failed = |why: &dyn std::fmt::Display| {
                Usage::error(format!(
                    "failed to write the results to {path:?}: {why}; check --results"
                ))
            };
            let is_resumed = plan.journal.resume || plan.journal.retry_failed || orders.is_some();
            let shown = shown(Some(&name)).filter(|_| is_resumed);
            let file = File::options().write(true).create(true).truncate(false).open(path);
            let mut file = file.map_err(|error| failed(&error))?;
            let metadata = file.metadata().map_err(|error| failed(&error))?;
            if metadata.is_file() {
                let length = metadata.len();
                let start = shown.as_ref().map_or(0, |shown| shown.out);
                if shown.is_none() && length > 0 && plan.journal.resume {
                    return Err(failed(
                        &"it isn't empty, and the journal doesn't say what is in it",
                    ));
                }
                if start > length {
                    return Err(failed(&format_args!(
                        "it has {length} bytes, and the journal says that {start} were written"
                    )));
                }
                cut(&mut file, start).map_err(|error| failed(&error))?;
                results.is_continued = start > 0;
            }
            results.out = Some(file);
            results.file = Some(name);
        }
        if let Some(orders) = orders {
            let Shown { out, err, .. } = shown(results.file.as_deref()).unwrap_or_default();
            if let Some(path) = &orders.out {
                results.out = Some(at(path, out)?);
                results.is_continued = out > 0;
            }
            results.err = Some(at(&orders.err, err)?);
        }
        Ok(results)
    }
}

/// Opens a file of the supervisor at this length.
fn at(path: &Path, length: u64) -> Result<File> {
    let file = File::options().write(true).open(path);
    let opened = file.and_then(|mut file| cut(&mut file, length).map(|()| file));
    opened.with_context(|| format!("failed to open {path:?}, for the results"))
}

fn cut(file: &mut File, length: u64) -> std::io::Result<()> {
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length)).map(drop)
}
