//! Keeps what tasks may ask for: what a worker's initializers return, one value per type, on the serving
//! thread; and which worker this is.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

thread_local! {
    static STATE: RefCell<HashMap<TypeId, Box<dyn Any>>> = RefCell::default();
}

static WORKER: OnceLock<WorkerContext> = OnceLock::new();

/// The attempt number of the span that runs, or ran last.
static ATTEMPT: AtomicU32 = AtomicU32::new(1);

/// Which worker a task runs in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct WorkerContext {
    /// The pool's name.
    pub pool: String,
    /// The worker's slot in the pool, from 0. Each host of the pool has consecutive slots.
    pub slot: usize,
    /// The worker's host, if the pool spans several.
    pub host: Option<String>,
    /// The attempt number of the running task, from 1. It is above 1 if an earlier worker died or timed out
    /// while it ran the task.
    pub attempt: u32,
}

impl WorkerContext {
    pub(crate) fn new(pool: String, slot: u32, host: Option<String>) -> Self {
        Self { pool, slot: slot as usize, host, attempt: 1 }
    }
}

/// Sets which worker this process is, once.
pub(crate) fn set_worker(context: WorkerContext) {
    let _ = WORKER.set(context);
}

/// Sets the attempt number of the tasks that run next.
pub(crate) fn set_attempt(attempt: u32) {
    ATTEMPT.store(attempt, Relaxed);
}

/// Returns which worker this process is, or `None` in any other process.
pub fn worker() -> Option<WorkerContext> {
    let worker = WORKER.get()?.clone();
    Some(WorkerContext { attempt: ATTEMPT.load(Relaxed), ..worker })
}

/// Stores `value` and drops an earlier one of its type.
pub(crate) fn insert<S: 'static>(value: S) {
    // The earlier value is dropped after the borrow has ended: its `Drop` may use the state.
    let _before = STATE.with_borrow_mut(|state| state.insert(TypeId::of::<S>(), Box::new(value)));
}

/// Calls `f` with the value of type `S` that the worker's initializer or the pool's preload function returned. Returns
/// `None` if there is none, for example in the parent, or inside another `with_state` for the same type.
pub fn with<S: 'static, R>(f: impl FnOnce(&mut S) -> R) -> Option<R> {
    struct PutBack(Option<Box<dyn Any>>);
    impl Drop for PutBack {
        fn drop(&mut self) {
            if let Some(value) = self.0.take() {
                STATE.with_borrow_mut(|state| state.insert((*value).type_id(), value));
            }
        }
    }
    // Taken out during the call, so that `f` may use the state of other types.
    let mut value = PutBack(STATE.with_borrow_mut(|state| state.remove(&TypeId::of::<S>())));
    value.0.as_mut()?.downcast_mut().map(f)
}
