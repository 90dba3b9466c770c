//! The loop for functions from a primitive to a primitive: an item costs a load, the call, and three
//! stores (what started, the result, what is committed). Everything else happens once per block.

use super::chunk_run::{ChunkRun, Stage};
use super::fork_guard::ForkGuard;
use crate::wire::error::TransportError;

impl ChunkRun<'_> {
    /// Runs the current span's items, as far as they can be claimed.
    ///
    /// # Safety
    ///
    /// `A` and `R` are primitives, and each argument takes as many bytes as an `A`.
    #[inline]
    pub(super) unsafe fn run_bulk<A, R>(&mut self, function: impl Fn(A) -> R) {
        while self.error.is_none() && (!self.claimed.is_empty() || self.claim()) {
            let items = self.claimed.start..self.claimed.end.min(self.span.end);
            if items.is_empty() {
                return;
            }
            let Some(arguments) = self.arguments.get(..items.len() * size_of::<A>()) else {
                self.error = Some(TransportError::Malformed("arguments are cut short".to_owned()));
                return;
            };
            self.open_record(items.len(), size_of::<R>());
            if self.error.is_some() {
                return;
            }
            let results =
                self.lane.results_at(self.progress.bytes as usize, items.len() * size_of::<R>());
            self.bulk_widths = Some((size_of::<A>(), size_of::<R>()));
            self.stage = Stage::Calling;
            let (lane, mut progress) = (self.lane.words, self.progress);
            let guard = ForkGuard::new();
            for (index, item) in items.clone().enumerate() {
                lane.set_started(item + 1);
                // SAFETY: by the caller's promise, any bytes are an argument. There are as many
                // arguments as items.
                let argument =
                    unsafe { arguments.as_ptr().cast::<A>().add(index).read_unaligned() };
                let result = function(argument);
                guard.exit_if_forked();
                // SAFETY: by the caller's promise, a result is plain bytes. The open record has space
                // for as many results as there are items.
                unsafe { results.cast::<R>().add(index).write_unaligned(result) };
                progress.items += 1;
                progress.bytes += size_of::<R>() as u32;
                if item + 1 == items.end || lane.unclaim_requested() {
                    break;
                }
                lane.commit(progress);
            }
            // The last item's result is not committed yet.
            self.sync_progress();
            self.progress = progress;
            if self.claimed.is_empty() || lane.unclaim_requested() {
                self.unclaim();
                self.close_record();
                self.commit_block();
            } else {
                self.close_record();
                self.lane.commit(self.progress);
            }
            self.stage = Stage::Between;
        }
    }

    /// Copies the loop's progress in its block from the lane: every item before the last started one
    /// is finished.
    pub(super) fn sync_progress(&mut self) {
        let Some((argument, result)) = self.bulk_widths.take() else { return };
        // A task that writes to arbitrary memory may have changed the lane.
        let next = self.lane.started().clamp(self.claimed.start + 1, self.claimed.end);
        let started = (next - self.claimed.start) as usize;
        self.claimed.start = next;
        self.arguments = self.arguments.get(started * argument..).unwrap_or_default();
        self.progress.items += started as u32 - 1;
        self.progress.bytes += ((started - 1) * result) as u32;
    }
}
