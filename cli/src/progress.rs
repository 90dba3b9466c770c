//! The progress bar on standard error: position, rate and remaining time. The only user of
//! indicatif.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use procpool::{Event, EventKind};

use super::{color, format};

/// Often enough to look live, rarely enough for a slow connection.
const REDRAWS_PER_SECOND: u8 = 10;

/// How many running jobs the bar shows.
const SHOWN_JOBS: usize = 8;

#[derive(Default)]
pub(super) struct Progress {
    /// None if no bar is shown.
    bar: Option<ProgressBar>,
    failed: u64,
}

impl Progress {
    /// Shows a bar for `total` tasks, or a counter if the total is unknown.
    pub(super) fn shown(total: Option<u64>) -> Self {
        // As wide as the terminal, with a final carriage return: the "^C" that a terminal prints
        // for Ctrl-C would otherwise start a new line, and the bar could not be erased.
        const BAR: &str =
            "{wide_bar:.green} {human_pos}/{human_len} · {rate}/s · {eta} left{msg}{prefix}\r";
        const COUNT: &str = "{spinner:.green} {human_pos} done · {rate}/s · {elapsed}{msg}{prefix}";
        let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND);
        let bar = ProgressBar::with_draw_target(total, target);
        let mut template = if total.is_some() { BAR } else { COUNT }.to_owned();
        if !color::wanted(&std::io::stderr()) {
            template = template.replace(":.green", "").replace(".green", "");
        }
        let style = ProgressStyle::with_template(&template);
        if let Ok(style) = style {
            let rate = |state: &ProgressState, text: &mut dyn fmt::Write| {
                let _ = text.write_str(&format::rate(state.per_sec())); // to memory
            };
            bar.set_style(style.progress_chars("━╸─").with_key("rate", rate));
        }
        bar.enable_steady_tick(Duration::from_secs(1) / REDRAWS_PER_SECOND.into());
        Self { bar: Some(bar), failed: 0 }
    }

    /// Returns a handle that shows how far the running jobs are. `None` if no bar is shown.
    pub(super) fn jobs(&self) -> Option<JobsProgress> {
        Some(JobsProgress { bar: self.bar.clone()?, running: Mutex::default() })
    }

    /// Whether a bar is shown.
    pub(super) fn is_shown(&self) -> bool {
        self.bar.is_some()
    }

    /// Counts a finished job. `failed` is the number of failures so far.
    pub(super) fn advance(&mut self, failed: u64) {
        let Some(bar) = &self.bar else { return };
        bar.inc(1);
        if failed != self.failed {
            self.failed = failed;
            bar.set_message(format!(" · {failed} failed"));
        }
    }

    /// Hides the bar while `act` uses the terminal.
    pub(super) fn suspend<R>(&self, act: impl FnOnce() -> R) -> R {
        match &self.bar {
            Some(bar) => bar.suspend(act),
            None => act(),
        }
    }

    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // A run that could not begin has shown it, too.
        self.finish();
    }
}

/// Shows in the bar how far the running jobs are that say so.
pub(super) struct JobsProgress {
    bar: ProgressBar,
    /// By slot.
    running: Mutex<BTreeMap<usize, String>>,
}

impl JobsProgress {
    /// Takes an event of the pool.
    pub(super) fn note(&self, event: &Event) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let has_changed = match &event.kind {
            EventKind::Progressed { slot, done, total, .. } => {
                let progress = procpool::Progress { done: *done, total: *total };
                running.insert(*slot, format::part(progress));
                true
            }
            EventKind::Finished { slot, .. }
            | EventKind::Retried { slot, .. }
            | EventKind::Lost { slot, .. } => running.remove(slot).is_some(),
            _ => false,
        };
        if has_changed {
            let shown: Vec<_> = running.values().take(SHOWN_JOBS).map(String::as_str).collect();
            let dot = if shown.is_empty() { "" } else { " · " };
            self.bar.set_prefix(format!("{dot}{}", shown.join(" ")));
        }
    }
}
