//! Trampolines: one per kind of function, compiled for the function's argument and result types.
//!
//! A trampoline holds the loop over a span's items, so that the call is the only indirect one, and
//! decoding and encoding a primitive compile to a load and a store. [`FnRef::task`] and its siblings
//! are the only functions that pair a function with a trampoline.

use std::mem::transmute;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::chunk_run::ChunkRun;
use super::state;
use crate::wire::codec;
use crate::wire::error::CodecError;
use crate::wire::function::{FnRef, ForeignFunction, InitRef, PreloadRef, UnknownFunction};

/// Runs the items of one span: decodes, calls the function, encodes and commits.
///
/// The first argument is the function's address. Only the trampoline knows the function's type.
pub(crate) type Trampoline = unsafe fn(*const (), &mut ChunkRun<'_>);

/// References `function`, to be run by `trampoline`.
///
/// # Safety
///
/// `trampoline` may be called with `function`, or the returned reference is never run as a span.
unsafe fn reference(function: *const (), trampoline: Trampoline) -> Result<FnRef, ForeignFunction> {
    // SAFETY: a `Trampoline`, which fits the function by the caller's promise.
    unsafe { FnRef::new(function, trampoline as *const ()) }
}

/// Returns the function's address and its trampoline in this process.
///
/// # Errors
///
/// When either is outside of this image's code.
pub(crate) fn resolve(function: FnRef) -> Result<(*const (), Trampoline), UnknownFunction> {
    let (function, trampoline) = function.resolve()?;
    // SAFETY: `FnRef::new` was called with a `Trampoline`, in a process whose image was found equal to
    // this one in the handshake. The same trampoline lies at this distance here.
    Ok((function, unsafe { transmute::<*const (), Trampoline>(trampoline) }))
}

impl FnRef {
    /// References `function`, so that a worker can call it with an argument `A` and return an `R`.
    ///
    /// # Errors
    ///
    /// When it is not in the executable's own image.
    pub fn task<A, R>(function: fn(A) -> R) -> Result<Self, ForeignFunction>
    where
        A: DeserializeOwned,
        R: Serialize,
    {
        // SAFETY: a `fn(A) -> R` and its trampoline.
        unsafe { reference(function as *const (), task::<A, R>) }
    }

    /// References `function`, whose call shares a context among its items.
    ///
    /// # Errors
    ///
    /// When it is not in the executable's own image.
    pub fn task_with<C, A, R>(function: fn(&C, A) -> R) -> Result<Self, ForeignFunction>
    where
        C: DeserializeOwned + 'static,
        A: DeserializeOwned,
        R: Serialize,
    {
        // SAFETY: a `fn(&C, A) -> R` and its trampoline.
        unsafe { reference(function as *const (), task_with::<C, A, R>) }
    }

    /// References `function`, which changes a state that `init` creates, and `init`, whose reference
    /// is sent as the call's context.
    ///
    /// # Errors
    ///
    /// When one of them is not in the executable's own image.
    pub fn task_init<S, A, R>(
        init: fn() -> S,
        function: fn(&mut S, A) -> R,
    ) -> Result<(Self, InitRef), ForeignFunction>
    where
        S: 'static,
        A: DeserializeOwned,
        R: Serialize,
    {
        // SAFETY: a `fn(&mut S, A) -> R` and its trampoline. `init` is sent as the context, which only
        // that trampoline reads, as a `fn() -> S`.
        let reference = |function| unsafe { reference(function, task_init::<S, A, R>) };
        Ok((reference(function as *const ())?, InitRef(reference(init as *const ())?)))
    }

    /// References an initializer. The worker keeps its result, which tasks reach with
    /// [`state::with`].
    ///
    /// # Errors
    ///
    /// When it is not in the executable's own image.
    pub fn initializer<A, S>(function: fn(A) -> S) -> Result<Self, ForeignFunction>
    where
        A: DeserializeOwned,
        S: 'static,
    {
        // SAFETY: a `fn(A) -> S` and its trampoline.
        unsafe { reference(function as *const (), initializer::<A, S>) }
    }
}

/// Decodes the argument, calls the preload function, whose address is the first argument, and keeps its result.
pub(crate) type PreloadTrampoline = unsafe fn(*const (), &[u8]) -> Result<(), CodecError>;

/// Returns the preload function's address and its trampoline in this process.
///
/// # Errors
///
/// When either is outside of this image's code.
pub(crate) fn resolve_preload(
    reference: PreloadRef,
) -> Result<(*const (), PreloadTrampoline), UnknownFunction> {
    let (function, trampoline) = reference.0.resolve()?;
    // SAFETY: only `PreloadRef::new` creates one, from a `PreloadTrampoline`, in a process whose image was
    // found equal to this one in the handshake.
    Ok((function, unsafe { transmute::<*const (), PreloadTrampoline>(trampoline) }))
}

impl PreloadRef {
    /// References a preload function. The template keeps its result, and the workers that it forks have it:
    /// tasks reach it with [`state::with`].
    ///
    /// # Errors
    ///
    /// When it is not in the executable's own image.
    pub fn new<A, S>(function: fn(A) -> S) -> Result<Self, ForeignFunction>
    where
        A: DeserializeOwned,
        S: 'static,
    {
        let trampoline: PreloadTrampoline = preload::<A, S>;
        // SAFETY: the reference is never run as a span: the field can only be read in this crate.
        unsafe { FnRef::new(function as *const (), trampoline as *const ()) }.map(Self)
    }
}

/// Runs a `fn(A) -> S` and keeps its result as the process's state.
///
/// # Safety
///
/// `function` is a `fn(A) -> S`.
unsafe fn preload<A, S>(function: *const (), argument: &[u8]) -> Result<(), CodecError>
where
    A: DeserializeOwned,
    S: 'static,
{
    // SAFETY: as promised by the caller.
    let function = unsafe { transmute::<*const (), fn(A) -> S>(function) };
    state::insert(function(codec::decode(argument)?));
    Ok(())
}

/// Runs the items of one span with a `fn(A) -> R`.
///
/// # Safety
///
/// `function` is a `fn(A) -> R`.
unsafe fn task<A, R>(function: *const (), run: &mut ChunkRun<'_>)
where
    A: DeserializeOwned,
    R: Serialize,
{
    // SAFETY: as promised by the caller.
    let function = unsafe { transmute::<*const (), fn(A) -> R>(function) };
    run.run_items(|| Ok(()), |(), argument| function(argument));
}

/// Runs the items of one span with a `fn(&C, A) -> R`.
///
/// # Safety
///
/// `function` is a `fn(&C, A) -> R`.
unsafe fn task_with<C, A, R>(function: *const (), run: &mut ChunkRun<'_>)
where
    C: DeserializeOwned + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    // SAFETY: as promised by the caller.
    let function = unsafe { transmute::<*const (), fn(&C, A) -> R>(function) };
    let Some(context) = run.context() else { return };
    run.run_items(|| context.value(), function);
}

/// Runs the items of one span with a `fn(&mut S, A) -> R`.
///
/// # Safety
///
/// `function` is a `fn(&mut S, A) -> R`, and the context references a `fn() -> S`.
unsafe fn task_init<S, A, R>(function: *const (), run: &mut ChunkRun<'_>)
where
    S: 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    // SAFETY: as promised by the caller.
    let function = unsafe { transmute::<*const (), fn(&mut S, A) -> R>(function) };
    let Some(context) = run.context() else { return };
    run.run_items(
        || context.call_state::<S>(),
        |call_state, argument| call_state.with(|state| function(state, argument)),
    );
}

/// Runs a `fn(A) -> S` and keeps its result as the worker's state.
///
/// # Safety
///
/// `function` is a `fn(A) -> S`.
unsafe fn initializer<A, S>(function: *const (), run: &mut ChunkRun<'_>)
where
    A: DeserializeOwned,
    S: 'static,
{
    // SAFETY: as promised by the caller.
    let function = unsafe { transmute::<*const (), fn(A) -> S>(function) };
    run.run_items(|| Ok(()), |(), argument: A| state::insert(function(argument)));
}
