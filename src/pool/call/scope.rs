//! The time of a call whose items share a context.

use std::sync::Arc;

use crate::pool::call::context::Context;
use crate::pool::schedule::state::PoolState;

/// The time of a call: at its end, however it comes, the workers drop its context.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) pool: Arc<PoolState>,
    pub(crate) context: Arc<Context>,
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.context.set_over();
        self.pool.forget_contexts();
    }
}
