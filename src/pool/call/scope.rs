//! Lifetime of a call's shared context.

use std::sync::Arc;

use crate::pool::call::context::Context;
use crate::pool::schedule::state::PoolState;

/// Guard of a call with a context. On drop, workers drop the context.
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
