//! Ctrl-C: the first one is an event of the run, the second one ends the process at once.
//!
//! The workers need no telling: they die with their parent.

use std::process;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;

use super::collect::{Event, Events};

/// Watches for it from a thread of its own, for as long as the process lives.
pub(super) fn watch(events: Arc<Events>) -> Result<()> {
    let mut signals = Signals::new([SIGINT]).context("failed to catch Ctrl-C")?;
    let watcher = thread::Builder::new().name("signals".into());
    let watch = move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            events.put_at_once(Event::Interrupted);
        }
        if signals.next().is_some() {
            process::exit(130);
        }
    };
    watcher.spawn(watch).context("failed to start a thread")?;
    Ok(())
}
