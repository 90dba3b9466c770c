//! The atomics of shared memory: std's, or loom's in its models.
//!
//! loom treats a SeqCst access as AcqRel. In the models, each SeqCst access is therefore between two
//! SeqCst fences, which loom models; this puts the accesses in a single order. If they are mixed with
//! weaker accesses of the same word, this is slightly stronger than the memory model, and what x86 and
//! ARM do.

#[cfg(all(test, loom))]
pub(crate) use self::model::{AtomicU32, AtomicU64};
#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::fence;
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, fence};

#[cfg(all(test, loom))]
mod model {
    use std::sync::atomic::Ordering::{self, SeqCst};

    use loom::sync::atomic::fence;

    use crate::ipc::memory::Atomics;

    fn fenced<R>(order: Ordering, access: impl FnOnce() -> R) -> R {
        if order != SeqCst {
            return access();
        }
        fence(SeqCst);
        let result = access();
        fence(SeqCst);
        result
    }

    macro_rules! atomic {
        ($name:ident, $number:ty) => {
            #[derive(Debug, Default)]
            pub(crate) struct $name(loom::sync::atomic::$name);

            // SAFETY: no model places it in shared memory.
            unsafe impl Atomics for $name {}

            #[allow(dead_code)]
            impl $name {
                pub(crate) fn new(value: $number) -> Self {
                    Self(loom::sync::atomic::$name::new(value))
                }

                pub(crate) fn load(&self, order: Ordering) -> $number {
                    fenced(order, || self.0.load(order))
                }

                pub(crate) fn store(&self, value: $number, order: Ordering) {
                    fenced(order, || self.0.store(value, order));
                }

                pub(crate) fn swap(&self, value: $number, order: Ordering) -> $number {
                    fenced(order, || self.0.swap(value, order))
                }

                pub(crate) fn fetch_add(&self, value: $number, order: Ordering) -> $number {
                    fenced(order, || self.0.fetch_add(value, order))
                }

                pub(crate) fn fetch_update(
                    &self,
                    set: Ordering,
                    fetch: Ordering,
                    f: impl FnMut($number) -> Option<$number>,
                ) -> Result<$number, $number> {
                    fenced(set, || self.0.fetch_update(set, fetch, f))
                }

                pub(crate) fn compare_exchange(
                    &self,
                    current: $number,
                    new: $number,
                    set: Ordering,
                    fetch: Ordering,
                ) -> Result<$number, $number> {
                    fenced(set, || self.0.compare_exchange(current, new, set, fetch))
                }
            }
        };
    }

    atomic!(AtomicU32, u32);
    atomic!(AtomicU64, u64);
}
