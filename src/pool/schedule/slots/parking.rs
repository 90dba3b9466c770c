//! Slots without a worker until there is work for them: those that are parked, and those that are one too many.

use std::time::Instant;

use super::SlotTable;
use super::slot::{Actions, ProcessState, Slot, State, Wake};

impl<N, W> SlotTable<N, W> {
    /// Starts workers in parked slots. Returns whether it did.
    pub(super) fn start_parked(&mut self, wanted: u64, now: Instant) -> bool {
        if self.parked == 0 || self.is_full() {
            return false;
        }
        let is_starting = |slot_state: &&Slot<N, W>| {
            matches!(slot_state.state, State::Empty | State::Spawned(_) | State::Handshaking)
        };
        let starting = self.slots[..self.limit].iter().filter(is_starting).count();
        let free = starting + self.idle.len() + self.woken;
        let spares = self.limit - self.most_running;
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).saturating_add(spares);
        let missing = wanted.saturating_sub(free).min(self.parked);
        let is_parked = |slot_state: &&mut Slot<N, W>| matches!(slot_state.state, State::Parked);
        let serving = &mut self.slots[..self.limit];
        for slot_state in serving.iter_mut().filter(is_parked).take(missing) {
            slot_state.state = State::Empty;
            slot_state.schedule_spawn(now);
        }
        self.parked -= missing;
        missing > 0
    }

    /// Parks the next worker that has been idle since `since`, while more than `least` are left.
    pub(crate) fn park_idle(&mut self, since: Instant, least: usize) -> Option<(usize, W)> {
        if self.limit - self.parked <= least {
            return None;
        }
        // The first in the list is the one that would be woken last.
        let is_long = |slot: &&usize| self.slots[**slot].idle_since <= since;
        let slot = *self.idle.iter().find(is_long)?;
        self.remove_idle(slot);
        let slot_state = &mut self.slots[slot];
        match std::mem::replace(&mut slot_state.state, State::Parked) {
            State::Idle(worker) => {
                self.parked += 1;
                slot_state.mark_draining();
                Some((slot, worker))
            }
            // Unreachable: listed workers are idle.
            other => {
                slot_state.state = other;
                None
            }
        }
    }

    /// Parks a surplus slot with an idle worker, and returns the worker.
    pub(crate) fn park_surplus(&mut self, slot: usize) -> Option<W> {
        if !self.is_surplus(slot) {
            return None;
        }
        let slot_state = &mut self.slots[slot];
        match std::mem::replace(&mut slot_state.state, State::Parked) {
            State::Idle(worker) => {
                slot_state.mark_draining();
                Some(worker)
            }
            other => {
                slot_state.state = other;
                None
            }
        }
    }

    /// Changes how many workers run tasks at once. New workers start at once, or when there is work for them
    /// (`on_demand`). Surplus ones are parked when they are idle. The caller wakes the slots again for which work is
    /// queued.
    pub(crate) fn resize(
        &mut self,
        most_running: usize,
        on_demand: bool,
        now: Instant,
    ) -> Actions<W> {
        let limit = most_running + (self.limit - self.most_running);
        self.most_running = most_running;
        self.limit = limit;
        while self.slots.len() < limit {
            self.slots.push(Slot::new(false, now));
        }
        for (slot, slot_state) in self.slots.iter_mut().enumerate() {
            let is_serving = slot < limit;
            if !is_serving {
                self.woken -= usize::from(std::mem::take(&mut slot_state.is_woken));
            }
            match slot_state.state {
                State::Parked if is_serving && !on_demand => {
                    slot_state.state = State::Empty;
                    slot_state.schedule_spawn(now);
                }
                State::Empty if !is_serving && slot_state.process == ProcessState::Absent => {
                    slot_state.state = State::Parked;
                    slot_state.due = None;
                }
                _ => {}
            }
        }
        let is_parked = |slot_state: &&Slot<N, W>| matches!(slot_state.state, State::Parked);
        self.parked = self.slots[..limit].iter().filter(is_parked).count();
        self.idle.retain(|slot| *slot < limit);
        // A surplus worker that has not been parked serves the queue again.
        for slot in 0..limit {
            let slot_state = &self.slots[slot];
            let is_idle = matches!(slot_state.state, State::Idle(_)) && !slot_state.is_woken;
            if is_idle && !self.idle.contains(&slot) {
                self.idle.push(slot);
            }
        }
        Actions { start: true, ..Actions::wake(Wake::All) }
    }
}
