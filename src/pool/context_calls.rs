//! The calls of a pool whose items share a context or a state.

use crate::error::{TaskError, TaskErrorKind, ValueSide};
use crate::pool::call::collect;
use crate::pool::call::context::Context;
use crate::pool::call::job::Job;
use crate::pool::call::results::{Order, Results};
use crate::pool::call::scope::Scope;
use crate::pool::handle::{Pool, foreign, unsent};
use procpool_worker::function::FnRef;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

impl Pool {
    /// Like [`map`](Self::map), with a read-only `context` that all items share. The context is sent to each
    /// worker once, not with each item, and workers drop it when the call ends. A context above about 100 KiB
    /// is sent through shared memory.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = procpool::Pool::new(4)?;
    /// let words = vec!["one".to_owned(), "two".to_owned()];
    /// let found = pool.map_with(words, |words, text: String| words.contains(&text), ["two".to_owned()])?;
    /// assert_eq!(found, [true]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`map`](Self::map). A context that can't be encoded fails the call; a context that can't be decoded
    /// fails each item.
    pub fn map_with<C, A, R, I>(
        &self,
        context: C,
        f: fn(&C, A) -> R,
        items: I,
    ) -> Result<Vec<R>, TaskError>
    where
        C: Serialize + DeserializeOwned + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        self.collect_with(FnRef::task_with(f).map_err(foreign)?, &context, items)
    }

    /// Like [`map`](Self::map), with mutable state that `init` creates in each worker, for state that can't
    /// be sent. `init` runs before the worker's first item, and the state lives until the call ends. Which
    /// items share a state depends on how items are scheduled.
    ///
    /// If `init` panics, that item fails, and the next item runs `init` again. If `f` panics, its state is
    /// dropped, and the next item gets a new one.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::collections::HashMap;
    ///
    /// fn lookup(cache: &mut HashMap<u64, u64>, n: u64) -> u64 {
    ///     *cache.entry(n % 10).or_insert_with(|| (0..=n % 10).sum())
    /// }
    ///
    /// let pool = procpool::Pool::new(4)?;
    /// let sums = pool.map_init(HashMap::new, lookup, 0..1000)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`map`](Self::map).
    pub fn map_init<S, A, R, I>(
        &self,
        init: fn() -> S,
        f: fn(&mut S, A) -> R,
        items: I,
    ) -> Result<Vec<R>, TaskError>
    where
        S: 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let (call, init) = FnRef::task_init(init, f).map_err(foreign)?;
        self.collect_with(call, &init, items)
    }

    /// Like [`imap`](Self::imap), with a shared context as in [`map_with`](Self::map_with). Workers drop the
    /// context when the iterator is dropped.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = procpool::Pool::new(4)?;
    /// for product in pool.imap_with(3, |factor, x: u64| factor * x, 0..10)? {
    ///     println!("{}", product?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`TaskErrorKind::Encode`] if the context can't be encoded.
    pub fn imap_with<C, A, R, I>(
        &self,
        context: C,
        f: fn(&C, A) -> R,
        items: I,
    ) -> Result<Results<I::IntoIter, R>, TaskError>
    where
        C: Serialize + DeserializeOwned + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        self.results_with(context, f, items, Order::Input)
    }

    /// Like [`imap_with`](Self::imap_with), in the order in which items complete.
    ///
    /// # Errors
    ///
    /// As [`imap_with`](Self::imap_with).
    pub fn imap_unordered_with<C, A, R, I>(
        &self,
        context: C,
        f: fn(&C, A) -> R,
        items: I,
    ) -> Result<Results<I::IntoIter, R>, TaskError>
    where
        C: Serialize + DeserializeOwned + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        self.results_with(context, f, items, Order::Completion)
    }

    fn results_with<C, A, R, I>(
        &self,
        context: C,
        f: fn(&C, A) -> R,
        items: I,
        order: Order,
    ) -> Result<Results<I::IntoIter, R>, TaskError>
    where
        C: Serialize + DeserializeOwned + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let (job, scope) = self.job_with(FnRef::task_with(f).map_err(foreign)?, &context)?;
        let shared = Arc::clone(self.shared());
        Ok(Results::new(shared, job, items.into_iter(), order, Some(scope)))
    }

    /// Runs `f(&context, argument)` in a worker and blocks until it returns: [`map_with`](Self::map_with) for
    /// a single item.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply). A context that can't be encoded fails the call.
    pub fn apply_with<C, A, R>(
        &self,
        context: C,
        f: fn(&C, A) -> R,
        argument: A,
    ) -> Result<R, TaskError>
    where
        C: Serialize + DeserializeOwned + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let mut results = self.imap_with(context, f, [argument])?;
        // One item has one outcome.
        results.next().unwrap_or(Err(unsent(TaskErrorKind::Closed)))
    }

    /// Runs a call whose items share `context` and collects the results.
    fn collect_with<C, A, R, I>(
        &self,
        function: FnRef,
        context: &C,
        items: I,
    ) -> Result<Vec<R>, TaskError>
    where
        C: Serialize,
        A: Serialize,
        R: DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let (job, _scope) = self.job_with(function, context)?;
        collect::collect(Arc::clone(self.shared()), job, items.into_iter())
    }

    /// Creates a job whose items share `context`, and the guard that keeps the context in the workers.
    fn job_with<C: Serialize>(
        &self,
        function: FnRef,
        context: &C,
    ) -> Result<(Arc<Job>, Scope), TaskError> {
        self.check()?;
        let shared = self.shared();
        let refuse = |reason| unsent(TaskErrorKind::Encode { side: ValueSide::Argument, reason });
        let context = Context::encode(context, shared.inline_limit).map_err(refuse)?;
        shared.check_attachments(&context.attachments).map_err(refuse)?;
        let context = Arc::new(context);
        let job = self.many_with(Ok(function), Some(Arc::clone(&context)));
        Ok((job, Scope { pool: Arc::clone(shared), context }))
    }
}
