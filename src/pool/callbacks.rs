//! Where callbacks run: on a thread of their own, which is started with the first one. A callback
//! may take its time, use the pool, or panic, and no worker waits for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::os::signals;

const THREAD: &str = "procpool-callbacks";

/// Something to be called once.
pub(crate) type Callback = Box<dyn FnOnce() + Send>;

/// The way to the callbacks' thread. The thread ends when the last clone is dropped and everything
/// that was sent has been called.
#[derive(Debug, Clone, Default)]
pub(crate) struct Callbacks {
    sender: Arc<Mutex<Option<Sender<Callback>>>>,
}

impl Callbacks {
    /// Has `callback` called soon.
    pub(crate) fn call(&self, callback: Callback) {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let unsent = match sender.as_ref() {
            Some(sender) => sender.send(callback).err().map(|error| error.0),
            None => Some(callback),
        };
        let Some(callback) = unsent else { return };
        let (new, receiver) = channel::<Callback>();
        let thread = std::thread::Builder::new().name(THREAD.to_owned());
        let started = signals::blocked(|| thread.spawn(move || receiver.into_iter().for_each(run)));
        match started {
            Ok(_) => {
                let _ = new.send(callback);
                *sender = Some(new);
            }
            // Without a thread, better here than never.
            Err(_) => {
                drop(sender);
                run(callback);
            }
        }
    }

    /// Waits until everything that was sent has been called; not where a callback does so itself.
    pub(crate) fn wait(&self) {
        let is_used = self.sender.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if !is_used || std::thread::current().name() == Some(THREAD) {
            return;
        }
        let (done, waiter) = channel();
        self.call(Box::new(move || done.send(()).unwrap_or(())));
        let _ = waiter.recv();
    }
}

/// A panic is printed by the program's own hook; here it is only kept from doing harm.
fn run(callback: Callback) {
    let _ = catch_unwind(AssertUnwindSafe(callback));
}
