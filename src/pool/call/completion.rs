//! Waits for the first or all of several tasks.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use procpool_worker::sys::own_pid;

use crate::pool::call::task::Task;

/// Condition that [`wait`] waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WaitFor {
    /// Any task is done.
    First,
    /// All tasks are done.
    All,
}

/// Blocks until the first task, or all tasks, are done. `timeout` limits the wait; `None` means no limit.
///
/// Returns false on timeout. Without tasks, returns true at once.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use procpool::{Pool, WaitFor};
///
/// let pool = Pool::new(4)?;
/// let tasks: Vec<_> = (0..8).map(|x: u64| pool.apply_async(|x| x * x, x)).collect();
/// if !procpool::wait(&tasks, WaitFor::All, Some(Duration::from_secs(5))) {
///     tasks.iter().for_each(procpool::Task::cancel);
/// }
/// # Ok(())
/// # }
/// ```
pub fn wait<R>(tasks: &[Task<R>], what: WaitFor, timeout: Option<Duration>) -> bool {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let queue = Arc::new(Queue::default());
    let mut left = tasks.len();
    for (index, task) in tasks.iter().enumerate() {
        left -= usize::from(task.poll_ready(&queue.waker(index)));
    }
    let is_over = |left: usize| left == 0 || (what == WaitFor::First && left < tasks.len());
    while !is_over(left) {
        let Some(index) = queue.next(deadline) else { return false };
        left -= usize::from(tasks[index].poll_ready(&queue.waker(index)));
    }
    true
}

/// Returns an iterator over tasks in completion order, like `concurrent.futures.as_completed`.
///
/// Each task that the iterator returns is done: [`Task::get`] returns immediately. Dropping the iterator
/// drops the remaining tasks without cancelling them. In a copy of this process made by `fork`, the
/// iterator returns the remaining tasks at once, and each fails with
/// [`TaskErrorKind::Forked`](crate::TaskErrorKind::Forked).
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = procpool::Pool::new(4)?;
/// let tasks: Vec<_> = (0..8).map(|x: u64| pool.apply_async(|x| x * x, x)).collect();
/// for task in procpool::as_completed(tasks) {
///     println!("{}", task.get()?);
/// }
/// # Ok(())
/// # }
/// ```
pub fn as_completed<R>(tasks: impl IntoIterator<Item = Task<R>>) -> AsCompleted<R> {
    let queue = Arc::new(Queue::default());
    let tasks: Vec<Option<Task<R>>> = tasks.into_iter().map(Some).collect();
    for (index, task) in tasks.iter().enumerate() {
        if task.as_ref().is_some_and(|task| task.poll_ready(&queue.waker(index))) {
            queue.push(index);
        }
    }
    AsCompleted { left: tasks.len(), tasks, queue, owner: own_pid() }
}

/// Iterator over tasks in completion order, from [`as_completed`].
#[derive(Debug)]
#[must_use = "the tasks are waited for as the iterator is advanced"]
pub struct AsCompleted<R> {
    tasks: Vec<Option<Task<R>>>,
    left: usize,
    queue: Arc<Queue>,
    /// PID of the process that created it.
    owner: u32,
}

impl<R> AsCompleted<R> {
    /// Returns the next finished task. Returns `None` on timeout, and when no task is left
    /// ([`is_empty`](Self::is_empty)).
    pub fn next_timeout(&mut self, limit: Duration) -> Option<Task<R>> {
        self.next_by(Instant::now().checked_add(limit))
    }

    /// Returns whether all tasks have been returned.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    fn next_by(&mut self, deadline: Option<Instant>) -> Option<Task<R>> {
        if own_pid() != self.owner {
            // In a copy made by `fork`, every task is the error of that, and nothing wakes the queue, whose
            // lock another thread may have held.
            let task = self.tasks.iter_mut().find_map(Option::take);
            self.left -= usize::from(task.is_some());
            return task;
        }
        while self.left > 0 {
            let index = self.queue.next(deadline)?;
            let is_ready = |task: &mut Task<R>| task.poll_ready(&self.queue.waker(index));
            if let Some(task) = self.tasks[index].take_if(is_ready) {
                self.left -= 1;
                return Some(task);
            }
        }
        None
    }
}

impl<R> Iterator for AsCompleted<R> {
    type Item = Task<R>;

    fn next(&mut self) -> Option<Task<R>> {
        self.next_by(None)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Indices of tasks with a new delivery.
#[derive(Debug, Default)]
struct Queue {
    woken: Mutex<VecDeque<usize>>,
    arrived: Condvar,
}

impl Queue {
    fn woken(&self) -> MutexGuard<'_, VecDeque<usize>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, index: usize) {
        self.woken().push_back(index);
        self.arrived.notify_one();
    }

    fn waker(self: &Arc<Self>, index: usize) -> Waker {
        Arc::new(Notify { queue: Arc::clone(self), index }).into()
    }

    /// Waits for the next index. Returns `None` after `deadline`.
    fn next(&self, deadline: Option<Instant>) -> Option<usize> {
        let mut woken = self.woken();
        loop {
            if let Some(index) = woken.pop_front() {
                return Some(index);
            }
            woken = match deadline {
                None => self.arrived.wait(woken).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    let waited = self.arrived.wait_timeout(woken, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// Waker of one task's wait.
struct Notify {
    queue: Arc<Queue>,
    index: usize,
}

impl Wake for Notify {
    fn wake(self: Arc<Self>) {
        self.queue.push(self.index);
    }
}
