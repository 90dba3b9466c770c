//! The callback thread, which starts with the first callback. Callbacks may block, use the pool, or panic
//! without affecting workers.
//!
//! User code is called under no lock, and its panics are [contained](contain).
use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;

use crate::os::signals;

/// A call to make once.
pub(crate) type Callback = Box<dyn FnOnce() + Send>;

/// Handle on the callback thread. The thread ends when the last clone is dropped and all callbacks have run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Callbacks {
    thread: Arc<Mutex<Option<Thread>>>,
}

#[derive(Debug)]
struct Thread {
    id: ThreadId,
    sender: Sender<Callback>,
}

impl Callbacks {
    /// Starts the thread if it is not running.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub(crate) fn start(&self) -> io::Result<()> {
        self.sender().map(drop)
    }

    /// Queues `callback` for the thread. Must be called under no lock: if the system refuses a thread, the
    /// callback runs here.
    pub(crate) fn call(&self, callback: Callback) {
        let uncalled = match self.sender() {
            Ok(sender) => sender.send(callback).err().map(|error| error.0),
            Err(_) => Some(callback),
        };
        if let Some(callback) = uncalled {
            run(callback);
        }
    }

    fn sender(&self) -> io::Result<Sender<Callback>> {
        let mut known = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = known.as_ref() {
            return Ok(thread.sender.clone());
        }
        let (sender, receiver) = channel::<Callback>();
        let builder = std::thread::Builder::new().name("procpool-callbacks".to_owned());
        let started =
            signals::blocked(|| builder.spawn(move || receiver.into_iter().for_each(run)))?;
        *known = Some(Thread { id: started.thread().id(), sender: sender.clone() });
        Ok(sender)
    }

    /// Blocks until all queued callbacks have run, and those that they have queued. Returns immediately on
    /// the callback thread itself.
    pub(crate) fn wait(&self) {
        let thread = {
            let known = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
            known.as_ref().map(|thread| thread.id)
        };
        if thread.is_none_or(|id| id == std::thread::current().id()) {
            return;
        }
        // The second round covers what the first round's callbacks have queued, such as the event of a panic.
        // There is no third: callbacks could queue each other forever.
        for _ in 0..2 {
            let (done, waiter) = channel();
            self.call(Box::new(move || done.send(()).unwrap_or(())));
            let _ = waiter.recv();
        }
    }
}

/// The program's panic hook prints a panic, and the sender of the callback reports it.
fn run(callback: Callback) {
    let _ = contain(callback);
}

/// Calls user code, which may panic.
///
/// # Errors
///
/// The panic's message.
pub(crate) fn contain<R>(call: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(defuse)
}

/// Drops a panic's payload and returns its message.
pub(crate) fn defuse(payload: Box<dyn Any + Send>) -> String {
    let message = procpool_worker::panics::message(&*payload);
    // The payload is user code too: its drop may panic, with a payload whose drop panics again.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(payload);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_panics_when_it_is_dropped_is_contained() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                std::panic::panic_any(Bomb);
            }
        }
        assert!(contain(|| std::panic::panic_any(Bomb)).is_err());
        assert_eq!(contain(|| panic!("{}", 7)), Err::<(), _>("7".to_owned()));
        assert_eq!(contain(|| 7), Ok(7));
    }
}
