//! User code may call the pool and may panic, wherever it is called.

use std::collections::HashMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, RawWaker, RawWakerVTable, Waker};

use crate::support::{SOON, kill, sleepy, square, wait_until};
use procpool::{EventKind, Pool, TaskErrorKind};
use serde::de::Deserializer;
use serde::{Deserialize, Serialize, Serializer};

/// What user code may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Ask,
    Submit,
    Cancel,
    Close,
    Join,
    Terminate,
    Panic,
    PanicInPayload,
}

const DEEDS: [Deed; 8] = [
    Deed::Ask,
    Deed::Submit,
    Deed::Cancel,
    Deed::Close,
    Deed::Join,
    Deed::Terminate,
    Deed::Panic,
    Deed::PanicInPayload,
];

/// Where user code is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    Wake,
    CloneWaker,
    DropWaker,
    OnDone,
    OnEvent,
    Input,
    Env,
    Encode,
    DropArgument,
    Decode,
    DropResult,
}

const PLACES: [Place; 11] = [
    Place::Wake,
    Place::CloneWaker,
    Place::DropWaker,
    Place::OnDone,
    Place::OnEvent,
    Place::Input,
    Place::Env,
    Place::Encode,
    Place::DropArgument,
    Place::Decode,
    Place::DropResult,
];

/// A payload whose drop panics.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic_any("a payload that panics when it is dropped");
    }
}

/// Acts on its first call, as soon as there is a pool.
struct Hook {
    place: Place,
    deed: Deed,
    pool: Mutex<Option<Pool>>,
    is_done: AtomicBool,
}

impl Hook {
    fn call(&self, place: Place) {
        let Some(pool) = self.pool.lock().unwrap().clone() else { return };
        if place != self.place || self.is_done.swap(true, SeqCst) {
            return;
        }
        match self.deed {
            Deed::Ask => drop((pool.stats(), pool.workers())),
            Deed::Submit => drop(pool.apply_async(square, 3)),
            Deed::Cancel => pool.cancel_queued(),
            Deed::Close => pool.close(),
            Deed::Join => pool.join(),
            Deed::Terminate => pool.terminate(),
            Deed::Panic => panic!("it was to panic"),
            Deed::PanicInPayload => panic_any(Bomb),
        }
    }
}

/// The hooks of this process by number. A worker has none.
static HOOKS: LazyLock<Mutex<HashMap<u64, Arc<Hook>>>> = LazyLock::new(Mutex::default);

fn call(hook: u64, place: Place) {
    let found = HOOKS.lock().unwrap().get(&hook).cloned();
    if let Some(hook) = found {
        hook.call(place);
    }
}

/// A value that calls its hook when it is encoded, decoded and dropped.
#[derive(Debug)]
struct Probe {
    hook: u64,
    is_result: bool,
}

impl Serialize for Probe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        call(self.hook, Place::Encode);
        self.hook.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Probe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let hook = u64::deserialize(deserializer)?;
        call(hook, Place::Decode);
        Ok(Self { hook, is_result: true })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        call(self.hook, if self.is_result { Place::DropResult } else { Place::DropArgument });
    }
}

/// A waker that calls its hook in each of its functions. Its data is the hook's number.
fn waker(hook: u64) -> Waker {
    fn raw(data: *const ()) -> RawWaker {
        const VTABLE: RawWakerVTable = RawWakerVTable::new(
            |data| {
                call(data.addr() as u64, Place::CloneWaker);
                raw(data)
            },
            |data| {
                call(data.addr() as u64, Place::Wake);
                call(data.addr() as u64, Place::DropWaker);
            },
            |data| call(data.addr() as u64, Place::Wake),
            |data| call(data.addr() as u64, Place::DropWaker),
        );
        RawWaker::new(data, &VTABLE)
    }
    // SAFETY: the data is a number and not a pointer.
    unsafe { Waker::from_raw(raw(std::ptr::without_provenance(hook as usize))) }
}

fn echo(probe: Probe) -> Probe {
    probe
}

/// Makes the pool call the hook at its place, and returns once it was called.
fn provoke(number: u64, hook: &Arc<Hook>, pool: &Pool) {
    let probe = || Probe { hook: number, is_result: false };
    match hook.place {
        Place::Wake | Place::CloneWaker | Place::DropWaker => {
            // A task that was ready before it was polled wakes no waker.
            while !hook.is_done.load(SeqCst) {
                let mut task = pin!(pool.apply_async(sleepy, 20));
                let (first, other) = (waker(number), waker(number + (1 << 32)));
                let is_over = task.as_mut().poll(&mut Context::from_waker(&first)).is_ready()
                    || task.as_mut().poll(&mut Context::from_waker(&other)).is_ready()
                    || task.as_mut().poll(&mut Context::from_waker(&first)).is_ready();
                if !is_over {
                    wait_until("the task is ready", || task.is_ready());
                }
            }
        }
        Place::OnDone => {
            let hook = Arc::clone(hook);
            pool.apply_async(square, 3).on_done(move |_| hook.call(Place::OnDone));
        }
        Place::OnEvent => drop(pool.apply(square, 3)),
        Place::Input => {
            let input = (0..100).inspect(|_| hook.call(Place::Input));
            let _ = pool.map(square, input);
        }
        Place::Env => kill(pool.workers()[0].pid, libc::SIGKILL),
        Place::Encode | Place::DropArgument | Place::Decode | Place::DropResult => {
            let _ = pool.map(echo, (0..10).map(|_| probe()));
        }
    }
}

fn check(place: Place, deed: Deed) {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    let number = NUMBERS.fetch_add(1, SeqCst);
    let (pool, is_done) = (Mutex::default(), AtomicBool::new(false));
    let hook = Arc::new(Hook { place, deed, pool, is_done });
    HOOKS.lock().unwrap().insert(number, Arc::clone(&hook));
    let told = Arc::new(AtomicBool::new(false));
    let (teller, listener, starter) = (Arc::clone(&told), Arc::clone(&hook), Arc::clone(&hook));
    let pool = Pool::builder()
        .workers(1)
        .on_event(move |event| {
            teller.fetch_or(matches!(event.kind, EventKind::CallbackPanicked { .. }), SeqCst);
            listener.call(Place::OnEvent);
        })
        .env_per_worker(move |_| {
            starter.call(Place::Env);
            Vec::new()
        })
        .build()
        .unwrap();
    // Waits for the end of the first worker's events.
    pool.apply(square, 1).unwrap();
    *hook.pool.lock().unwrap() = Some(pool.clone());

    // If it is called on this thread, its panic is this thread's.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| provoke(number, &hook, &pool))) {
        std::mem::forget(payload);
    }
    wait_until("the hook is called", || hook.is_done.load(SeqCst));

    match (deed, pool.apply(square, 3)) {
        (_, Ok(9)) => {}
        (Deed::Close | Deed::Join | Deed::Terminate, Err(error)) => {
            assert_eq!(*error.kind(), TaskErrorKind::Closed);
        }
        (_, other) => panic!("the pool has not gone on: {other:?}"),
    }
    pool.join();
    let panics = matches!(deed, Deed::Panic | Deed::PanicInPayload);
    if panics && matches!(place, Place::Wake | Place::OnDone) {
        assert!(told.load(SeqCst), "nobody was told of the panic before `join` returned");
    }
    hook.pool.lock().unwrap().take();
    HOOKS.lock().unwrap().remove(&number);
}

fn check_all(places: &[Place]) {
    for (place, deed) in places.iter().flat_map(|place| DEEDS.map(|deed| (*place, deed))) {
        let (done, waiter) = channel();
        std::thread::spawn(move || {
            let outcome = catch_unwind(|| check(place, deed));
            done.send(outcome.is_ok()).unwrap();
        });
        match waiter.recv_timeout(2 * SOON) {
            Ok(is_ok) => assert!(is_ok, "{place:?} that does {deed:?} failed"),
            Err(_) => panic!("{place:?} that does {deed:?} hangs"),
        }
    }
}

#[test]
fn wakers_may_use_the_pool_and_panic() {
    check_all(&PLACES[..3]);
}

#[test]
fn callbacks_may_use_the_pool_and_panic() {
    check_all(&PLACES[3..7]);
}

#[test]
fn values_may_use_the_pool_and_panic() {
    check_all(&PLACES[7..]);
}
