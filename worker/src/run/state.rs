//! Keeps what a worker's initializers return, for its tasks: one value per type, on the serving thread.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;

thread_local! {
    static STATE: RefCell<HashMap<TypeId, Box<dyn Any>>> = RefCell::default();
}

/// Stores `value` and drops an earlier one of its type.
pub(crate) fn insert<S: 'static>(value: S) {
    // The earlier value is dropped after the borrow has ended: its `Drop` may use the state.
    let _before = STATE.with_borrow_mut(|state| state.insert(TypeId::of::<S>(), Box::new(value)));
}

/// Calls `f` with the initializer's value of type `S`. Returns `None` if there is none, for example in
/// the parent, or inside another `with` for the same type.
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
