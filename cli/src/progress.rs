//! The progress bar on standard error: position, rate and remaining time. The only user of
//! indicatif.

use std::fmt;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::{color, format};

/// Often enough to look live, rarely enough for a slow connection.
const REDRAWS_PER_SECOND: u8 = 10;

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
            "{wide_bar:.green} {human_pos}/{human_len} · {rate}/s · {eta} left{msg}\r";
        const COUNT: &str = "{spinner:.green} {human_pos} done · {rate}/s · {elapsed}{msg}";
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
