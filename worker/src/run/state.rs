//! What a worker's initializer made, for its tasks to use: one value of each type, on the thread
//! that serves.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;

thread_local! {
    static STATE: RefCell<HashMap<TypeId, Box<dyn Any>>> = RefCell::default();
}

/// Keeps `value`, in the place of an earlier one of its type.
pub(crate) fn put<S: 'static>(value: S) {
    // What was there is dropped after the borrow has ended: its `Drop` may look at the state.
    let _before = STATE.with_borrow_mut(|state| state.insert(TypeId::of::<S>(), Box::new(value)));
}

/// Calls `f` with the value of type `S` that the initializer made; `None` where there is none (in
/// the parent, for example, or inside of another `with` for the same type).
pub fn with<S: 'static, R>(f: impl FnOnce(&mut S) -> R) -> Option<R> {
    struct PutBack(Option<Box<dyn Any>>);
    impl Drop for PutBack {
        fn drop(&mut self) {
            if let Some(value) = self.0.take() {
                STATE.with_borrow_mut(|state| state.insert((*value).type_id(), value));
            }
        }
    }
    // Taken out for the time of the call, so that `f` may use the state of other types.
    let mut value = PutBack(STATE.with_borrow_mut(|state| state.remove(&TypeId::of::<S>())));
    value.0.as_mut()?.downcast_mut().map(f)
}
